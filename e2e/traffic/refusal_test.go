package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// wantRefused waits until a client is refused.
func wantRefused(t testing.TB, c client, to netip.AddrPort) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s is refused by %s", c.name, to), func() error {
		if r := c.Connect(to, lab.Timeout(time.Second)); r.Verdict != lab.Refused {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// refusedAtOnce: n connects of a client, each refused within 100 ms, and 100 a second. The control, between any two: a
// connect to a port of another host on which nobody listens, which its kernel refuses without any proxy. Where that
// takes long the machine is busy, and what is asked of the proxy is that it takes no more than five times as long. A
// moment in which the machine stands still hits the one or the other; an agent that leaves refusals to ICMP spoils
// every series, by 1 s a connect beside a control of milliseconds. So one clean series of five is asked for.
func refusedAtOnce(t *testing.T, c client, to, closed netip.AddrPort, n int) {
	t.Helper()
	var spoilt []string
	for range 5 {
		said, clean := series(c, to, closed, n)
		if clean {
			t.Logf("%s: %s; spoilt series before: %q", c.name, said, spoilt)
			return
		}
		spoilt = append(spoilt, said)
	}
	t.Fatalf("%s: no clean series, each refused within 100 ms and 100 a second or five times what the control takes:\n%s",
		c.name, strings.Join(spoilt, "\n"))
}

func series(c client, to, closed netip.AddrPort, n int) (said string, clean bool) {
	var took, control, slowest, slowestControl time.Duration
	for i := range n {
		r, beside := c.Connect(to), c.Connect(closed)
		if r.Verdict != lab.Refused || beside.Verdict != lab.Refused {
			return fmt.Sprintf("connect %d to %s: %s, to the closed port %s: %s; want both refused", i+1, to, r, closed, beside), false
		}
		took, control = took+r.Took, control+beside.Took
		slowest, slowestControl = max(slowest, r.Took), max(slowestControl, beside.Took)
		if r.Took > max(time.Second/2, 5*slowestControl) { // a hundred of these would take minutes
			return fmt.Sprintf("connect %d to %s refused after %s, the control after %s at most", i+1, to, r.Took, slowestControl), false
		}
	}
	return fmt.Sprintf("%d connects to %s refused in %s, the slowest after %s; the control in %s, the slowest after %s",
			n, to, took, slowest, control, slowestControl),
		slowest <= max(100*time.Millisecond, 5*slowestControl) && took <= max(time.Duration(n)*10*time.Millisecond, 5*control)
}

// B15: no endpoint: every client is refused at once on every kind of frontend, over TCP by a reset, so that
// neither ICMP's rate limit nor IPv6's deafness to it shows: 100 connects from one client within a second, each
// refused within 100 ms.
func TestB15NoEndpointsRefused(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.w.Pod("pod-c"))
	svc := everywhere(15)
	daemon(t, s.w.Node(1), svc.Ports[0].NodePort) // it must not answer in the pods' place
	all := func(t *testing.T, f func(t *testing.T, c client, to way)) {
		each(t, func(t *testing.T, family int) {
			for _, to := range s.ways(svc, family) {
				for _, c := range s.clients() {
					f(t, c, to)
				}
			}
		})
	}
	s.apply(svc)
	if !t.Run("never any", func(t *testing.T) {
		all(t, func(t *testing.T, c client, to way) {
			wantRefused(t, c, to.tcp)
			// The first datagram: the kernel limits the rate of what it tells one client.
			if r := c.AskUDP(to.udp); r.Verdict != lab.Refused {
				t.Errorf("%s asks the %s %s over UDP: %s; want refused", c.name, to.kind, to.udp, r)
			}
			refusedAtOnce(t, c, to.tcp, s.closed(c, to), 100)
		})
	}) {
		return // each refusal that does not come is waited for
	}
	t.Run("endpoints come", func(t *testing.T) {
		s.apply(svc, s.w.Pod("pod-c"))
		all(t, func(t *testing.T, c client, to way) {
			answers(t, c.Host, to.tcp)
			if r := c.AskUDP(to.udp); r.Pod != "pod-c" {
				t.Errorf("%s asks the %s %s over UDP: %s; want pod-c", c.name, to.kind, to.udp, r)
			}
		})
	})
	t.Run("endpoints go", func(t *testing.T) {
		s.apply(svc)
		all(t, func(t *testing.T, c client, to way) {
			wantRefused(t, c, to.tcp)
			refusedAtOnce(t, c, to.tcp, s.closed(c, to), 20)
		})
	})
}

// closed is a port of a host without a proxy on which nobody listens, in the family of a way: of a pod on the other
// node, or for the client outside, who has no route to pods, of the wire.
func (s *stage) closed(c client, to way) netip.AddrPort {
	host := s.w.Pod("pod-c").Host
	if c.Host == s.w.Client {
		host = s.w.Wire
	}
	return netip.AddrPortFrom(host.Addr(familyOf(to.tcp)), 7)
}

// B16: a port of a virtual IP that no Service uses is refused, also when a process of the node listens on it,
// over TCP and UDP; and a virtual IP answers to ping.
func TestB16OtherPortsRefused(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	svc := everywhere(16)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	for _, n := range s.w.Nodes {
		daemon(t, n, 9999)
		stop, err := n.ServeUDP("daemon of "+n.Name, 9999)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
	}
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			// The control: the daemon is there and can be reached by the node's own address, over UDP by the one
			// that its answers carry.
			addrs := s.ownAddrs(s.w.Node(1), family, c.Host)
			own := netip.AddrPortFrom(addrs[len(addrs)-1], 9999)
			if r := c.Ask(own); r.Verdict != lab.Answered {
				t.Errorf("%s asks the daemon on the node's own address %s: %s", c.name, own, r)
			}
			if r := c.AskUDP(own); r.Verdict != lab.Answered {
				t.Errorf("%s asks the daemon on the node's own address %s over UDP: %s", c.name, own, r)
			}
			var vips []way
			for _, fe := range s.ways(svc, family) {
				if fe.kind != "NodePort" {
					vips = append(vips, fe)
				}
			}
			otherPortsRefused(t, c, vips)
		}
	})
}

func otherPortsRefused(t *testing.T, c client, vips []way) {
	// Before anything is forwarded to the client: over IPv6, what leaves by the interface by which it came counts
	// against the same limit as the refusals, because a redirect might be due.
	for _, fe := range vips {
		if r := c.AskUDP(netip.AddrPortFrom(fe.udp.Addr(), 9999)); r.Verdict != lab.Refused {
			t.Errorf("%s asks port 9999 of the %s over UDP, which no Service serves: %s; want refused", c.name, fe.kind, r)
		}
	}
	for _, fe := range vips {
		vip := fe.tcp.Addr()
		for _, port := range []uint16{9999, 22, 8080, 53} {
			if r := c.Connect(netip.AddrPortFrom(vip, port)); r.Verdict != lab.Refused {
				t.Errorf("%s connects to port %d of the %s, which no Service serves: %s; want refused", c.name, port, fe.kind, r)
			}
		}
		if err := c.Ping(vip); err != nil {
			t.Errorf("%s pings the %s: %v", c.name, fe.kind, err)
		}
		if r := c.Ask(fe.tcp); r.Verdict != lab.Answered {
			t.Errorf("%s asks the Service itself by the %s: %s", c.name, fe.kind, r)
		}
	}
}
