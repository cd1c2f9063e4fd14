package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// wantSaid waits until an agent's log has a line with all of some words.
func wantSaid(t testing.TB, a *lab.Agent, words ...string) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s says %q", a.Node.Name, words), func() error {
		for line := range strings.Lines(a.Log()) {
			missing := false
			for _, w := range words {
				missing = missing || !strings.Contains(line, w)
			}
			if !missing {
				return nil
			}
		}
		return fmt.Errorf("there is no such line in its log")
	})
}

// unserved: a node has nothing of an address.
func unserved(t testing.TB, n *lab.Node, a netip.Addr) {
	t.Helper()
	if err := isBound(t, n, a, false); err != nil {
		t.Error(err)
	}
	servers, err := n.VirtualServers()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range servers {
		if v.Addr.Addr() == a {
			t.Errorf("%s has the virtual server %s", n.Name, v)
		}
	}
}

// B14: externalIPs are served only by leave: not without --external-ip-cidrs, and with it those that are in its
// ranges. What is left out is said, with Service, field and reason, and does not keep the rest from working.
func TestB14ExternalIPs(t *testing.T) {
	s := newStage(t)
	off, on := s.w.Node(1), s.w.Node(2)
	s.agents = append(s.agents, s.w.StartAgent(t, off, s.cluster),
		s.w.StartAgent(t, on, s.cluster, "--external-ip-cidrs=198.51.100.0/25,fd20:51::/120"))
	svc := external(web(14), 14)
	beyond := []string{"198.51.100.200", "fd20:51::1:14"}
	both := svc
	both.Spec = map[string]any{"externalIPs": append([]string{"198.51.100.14", "fd20:51::14"}, beyond...)}
	s.apply(both, s.pods()...)
	s.ready(both)
	if err := s.w.ClientViaNode(2); err != nil {
		t.Fatal(err)
	}
	for i, a := range beyond {
		wantSaid(t, s.agents[1], "default/web14", "spec.externalIPs: "+a, "--external-ip-cidrs", "not served")
		wantSaid(t, s.agents[0], "default/web14", "spec.externalIPs: "+a, "--external-ip-cidrs", "not served")
		wantSaid(t, s.agents[0], "default/web14", "spec.externalIPs: "+[]string{"198.51.100.14", "fd20:51::14"}[i], "--external-ip-cidrs")
	}
	each(t, func(t *testing.T, family int) {
		to := s.frontends(svc, family)["ExternalIP"]
		for _, c := range []client{{"outside", s.w.Client}, {"pod", s.w.Pod("pod-c").Host}, {"node", on.Host}} {
			answers(t, c.Host, to)
			hits(t, c, to, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1})
		}
		if r := s.w.Client.Ask(to); r.Source == s.w.Client.Addr(family) {
			t.Errorf("outside asks %s: %s; want its address masqueraded", to, r)
		}
		wantBound(t, on, to.Addr(), true)
		unserved(t, off, to.Addr())
		for _, n := range s.w.Nodes {
			unserved(t, n, netip.MustParseAddr(beyond[map[int]int{4: 0, 6: 1}[family]]))
			answers(t, n.Host, at(svc, family, 80))
		}
	})
	plain := svc
	plain.Spec = nil
	s.apply(plain, s.pods()...)
	each(t, func(t *testing.T, family int) {
		wantBound(t, on, externalAddr(svc, family), false)
		wantReals(t, on, s.frontends(svc, family)["ExternalIP"])
		answers(t, on.Host, at(svc, family, 80))
	})
	wantSaid(t, s.agents[0], "in order again", "default/web14")
}
