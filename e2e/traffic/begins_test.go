package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B89: six nodes get eight Services, and each sends each its first request: they do not meet in one pod. With the scheduler
// mh, which finds the pod by a hash, the real servers come in one order on all nodes.
func TestB89BeginsElsewhere(t *testing.T) {
	for _, scheduler := range []string{"rr", "mh"} {
		t.Run(scheduler, func(t *testing.T) {
			s := newStage(t, lab.Config{Nodes: 6}).start("--ipvs-scheduler=" + scheduler)
			var services []lab.Service
			for n := 80; n < 88; n++ {
				services = append(services, web(n))
				s.apply(web(n), s.pods()...)
			}
			each(t, func(t *testing.T, family int) {
				begin := map[string]int{} // in all
				for _, svc := range services {
					first, orders := s.firstRequests(t, at(svc, family, 80))
					t.Logf("%s: first requests %v, orders %v", at(svc, family, 80), first, slices.Sorted(maps.Keys(orders)))
					if scheduler == "mh" && len(orders) != 1 {
						t.Errorf("%s: the nodes have %d orders: %v", at(svc, family, 80), len(orders), orders)
					}
					for pod, n := range first {
						if begin[pod] += n; scheduler == "rr" && n == len(s.w.Nodes) {
							t.Errorf("%s: all %d nodes begin with %s", at(svc, family, 80), n, pod)
						}
					}
				}
				if scheduler == "rr" && (len(begin) != 3 || slices.Max(slices.Collect(maps.Values(begin))) > 24) {
					t.Errorf("48 first requests: %v", begin)
				}
			})
		})
	}
}

// firstRequests has each node send a frontend its first request, and counts the pods that answered, and the orders in which
// the nodes have the pods.
func (s *stage) firstRequests(t *testing.T, to netip.AddrPort) (first, orders map[string]int) {
	t.Helper()
	family := map[bool]int{true: 4, false: 6}[to.Addr().Is4()]
	first, orders = map[string]int{}, map[string]int{}
	for _, n := range s.w.Nodes {
		var want []string
		for _, p := range s.pods() {
			want = append(want, netip.AddrPortFrom(p.Addr(family), 8080).String()+" 1")
		}
		wantReals(t, n, to, want...)
		lab.Eventually(t, soon, "the virtual IP is bound", func() error { return isBound(t, n, to.Addr(), true) })
		orders[order(t, n, to)]++
		r := n.Ask(to)
		if r.Verdict != lab.Answered {
			t.Fatalf("%s: %s", n.Name, r)
		}
		first[r.Pod]++
	}
	return first, orders
}

// order is that of a frontend's real servers as the kernel has them.
func order(t *testing.T, n *lab.Node, vip netip.AddrPort) (list string) {
	t.Helper()
	servers, err := n.VirtualServers()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		for _, r := range s.Reals {
			if s.Addr == vip {
				list += fmt.Sprint(r.Addr, " ")
			}
		}
	}
	return list
}
