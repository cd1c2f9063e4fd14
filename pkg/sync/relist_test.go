package sync

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// listed is a copy of objects as another list brings them: the same but for what the API server itself writes.
func listed(version int, objs ...any) (list []any) {
	meta := func(m *metav1.ObjectMeta) {
		m.ResourceVersion = fmt.Sprint(version)
		m.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "x", Operation: "Update", Time: &metav1.Time{Time: time.Unix(int64(version), 0)}}}
	}
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Service:
			c := o.DeepCopy()
			meta(&c.ObjectMeta)
			list = append(list, c)
		case *discoveryv1.EndpointSlice:
			c := o.DeepCopy()
			meta(&c.ObjectMeta)
			list = append(list, c)
		case *corev1.Node:
			c := o.DeepCopy()
			meta(&c.ObjectMeta)
			list = append(list, c)
		}
	}
	return list
}

// F4: the same objects are listed again a thousand times, in any order: not one write. The control is one object that is
// another.
func TestF4ListedAgain(t *testing.T) {
	const services, lists = 50, 1000
	var objs []any
	for i := range services {
		svc := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.0.%d", i+1), 80, 443)
		objs = append(objs, svc, slice(svc, fmt.Sprintf("10.244.2.%d", i+1), "10.244.1.5@node1"))
	}
	objs = append(objs, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{corev1.LabelTopologyZone: "a"}}})
	s := newStepper()
	s.start(completeModel(objs...))
	s.pass(time.Minute)
	random := rand.New(rand.NewPCG(1, 0))
	s.kernel.Log = nil
	for i := range lists {
		random.Shuffle(len(objs), func(a, b int) { objs[a], objs[b] = objs[b], objs[a] })
		give(s.model, listed(i, objs...)...)
		s.settle()
	}
	s.pass(time.Minute)
	figure(t, "objects listed", lists*len(objs))
	figure(t, "writes", len(s.kernel.Log))
	if len(s.kernel.Log) > 0 {
		t.Errorf("%d lists of the same objects wrote %d times, first %s", lists, len(s.kernel.Log), s.kernel.Log[0])
	}
	svc := service("s0", "10.96.0.1", 80, 443)
	give(s.model, listed(lists, svc, slice(svc, "10.244.2.1"))...)
	s.pass(time.Minute)
	if len(s.kernel.Log) == 0 {
		t.Error("the control: an object that is another wrote nothing")
	}
}

// F5: the API server answers older states in between, and a newer one in the end: that is what the kernel has. The control:
// after each older one the kernel has that.
func TestF5OlderThenNewer(t *testing.T) {
	const rounds = 300
	svc := service("web", "10.96.0.10", 80)
	at := func(n int) any {
		return slice(svc, fmt.Sprintf("10.244.2.%d", 10+n%200), fmt.Sprintf("10.244.3.%d", 10+n%200))
	}
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	s := newStepper()
	s.start(completeModel(svc, at(0).(*discoveryv1.EndpointSlice)))
	s.pass(time.Minute)
	serves := func(n int) bool {
		var want []string
		for _, net := range []int{2, 3} {
			want = append(want, fmt.Sprintf("10.244.%d.%d:8080", net, 10+n%200))
		}
		var got []string
		for _, r := range s.kernel.Servers[key].Reals {
			if r.Weight > 0 {
				got = append(got, r.Addr.String())
			}
		}
		return slices.Equal(got, want)
	}
	random := rand.New(rand.NewPCG(2, 0))
	s.kernel.Log = nil
	older := 0
	for n := 1; n <= rounds; n++ {
		for range random.IntN(3) {
			old := random.IntN(n)
			give(s.model, listed(old, svc, at(old))...)
			s.settle()
			if older++; !serves(old) {
				t.Fatalf("the control: the older state %d is not what the kernel has", old)
			}
		}
		give(s.model, listed(n, svc, at(n))...)
		s.settle()
		if !serves(n) {
			t.Fatalf("round %d: the kernel has %v", n, s.kernel.Servers[key].Reals)
		}
		s.pass(10 * time.Second) // what drained is gone
	}
	figure(t, "older states", older)
	figure(t, "newer states", rounds)
	figure(t, "writes", len(s.kernel.Log))
	if most := 8 * (older + rounds); len(s.kernel.Log) > most {
		t.Errorf("%d writes for %d states", len(s.kernel.Log), older+rounds)
	}
}

