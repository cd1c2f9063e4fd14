package traffic

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// serviceStories are the lives of one Service each. Each is told once a family, on a stage that they share: it
// begins without the Service and ends without it.
var serviceStories = []struct {
	name string
	tell func(t *testing.T, s *stage, family int)
}{
	{"basic endpoint", basicEndpoint},
	{"multiport endpoints", multiportEndpoints},
	{"ports added and deleted", portsAddedAndDeleted},
	{"up and down", upAndDown},
	{"recreated", recreated},
	{"NodePort over two protocols", nodePortTwoProtocols},
	{"one port, two protocols", onePortTwoProtocols(func(svc lab.Service) lab.Service { return svc })},
	{"one port, two protocols of a LoadBalancer", onePortTwoProtocols(func(svc lab.Service) lab.Service { return balanced(svc, 128) })},
	{"headless label on slices", headlessLabel},
	{"ExternalName to NodePort and back", externalNameToNodePort},
	{"unready pods", unreadyPods},
	{"publishNotReadyAddresses", publishNotReady},
	{"not ready and terminating", notReadyAndTerminating},
	{"evicted pods", evictedPods},
	{"another service range", anotherRange},
	{"no SNAT between pods", noSNATBetweenPods},
	{"life of a load balancer over http", lifeOfLoadBalancer(protocols[0], 135, 8080)},
	{"life of a load balancer over udp", lifeOfLoadBalancer(protocols[1], 136, 5353)},
	{"load balancer without node port", balancerWithoutNodePort},
}

func TestUpstreamServices(t *testing.T) {
	s := newStage(t).start()
	s.serveUDP(5353, s.pods()...)
	for _, p := range s.pods() {
		if _, err := p.Host.ServeHTTP(on9090(p), 9090); err != nil {
			t.Fatal(err)
		}
	}
	for _, story := range serviceStories {
		t.Run(story.name, func(t *testing.T) {
			each(t, func(t *testing.T, family int) { story.tell(t, s, family) })
		})
	}
}

// from is a pod that asks.
func (s *stage) from() client { return client{"pod", s.w.Pod("pod-a").Host} }

// ends takes a Service and its slices away and waits until nothing of it is left.
func (s *stage) ends(t *testing.T, svc lab.Service, family int) {
	t.Helper()
	v4, v6 := s.w.SlicesFor(svc)
	s.cluster.Delete(svc, v4, v6)
	s.wantGone(t, at(svc, family, svc.Ports[0].Port))
}

// serves: a pod that asks a Service gets exactly these pods, in turn, and nobody where there are none.
func (s *stage) serves(t *testing.T, to netip.AddrPort, pods ...string) {
	t.Helper()
	if len(pods) == 0 {
		wantRefused(t, s.from(), to)
		return
	}
	var list []*lab.Pod
	for _, p := range pods {
		list = append(list, s.w.Pod(p))
	}
	s.wantServing(t, to, list...)
	turns(t, s.from(), to, asks[0], pods...)
}

func basicEndpoint(t *testing.T, s *stage, family int) {
	svc := web(120)
	b, c, to := s.w.Pod("pod-b"), s.w.Pod("pod-c"), at(svc, family, 80)
	s.apply(svc)
	s.serves(t, to)
	s.apply(svc, b)
	s.serves(t, to, "pod-b")
	s.apply(svc, b, c)
	s.serves(t, to, "pod-b", "pod-c")
	s.apply(svc, c)
	s.serves(t, to, "pod-c")
	s.apply(svc)
	s.serves(t, to)
	s.ends(t, svc, family)
}

// twoPorts are a Service with a port for each of two pods, which say so in slices of their own.
func twoPorts(n int) lab.Service {
	svc := web(n)
	svc.Ports = []lab.Port{{Name: "one", Port: 80, TargetPort: 8080}, {Name: "two", Port: 81, TargetPort: 8080}}
	return svc
}

// behind gives one port of a Service its pods.
func (s *stage) behind(svc lab.Service, port int, pods ...*lab.Pod) {
	s.t.Helper()
	v4, v6 := s.w.SlicesFor(svc, pods...)
	for _, sl := range []lab.Slice{v4, v6} {
		sl.Name = fmt.Sprintf("%s-port%d-ipv%d", svc.Name, port, sl.Family)
		sl.Ports = svc.Ports[port : port+1]
		s.cluster.Apply(sl)
	}
}

func (s *stage) endsBehind(t *testing.T, svc lab.Service, family int) {
	t.Helper()
	for port := range svc.Ports {
		for _, f := range []int{4, 6} {
			s.cluster.Delete(lab.Slice{Service: svc.Name, Name: fmt.Sprintf("%s-port%d-ipv%d", svc.Name, port, f), Family: f})
		}
	}
	s.cluster.Delete(svc)
	s.wantGone(t, at(svc, family, 80))
}

