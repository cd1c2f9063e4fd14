package preview

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// randomClusters is how many clusters TestB73RandomPackets makes; first is the seed of the first one.
var (
	randomClusters = flag.Int("packet.clusters", 500, "how many clusters TestB73RandomPackets asks")
	randomFirst    = flag.Uint64("packet.seed", 1, "the seed of the first of them")
)

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// randomEndpoints are "address@node" of both families: of pods here and elsewhere, and of this node itself.
func randomEndpoints(r *rand.Rand) (eps []string) {
	for range r.IntN(5) {
		eps = append(eps, pick(r, "10.244.1.10@node1", "10.244.1.11@node1", "10.244.2.10@node2", "10.244.2.11@node2", "192.0.2.1@node1",
			"fd10:244:1::10@node1", "fd10:244:2::10@node2", "2001:db8::1@node1", "10.244.3.10@"))
	}
	slices.Sort(eps)
	return slices.Compact(eps)
}

// randomService changes a Service in some of the ways that decide what becomes of packets. Addresses are few, so that
// Services get in each other's way.
func randomService(r *rand.Rand, n int) func(*corev1.Service) {
	return func(svc *corev1.Service) {
		spec := &svc.Spec
		if r.IntN(2) == 0 {
			spec.Ports = append(spec.Ports, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP})
		}
		spec.InternalTrafficPolicy = pick(r, nil, new(corev1.ServiceInternalTrafficPolicyLocal))
		if r.IntN(4) == 0 {
			spec.ExternalIPs = []string{pick(r, "198.51.100.1", "198.51.100.2", "192.0.2.1", "2001:db8:51::1", "203.0.113.1")}
		}
		if spec.Type = pick(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer); spec.Type == corev1.ServiceTypeClusterIP {
			return
		}
		spec.ExternalTrafficPolicy = pick(r, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
		for i := range spec.Ports {
			spec.Ports[i].NodePort = int32(30000 + pick(r, n, 1) + 100*i)
		}
		if spec.Type == corev1.ServiceTypeNodePort {
			return
		}
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: pick(r, "203.0.113.1", "203.0.113.2", "10.96.0.1", "10.244.1.10")}, {IP: pick(r, "2001:db8:113::1", "2001:db8:113::2")}}
		spec.LoadBalancerSourceRanges = pick(r, nil, nil, []string{"198.51.100.0/24", "2001:db8:51::/48"}, []string{"10.244.0.0/16"}, []string{"192.0.2.1/32", "fd10:244::/32"},
			[]string{"203.0.113.1/32"}, []string{"nonsense"})
		if spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
			spec.HealthCheckNodePort = pick(r, 0, int32(31000+n))
		}
	}
}

// randomScene is a cluster with an agent at work.
func randomScene(t *testing.T, seed uint64) (s *scene, r *rand.Rand) {
	r = rand.New(rand.NewPCG(seed, 73))
	s = newScene()
	s.opt.Desk = desk.Options{Scheduler: pick(r, "rr", "wrr", "lc", "mh"), ExternalIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}, Pods: podRanges}
	s.clients = Clients{Pods: pick(r, podRanges, podRanges, podRanges[:1], nil), MasqueradeAll: r.IntN(4) == 0, Routes: r.IntN(3) == 0}
	s.kernel.Node.Sources = s.kernel.Node.Addrs
	for n := range 2 + r.IntN(4) {
		vips := pick(r, []string{fmt.Sprintf("10.96.0.%d", n), fmt.Sprintf("fd00:96::%d", n)}, []string{fmt.Sprintf("10.96.0.%d", n)}, []string{fmt.Sprintf("fd00:96::%d", n)})
		s.service(fmt.Sprintf("default/s%d", n), vips, randomService(r, n), randomEndpoints(r)...)
	}
	s.start(t)
	return s, r
}

