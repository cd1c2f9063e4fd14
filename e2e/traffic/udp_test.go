package traffic

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// dns is a dual-stack UDP Service on port 53 with target port 5353.
func dns(n int) lab.Service {
	svc := web(n)
	svc.Name, svc.Ports = fmt.Sprintf("dns%d", n), []lab.Port{{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 5353}}
	return svc
}

func (s *stage) serveUDP(port uint16, pods ...*lab.Pod) {
	s.t.Helper()
	for _, p := range pods {
		if _, err := p.ServeUDP(p.Name, port); err != nil {
			s.t.Fatal(err)
		}
	}
}

// flow starts a client that keeps sending from one port.
func flow(t *testing.T, c *lab.Host, to netip.AddrPort) *lab.Flow {
	t.Helper()
	f, err := c.StartFlow(to, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// reaches waits until the flow is answered by a pod, and for n more datagrams sent after that.
func reaches(t *testing.T, f *lab.Flow, pod string, n int) {
	t.Helper()
	lab.Eventually(t, soon, "the flow reaches "+pod, func() error {
		if r := f.Report(); r.Last != pod {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	sent := f.Report().Sent
	lab.Eventually(t, soon, "the flow goes on", func() error {
		if r := f.Report(); r.Sent < sent+n {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// B31: a UDP endpoint is replaced at once and a client that keeps sending from one port loses at most one
// datagram; also when the target port changes.
func TestB31UDPReplaced(t *testing.T) {
	s := newStage(t).start()
	b, c := s.w.Pod("pod-b"), s.w.Pod("pod-c")
	s.serveUDP(5353, b, c)
	s.serveUDP(5454, c)
	svc := dns(53)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 53)
		svc := svc
		s.apply(svc, b)
		var flows []*lab.Flow
		for _, cl := range s.clients() {
			lab.Eventually(t, soon, cl.name+" is served", func() error {
				if r := cl.AskUDP(to, lab.Timeout(time.Second)); r.Pod != "pod-b" {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			flows = append(flows, flow(t, cl.Host, to))
		}
		step := func(pod string) {
			for _, f := range flows {
				reaches(t, f, pod, 20)
			}
		}
		step("pod-b")
		s.apply(svc, c)
		step("pod-c")
		svc.Ports = []lab.Port{{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 5454}}
		s.apply(svc, c)
		wantReals(t, s.w.Node(1), to, netip.AddrPortFrom(c.Addr(family), 5454).String()+" 1")
		step("pod-c")
		for i, cl := range s.clients() {
			r := flows[i].Stop()
			t.Logf("%s: %s", cl.name, r)
			if r.Lost > 2*r.UnderWay() {
				t.Errorf("%s: %s, %d under way at a time; want no more lost in each of 2 removals", cl.name, r, r.UnderWay())
			}
		}
	})
}

// B31: a client that sent before there was a Service, and keeps sending, is served once there is one: the
// conntrack entry that bypasses the virtual server is deleted. And through zero endpoints and back.
func TestB31UDPFromZero(t *testing.T) {
	s := newStage(t).start()
	c := s.w.Pod("pod-c")
	s.serveUDP(5353, c)
	svc := dns(54)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 53)
		// Also after a failure: the other family begins without a Service.
		t.Cleanup(func() {
			v4, v6 := s.w.SlicesFor(svc)
			s.cluster.Delete(svc, v4, v6)
			lab.Eventually(t, soon, "the Service goes", func() error {
				if bound(t, s.w.Node(1), to.Addr()) {
					return fmt.Errorf("still bound")
				}
				return nil
			})
		})
		pod, outside := flow(t, s.w.Pod("pod-a").Host, to), flow(t, s.w.Client, to)
		flows := []*lab.Flow{pod, outside}
		for _, f := range flows {
			lab.Eventually(t, soon, "the flow goes nowhere", func() error {
				if r := f.Report(); r.Sent < 20 || r.Answered > 0 {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
		}
		s.apply(svc, c)
		for _, f := range flows {
			reaches(t, f, "pod-c", 20)
		}
		s.apply(svc)
		for _, f := range flows {
			lab.Eventually(t, soon, "the flow is refused", func() error {
				if r := f.Report(); r.Refused == 0 {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
		}
		s.apply(svc, c)
		for _, f := range flows {
			before := f.Report().Answered
			lab.Eventually(t, soon, "the flow is answered again", func() error {
				if r := f.Report(); r.Answered < before+10 {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			t.Log(f.Stop())
		}
	})
}

// B31: a pod leaves a UDP Service, answers a client late, when IPVS has forgotten the connection, and comes back. The
// entry that the answer made is the reply of the client's next connection to the pod, which the kernel would not let
// begin until that entry has timed out, after 30 s: seen on Linux 6.12 and 7.2, not on 6.1.
func TestB31LateAnswer(t *testing.T) {
	s := newStage(t).start()
	a, b, c := s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	s.serveUDP(5353, c)
	each(t, func(t *testing.T, family int) {
		svc := dns(31)
		serve := func() (stop func()) {
			stop, err := a.ServeUDP(a.Name, 5353)
			if err != nil {
				t.Fatal(err)
			}
			return stop
		}
		stop := serve()
		s.apply(svc, a)
		f := flow(t, b.Host, at(svc, family, 53))
		reaches(t, f, "pod-a", 3)
		s.apply(svc, c)
		reaches(t, f, "pod-c", 3)
		stop()
		// Nobody answers: the client's socket hears from the Service alone.
		answer := a.AskUDP(netip.AddrPortFrom(b.Addr(family), f.Port()), lab.FromPort(5353), lab.Timeout(200*time.Millisecond))
		if answer.Verdict == lab.Answered {
			t.Fatalf("the late answer: %s", answer)
		}
		defer serve()()
		s.apply(svc, a)
		reaches(t, f, "pod-a", 3)
		// The fault's silence lasts for 30 s whatever the machine; how long a change takes is the machine's.
		const fault = 30 * time.Second
		if r := f.Stop(); r.Lost > int(fault/r.Every)/2 {
			t.Errorf("%s; want half of %s of silence at most", r, fault)
		} else {
			t.Logf("%s", r)
		}
	})
}