func multiportEndpoints(t *testing.T, s *stage, family int) {
	svc := twoPorts(121)
	b, c := s.w.Pod("pod-b"), s.w.Pod("pod-c")
	one, two := at(svc, family, 80), at(svc, family, 81)
	s.cluster.Apply(svc)
	for _, step := range []struct {
		one, two []*lab.Pod
	}{{nil, nil}, {[]*lab.Pod{b}, nil}, {[]*lab.Pod{b}, []*lab.Pod{c}}, {nil, []*lab.Pod{c}}, {nil, nil}} {
		s.behind(svc, 0, step.one...)
		s.behind(svc, 1, step.two...)
		s.serves(t, one, names(step.one)...)
		s.serves(t, two, names(step.two)...)
	}
	s.endsBehind(t, svc, family)
}

func names(pods []*lab.Pod) (list []string) {
	for _, p := range pods {
		list = append(list, p.Name)
	}
	return list
}

func portsAddedAndDeleted(t *testing.T, s *stage, family int) {
	both := twoPorts(122)
	svc := both
	svc.Ports = both.Ports[:1]
	s.cluster.Apply(svc)
	s.behind(both, 0, s.w.Pod("pod-b"))
	s.serves(t, at(svc, family, 80), "pod-b")
	s.serves(t, at(svc, family, 81))
	s.cluster.Apply(both)
	s.behind(both, 1, s.w.Pod("pod-c"))
	s.serves(t, at(svc, family, 80), "pod-b")
	s.serves(t, at(svc, family, 81), "pod-c")
	s.cluster.Apply(svc)
	s.serves(t, at(svc, family, 81))
	s.serves(t, at(svc, family, 80), "pod-b")
	s.endsBehind(t, both, family)
}

func upAndDown(t *testing.T, s *stage, family int) {
	one, two, three := web(123), web(124), web(125)
	all := names(s.pods())
	s.apply(one, s.pods()...)
	s.apply(two, s.pods()...)
	s.serves(t, at(one, family, 80), all...)
	s.serves(t, at(two, family, 80), all...)
	s.ends(t, one, family)
	s.serves(t, at(two, family, 80), all...)
	s.apply(three, s.pods()...)
	s.serves(t, at(two, family, 80), all...)
	s.serves(t, at(three, family, 80), all...)
	s.ends(t, two, family)
	s.ends(t, three, family)
}

func recreated(t *testing.T, s *stage, family int) {
	svc := web(126)
	for range 2 {
		s.apply(svc, s.pods()...)
		s.serves(t, at(svc, family, 80), names(s.pods())...)
		s.ends(t, svc, family)
	}
}

func nodePortTwoProtocols(t *testing.T, s *stage, family int) {
	svc := web(127)
	s.apply(svc, s.pods()...)
	s.serves(t, at(svc, family, 80), names(s.pods())...)
	ports := granular(127, false)
	ports.Ports = ports.Ports[:1]
	s.apply(ports, s.pods()...)
	to := netip.AddrPortFrom(s.w.Node(2).Addr(family), ports.Ports[0].NodePort)
	turns(t, s.from(), to, asks[0], names(s.pods())...)
	ports.Ports = append(ports.Ports, lab.Port{Name: "udp", Protocol: "UDP", Port: 80, TargetPort: 5353, NodePort: ports.Ports[0].NodePort})
	s.apply(ports, s.pods()...)
	for _, by := range []asking{asks[1], asks[0]} {
		turns(t, s.from(), to, by, names(s.pods())...)
		turns(t, s.from(), at(ports, family, 80), by, names(s.pods())...)
	}
	s.ends(t, ports, family)
}

// onePortTwoProtocols is asked of a ClusterIP, whatever the Service's type, inside the cluster.
func onePortTwoProtocols(as func(lab.Service) lab.Service) func(*testing.T, *stage, int) {
	return func(t *testing.T, s *stage, family int) {
		svc := web(128)
		tcp, udp := svc.Ports[0], lab.Port{Name: "udp", Protocol: "UDP", Port: 80, TargetPort: 5353}
		put := func(ports ...lab.Port) {
			svc.Ports = ports
			svc = as(svc)
			s.apply(svc, s.pods()...)
		}
		all, to := names(s.pods()), at(svc, family, 80)
		put(tcp, udp)
		turns(t, s.from(), to, asks[0], all...)
		turns(t, s.from(), to, asks[1], all...)
		put(tcp)
		s.wantNothing(t, svc, asks[1], 80)
		turns(t, s.from(), to, asks[0], all...)
		put(udp)
		s.wantNothing(t, svc, asks[0], 80)
		turns(t, s.from(), to, asks[1], all...)
		s.ends(t, svc, family)
	}
}