// randomQuestion asks for what there is in such a cluster, or nearly.
func randomQuestion(r *rand.Rand, s *scene) Question {
	v4 := r.IntN(3) > 0
	var keys []ipvs.Key
	for k := range s.kernel.Sets[ipvs.SetOwned] {
		if k.Addr.Is4() == v4 && k.HasServer() {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, ipvs.Key.Compare)
	clients := []string{"10.244.1.10", "10.244.1.11", "10.244.2.10", "192.0.2.1", "192.0.2.77", "198.51.100.7", "203.0.113.1", ""}
	others := []string{"198.51.100.99", "192.0.2.1", "10.96.0.1", "10.244.1.10", "203.0.113.1"}
	if !v4 {
		clients = []string{"fd10:244:1::10", "fd10:244:2::10", "2001:db8::1", "2001:db8:51::7", "2001:db8:99::7", ""}
		others = []string{"2001:db8:113::9", "2001:db8::1", "fd00:96::1", "fd10:244:1::10"}
	}
	var q Question
	if from := pick(r, clients...); from != "" {
		q.Client = netip.MustParseAddr(from)
	}
	q.To = ipvs.Key{Addr: netip.MustParseAddr(pick(r, others...)), Port: pick[uint16](r, 80, 53, 22, 30001, 8080), Proto: pick(r, ipvs.TCP, ipvs.UDP, ipvs.SCTP)}
	if len(keys) > 0 && r.IntN(8) > 0 {
		q.To = pick(r, keys...)
	}
	return q
}

// met is what becomes of a packet in words, from an answer or from a kernel.
func met(verdict string, masqueraded map[string]bool) string {
	var reals []string
	for real, m := range masqueraded {
		reals = append(reals, fmt.Sprintf("%s masqueraded %t", real, m))
	}
	slices.Sort(reals)
	return strings.Join(append([]string{verdict}, reals...), ", ")
}

// sourceTo is the source that the kernel chooses for the node's own packet: the very address that it is for, where that
// stands on an interface, and that of the route where it is but a route.
func (s *scene) sourceTo(to netip.Addr) netip.Addr {
	for _, a := range s.kernel.Node.Addrs {
		if s.clients.Routes && a.Is4() == to.Is4() && !slices.Contains(s.kernel.Node.Addrs, to) {
			return a
		}
	}
	return to
}

// B73: what explain says of a packet is what becomes of it on its way through a kernel, rule by rule, in clusters in which
// Services of all kinds get in each other's way: who serves it, as whom its client is seen, whether it is refused or
// dropped. And the kernel agrees, by explain's own word.
func TestB73RandomPackets(t *testing.T) {
	seen := map[Verdict]int{}
	asked := 0
	for seed := *randomFirst; seed < *randomFirst+uint64(*randomClusters) && !t.Failed(); seed++ {
		s, r := randomScene(t, seed)
		g := s.ground(t)
		rules := fake.Rules{Pods: s.clients.Pods, MasqueradeAll: s.clients.MasqueradeAll}
		for range 12 {
			q := randomQuestion(r, s)
			a := AnswerPacket(g, q)
			p := fake.Packet{From: q.Client, To: q.To, Own: !q.Client.IsValid() || slices.Contains(s.kernel.Node.Addrs, q.Client) || s.kernel.Addrs[q.Client]}
			if !q.Client.IsValid() {
				p.From = s.sourceTo(q.To.Addr)
			}
			fate, seenAs := s.kernel.Send(rules, p)
			want, said := map[string]bool{}, map[string]bool{}
			for real, m := range seenAs {
				want[real.String()] = m
			}
			for _, b := range a.Backends {
				said[b.Addr] = b.Masqueraded
			}
			if got, want := met(string(a.Verdict), said), met(string(fate), want); got != want || !a.Kernel.Agrees {
				t.Errorf("seed %d: %s: explain says %s, and met it has %s\n%s", seed, q, got, want, a.Text())
			}
			seen[a.Verdict]++
			asked++
		}
	}
	t.Logf("%d questions: %v", asked, seen)
	for _, v := range []Verdict{Served, Refused, Dropped, Passes} {
		if seen[v] < asked/50 {
			t.Errorf("of %d packets %d are %s: the test shows little", asked, seen[v], v)
		}
	}
}
