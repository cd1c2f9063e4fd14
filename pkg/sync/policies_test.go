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
	s.loop.tell.log = zap.New(logs)
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
	s.loop.tell.log = zap.New(logs)
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
			{"one comes back soon", cluster, []string{a, c}, true, []string{a, c}, nil},
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

// TestForgetsLateAnswers: a UDP real server that comes back within a minute may have answered late meanwhile, and what
// that left behind is looked for, once. One that is new, one that was away for long, and one of TCP cost no look.
func TestForgetsLateAnswers(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		dns, web := service("dns", "10.96.0.53", 1, 53), service("web", "10.96.0.80", 2, 80)
		dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
		a, c := "10.244.1.5@node1", "10.244.2.10@node2"
		r.set(dns, slice(dns, a, c), web, slice(web, a, c))
		r.synced()
		r.start()
		for _, step := range []struct {
			what string
			eps  []string
			then time.Duration
			late string
		}{
			{"one leaves", []string{c}, 20 * time.Second, ""},
			{"it comes back", []string{a, c}, 20 * time.Second, "10.244.1.5:8080"},
			{"another comes that was never here", []string{a, c, "10.244.2.11@node2"}, 20 * time.Second, ""},
			{"all leave", nil, 20 * time.Second, ""},
			{"one of them comes back", []string{c}, 2 * time.Minute, "10.244.2.10:8080"},
			{"one comes that was away for long", []string{a, c}, time.Second, ""},
		} {
			r.writes(func() {
				r.set(slice(dns, step.eps...), slice(web, step.eps...))
				time.Sleep(step.then)
			})
			var late []string
			for _, op := range r.kernel.Log {
				if f, ok := op.(ipvs.Forget); ok {
					for _, from := range f.Late {
						late = append(late, from.String())
					}
				}
			}
			if got := strings.Join(late, " "); got != step.late {
				t.Errorf("%s: looked for late answers of %q, want %q", step.what, got, step.late)
			}
		}
	})
}