func headlessLabel(t *testing.T, s *stage, family int) {
	svc := web(129)
	for _, labels := range []map[string]string{nil, {"service.kubernetes.io/headless": ""}, nil} {
		v4, v6 := s.w.SlicesFor(svc, s.w.Pod("pod-b"))
		v4.Labels, v6.Labels = labels, labels
		s.cluster.Apply(svc, v4, v6)
		if labels == nil {
			s.serves(t, at(svc, family, 80), "pod-b")
		} else {
			s.serves(t, at(svc, family, 80))
		}
	}
	s.ends(t, svc, family)
}

func externalNameToNodePort(t *testing.T, s *stage, family int) {
	svc := granular(138, false)
	svc.Ports = svc.Ports[:1]
	external := svc
	external.Type, external.ClusterIPs, external.Ports = "ExternalName", nil, nil
	external.Spec = map[string]any{"externalName": "example.com"}
	to := netip.AddrPortFrom(s.w.Node(2).Addr(family), svc.Ports[0].NodePort)
	s.apply(svc, s.pods()...) // slices; those of an ExternalName stay unused
	for range 2 {
		s.cluster.Apply(external)
		s.wantGone(t, at(svc, family, 80))
		wantRefused(t, s.from(), to)
		s.cluster.Apply(svc)
		s.serves(t, at(svc, family, 80), names(s.pods())...)
		turns(t, s.from(), to, asks[0], names(s.pods())...)
	}
	s.ends(t, svc, family)
}

// conditioned gives a Service pod-b as its only endpoint, in a state.
func (s *stage) conditioned(svc lab.Service, ready, serving, terminating bool) {
	s.t.Helper()
	v4, v6 := s.w.SlicesFor(svc, s.w.Pod("pod-b"))
	for _, sl := range []lab.Slice{v4, v6} {
		e := &sl.Endpoints[0]
		e.Ready, e.Serving, e.Terminating = &ready, &serving, &terminating
		s.cluster.Apply(sl)
	}
	s.cluster.Apply(svc)
}

func unreadyPods(t *testing.T, s *stage, family int) {
	svc := web(130)
	to := at(svc, family, 80)
	s.conditioned(svc, false, false, false)
	s.serves(t, to)
	s.conditioned(svc, true, true, false) // unready ones are tolerated now
	s.serves(t, to, "pod-b")
	s.conditioned(svc, false, false, false)
	s.serves(t, to)
	s.conditioned(svc, true, true, false)
	s.serves(t, to, "pod-b")
	s.apply(svc)
	s.serves(t, to)
	s.ends(t, svc, family)
}

// publishNotReady: with publishNotReadyAddresses the API says ready of a pod that terminates and fails its probe.
func publishNotReady(t *testing.T, s *stage, family int) {
	svc := granular(131, false)
	svc.Ports = svc.Ports[:1]
	svc.Spec = map[string]any{"publishNotReadyAddresses": true}
	s.conditioned(svc, true, false, true)
	s.wantServing(t, at(svc, family, 80), s.w.Pod("pod-b"))
	for _, to := range s.tos(svc, family, protocols[0]) {
		for _, c := range s.clients()[:2] {
			answers(t, c.Host, to)
			hits(t, c, to, map[string]int{"pod-b": 5})
		}
	}
	s.ends(t, svc, family)
}

func notReadyAndTerminating(t *testing.T, s *stage, family int) {
	svc := granular(132, false)
	svc.Ports = svc.Ports[:1]
	s.conditioned(svc, false, false, true)
	s.wantServing(t, at(svc, family, 80))
	for _, to := range s.tos(svc, family, protocols[0]) {
		for _, c := range s.clients()[:2] {
			wantRefused(t, c, to)
			for range 5 {
				if r := c.Connect(to); r.Verdict != lab.Refused {
					t.Errorf("%s connects to %s, whose only endpoint terminates and does not serve: %s", c.name, to, r)
				}
			}
		}
	}
	s.ends(t, svc, family)
}

// evictedPods: a pod that failed is in no slice any more, and slices without endpoints stay.
func evictedPods(t *testing.T, s *stage, family int) {
	svc := web(133)
	s.apply(svc, s.w.Pod("pod-b"))
	s.serves(t, at(svc, family, 80), "pod-b")
	s.apply(svc)
	for _, c := range s.clients() {
		wantRefused(t, c, at(svc, family, 80))
	}
	s.ends(t, svc, family)
}

