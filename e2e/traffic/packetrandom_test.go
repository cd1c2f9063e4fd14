package traffic

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// clustersAsked is how many random clusters TestB73RandomPacketsAreTrue makes; packetClusters in the environment is another
// number, and packetSeed the seed of the first one.
const (
	clustersAsked  = 24
	questionsAsked = 12 // of each
	packetClusters = "LAB_PACKET_CLUSTERS"
	packetSeed     = "LAB_PACKET_SEED"
)

// fromEnvironment is a number in the environment; usual where there is none.
func fromEnvironment(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func pickOf[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// randomly makes a Service of a kind, with policies, source ranges and endpoints that decide what becomes of packets. Two
// Services in three share a load balancer's address.
func (s *stage) randomly(r *rand.Rand, n int) (lab.Service, []lab.Object) {
	svc := policies{r.IntN(3) == 0, r.IntN(2) == 0}.with(everywhere(100 + n))
	switch r.IntN(4) {
	case 0: // a ClusterIP alone
		svc.Type, svc.Status = "", nil
		delete(svc.Spec, "externalTrafficPolicy")
		delete(svc.Spec, "externalIPs")
		for i := range svc.Ports {
			svc.Ports[i].NodePort = 0
		}
	case 1:
		svc.Spec["loadBalancerSourceRanges"] = pickOf(r, []string{lab.ClusterCIDR4.String(), lab.ClusterCIDR6.String()},
			[]string{netip.PrefixFrom(s.w.Client.V4, 32).String()}, []string{lab.WireCIDR4.String(), lab.WireCIDR6.String()}, []string{"nonsense"})
	case 2:
		if n > 0 {
			svc.Status = announced(svc, "203.0.113.100", "fd20:113::100").Status
		}
	}
	if len(svc.ClusterIPs) == 2 && r.IntN(4) == 0 && svc.Type != "" {
		svc.Spec["sessionAffinity"] = "ClientIP"
	}
	var eps []*lab.Pod
	for _, p := range s.pods() {
		if r.IntN(2) == 0 {
			eps = append(eps, p)
		}
	}
	v4, v6 := s.w.SlicesFor(svc, eps...)
	serving := map[string]bool{}
	for _, p := range eps {
		if r.IntN(5) == 0 {
			serving[p.Name] = r.IntN(2) == 0
		}
	}
	objects := []lab.Object{terminates(v4, serving), terminates(v6, serving)}
	if r.IntN(5) == 0 {
		web := svc
		web.Ports = svc.Ports[:1] // a server of UDP on all addresses of a host answers with another than it was asked at
		objects = hostEndpoints(web, pickOf(r, s.w.Nodes...))
	}
	return svc, objects
}

// randomQuestions are asked of what some Services have, and of ports that they do not have.
func (s *stage) randomQuestions(r *rand.Rand, svcs []lab.Service) (qs []asked) {
	for range questionsAsked {
		svc, family := pickOf(r, svcs...), pickOf(r, 4, 6)
		var ways []way
		for _, w := range s.ways(svc, family) {
			if w.tcp.IsValid() {
				ways = append(ways, w)
			}
		}
		w := pickOf(r, ways...)
		to := pickOf(r, ipvs.Key{Addr: w.tcp.Addr(), Port: w.tcp.Port(), Proto: ipvs.TCP}, ipvs.Key{Addr: w.udp.Addr(), Port: w.udp.Port(), Proto: ipvs.UDP})
		if r.IntN(6) == 0 {
			to.Port, to.Proto = pickOf[uint16](r, 22, 8080, 81), ipvs.TCP
		}
		a := pickOf(r, s.askers(w.kind)...)
		if w.kind == "ClusterIP" && !a.inside && a.Host != s.w.Client {
			continue
		}
		qs = append(qs, asked{a.client, a.through, to})
	}
	return qs
}

// B73: what explain says of packets is what they meet, in random clusters, one after the other on live nodes: Services
// of all types and policies, some with the same address, with endpoints here and elsewhere, some on a node's own network,
// that are ready, about to end or neither; clients of all kinds.
func TestB73RandomPacketsAreTrue(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	s.quickRefusals(t)
	for _, n := range s.w.Nodes {
		daemon(t, n, 22)
		stop, err := n.ServeHTTP("host-"+n.Name, 8080)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
	}
	servers, compared := s.servers(), map[preview.Verdict]int{}
	first := uint64(fromEnvironment(t, packetSeed, 1))
	for seed := first; seed < first+uint64(fromEnvironment(t, packetClusters, clustersAsked)) && !t.Failed(); seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { s.randomCluster(t, seed, servers, compared) })
	}
	asked := 0
	for _, n := range compared {
		asked += n
	}
	for _, v := range []preview.Verdict{preview.Served, preview.Refused, preview.Dropped} {
		if compared[v] < asked/25 {
			t.Errorf("of %d %d are %s: the test shows little", asked, compared[v], v)
		}
	}
}

// randomCluster makes a cluster, asks of it, and counts what was compared.
func (s *stage) randomCluster(t *testing.T, seed uint64, servers map[string]string, compared map[preview.Verdict]int) {
	r := rand.New(rand.NewPCG(seed, 73))
	var svcs []lab.Service
	var all []lab.Object
	for n := range 3 {
		svc, objects := s.randomly(r, n)
		svcs, all = append(svcs, svc), append(append(all, svc), objects...)
	}
	s.cluster.Apply(all...)
	qs := s.randomQuestions(r, svcs)
	began := time.Now()
	answers := s.said(t, qs)
	t.Logf("the kernels agree after %s", time.Since(began))
	for i, q := range qs {
		if s.packetIsTrue(t, q, answers[i], servers); t.Failed() {
			return
		}
		compared[answers[i].Verdict]++
	}
	t.Logf("compared so far: %v", compared)
	if seed%8 == 0 {
		s.bySaid(t, qs[0], answers[0])
	}
}
