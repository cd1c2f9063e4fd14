package cluster

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// namingSlice is a slice of a Service; an address that ends in "@" is on a node.
func namingSlice(name, service string, addrs ...string) *discoveryv1.EndpointSlice {
	s := testSlice(name)
	s.Labels[discoveryv1.LabelServiceName], s.Endpoints = service, nil
	node := "n"
	for _, a := range addrs {
		ep := discoveryv1.Endpoint{Addresses: []string{a}}
		if a[len(a)-1] == '@' {
			ep.Addresses[0], ep.NodeName = a[:len(a)-1], &node
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

// asking is a Service that asks for an address from outside.
func asking(name string, created int64, addr string) *corev1.Service {
	s := testService()
	s.Name, s.CreationTimestamp, s.Spec.Type = name, metav1.Unix(created, 0), corev1.ServiceTypeLoadBalancer
	if addr != "" {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: addr}}
	}
	return s
}

// TestNamed: whose endpoint an address is, through all that slices and Services do, and that who asks for it is marked
// when that changes, before the Service that it comes from, and nobody else is (B60).
func TestNamed(t *testing.T) {
	m := NewModel(Options{NodeName: "own"})
	x := netip.MustParseAddr("10.1.0.9")
	id := func(name string) ID { return ID{"default", name} }
	is := func(when string, want Named, dirty ...ID) {
		t.Helper()
		if got := m.Named(x); got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
		if got, _, _ := m.Take(); !slices.Equal(got, dirty) {
			t.Errorf("%s: dirty %v, want %v", when, got, dirty)
		}
	}
	m.SetService(asking("thief", 1, x.String()))
	m.SetService(asking("other", 1, "203.0.113.1"))
	is("nobody names it", Named{}, id("thief"), id("other"))
	m.SetSlice(namingSlice("a-1", "a", "10.1.0.8@", "10.1.0.9@", "10.1.0.10@"))
	is("a pod's, of a Service that is not known", Named{Pod: id("a")}, id("thief"))
	m.SetSlice(namingSlice("b-1", "b", "10.1.0.9"))
	is("written by hand for a Service that is not known", Named{Pod: id("a")})
	m.SetService(asking("b", 7, ""))
	is("which is known now", Named{Pod: id("a"), ByHand: id("b"), Created: 7}, id("thief"), id("b"))
	m.SetSlice(namingSlice("a-1", "a", "10.1.0.8@", "10.1.0.10@"))
	is("the pod is gone", Named{ByHand: id("b"), Created: 7}, id("thief"))
	m.SetService(asking("b", 8, ""))
	is("the Service is another", Named{ByHand: id("b"), Created: 8}, id("thief"), id("b"))
	m.SetSlice(namingSlice("b-1", "b", "10.1.0.9", "10.1.0.9@"))
	is("twice in a slice", Named{Pod: id("b"), ByHand: id("b"), Created: 8}, id("thief"), id("b"))
	m.SetSlice(namingSlice("b-1", "a", "10.1.0.9", "10.1.0.9@"))
	is("the slice is another Service's", Named{Pod: id("a")}, id("thief"), id("b"))
	m.SetSlice(namingSlice("b-1", "a", "10.1.0.9@"))
	is("by its node alone", Named{Pod: id("a")})
	unready := namingSlice("b-1", "a", "10.1.0.9@")
	unready.Endpoints[0].Conditions.Ready = new(bool)
	m.SetSlice(unready)
	is("ready or not", Named{Pod: id("a")})
	m.DeleteSlice("default", "b-1")
	is("gone", Named{}, id("thief"))
	m.DeleteService("default", "thief")
	m.SetSlice(namingSlice("b-1", "a", "10.1.0.9@"))
	is("nobody asks", Named{Pod: id("a")}, id("thief"))
}

// TestNamedAgrees: whatever slices and Services have done, what is counted is what they say, and at the end nothing is left.
func TestNamedAgrees(t *testing.T) {
	addrs := []string{"10.1.0.7", "10.1.0.8", "10.1.0.9", "10.1.0.7@", "10.1.0.8@", "10.1.0.9@"}
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		m := NewModel(Options{NodeName: "own"})
		slicesOf, services := map[string]*discoveryv1.EndpointSlice{}, map[string]*corev1.Service{}
		for range 20 {
			name := fmt.Sprintf("e%d", r.IntN(3))
			of := fmt.Sprintf("s%d", r.IntN(2))
			switch r.IntN(5) {
			case 0:
				delete(slicesOf, name)
				m.DeleteSlice("default", name)
			case 1:
				delete(services, of)
				m.DeleteService("default", of)
			case 2:
				services[of] = asking(of, int64(r.IntN(3)), "")
				if r.IntN(3) == 0 {
					services[of].Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"}
				}
				m.SetService(services[of])
			default:
				var list []string
				for range r.IntN(4) {
					list = append(list, addrs[r.IntN(len(addrs))])
				}
				slicesOf[name] = namingSlice(name, of, list...)
				m.SetSlice(slicesOf[name])
			}
		}
		fresh := NewModel(Options{NodeName: "own"})
		for _, s := range slicesOf {
			fresh.SetSlice(s)
		}
		for _, s := range services {
			fresh.SetService(s)
		}
		for _, a := range addrs[:3] {
			if got, want := m.Named(netip.MustParseAddr(a)), fresh.Named(netip.MustParseAddr(a)); got != want {
				t.Fatalf("seed %d: %s: %+v, want %+v", seed, a, got, want)
			}
		}
		for name := range slicesOf {
			m.DeleteSlice("default", name)
		}
		for name := range services {
			m.DeleteService("default", name)
		}
		if len(m.named)+len(m.asking)+len(m.services) > 0 {
			t.Fatalf("seed %d: all gone, and the model holds %v, %v, %v", seed, m.named, m.asking, m.services)
		}
	}
}

