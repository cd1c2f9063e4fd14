package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// timeoutOfControls is long enough to tell silence from a slow answer.
const timeoutOfControls = 1500 * time.Millisecond

// serveRaw hands each connection to a port to f.
func serveRaw(t *testing.T, h *Host, port uint16, f func(net.Conn)) {
	t.Helper()
	acceptRaw(t, h, 0, netip.Addr{}, port, f)
}

func acceptRaw(t *testing.T, h *Host, proto int, addr netip.Addr, port uint16, f func(net.Conn)) {
	t.Helper()
	ln, err := h.listen(proto, addr, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f(c)
		}
	}()
}

// readRequest takes what the client sends, so that closing is not a reset.
func readRequest(c net.Conn) { c.Read(make([]byte, 4096)) }

func TestVerdicts(t *testing.T) {
	w := NewWithoutIPVS(t)
	a, b, c := w.Pod("pod-a"), w.Pod("pod-b"), w.Pod("pod-c")
	w.ServeHTTP(t, 8080, b, c)
	addRule(t, b.Host, nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Verdict{Kind: expr.VerdictDrop})
	serveRaw(t, c.Host, 8081, func(conn net.Conn) {
		readRequest(conn)
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	})
	serveRaw(t, c.Host, 8082, func(conn net.Conn) { readRequest(conn); conn.Close() })
	serveRaw(t, c.Host, 8083, func(conn net.Conn) {
		readRequest(conn)
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		conn.Close()
	})
	families46(t, func(t *testing.T, family int) {
		for _, test := range []struct {
			what       string
			from       *Host
			to         netip.AddrPort
			want       Verdict
			connects   bool
			fromBefore time.Duration
		}{
			{what: "served", from: a.Host, to: at(c.Host, family, 8080), want: Answered, connects: true},
			{what: "closed port", from: a.Host, to: at(c.Host, family, 81), want: Refused},
			{what: "dropped", from: a.Host, to: at(b.Host, family, 8080), want: TimedOut, fromBefore: timeoutOfControls},
			{what: "reset", from: a.Host, to: at(c.Host, family, 8081), want: Reset, connects: true},
			{what: "closed without an answer", from: a.Host, to: at(c.Host, family, 8082), want: Failed, connects: true},
			{what: "other server", from: a.Host, to: at(c.Host, family, 8083), want: Failed, connects: true},
			{what: "no route", from: w.Client, to: at(c.Host, family, 8080), want: Unreachable},
		} {
			r, control := test.from.Ask(test.to, Timeout(timeoutOfControls)), a.Ask(at(c.Host, family, 8080))
			// Each is known at once, or when its time is over: a second later at most, where an answer does not take long.
			within := test.fromBefore + max(time.Second, 10*control.Took)
			if r.Verdict != test.want || r.Took > within || r.Took < test.fromBefore {
				t.Errorf("%s: %s, want %s between %s and %s; the control: %s", test.what, r, test.want, test.fromBefore, within, control)
			}
			if (r.Err == nil) != (test.want == Answered) {
				t.Errorf("%s: error %v", test.what, r.Err)
			}
			want := test.want
			if test.connects {
				want = Answered
			}
			if r := test.from.Connect(test.to, Timeout(timeoutOfControls)); r.Verdict != want {
				t.Errorf("%s: connect: %s, want %s", test.what, r, want)
			}
		}
	})
}

func TestAskOptions(t *testing.T) {
	w := NewWithoutIPVS(t)
	n, c := w.Node(1), w.Pod("pod-c")
	w.ServeHTTP(t, 8080, c)
	to := at(c.Host, 4, 8080)
	if r := n.Ask(to, From(n.Gateway4), FromPort(33333)); r.Source != n.Gateway4 || r.LocalPort != 33333 {
		t.Errorf("from %s port 33333: %s, port %d", n.Gateway4, r, r.LocalPort)
	}
	if r := n.Ask(to, FromPort(33333)); r.Source != n.V4 || r.LocalPort != 33333 {
		t.Errorf("the port again: %s, port %d", r, r.LocalPort)
	}
	if r := n.Ask(to); r.Source != n.V4 || r.LocalPort == 0 {
		t.Errorf("without options: %s, port %d", r, r.LocalPort)
	}
	if r := n.Ask(to, Wait(300*time.Millisecond), Path("/x?y=z")); r.Verdict != Answered || r.Took < 300*time.Millisecond {
		t.Errorf("answer held back: %s", r)
	}
	if r := n.Ask(to, Wait(time.Minute), Timeout(300*time.Millisecond)); r.Verdict != TimedOut {
		t.Errorf("answer held back too long: %s", r)
	}
}

