package traffic

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

var (
	internalLocal = policies{internalLocal: true}
	externalLocal = policies{externalLocal: true}
)

// internalTrafficPolicy Local with an endpoint on the network of a node: pods and processes of that node reach it,
// those of another do not.
func TestUpstreamInternalLocalHost(t *testing.T) {
	s := newStage(t).start()
	there, here := s.w.Node(2), s.w.Node(1)
	name := daemon(t, there, 8080)
	svc := internalLocal.with(web(160))
	s.cluster.Apply(append(hostEndpoints(svc, there), svc)...)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		for _, c := range []client{{"pod of its node", s.w.Pod("pod-c").Host}, {"its node", there.Host}} {
			becomes(t, c, to, asks[0], family, outcome{pods: []string{name}})
			hits(t, c, to, map[string]int{name: 5})
		}
		for _, c := range []client{{"pod of another node", s.w.Pod("pod-a").Host}, {"another node", here.Host}} {
			becomes(t, c, to, asks[0], family, outcome{dropped: true})
		}
	})
}

// Affinity on a load balancer with externalTrafficPolicy Local: it holds among the pods of the node, and is
// switched live.
func TestUpstreamAffinityLocal(t *testing.T) {
	s := newStage(t).start()
	a := &affine{stage: s, without: externalLocal.with(balanced(web(161), 161))}
	a.with = a.without
	a.with.Spec = map[string]any{"sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local"}
	outside := client{"outside", s.w.Client}
	for _, step := range []string{"work", "switch"} {
		t.Run(step, func(t *testing.T) {
			each(t, func(t *testing.T, family int) {
				to := a.frontends(a.without, family)["LoadBalancer"]
				if step == "switch" {
					s.apply(a.without, s.pods()...)
					a.wantPins(t, asks[0], to, 0)
					becomes(t, outside, to, asks[0], family, outcome{pods: []string{"pod-a", "pod-b"}, kept: true})
				}
				s.apply(a.with, s.pods()...)
				a.wantPins(t, asks[0], to, 10800)
				answers(t, outside.Host, to)
				sticks(t, outside, to)
				if r := outside.Ask(to); r.Pod == "pod-c" || r.Source != outside.Addr(family) {
					t.Errorf("outside asks %s: %s; want a pod of node1, which sees the client's address", to, r)
				}
			})
		})
	}
}

// A UDP client of a ClusterIP with internalTrafficPolicy Local moves on when the server pod of its node cycles.
func TestUpstreamUDPCyclesLocal(t *testing.T) {
	s := newStage(t).start()
	a, b, c := s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	s.serveUDP(5353, a, b, c)
	asker := s.addPod(lab.PodSpec{Name: "asker", Node: 1})
	svc := internalLocal.with(dns(162))
	s.apply(svc, b, c)
	flows := map[int]*lab.Flow{}
	for _, family := range []int{4, 6} {
		answersBy(t, client{"pod", asker.Host}, at(svc, family, 53), asks[1])
		flows[family] = flow(t, asker.Host, at(svc, family, 53))
	}
	failed := map[int]error{}
	step := func(pod string) {
		for family, f := range flows {
			if failed[family] == nil {
				failed[family] = arrives(f, pod)
			}
		}
	}
	step("pod-b")
	s.apply(svc, a, b, c)
	for _, family := range []int{4, 6} {
		takes(t, s.w.Node(1), at(svc, family, 53), netip.AddrPortFrom(a.Addr(family), 5353))
	}
	s.apply(svc, a, c)
	step("pod-a")
	each(t, func(t *testing.T, family int) {
		r := flows[family].Stop()
		if t.Log(r); failed[family] != nil || r.Lost > r.UnderWay() || r.ByPod["pod-c"] > 0 {
			t.Errorf("%v; %s; want one lost at most, and none to another node's pod", failed[family], r)
		}
	})
}

