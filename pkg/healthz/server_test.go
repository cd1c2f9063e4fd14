package healthz

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestB51Address(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""}, {"0.0.0.0:10256", "0.0.0.0:10256"}, {"127.0.0.1", "127.0.0.1:99"}, {"::", "[::]:99"}, {"[::1]:5", "[::1]:5"},
	} {
		if got, err := Address(c.text, 99); err != nil || got != c.want {
			t.Errorf("%q: %q, %v", c.text, got, err)
		}
	}
	for _, text := range []string{":10256", "localhost:10256", "localhost", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:http", "[::1]"} {
		if got, err := Address(text, 99); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// running is a server on a port of the kernel's choice, or on the given one.
type running struct {
	cancel context.CancelFunc
	done   chan error
	logs   *observer.ObservedLogs
}

func run(t *testing.T, s Server) *running {
	core, logs := observer.New(zapcore.InfoLevel)
	s.Name, s.Log = "test", zap.New(core)
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{cancel, make(chan error, 1), logs}
	go func() { r.done <- s.Run(ctx) }()
	return r
}

// address waits until the server says where it serves.
func (r *running) address(t *testing.T) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if said := r.logs.FilterMessage("serving").All(); len(said) > 0 {
			return said[len(said)-1].ContextMap()["address"].(string)
		}
	}
	t.Fatalf("it never served: %v", r.logs.All())
	return ""
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Errorf("stopped: %v", err)
	}
}

func TestB51Server(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	s := run(t, Server{Address: "127.0.0.1:0", Handler: handler})
	at := s.address(t)
	resp, err := http.Get("http://" + at)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()

	hard := run(t, Server{Address: at, HardFail: true})
	if err := <-hard.done; err == nil || !strings.HasPrefix(err.Error(), "test server on "+at+": listen tcp "+at) {
		t.Errorf("an address in use, hard: %v", err)
	}
	soft := run(t, Server{Address: at, Handler: handler})
	for soft.logs.FilterMessage("server cannot listen, trying again").Len() == 0 {
		time.Sleep(time.Millisecond)
	}
	s.stop(t)
	if _, err := net.Dial("tcp", at); err == nil {
		t.Error("a stopped server listens")
	}
	if got := soft.address(t); got != at {
		t.Errorf("it serves on %s, not %s", got, at)
	}
	if n := soft.logs.FilterMessage("server cannot listen, trying again").Len(); n != 1 {
		t.Errorf("said %d times that it cannot listen", n)
	}
	soft.stop(t)

	off := run(t, Server{})
	off.stop(t)
	if off.logs.FilterMessage("server is switched off").Len() != 1 {
		t.Errorf("switched off: %v", off.logs.All())
	}
}

// Row B95: whoever opens a connection and does not ask, or asks by the letter, or does not read, does not keep it.
func TestServerTimeouts(t *testing.T) {
	big := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 1 << 10 {
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	})
	for _, c := range []struct {
		name, sent string
		reads      bool
		within     time.Duration
	}{
		{"says nothing", "", false, headerTime},
		{"never ends its header", "GET / HTTP/1.1\r\nHost: x\r\nX: ", false, headerTime},
		{"does not read", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", false, writeTime},
		{"asks no more", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", true, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, conn := net.Pipe()
				defer client.Close()
				server := newServer(big, newCrowd(), zap.NewNop())
				defer server.Close()
				done := make(chan struct{})
				server.ConnState = func(_ net.Conn, s http.ConnState) {
					if s == http.StateClosed {
						close(done)
					}
				}
				go func() { _ = server.Serve(&oneConn{conn: conn, closed: make(chan struct{})}) }()
				if c.reads {
					go func() { _, _ = io.Copy(io.Discard, client) }()
				}
				began := time.Now()
				if _, err := io.WriteString(client, c.sent); err != nil {
					t.Fatal(err)
				}
				<-done
				if took := time.Since(began); took > c.within+time.Second {
					t.Errorf("the connection lived %v", took)
				}
			})
		})
	}
}

// oneConn is a listener to which one client comes.
type oneConn struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.closed
	return nil, errors.New("closed")
}

func (l *oneConn) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
