package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B30: an endpoint that leaves keeps its old connections and gets no new ones, across a restart of the agent
// too; when they have ended it is removed; and one that comes back is used again in place.
func TestB30Drain(t *testing.T) {
	s := newStage(t).start()
	svc := web(36)
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	s.apply(svc, a)
	s.ready(svc)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		addr := func(p *lab.Pod) string { return netip.AddrPortFrom(p.Addr(family), 8080).String() }
		s.apply(svc, a)
		wantReals(t, s.w.Node(1), to, addr(a)+" 1")
		// A request that is answered only long after its endpoint has left.
		old := make(chan lab.Reply, 1)
		go func() { old <- s.w.Client.Ask(to, lab.Wait(4*time.Second), lab.Timeout(30*time.Second)) }()
		lab.Eventually(t, soon, "the old connection stands", func() error {
			if n := active(t, s.w.Node(1), to, addr(a)); n != 1 {
				return fmt.Errorf("%d active connections", n)
			}
			return nil
		})
		s.apply(svc, c)
		wantReals(t, s.w.Node(1), to, addr(a)+" 0", addr(c)+" 1")
		s.restart(0)
		for range 6 {
			if r := s.w.Client.Ask(to); r.Verdict != lab.Answered || r.Pod != "pod-c" {
				t.Errorf("a new connection while pod-a drains: %s; want pod-c", r)
			}
		}
		// Back before the drain is over: the same real server, in place.
		s.apply(svc, a, c)
		wantReals(t, s.w.Node(1), to, addr(a)+" 1", addr(c)+" 1")
		s.apply(svc, c)
		wantReals(t, s.w.Node(1), to, addr(a)+" 0", addr(c)+" 1")
		if r := <-old; r.Verdict != lab.Answered || r.Pod != "pod-a" {
			t.Errorf("the old connection: %s; want pod-a's answer", r)
		}
		lab.Eventually(t, time.Minute, "the drained real server is removed", func() error {
			if got := reals(t, s.w.Node(1), to); len(got) != 1 || got[0] != addr(c)+" 1" {
				return fmt.Errorf("real servers %s", strings.Join(got, ", "))
			}
			return nil
		})
	})
}

// restart stops a node's agent and starts another with the same arguments.
func (s *stage) restart(node int) {
	s.t.Helper()
	if err := s.agents[node].Stop(); err != nil {
		s.t.Fatalf("stop the agent: %v", err)
	}
	s.agents[node] = s.w.StartAgent(s.t, s.w.Nodes[node], s.cluster, s.args...)
	programmed(s.t, s.agents[node])
}