// TestHeld: a Service of another proxy holds its ClusterIPs and is nothing else here (B60).
func TestHeld(t *testing.T) {
	m := NewModel(Options{NodeName: "own"})
	s := asking("web", 5, "203.0.113.1")
	s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"}
	s.Spec.ClusterIPs = []string{"fd00::1", "10.96.0.1", "nonsense"}
	if problems := m.SetService(s); len(problems) > 0 {
		t.Errorf("its problems are another's to say: %v", problems)
	}
	expectDirty(t, m, web)
	held, created := m.Held(web)
	if svc, _ := m.Get(web); svc != nil || len(m.Services()) > 0 || len(m.asking) > 0 || fmt.Sprint(held) != "[10.96.0.1 fd00::1]" || created != 5 {
		t.Errorf("%+v, %v, %v; holds %v since %d", svc, m.Services(), m.asking, held, created)
	}
	s.Status.LoadBalancer.Ingress = nil
	m.SetService(s)
	expectDirty(t, m)
	s.Labels = nil
	m.SetService(s)
	expectDirty(t, m, web)
	if held, _ := m.Held(web); held != nil {
		t.Errorf("it is ours, and another's: %v", held)
	}
}

// B73: who asks for an address from outside is known, in order, and no more once it does not.
func TestB73Asking(t *testing.T) {
	m := NewModel(Options{})
	x := netip.MustParseAddr("203.0.113.9")
	is := func(when string, want ...ID) {
		t.Helper()
		if got := m.Asking(x); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	is("nobody")
	m.SetService(asking("b", 1, x.String()))
	m.SetService(asking("a", 2, x.String()))
	m.SetService(asking("c", 3, "203.0.113.10"))
	is("two", ID{"default", "a"}, ID{"default", "b"})
	m.SetService(asking("b", 1, ""))
	is("one of them asks no more", ID{"default", "a"})
	m.DeleteService("default", "a")
	is("both are gone")
}