// A rolling update with externalTrafficPolicy Local, pod by pod on the node that the client comes to: no request is
// lost, and none goes to another node.
func TestUpstreamRollingUpdateLocal(t *testing.T) {
	s := newStage(t).start()
	svc := externalLocal.with(balanced(web(163), 163))
	pods := []*lab.Pod{s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")}
	s.apply(svc, pods...)
	to := map[int]netip.AddrPort{}
	for _, family := range []int{4, 6} {
		to[family] = s.frontends(svc, family)["LoadBalancer"]
		answers(t, s.w.Client, to[family])
	}
	loads := map[int]lab.LoadReport{}
	loads[4] = underLoad(t, s.w.Client, to[4], patient, func() {
		loads[6] = underLoad(t, s.w.Client, to[6], patient, func() {
			for i := range 2 {
				old, fresh := pods[0], s.addPod(lab.PodSpec{Name: fmt.Sprintf("fresh-%d", i), Node: 1})
				s.w.ServeHTTP(t, 8080, fresh)
				s.apply(svc, append(slices.Clone(pods), fresh)...)
				for _, family := range []int{4, 6} {
					takes(t, s.w.Node(1), to[family], netip.AddrPortFrom(fresh.Addr(family), 8080))
				}
				pods = append(pods[1:], fresh)
				s.apply(svc, pods...)
				for _, family := range []int{4, 6} {
					takesNoMore(t, s.w.Node(1), to[family], netip.AddrPortFrom(old.Addr(family), 8080))
				}
				s.wantIdle(t, old)
				s.leaves(t, old)
			}
		})
	})
	each(t, func(t *testing.T, family int) {
		r := loads[family]
		if t.Log(r); r.Lost > 0 || r.ByPod["pod-c"] > 0 || r.ByPod["fresh-0"] == 0 || r.ByPod["fresh-1"] == 0 {
			t.Errorf("rolling update: %s; want none lost, none to node2, and both new pods to answer", r)
		}
	})
	wouldNotice(t, s.w.Client, s.w.Node(1), to[4])
}

// Endpoints that terminate and still serve are used where no ready one is in scope, and only there: for the whole
// cluster, or the node's own, by ClusterIP and by node port.
func TestUpstreamTerminating(t *testing.T) {
	s := newStage(t).start()
	c := s.w.Pod("pod-c") // of node2
	one, two := s.w.Node(1), s.w.Node(2)
	outside := client{"outside", s.w.Client}
	here, there := client{"pod of its node", c.Host}, client{"pod of another node", s.w.Pod("pod-a").Host}
	served, none := outcome{pods: []string{"pod-c"}}, outcome{dropped: true}
	for i, row := range []struct {
		name string
		p    policies
		want func(t *testing.T, svc lab.Service, family int)
	}{
		{"internal Cluster", policies{}, func(t *testing.T, svc lab.Service, family int) {
			becomes(t, here, at(svc, family, 80), asks[0], family, served)
			becomes(t, there, at(svc, family, 80), asks[0], family, served)
		}},
		{"internal Local", internalLocal, func(t *testing.T, svc lab.Service, family int) {
			becomes(t, here, at(svc, family, 80), asks[0], family, served)
			becomes(t, there, at(svc, family, 80), asks[0], family, none)
		}},
		{"external Cluster", policies{}, func(t *testing.T, svc lab.Service, family int) {
			for _, n := range []*lab.Node{one, two} {
				becomes(t, outside, netip.AddrPortFrom(n.Addr(family), svc.Ports[0].NodePort), asks[0], family, served)
				becomes(t, here, netip.AddrPortFrom(n.Addr(family), svc.Ports[0].NodePort), asks[0], family, served)
			}
		}},
		{"external Local", externalLocal, func(t *testing.T, svc lab.Service, family int) {
			becomes(t, outside, netip.AddrPortFrom(two.Addr(family), svc.Ports[0].NodePort), asks[0], family, served)
			becomes(t, outside, netip.AddrPortFrom(one.Addr(family), svc.Ports[0].NodePort), asks[0], family, none)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			svc := granular(170+i, false)
			svc.Ports = svc.Ports[:1]
			svc = row.p.with(svc)
			v4, v6 := s.w.SlicesFor(svc, c)
			ends := map[string]bool{"pod-c": true}
			s.cluster.Apply(svc, terminates(v4, ends), terminates(v6, ends))
			each(t, func(t *testing.T, family int) { row.want(t, svc, family) })
		})
	}
}

// Hints as the controller writes them for PreferClose and PreferSameZone, and for PreferSameNode: clients on both
// nodes, each in a zone of its own, get what is near to them, and the rest when that leaves.
func TestUpstreamTopology(t *testing.T) {
	s := newStage(t).start()
	s.setZone(t, s.w.Node(1), "east")
	s.setZone(t, s.w.Node(2), "west")
	svc := web(175)
	a, b, c := s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	d := s.addPod(lab.PodSpec{Name: "pod-d", Node: 2})
	s.w.ServeHTTP(t, 8080, d)
	askers := []client{{"pod of node1", b.Host}, {"node1", s.w.Node(1).Host}, {"pod of node2", d.Host}, {"node2", s.w.Node(2).Host}}
	for _, step := range []struct {
		name         string
		pods         []*lab.Pod
		zones, nodes map[string]string
		one, two     []string // what clients of node1 and node2 get
	}{
		{"same zone, one endpoint each", []*lab.Pod{a, c}, map[string]string{"pod-a": "east", "pod-c": "west"}, nil,
			[]string{"pod-a"}, []string{"pod-c"}},
		{"same zone, several nodes", []*lab.Pod{a, b, c, d}, map[string]string{"pod-a": "east", "pod-b": "west", "pod-c": "east", "pod-d": "west"}, nil,
			[]string{"pod-a", "pod-c"}, []string{"pod-b", "pod-d"}},
		{"same node", []*lab.Pod{a, c}, map[string]string{"pod-a": "east", "pod-c": "west"}, map[string]string{"pod-a": "node1", "pod-c": "node2"},
			[]string{"pod-a"}, []string{"pod-c"}},
		{"same node, or else the zone", []*lab.Pod{a, c, d}, map[string]string{"pod-a": "west", "pod-c": "east", "pod-d": "west"},
			map[string]string{"pod-a": "node1"}, []string{"pod-c"}, []string{"pod-a", "pod-d"}},
		{"the node's endpoint left", []*lab.Pod{c}, map[string]string{"pod-c": "west"}, map[string]string{"pod-c": "node2"},
			[]string{"pod-c"}, []string{"pod-c"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			v4, v6 := s.w.SlicesFor(svc, step.pods...)
			for _, sl := range []lab.Slice{v4, v6} {
				for i, e := range sl.Endpoints {
					sl.Endpoints[i].ForZones = []string{step.zones[e.Pod]}
					if n := step.nodes[e.Pod]; n != "" {
						sl.Endpoints[i].ForNodes = []string{n}
					}
				}
				s.cluster.Apply(sl)
			}
			s.cluster.Apply(svc)
			each(t, func(t *testing.T, family int) {
				for i, asker := range askers {
					want := step.one
					if i >= 2 {
						want = step.two
					}
					becomes(t, asker, at(svc, family, 80), asks[0], family, outcome{pods: want})
				}
			})
		})
	}
}

// What kube-proxy's monitoring asks of each node.
func TestUpstreamURLs(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	programmed(t, s.agents[0])
	each(t, func(t *testing.T, family int) {
		if p := wantCode(t, n.Host, netip.AddrPortFrom(n.Addr(family), 10256), "/healthz", 200); !strings.Contains(p.body, "lastUpdated") {
			t.Errorf("/healthz: %s", p.body)
		}
		if p := wantCode(t, n.Host, netip.AddrPortFrom(loopback, 10249), "/proxyMode", 200); p.body != "ipvs" {
			t.Errorf("/proxyMode: %s", p.body)
		}
	})
}
