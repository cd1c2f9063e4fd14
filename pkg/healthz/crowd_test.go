package healthz

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// served are our three kinds of listeners, each with a page that answers 200, and as the control a server without bounds.
func served(t *testing.T) map[string]struct{ address, page string } {
	r := newRig(t)
	r.SetNode(true)
	metrics, err := r.MetricsHandler(Pages{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]struct{ address, page string }{}
	for name, h := range map[string]http.Handler{"/healthz": r.HealthHandler(), "/metrics": metrics} {
		s := run(t, Server{Address: "127.0.0.1:0", Handler: h})
		t.Cleanup(func() { s.stop(t) })
		out["server of "+name] = struct{ address, page string }{s.address(t), name}
	}
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()
	r.SetCheckAddresses([]netip.Addr{at.Addr()})
	r.SetCheck("prod", "web", Check{Port: at.Port(), Local: [families]int{1}})
	go func() { _ = r.ServeChecks(t.Context(), zap.NewNop()) }()
	out["healthCheckNodePort"] = struct{ address, page string }{at.String(), "/"}
	return out
}

// dial connects, for as long as nobody listens yet again and again.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// ask sends a request and gives status and header of the answer.
func ask(c net.Conn, request string) (int, http.Header, error) {
	if _, err := io.WriteString(c, request); err != nil {
		return 0, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: request[:4]})
	if err != nil {
		return 0, nil, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header, resp.Body.Close()
}

// left counts the connections that the other end has not closed.
func left(conns []net.Conn) (n int) {
	for _, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			n++
		}
	}
	return n
}

// leftSoon is left once no more than the number of a listener are, or after 3 s, less than the time after which silent
// connections are closed anyway: what the server closed is not closed here at the same moment.
func leftSoon(conns []net.Conn) (n int) {
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n = left(conns); n <= mostConnections || time.Now().After(deadline) {
			return n
		}
	}
}

// However many connections somebody opens and leaves, silent, used once or in the middle of a request, each of our listeners
// keeps no more than its number, at once, and answers the next one who asks.
func TestB95Connections(t *testing.T) {
	const many = 3 * mostConnections
	for name, s := range served(t) {
		get := "GET " + s.page + " HTTP/1.1\r\nHost: x\r\n\r\n"
		for what, sent := range map[string]string{"silent": "", "half a request": get[:12]} {
			conns := make([]net.Conn, many)
			for i := range conns {
				conns[i] = dial(t, s.address)
				_, _ = io.WriteString(conns[i], sent)
			}
			if code, _, err := ask(dial(t, s.address), get); err != nil || code != http.StatusOK {
				t.Errorf("%s, %d connections, %s: the next client gets %d, %v", name, many, what, code, err)
			}
			if n := leftSoon(conns); n > mostConnections {
				t.Errorf("%s: %d of %d connections, %s, are left, want %d at most", name, n, many, what, mostConnections)
			}
		}
		conns := make([]net.Conn, many)
		for i := range conns {
			conns[i] = dial(t, s.address)
			if code, _, err := ask(conns[i], get); err != nil || code != http.StatusOK {
				t.Fatalf("%s: connection %d gets %d, %v", name, i, code, err)
			}
		}
		if n := leftSoon(conns); n > mostConnections {
			t.Errorf("%s: %d of %d connections that were used once are left, want %d at most", name, n, many, mostConnections)
		}
	}
	// The control: what net/http does by itself.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := &http.Server{Handler: http.NotFoundHandler()}
	t.Cleanup(func() { _ = plain.Close() })
	go func() { _ = plain.Serve(l) }()
	conns := make([]net.Conn, many)
	for i := range conns {
		conns[i] = dial(t, l.Addr().String())
	}
	if n := left(conns); n != many {
		t.Errorf("control: %d of %d connections are left without a bound", n, many)
	}
}

// Who has to go: the one that was silent for longest; one that is being answered only where there is no other.
func TestB95WhoGoes(t *testing.T) {
	c := &crowd{limit: 3, open: map[net.Conn]visitor{}}
	conns := map[string]net.Conn{}
	names := map[net.Conn]string{}
	hears := func(name string, s http.ConnState, want string) {
		t.Helper()
		if conns[name] == nil {
			conns[name], _ = net.Pipe()
			names[conns[name]] = name
		}
		got := ""
		if out := c.heard(conns[name], s); out != nil {
			got = names[out]
		}
		if got != want {
			t.Errorf("%s becomes %s: %q goes, want %q", name, s, got, want)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		hears(name, http.StateNew, "")
	}
	hears("a", http.StateActive, "")
	hears("a", http.StateIdle, "")
	hears("d", http.StateNew, "b")
	hears("c", http.StateActive, "")
	for _, name := range []string{"a", "d"} {
		hears(name, http.StateActive, "")
		hears(name, http.StateIdle, "")
	}
	hears("e", http.StateNew, "a")
	hears("e", http.StateActive, "")
	hears("d", http.StateActive, "")
	hears("f", http.StateNew, "c")
	hears("f", http.StateClosed, "")
	hears("g", http.StateNew, "")
	if len(c.open) != 3 {
		t.Errorf("%d are counted, want 3", len(c.open))
	}
}

// With few file descriptors most are left to the agent's work.
func TestB95Descriptors(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 64, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	c := newCrowd()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if all := 3 * c.limit; all > 32 || c.limit < 2 {
		t.Errorf("of 64 file descriptors three listeners may take %d", all)
	}
}

// Who does more than look is told so, by every listener, whatever the path.
func TestB95Methods(t *testing.T) {
	for name, s := range served(t) {
		request := func(method, target string) string {
			return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", method, target)
		}
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			if code, _, err := ask(dial(t, s.address), request(method, s.page)); err != nil || code != http.StatusOK {
				t.Errorf("%s: %s %s: %d, %v", name, method, s.page, code, err)
			}
		}
		for _, r := range [][2]string{{"POST", s.page}, {"PUT", s.page}, {"DELETE", s.page}, {"OPTIONS", "*"}, {"TRACE", s.page}, {"PATCH", s.page},
			{"CONNECT", s.page}, {"CONNECT", "x:80"}, {"SOMETHING", s.page}, {"get", s.page}} {
			code, header, err := ask(dial(t, s.address), request(r[0], r[1]))
			if err != nil || code != http.StatusMethodNotAllowed || header.Get("Allow") != "GET, HEAD, OPTIONS" {
				t.Errorf("%s: %s %s: %d, allowed %q, %v", name, r[0], r[1], code, header.Get("Allow"), err)
			}
		}
	}
}
