package traffic

import (
	"net/netip"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// S9: a Service with node ports 30123 (80 to 8080) and 32123 (79 to 80) is reached on every node, also on the
// one that has none of its pods.
func TestS9NodePort(t *testing.T) {
	s := newStage(t, lab.Config{Nodes: 3, Pods: []lab.PodSpec{{Name: "pod-a", Node: 1}, {Name: "pod-b", Node: 1}, {Name: "pod-c", Node: 2}}}).start()
	s.w.ServeHTTP(t, 80, s.pods()...)
	kubia := web(50)
	kubia.Name, kubia.Type = "kubia-nodeport", "NodePort"
	kubia.Ports = []lab.Port{{Name: "http", Port: 80, TargetPort: 8080, NodePort: 30123}, {Name: "admin", Port: 79, TargetPort: 80, NodePort: 32123}}
	s.apply(kubia, s.pods()...)
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			for _, port := range []uint16{30123, 32123} {
				to := netip.AddrPortFrom(n.Addr(family), port)
				answers(t, s.w.Client, to)
				byPod, lost := s.w.Client.Spread(to, 6)
				if len(lost) > 0 || byPod["pod-a"] != 2 || byPod["pod-b"] != 2 || byPod["pod-c"] != 2 {
					t.Errorf("6 requests to %s of %s: %v, lost %v; want 2 of each pod", to, n.Name, byPod, lost)
				}
			}
		}
	})
}

// S11: with externalTrafficPolicy Local an outside client that asks a node is served by the pods of that node,
// without a second hop, and they see the client's own address. The same Service with policy Cluster is the
// control: there it is spread over all pods and seen as the node.
func TestS11ClientAddressKept(t *testing.T) {
	s := newStage(t).start()
	local := web(51)
	local.Name, local.Type = "kubia-local", "NodePort"
	local.Ports = []lab.Port{{Name: "http", Port: 80, TargetPort: 8080, NodePort: 30124}}
	cluster := local
	local.Spec = map[string]any{"externalTrafficPolicy": "Local"}
	here := map[string][]string{"node1": {"pod-a", "pod-b"}, "node2": {"pod-c"}}
	ask := func(t *testing.T, n *lab.Node, family int) (pods map[string]bool, seen map[netip.Addr]bool) {
		t.Helper()
		to := netip.AddrPortFrom(n.Addr(family), 30124)
		answers(t, s.w.Client, to)
		pods, seen = map[string]bool{}, map[netip.Addr]bool{}
		for range 6 {
			r := s.w.Client.Ask(to)
			if r.Verdict != lab.Answered {
				t.Errorf("outside asks %s: %s", to, r)
			}
			pods[r.Pod], seen[r.Source] = true, true
		}
		return pods, seen
	}
	s.apply(local, s.pods()...)
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			pods, seen := ask(t, n, family)
			for _, p := range here[n.Name] {
				if !pods[p] {
					t.Errorf("%s: %s was never reached", n.Name, p)
				}
			}
			if len(pods) != len(here[n.Name]) || len(seen) != 1 || !seen[s.w.Client.Addr(family)] {
				t.Errorf("%s: served by %v, which saw %v; want its own pods and the client's address", n.Name, pods, seen)
			}
		}
	})
	s.apply(cluster, s.pods()...)
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			wantReals(t, n, netip.AddrPortFrom(n.Addr(family), 30124), realsOf(family, s.pods()...)...)
			if pods, seen := ask(t, n, family); len(pods) != 3 || seen[s.w.Client.Addr(family)] {
				t.Errorf("%s, policy Cluster: served by %v, which saw %v; want all pods, and the node's address", n.Name, pods, seen)
			}
		}
	})
}

// realsOf are pods on port 8080 with weight 1, as reals lists them.
func realsOf(family int, pods ...*lab.Pod) (list []string) {
	for _, p := range pods {
		list = append(list, netip.AddrPortFrom(p.Addr(family), 8080).String()+" 1")
	}
	return list
}
