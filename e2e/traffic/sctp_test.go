package traffic

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// diameter is a dual-stack SCTP Service on port 3868 with target port 9090, with node ports and load balancer
// addresses.
func diameter(n int) lab.Service {
	svc := web(n)
	svc.Name, svc.Ports = fmt.Sprintf("diameter%d", n), []lab.Port{{Name: "diameter", Protocol: "SCTP", Port: 3868, TargetPort: 9090}}
	return balanced(svc, n)
}

func (s *stage) serveSCTP(pods ...*lab.Pod) {
	s.t.Helper()
	for _, p := range pods {
		if _, err := p.ServeSCTP(p.Name, 9090); err != nil {
			s.t.Fatal(err)
		}
	}
}

// answersSCTP waits until a client's association is served.
func answersSCTP(t *testing.T, c *lab.Host, to netip.AddrPort) lab.Reply {
	t.Helper()
	var r lab.Reply
	lab.Eventually(t, soon, fmt.Sprintf("%s asks %s over SCTP", c.Name, to), func() error {
		if r = c.AskSCTP(to, lab.Timeout(2*time.Second)); r.Verdict != lab.Answered {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	return r
}

// SCTP is balanced like TCP: B10, B11, B12 through every frontend, B26 for every client, B17 for the pod itself.
func TestSCTPFrontends(t *testing.T) {
	s := newStage(t).start()
	far, near := diameter(70), diameter(71)
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	s.serveSCTP(a, c)
	s.apply(far, c)
	s.apply(near, a)
	node := s.w.Node(1)
	each(t, func(t *testing.T, family int) {
		for kind, to := range s.frontends(far, family) {
			for _, cl := range s.clients() {
				want := node.Addr(family)
				if kind == "ClusterIP" && cl.name == "pod" {
					want = cl.Addr(family)
				}
				if r := answersSCTP(t, cl.Host, to); r.Pod != "pod-c" || r.Source != want {
					t.Errorf("%s through %s %s: %s; want pod-c, which sees %s", cl.name, kind, to, r, want)
				}
			}
		}
		for kind, to := range s.frontends(near, family) {
			if r := answersSCTP(t, a.Host, to); r.Pod != "pod-a" {
				t.Errorf("pod-a to itself through %s %s: %s", kind, to, r)
			}
		}
	})
}

// B30 for SCTP: an endpoint that leaves keeps its associations and gets no new ones.
func TestSCTPDrain(t *testing.T) {
	s := newStage(t).start()
	svc := diameter(72)
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	s.serveSCTP(a, c)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 3868)
		s.apply(svc, a)
		wantReals(t, s.w.Node(1), to, netip.AddrPortFrom(a.Addr(family), 9090).String()+" 1")
		answersSCTP(t, s.w.Client, to)
		old := make(chan lab.Reply, 1)
		go func() { old <- s.w.Client.AskSCTP(to, lab.Wait(4*time.Second), lab.Timeout(30*time.Second)) }()
		lab.Eventually(t, soon, "the old association stands", func() error {
			if n := active(t, s.w.Node(1), to, netip.AddrPortFrom(a.Addr(family), 9090).String()); n == 0 {
				return fmt.Errorf("no active connection")
			}
			return nil
		})
		s.apply(svc, c)
		takesNoMore(t, s.w.Node(1), to, netip.AddrPortFrom(a.Addr(family), 9090))
		for range 4 {
			if r := s.w.Client.AskSCTP(to); r.Verdict != lab.Answered || r.Pod != "pod-c" {
				t.Errorf("a new association while pod-a drains: %s; want pod-c", r)
			}
		}
		if r := <-old; r.Verdict != lab.Answered || r.Pod != "pod-a" {
			t.Errorf("the old association: %s; want pod-a's answer", r)
		}
		// The other family begins without the drained one.
		s.apply(svc, c)
	})
}

// B15 for SCTP: over IPv4 a client hears at once that nobody serves. Over IPv6 there is no message that SCTP
// believes: it tries until its own attempts have run out.
func TestSCTPRefused(t *testing.T) {
	s := newStage(t).start()
	svc := diameter(73)
	s.serveSCTP(s.w.Pod("pod-c"))
	s.apply(svc, s.w.Pod("pod-c"))
	for kind, to := range s.frontends(svc, 4) {
		for _, cl := range s.clients() {
			answersSCTP(t, cl.Host, to)
		}
		t.Logf("%s %s is served", kind, to)
	}
	s.apply(svc)
	for kind, to := range s.frontends(svc, 4) {
		for _, cl := range s.clients() {
			var r lab.Reply
			lab.Eventually(t, soon, fmt.Sprintf("%s is refused by %s", cl.name, to), func() error {
				if r = cl.AskSCTP(to, lab.Timeout(time.Second)); r.Verdict != lab.Refused {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			t.Logf("%s through %s: %s", cl.name, kind, r)
		}
	}
	for kind, to := range s.frontends(svc, 6) {
		if r := s.w.Client.AskSCTP(to, lab.Timeout(time.Second)); r.Verdict != lab.TimedOut {
			t.Errorf("outside through %s %s: %s; the documents say that it hears nothing", kind, to, r)
		}
	}
}

// The agent serves SCTP and opens no socket of it: that alone has the kernel load the module sctp on a node where
// nobody uses it.
func TestUpstreamSCTPModule(t *testing.T) {
	s := newStage(t)
	sockets := lab.CountSockets(t, unix.IPPROTO_SCTP)
	s.start()
	svc := diameter(74)
	s.apply(svc, s.w.Pod("pod-c"))
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 3868)
		want := netip.AddrPortFrom(s.w.Pod("pod-c").Addr(family), 9090).String() + " 1"
		for _, n := range s.w.Nodes {
			wantReals(t, n, to, want)
		}
	})
	v4, v6 := s.w.SlicesFor(svc)
	s.cluster.Delete(svc, v4, v6)
	s.wantGone(t, at(svc, 4, 3868))
	if found := sockets.ByProgram(t); len(found) > 0 {
		t.Errorf("sockets of SCTP were opened: %v", found)
	}
	s.serveSCTP(s.w.Pod("pod-c"))
	if found := sockets.ByProgram(t); len(found) != 1 {
		t.Errorf("the control, a server of SCTP in the test itself, was not noticed: %v", found)
	}
}