// F10: two Services claim one address, and are listed again a thousand times in any order, and the agent is started anew each
// hundred times: the owner is the same, and nothing is written. The control: when the owner goes, the other has it.
func TestF10OwnerStays(t *testing.T) {
	const lists = 1000
	older, younger := service("older", "10.96.0.10", 80), service("younger", "10.96.0.11", 80)
	older.CreationTimestamp.Time, younger.CreationTimestamp.Time = time.Unix(1000, 0), time.Unix(2000, 0)
	for _, s := range []*corev1.Service{older, younger} {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.5"}}
	}
	objs := []any{older, younger, slice(older, "10.244.2.10"), slice(younger, "10.244.2.20")}
	key := ipvs.Key{Addr: netip.MustParseAddr("203.0.113.5"), Port: 80, Proto: ipvs.TCP}
	s := newStepper()
	owner := func() string {
		reals := s.kernel.Servers[key].Reals
		if len(reals) != 1 {
			return fmt.Sprint(reals)
		}
		return reals[0].Addr.Addr().String()
	}
	s.start(completeModel(objs...))
	s.pass(time.Minute)
	s.kernel.Log = nil
	random := rand.New(rand.NewPCG(3, 0))
	for i := range lists {
		random.Shuffle(len(objs), func(a, b int) { objs[a], objs[b] = objs[b], objs[a] })
		if i%100 == 99 {
			s.start(completeModel(listed(i, objs...)...))
		} else {
			give(s.model, listed(i, objs...)...)
		}
		s.settle()
		if got := owner(); got != "10.244.2.10" {
			t.Fatalf("list %d: the address is %s's", i, got)
		}
	}
	figure(t, "lists", lists)
	figure(t, "writes", len(s.kernel.Log))
	if len(s.kernel.Log) > 0 {
		t.Errorf("wrote %d times, first %s", len(s.kernel.Log), s.kernel.Log[0])
	}
	s.model.DeleteService("default", "older")
	s.pass(time.Minute)
	if got := owner(); got != "10.244.2.20" {
		t.Errorf("the control: the owner has gone, and the address is %s's", got)
	}
}

// F9: a slice of 1,000 addresses and 100 ports, of a Service that has all of the ports, and beside it one that has nothing to
// do with it. The neighbour is served at once, and memory stays in proportion: some hundred bytes an endpoint port.
func TestF9ThousandByHundred(t *testing.T) {
	const addrs, ports = 1000, 100
	big := service("big", "10.96.0.10")
	for p := range ports {
		big.Spec.Ports = append(big.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", p), Port: int32(1000 + p), Protocol: corev1.ProtocolTCP})
	}
	var at []string
	for i := range addrs {
		at = append(at, fmt.Sprintf("10.244.%d.%d", 10+i/250, 1+i%250))
	}
	s := newStepper()
	p := s.watched()
	s.pass(time.Second)
	memory := held()
	began := time.Now()
	give(s.model, big, slice(big, at...))
	s.loop.turn(t.Context()) // it has begun
	near := service("near", "10.96.0.20", 80)
	give(s.model, near, slice(near, "10.244.2.20"))
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.20"), Port: 80, Proto: ipvs.TCP}
	turns := 0
	for len(s.kernel.Servers[key].Reals) == 0 && turns < 10_000 {
		s.loop.turn(t.Context())
		turns++
	}
	s.pass(time.Minute)
	grew := held() - memory
	figure(t, "real servers", addrs*ports)
	figure(t, "turns until a neighbour is served", turns)
	figure(t, "operations in a plan, at most", p.most)
	figure(t, "memory of it and of the kernel in memory, kB", grew/1024)
	figure(t, "taken in after, ms", int(time.Since(began).Milliseconds()))
	if turns > 5 {
		t.Errorf("a neighbour was served after %d turns", turns)
	}
	if p.most > sliceLimit {
		t.Errorf("%d operations in a plan", p.most)
	}
	if n := len(s.kernel.Servers[ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 1099, Proto: ipvs.TCP}].Reals); n != addrs {
		t.Errorf("the last port has %d real servers, want %d", n, addrs)
	}
	if most := addrs * ports * 500; grew > most {
		t.Errorf("%d bytes for %d real servers", grew, addrs*ports)
	}
}
