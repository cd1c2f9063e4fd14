package sync

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// bytesOf hands out bytes one by one, zeros at the end.
type bytesOf []byte

func (b *bytesOf) next() (c byte) {
	if len(*b) > 0 {
		c, *b = (*b)[0], (*b)[1:]
	}
	return c
}

func (b *bytesOf) of(choices ...string) string { return choices[int(b.next())%len(choices)] }

// port is any number that an object may hold, valid ones mostly.
func (b *bytesOf) port() int32 {
	switch n := int32(b.next()); {
	case n >= 250:
		return n - 252 // -2 to 3
	case n >= 245:
		return 65300 + n // 65545 and so on
	default:
		return n
	}
}

func (b *bytesOf) addr() string {
	if n := b.next(); n < 200 {
		return fmt.Sprintf("10.96.0.%d", n%8)
	} else if n < 240 {
		return fmt.Sprintf("fd00:96::%x", n%8)
	}
	return b.of("127.0.0.1", "::1", "169.254.1.1", "224.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "", "None", "010.96.0.1", "0.0.0.0", "::", "x")
}

func (b *bytesOf) service() *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	s.Spec.Type = corev1.ServiceType(b.of("ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "", "x"))
	for range b.next() % 4 {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, b.addr())
	}
	for range b.next() % 3 {
		s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, b.addr())
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: b.addr()})
	}
	for range b.next() % 6 {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: b.of("", "a", "b"), Port: b.port(), NodePort: b.port(),
			Protocol: corev1.Protocol(b.of("TCP", "UDP", "SCTP", "", "ICMP"))})
	}
	s.Spec.SessionAffinity = corev1.ServiceAffinity(b.of("None", "ClientIP", "", "x"))
	if seconds := int32(b.next()) - 2; seconds != 98 {
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicy(b.of("Cluster", "Local", "", "x"))
	internal := corev1.ServiceInternalTrafficPolicy(b.of("Cluster", "Local", "", "x"))
	s.Spec.InternalTrafficPolicy = &internal
	return s
}

func (b *bytesOf) slice(name string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressType(b.of("IPv4", "IPv4", "IPv6", "FQDN", "")),
	}
	for range b.next() % 5 {
		port, portName, protocol := b.port(), b.of("", "a", "b"), corev1.Protocol(b.of("TCP", "UDP", "SCTP", "", "ICMP"))
		p := discoveryv1.EndpointPort{Name: &portName, Port: &port, Protocol: &protocol}
		switch b.next() % 16 {
		case 0:
			p.Name = nil
		case 1:
			p.Port = nil
		case 2:
			p.Protocol = nil
		}
		s.Ports = append(s.Ports, p)
	}
	for range b.next() % 9 {
		e := discoveryv1.Endpoint{Addresses: []string{b.addr()}}
		state := b.next()
		yes := func(bit byte) *bool { v := state&bit != 0; return &v }
		e.Conditions = discoveryv1.EndpointConditions{Ready: yes(1), Serving: yes(2), Terminating: yes(4)}
		if state&8 != 0 {
			e.Conditions = discoveryv1.EndpointConditions{}
		}
		if state&16 != 0 {
			node := b.of(thisNode, "node2", "")
			e.NodeName = &node
		}
		if state&32 != 0 {
			e.Addresses = append(e.Addresses, b.addr())
		}
		if state&64 != 0 {
			e.Addresses = nil
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// FuzzCompile: whatever a Service and its slices hold, nothing panics, and what comes out is in order.
func FuzzCompile(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 1, 0, 1, 1, 80, 0, 0, 0, 98, 0, 0, 0, 1, 80, 1, 0, 9, 2, 2, 25, 0, 3, 8})
	f.Add([]byte{2, 3, 1, 201, 2, 2, 5, 6, 3, 1, 80, 30, 0, 2, 80, 30, 1, 1, 80, 40, 2, 1, 20, 1, 1, 2, 1, 80, 1, 1, 9})
	f.Add([]byte{0, 2, 241, 3, 250, 5, 0, 0, 250, 250, 4, 249, 3, 245, 245, 0, 1, 0, 3, 3, 3, 2, 4, 251, 0, 1, 0, 251, 2, 2, 1, 8, 242, 255, 243, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := bytesOf(data)
		m := newModel(b.service(), b.slice("one"), b.slice("two"))
		svc, eps := m.Get(idOf("web"))
		frag := desk.Compile(svc, eps, desk.NamedOf(svc, m.Named), desk.Site{Node: m.Node()}, desk.Options{Scheduler: "rr"})
		var last *desk.KeyClaim
		for i := range frag.Claims {
			c := &frag.Claims[i]
			if last != nil && last.Key.Compare(c.Key) >= 0 {
				t.Errorf("%s comes after %s", c.Key, last.Key)
			}
			last = c
			inOrder(t, c.Key, c.Claim.Want)
		}
		if again := desk.Compile(svc, eps, desk.NamedOf(svc, m.Named), desk.Site{Node: m.Node()}, desk.Options{Scheduler: "rr"}); !slices.EqualFunc(frag.Claims, again.Claims,
			func(a, b desk.KeyClaim) bool { return a.Key == b.Key && a.Claim.Want.Equal(b.Claim.Want) }) {
			t.Error("compiled twice, it differs")
		}
		s := newStepper()
		s.start(completeModel())
		s.settle()
		s.start(m)
		m.SetSynced()
		m.SetComplete()
		s.pass(restTime)
		if diffs := expect(m, s.kernel.Node, s.opt).compare(s.kernel, nobody); len(diffs) > 0 {
			t.Errorf("the kernel does not take it: %v", diffs)
		}
	})
}

// inOrder checks what everything after Compile relies on.
func inOrder(t *testing.T, k ipvs.Key, fe *ipvs.Frontend) {
	t.Helper()
	if !k.Addr.IsValid() || k.Addr.IsUnspecified() || k.Addr.IsLoopback() || k.Addr.IsMulticast() || k.Addr.Is4In6() || k.Port == 0 || !k.HasServer() {
		t.Errorf("no frontend: %s", k)
	}
	if !slices.IsSortedFunc(fe.Server.Reals, func(a, b ipvs.Real) int { return a.Addr.Compare(b.Addr) }) {
		t.Errorf("%s: real servers are not sorted: %v", k, fe.Server.Reals)
	}
	unique := slices.CompactFunc(slices.Clone(fe.Server.Reals), func(a, b ipvs.Real) bool { return a.Addr == b.Addr })
	if len(unique) != len(fe.Server.Reals) {
		t.Errorf("%s: a real server comes twice: %v", k, fe.Server.Reals)
	}
	takes := false
	for _, r := range fe.Server.Reals {
		takes = takes || r.Weight > 0
		if r.Addr.Addr().Is4() != k.Addr.Is4() || r.Addr.Port() == 0 {
			t.Errorf("%s: no real server: %v", k, r)
		}
	}
	if fe.Guard.Open != takes {
		t.Errorf("%s: open is %t with the real servers %v", k, fe.Guard.Open, fe.Server.Reals)
	}
	if !slices.IsSortedFunc(fe.Guard.Hairpin, netip.Addr.Compare) || len(slices.Compact(slices.Clone(fe.Guard.Hairpin))) != len(fe.Guard.Hairpin) {
		t.Errorf("%s: hairpin is not sorted or not unique: %v", k, fe.Guard.Hairpin)
	}
	if !fe.Guard.Owned {
		t.Errorf("%s: not recorded as ours", k)
	}
}