// The end of a server ends what it has not answered, and frees the port.
func TestServerStops(t *testing.T) {
	w := NewWithoutIPVS(t)
	c := w.Pod("pod-c")
	to := at(c.Host, 4, 8080)
	stop, err := c.ServeHTTP(8080)
	if err != nil {
		t.Fatal(err)
	}
	held := make(chan Reply)
	go func() { held <- w.Pod("pod-a").Ask(to, Wait(time.Minute), Timeout(time.Minute)) }()
	Eventually(t, 30*time.Second, "a connection under way", func() error {
		if r := w.Pod("pod-a").Ask(to); r.Verdict != Answered {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	stop()
	if r := <-held; r.Verdict == Answered || r.Took > 30*time.Second {
		t.Errorf("the question under way: %s", r)
	}
	if r := w.Pod("pod-a").Ask(to); r.Verdict != Refused {
		t.Errorf("after the end: %s", r)
	}
	w.ServeHTTP(t, 8080, c)
	if r := w.Pod("pod-a").Ask(to); r.Verdict != Answered {
		t.Errorf("served again: %s", r)
	}
}

func TestPing(t *testing.T) {
	w := NewWithoutIPVS(t)
	families46(t, func(t *testing.T, family int) {
		if err := w.Pod("pod-a").Ping(w.Pod("pod-c").Addr(family)); err != nil {
			t.Error(err)
		}
		if err := w.Client.Ping(w.Pod("pod-c").Addr(family)); verdict(err) != Unreachable {
			t.Errorf("control, no route: %v", err)
		}
		nobody := map[int]string{4: "10.244.2.77", 6: "fd10:244:2::77"}[family]
		if err := w.Pod("pod-a").Ping(netip.MustParseAddr(nobody), Timeout(300*time.Millisecond)); err == nil {
			t.Error("control: an address that nobody has answers")
		}
	})
}

func TestCount(t *testing.T) {
	byPod, lost := count([]Reply{{Pod: "a"}, {Pod: "b"}, {Pod: "a"}, {Verdict: TimedOut}, {Verdict: Refused}, {Pod: "a"}})
	if diff := cmp.Diff(map[string]int{"a": 3, "b": 1}, byPod); diff != "" {
		t.Error(diff)
	}
	if len(lost) != 2 || lost[0].Verdict != TimedOut || lost[1].Verdict != Refused {
		t.Errorf("lost: %v", lost)
	}
}

func TestSpread(t *testing.T) {
	w := NewWithoutIPVS(t)
	w.ServeHTTP(t, 8080, w.Pod("pod-b"))
	byPod, lost := w.Pod("pod-a").Spread(at(w.Pod("pod-b").Host, 4, 8080), 7)
	if diff := cmp.Diff(map[string]int{"pod-b": 7}, byPod); diff != "" || len(lost) > 0 {
		t.Error(diff, lost)
	}
	byPod, lost = w.Pod("pod-a").Spread(at(w.Pod("pod-b").Host, 4, 81), 3)
	if len(byPod) != 0 || len(lost) != 3 {
		t.Errorf("control, closed port: %v %v", byPod, lost)
	}
}

func TestReplyString(t *testing.T) {
	for want, r := range map[string]Reply{
		"pod-a answered 10.0.0.1 in 2ms":         {Pod: "pod-a", Source: netip.MustParseAddr("10.0.0.1"), Took: 2 * time.Millisecond},
		"answered after 2ms":                     {Took: 2 * time.Millisecond},
		"timed out after 3s":                     {Verdict: TimedOut, Took: 3 * time.Second, Err: os.ErrDeadlineExceeded},
		"refused after 1ms (connection refused)": {Verdict: Refused, Took: time.Millisecond, Err: unix.ECONNREFUSED},
	} {
		if got := r.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if s := Verdict(17).String(); !strings.Contains(s, "17") {
		t.Error(s)
	}
}

func BenchmarkAsk(b *testing.B) {
	w := NewWithoutIPVS(b)
	w.ServeHTTP(b, 8080, w.Pod("pod-c"))
	b.ReportAllocs()
	for b.Loop() {
		if r := w.Pod("pod-a").Ask(netip.AddrPortFrom(w.Pod("pod-c").V4, 8080)); r.Err != nil {
			b.Fatal(r)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	needPrivileges(b)
	for b.Loop() {
		w, err := Build(Config{})
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
