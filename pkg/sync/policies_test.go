package sync

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// TestAuditTakesPoliciesForOurs: after each change of policies, endpoints and source ranges, looks at the kernel find
// nothing that another program had changed.
func TestAuditTakesPoliciesForOurs(t *testing.T) {
	s := newStepper()
	s.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
	logs, seen := observer.New(zap.InfoLevel)
	s.start(completeModel(nodeNamed("192.0.2.7")))
	s.loop.log = zap.New(logs)
	for i := range 64 {
		web := nodePorts(balancer("web", "10.96.0.1", "203.0.113.1", 1, 80), 30080)
		policy := corev1.ServiceInternalTrafficPolicyCluster
		if i&1 != 0 {
			policy = corev1.ServiceInternalTrafficPolicyLocal
		}
		web.Spec.InternalTrafficPolicy = &policy
		if i&2 != 0 {
			web.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
		web.Spec.LoadBalancerSourceRanges = [][]string{nil, {"198.51.100.0/24"}, {"198.51.0.0/16", "192.0.2.0/24"}, {"nonsense"}}[i>>2&3]
		give(s.model, web, slice(web, [][]string{{"10.244.1.5@node1", "10.244.2.10@node2"}, {"10.244.2.10@node2"}, {}, {"10.244.1.5@node1"}}[i>>4&3]...))
		s.pass(25 * time.Second)
		for _, e := range seen.TakeAll() {
			if strings.Contains(e.Message, "another program") {
				t.Errorf("step %d: %s", i, fmt.Sprint(e))
			}
		}
	}
}

// TestAuditOfAnIncompleteClusterBlamesNobody: what the mirror is not sure of while parts of the cluster are missing is
// read again, and taken for no other program's work.
func TestAuditOfAnIncompleteClusterBlamesNobody(t *testing.T) {
	s := newStepper()
	s.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
	logs, seen := observer.New(zap.InfoLevel)
	m := newModel(nodeNamed("192.0.2.7"))
	m.SetSynced()
	s.start(m)
	s.loop.log = zap.New(logs)
	web := nodePorts(balancer("web", "10.96.0.1", "203.0.113.1", 1, 80), 30080)
	web.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	for i, eps := range [][]string{{"10.244.1.5@node1", "10.244.2.10@node2"}, {"10.244.2.10@node2"}, {"10.244.1.5@node1"}, {"10.244.2.10@node2"}, {}} {
		give(s.model, web, slice(web, eps...))
		s.pass(45 * time.Second)
		for _, e := range seen.TakeAll() {
			if strings.Contains(e.Message, "another program") {
				t.Errorf("step %d: %s", i, fmt.Sprint(e))
			}
		}
	}
}

// TestForgetsRedirected: when a real server leaves, or nothing is redirected any more, the entries of redirected UDP
// clients are looked through; of a Service that never redirected anyone they are not.
func TestForgetsRedirected(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		policy := func(p corev1.ServiceExternalTrafficPolicy) *corev1.Service {
			dns := balancer("dns", "10.96.0.53", "203.0.113.1", 1, 53)
			dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
			dns.Spec.ExternalTrafficPolicy = p
			return dns
		}
		cluster, local := policy(corev1.ServiceExternalTrafficPolicyCluster), policy(corev1.ServiceExternalTrafficPolicyLocal)
		a, c := "10.244.1.5@node1", "10.244.2.10@node2"
		addr := func(s string) netip.AddrPort {
			ip, _, _ := strings.Cut(s, "@")
			return netip.AddrPortFrom(netip.MustParseAddr(ip), 8080)
		}
		r.model.SetNode(nodeNamed("192.0.2.7"))
		r.set(cluster, slice(cluster, a, c))
		r.synced()
		r.start()
		time.Sleep(2 * time.Second)
		for _, step := range []struct {
			what string
			svc  *corev1.Service
			eps  []string
			// of the last look at the balancer's address: who may answer, and who may not
			looked   bool // for those that were redirected
			may, not []string
		}{
			{"one that was never redirected leaves", cluster, []string{c}, false, nil, nil},
			{"and comes back", cluster, []string{a, c}, false, nil, nil},
			{"redirected", local, []string{a, c}, true, []string{a, c}, nil},
			{"one of another node leaves", local, []string{a}, true, []string{a}, []string{c}},
			{"it comes", local, []string{a, c}, false, nil, nil},
			{"the last one here leaves", local, []string{c}, true, []string{c}, []string{a}},
			{"no longer redirected", cluster, []string{c}, true, []string{c}, []string{a}},
			{"one comes", cluster, []string{a, c}, false, nil, nil},
			{"one leaves of those to whom clients were redirected", cluster, []string{a}, true, []string{a}, []string{c}},
		} {
			r.writes(func() { r.set(step.svc, slice(step.svc, step.eps...)); time.Sleep(5 * time.Second) })
			var last *ipvs.Forget
			for _, op := range r.kernel.Log {
				if f, ok := op.(ipvs.Forget); ok && f.Key.Addr == netip.MustParseAddr("203.0.113.1") {
					last = &f
				}
			}
			if looked := last != nil && last.Directed; looked != step.looked {
				t.Errorf("%s: looked %t (%v), want %t", step.what, looked, last, step.looked)
				continue
			}
			if last != nil && last.Undirected != (step.what == "the last one here leaves") {
				t.Errorf("%s: looked for those that were not redirected: %t", step.what, last.Undirected)
			}
			for _, s := range step.may {
				if !last.Reaches(addr(s)) {
					t.Errorf("%s: %s may not answer", step.what, s)
				}
			}
			for _, s := range step.not {
				if last.Reaches(addr(s)) {
					t.Errorf("%s: %s may answer", step.what, s)
				}
			}
		}
	})
}