// anotherRange: a ClusterIP from a range that came later, of which no flag of the agent says anything.
func anotherRange(t *testing.T, s *stage, family int) {
	svc := web(134)
	svc.ClusterIPs = []string{"192.168.168.134", "fd00:168::134"}
	s.apply(svc, s.pods()...)
	s.serves(t, at(svc, family, 80), names(s.pods())...)
	for _, n := range s.w.Nodes {
		turns(t, client{n.Name, n.Host}, at(svc, family, 80), asks[0], names(s.pods())...)
	}
	s.ends(t, svc, family)
}

// noSNATBetweenPods: what is no Service's traffic is left as it is.
func noSNATBetweenPods(t *testing.T, s *stage, family int) {
	for _, from := range s.pods() {
		for _, to := range s.pods() {
			r := from.Ask(netip.AddrPortFrom(to.Addr(family), 8080))
			if r.Verdict != lab.Answered || r.Pod != to.Name || r.Source != from.Addr(family) {
				t.Errorf("%s asks %s by its own address: %s; want it seen with its own address", from.Name, to.Name, r)
			}
		}
	}
}

// lifeOfLoadBalancer takes a Service through types and ports: ClusterIP, NodePort, LoadBalancer, another node
// port, another port, no endpoint, an endpoint, ClusterIP.
func lifeOfLoadBalancer(p protocol, n int, target uint16) func(*testing.T, *stage, int) {
	return func(t *testing.T, s *stage, family int) {
		by := p.asking
		askers := []client{s.from(), {"outside", s.w.Client}}
		svc := web(n)
		svc.Ports = []lab.Port{{Name: p.name, Protocol: by.name, Port: 80, TargetPort: target}}
		reached := func(kinds ...string) {
			t.Helper()
			for _, kind := range kinds {
				for _, c := range askers {
					answersBy(t, c, s.frontends(svc, family)[kind], by)
				}
			}
		}
		closed := func(to netip.AddrPort) {
			t.Helper()
			for _, c := range askers {
				lab.Eventually(t, soon, fmt.Sprintf("%s is not served by %s over %s", c.name, to, by.name), func() error {
					if r := by.ask(c.Host, to, lab.Timeout(time.Second)); r.Verdict == lab.Answered || r.Verdict == lab.TimedOut {
						return fmt.Errorf("%s", r)
					}
					return nil
				})
			}
		}
		s.apply(svc, s.w.Pod("pod-c"))
		reached("ClusterIP")
		svc.Type, svc.Ports[0].NodePort = "NodePort", uint16(30000+n)
		s.apply(svc, s.w.Pod("pod-c"))
		reached("ClusterIP", "NodePort")
		svc = balanced(svc, n)
		s.apply(svc, s.w.Pod("pod-c"))
		reached("ClusterIP", "NodePort", "LoadBalancer")
		old := s.frontends(svc, family)
		svc.Ports[0].NodePort = uint16(31000 + n)
		s.apply(svc, s.w.Pod("pod-c"))
		reached("ClusterIP", "NodePort", "LoadBalancer")
		closed(old["NodePort"])
		svc.Ports[0].Port = 81
		s.apply(svc, s.w.Pod("pod-c"))
		reached("ClusterIP", "NodePort", "LoadBalancer")
		closed(old["ClusterIP"])
		closed(old["LoadBalancer"])
		s.apply(svc)
		for _, to := range s.frontends(svc, family) {
			closed(to)
		}
		s.apply(svc, s.w.Pod("pod-b"))
		reached("ClusterIP", "NodePort", "LoadBalancer")
		old = s.frontends(svc, family)
		svc.Type, svc.Status, svc.Ports[0].NodePort = "ClusterIP", nil, 0
		s.apply(svc, s.w.Pod("pod-b"))
		reached("ClusterIP")
		closed(old["NodePort"])
		s.wantGone(t, old["LoadBalancer"])
		s.ends(t, svc, family)
	}
}

func balancerWithoutNodePort(t *testing.T, s *stage, family int) {
	with := balanced(web(137), 137)
	svc := with
	svc.Ports = web(137).Ports
	svc.Spec = map[string]any{"allocateLoadBalancerNodePorts": false}
	outside, to := client{"outside", s.w.Client}, s.frontends(svc, family)["LoadBalancer"]
	s.apply(svc, s.pods()...)
	turns(t, outside, to, asks[0], names(s.pods())...)
	s.apply(with, s.pods()...)
	turns(t, outside, s.frontends(with, family)["NodePort"], asks[0], names(s.pods())...)
	turns(t, outside, to, asks[0], names(s.pods())...)
	s.ends(t, with, family)
}
