package traffic

import (
	"net/netip"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// hostEndpoints are the slices of a Service whose endpoints stand on the nodes' own network.
func hostEndpoints(svc lab.Service, nodes ...*lab.Node) (slices []lab.Object) {
	yes, no := true, false
	for _, family := range []int{4, 6} {
		sl := lab.Slice{Service: svc.Name, Family: family, Ports: svc.Ports}
		for _, n := range nodes {
			sl.Endpoints = append(sl.Endpoints, lab.Endpoint{Addr: n.Addr(family), Node: n.Name, Pod: "host-" + n.Name, Ready: &yes, Serving: &yes, Terminating: &no})
		}
		slices = append(slices, sl)
	}
	return slices
}

// Pods with hostNetwork are endpoints by the node's own address, and clients as the node itself: B10, B11, B12,
// B17 and B26 for them, on their own node and on another. What their server listens on stays reachable by the
// node's address, and is not by another port of a virtual IP.
func TestHostNetwork(t *testing.T) {
	s := newStage(t).start()
	for _, n := range s.w.Nodes {
		stop, err := n.ServeHTTP("host-"+n.Name, 8080)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
	}
	node, other := s.w.Node(1), s.w.Node(2)
	here, there := balanced(web(62), 62), balanced(web(63), 63)
	s.cluster.Apply(append(hostEndpoints(here, node), here)...)
	s.cluster.Apply(append(hostEndpoints(there, other), there)...)
	each(t, func(t *testing.T, family int) {
		for _, c := range []struct {
			svc  lab.Service
			want string
		}{{here, "host-node1"}, {there, "host-node2"}} {
			for kind, to := range s.frontends(c.svc, family) {
				for _, cl := range s.clients() {
					answers(t, cl.Host, to)
					r := cl.Ask(to)
					if r.Verdict != lab.Answered || r.Pod != c.want {
						t.Errorf("%s through %s %s: %s; want %s", cl.name, kind, to, r, c.want)
					}
					if kind == "ClusterIP" && cl.name == "pod" && r.Source != cl.Addr(family) {
						t.Errorf("pod through %s %s is seen as %s, want its own address", kind, to, r.Source)
					}
					if kind != "NodePort" && r.Source == to.Addr() {
						t.Errorf("%s through %s %s is seen as the virtual IP", cl.name, kind, to)
					}
				}
			}
		}
		for _, cl := range s.clients() {
			if r := cl.Ask(netip.AddrPortFrom(node.Addr(family), 8080)); r.Verdict != lab.Answered || r.Pod != "host-node1" {
				t.Errorf("%s asks the node's own address: %s", cl.name, r)
			}
			if r := cl.Connect(at(here, family, 8080)); r.Verdict != lab.Refused {
				t.Errorf("%s asks for the server's own port on the ClusterIP: %s; want it refused", cl.name, r)
			}
		}
	})
}
