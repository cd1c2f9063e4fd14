package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// limited gives a Service source ranges.
func limited(svc lab.Service, ranges ...string) lab.Service {
	svc.Spec = maps.Clone(svc.Spec)
	svc.Spec["loadBalancerSourceRanges"] = ranges
	return svc
}

// B13: a load balancer's addresses take only the sources that they are to take: from outside, from pods, from the
// node itself, over TCP and UDP, changed live. All others are dropped. Node port, external IP and ClusterIP take
// everyone. With externalTrafficPolicy Local, too, where clients inside the cluster are redirected before they are
// looked at.
func TestB13SourceRanges(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	node, pod := s.w.Node(1), s.w.Pod("pod-a")
	single := func(addr func(family int) netip.Addr) []string {
		return []string{netip.PrefixFrom(addr(4), 32).String(), netip.PrefixFrom(addr(6), 128).String()}
	}
	everyone := []string{"outside", "pod", "node", "pod of another node"}
	for _, p := range []policies{{}, {externalLocal: true}} {
		plain := p.with(everywhere(13))
		for _, c := range []struct {
			name   string
			ranges []string
			may    string
		}{
			{"no list", nil, strings.Join(everyone, ",")},
			{"the client", single(s.w.Client.Addr), "outside"},
			{"a wider range with others in it", []string{"172.28.0.0/16", "172.28.128.0/24", "fd28::/16", "fd28:128::/64"}, "outside,node"},
			{"the node", single(node.Addr), "node"},
			{"a pod", single(pod.Addr), "pod"},
			{"pods", []string{"10.244.0.0/16", "fd10:244::/32"}, "pod,pod of another node"},
			{"one bad entry", append(single(s.w.Client.Addr), "nonsense", "300.0.0.0/8"), "outside"},
			{"bad entries only", []string{"nonsense"}, ""},
			{"everyone", []string{"0.0.0.0/0", "::/0"}, strings.Join(everyone, ",")},
			{"an empty list", []string{}, strings.Join(everyone, ",")},
		} {
			if p.externalLocal && c.name != "the client" && c.name != "a pod" && c.name != "the node" {
				continue // what ranges are is not for the policy to say
			}
			t.Run(fmt.Sprintf("%s: %s", p, c.name), func(t *testing.T) {
				svc := plain
				if c.ranges != nil {
					svc = limited(plain, c.ranges...)
				}
				s.apply(svc, s.pods()...)
				each(t, func(t *testing.T, family int) {
					for _, w := range s.ways(svc, family) {
						for _, a := range s.askers(w.kind)[:4] {
							want := p.want(a.through, a.inside, w.kind, s.pods())
							if w.kind == "LoadBalancer" && !strings.Contains(","+c.may+",", ","+a.name+",") {
								want = outcome{dropped: true}
							}
							becomes(t, a.client, w.tcp, asks[0], family, want)
							if w.kind == "LoadBalancer" && a.name == "outside" {
								becomes(t, a.client, w.udp, asks[1], family, want)
							}
						}
					}
				})
			})
			if t.Failed() {
				return
			}
		}
	}
}

// B13: who may come before and after loses nothing while the ranges change.
func TestB13ChangesUnderLoad(t *testing.T) {
	s := newStage(t).start()
	svc := balanced(web(14), 14)
	svc.Spec = map[string]any{}
	to := s.frontends(svc, 4)["LoadBalancer"]
	s.apply(svc, s.pods()...)
	answers(t, s.w.Client, to)
	client := netip.PrefixFrom(s.w.Client.Addr(4), 32).String()
	load := underLoad(t, s.w.Client, to, patient, func() {
		for i, ranges := range [][]string{{client}, {"172.28.0.0/16"}, {"172.28.128.0/24", "198.51.100.0/24"}, {"0.0.0.0/0"}, {}, {"172.16.0.0/12"}, {client}} {
			s.apply(limited(svc, ranges...), s.pods()...)
			// One more change, that shows when the one before is through.
			mark := web(100 + i)
			s.apply(mark, s.w.Pod("pod-b"))
			answers(t, s.w.Node(1).Host, at(mark, 4, 80))
		}
	})
	if t.Logf("while the ranges change: %s", load); load.Lost > 0 {
		t.Errorf("while the ranges change: %s", load)
	}
	wouldNotice(t, s.w.Client, s.w.Node(1), to)
}
