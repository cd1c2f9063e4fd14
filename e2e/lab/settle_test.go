package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// retransmissions counts the SYNs that a host sent more than once. Other
// segments are repeated without a loss, too, where the processor is busy.
func retransmissions(t *testing.T, h *Host) (n int) {
	t.Helper()
	err := h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		var names, values []string
		for line := range strings.Lines(string(b)) {
			if fields := strings.Fields(line); fields[0] == "TcpExt:" {
				names, values = values, fields
			}
		}
		for i, name := range names {
			if name == "TCPSynRetrans" {
				_, err := fmt.Sscan(values[i], &n)
				return err
			}
		}
		return fmt.Errorf("no TCPSynRetrans in %q", b)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The first packets through a new world must arrive: what settled waits for.
func TestReadyAtOnce(t *testing.T) {
	for range 10 {
		w := NewWithoutIPVS(t)
		d, err := w.AddPod(PodSpec{Name: "pod-d", Node: 2})
		if err != nil {
			t.Fatal(err)
		}
		w.ServeHTTP(t, 8080, w.Pod("pod-b"), w.Pod("pod-c"), d)
		for _, from := range []*Host{w.Pod("pod-a").Host, w.Node(1).Host, d.Host} {
			for _, to := range []*Pod{w.Pod("pod-c"), d, w.Pod("pod-b")} {
				for _, family := range []int{6, 4} {
					if r := from.Ask(at(to.Host, family, 8080)); r.Pod != to.Name {
						t.Errorf("%s asked %s: %s", from.Name, to.Name, r)
					}
				}
			}
			if n := retransmissions(t, from); n != 0 {
				t.Errorf("%s sent %d SYNs again", from.Name, n)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRetransmissionsAreSeen(t *testing.T) {
	w := NewWithoutIPVS(t)
	a, c := w.Pod("pod-a"), w.Pod("pod-c")
	if err := w.Node(2).Sysctl("net/ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	if r := a.Ask(netip.AddrPortFrom(c.V4, 8080), Timeout(1500*time.Millisecond)); r.Verdict != TimedOut {
		t.Errorf("through a node that does not forward: %s", r)
	}
	before := retransmissions(t, a.Host)
	if before == 0 {
		t.Error("control: no retransmission of an unanswered SYN")
	}
	// The reply itself says so, too: an answer, and a reset, whether or not the client knew by then that it was connected.
	w.ServeHTTP(t, 8080, c)
	resetAll(t, c.Host, 8081)
	for port, want := range map[uint16]Verdict{8080: Answered, 8081: Reset} {
		if err := w.Node(2).Sysctl("net/ipv4/ip_forward", "0"); err != nil {
			t.Fatal(err)
		}
		before := retransmissions(t, a.Host)
		reply := make(chan Reply)
		go func() { reply <- a.Ask(netip.AddrPortFrom(c.V4, port), Timeout(time.Minute)) }()
		Eventually(t, 20*time.Second, "the SYN is sent again", func() error {
			if retransmissions(t, a.Host) == before {
				return errors.New("not yet")
			}
			return nil
		})
		if err := w.Node(2).Sysctl("net/ipv4/ip_forward", "1"); err != nil {
			t.Fatal(err)
		}
		if r := <-reply; r.Verdict != want || !r.Again {
			t.Errorf("%s, SYN sent again: %t; want verdict %d after one that was", r, r.Again, want)
		}
	}
	if r := a.Ask(netip.AddrPortFrom(c.V4, 8080)); r.Verdict != Answered || r.Again && r.Took < time.Second {
		t.Errorf("%s, SYN sent again: %t; want an answer to the first", r, r.Again)
	}
}

// resetAll resets each connection to a port as soon as it stands.
func resetAll(t *testing.T, h *Host, port uint16) {
	t.Helper()
	l, err := h.listen(0, netip.IPv4Unspecified(), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	}()
}
