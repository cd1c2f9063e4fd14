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

// refusedAtOnce: n connects of a client, at a rate of at least 100 a second, each refused within 100 ms. A
// machine that stands still for a moment spoils a series; an agent that leaves refusals to ICMP spoils
// every one, by 1 s a connect. So one clean series of five is asked for.
func refusedAtOnce(t *testing.T, c client, to netip.AddrPort, n int) {
	t.Helper()
	var spoilt []string
	for range 5 {
		took, slowest, err := series(c, to, n)
		if err == nil {
			t.Logf("%s: %d connects to %s refused in %s, the slowest after %s; spoilt series before: %q", c.name, n, to, took, slowest, spoilt)
			return
		}
		spoilt = append(spoilt, err.Error())
	}
	t.Errorf("%s to %s: no clean series of %d refusals:\n%s", c.name, to, n, strings.Join(spoilt, "\n"))
}

func series(c client, to netip.AddrPort, n int) (took, slowest time.Duration, err error) {
	began := time.Now()
	for i := range n {
		r := c.Connect(to)
		slowest = max(slowest, r.Took)
		if r.Verdict != lab.Refused || r.Took > 100*time.Millisecond {
			return 0, 0, fmt.Errorf("connect %d: %s; want refused within 100 ms", i+1, r)
		}
	}
	if took = time.Since(began); took > time.Duration(n)*10*time.Millisecond {
		return 0, 0, fmt.Errorf("%d connects took %s, want 100 a second", n, took)
	}
	return took, slowest, nil
}

// B15: no endpoint: every client is refused at once, by a reset, so that neither ICMP's rate limit nor IPv6's
// deafness to it shows: 100 connects from one client within a second, each refused within 100 ms.
func TestB15NoEndpointsRefused(t *testing.T) {
	s := newStage(t).start()
	svc := web(15)
	s.apply(svc)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		for _, c := range s.clients() {
			t.Run(c.name, func(t *testing.T) {
				wantRefused(t, c, to)
				refusedAtOnce(t, c, to, 100)
			})
		}
	})
	t.Run("endpoints come and go", func(t *testing.T) {
		s.apply(svc, s.w.Pod("pod-c"))
		each(t, func(t *testing.T, family int) {
			for _, c := range s.clients() {
				answers(t, c.Host, at(svc, family, 80))
			}
		})
		s.apply(svc)
		each(t, func(t *testing.T, family int) {
			for _, c := range s.clients() {
				wantRefused(t, c, at(svc, family, 80))
				refusedAtOnce(t, c, at(svc, family, 80), 20)
			}
		})
	})
}

// B16: a port of a virtual IP that no Service uses is refused, also when a process of the node listens on it;
// and a virtual IP answers to ping.
func TestB16OtherPortsRefused(t *testing.T) {
	s := newStage(t).start()
	svc := web(16)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	for _, n := range s.w.Nodes {
		stop, err := n.ServeHTTP("daemon of "+n.Name, 9999)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
	}
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			// The control: the daemon is there and can be reached by the node's own address.
			if r := c.Ask(netip.AddrPortFrom(s.w.Node(1).Addr(family), 9999)); r.Verdict != lab.Answered {
				t.Errorf("%s asks the daemon on node1's own address: %s", c.name, r)
			}
			for _, port := range []uint16{9999, 22, 8080} {
				to := at(svc, family, port)
				if r := c.Connect(to); r.Verdict != lab.Refused {
					t.Errorf("%s connects to %s, which no Service serves: %s; want refused", c.name, to, r)
				}
			}
			if err := c.Ping(at(svc, family, 80).Addr()); err != nil {
				t.Errorf("%s pings a virtual IP: %v", c.name, err)
			}
			if r := c.Ask(at(svc, family, 80)); r.Verdict != lab.Answered {
				t.Errorf("%s asks the Service itself: %s", c.name, r)
			}
		}
	})
}
