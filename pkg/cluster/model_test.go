package cluster

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var web = ID{"default", "web"}

// expectDirty takes from the Model and compares.
func expectDirty(t *testing.T, m *Model, want ...ID) {
	t.Helper()
	token := false
	select {
	case <-m.Changed():
		token = true
	default:
	}
	dirty, node, _ := m.Take()
	if !slices.Equal(dirty, want) {
		t.Errorf("dirty = %v, want %v", dirty, want)
	}
	if node {
		t.Error("the node changed")
	}
	if token != (len(want) > 0) {
		t.Errorf("token = %v with %v dirty", token, want)
	}
}

func expectEndpoints(t *testing.T, m *Model, id ID, want ...string) {
	t.Helper()
	_, eps := m.Get(id)
	if diff := cmp.Diff(want, shown(eps)); diff != "" {
		t.Errorf("endpoints of %s (-want +got):\n%s", id, diff)
	}
}

func TestModelLife(t *testing.T) {
	m := NewModel(Options{NodeName: "own"})
	expectDirty(t, m)

	m.SetSlice(testSlice("web-1"))
	expectDirty(t, m) // nobody there to care
	if svc, eps := m.Get(web); svc != nil || eps != nil {
		t.Fatal("a slice alone makes a Service")
	}
	m.SetService(testService())
	expectDirty(t, m, web)
	expectEndpoints(t, m, web, "10.1.0.1:8080/TCP")
	if got := m.Services(); !slices.Equal(got, []ID{web}) {
		t.Errorf("Services() = %v", got)
	}

	// B2: a copy of an endpoint, and it stays until the last copy goes.
	m.SetSlice(testSlice("web-2"))
	expectDirty(t, m, web)
	m.DeleteSlice("default", "web-1")
	expectDirty(t, m, web)
	expectEndpoints(t, m, web, "10.1.0.1:8080/TCP")

	// B1: the label takes effect, the slices stay for later.
	label := func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"} }
	m.SetService(testService(label))
	expectDirty(t, m, web)
	if svc, _ := m.Get(web); svc != nil {
		t.Error("a labelled Service is ours")
	}
	m.SetSlice(testSlice("web-2", func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "10.1.0.2" }))
	expectDirty(t, m)
	m.SetService(testService())
	expectDirty(t, m, web)
	expectEndpoints(t, m, web, "10.1.0.2:8080/TCP")

	// B5: to ExternalName and back.
	m.SetService(testService(func(s *corev1.Service) { s.Spec.Type = "ExternalName" }))
	expectDirty(t, m, web)
	m.SetService(testService())
	expectDirty(t, m, web)

	// A slice that changes its Service leaves the old one.
	other := ID{"default", "other"}
	m.SetService(testService(func(s *corev1.Service) { s.Name = "other" }))
	m.SetSlice(testSlice("web-2", func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = "other" }))
	expectDirty(t, m, other, web)
	expectEndpoints(t, m, web)
	expectEndpoints(t, m, other, "10.1.0.1:8080/TCP")

	// A slice that becomes headless counts no longer.
	m.SetSlice(testSlice("web-2", func(s *discoveryv1.EndpointSlice) { s.Labels[corev1.IsHeadlessService] = "" }))
	expectDirty(t, m, other)
	expectEndpoints(t, m, other)
}

func TestModelLeavesNothingBehind(t *testing.T) {
	m := NewModel(Options{})
	for i := range 100 {
		svc := testService(func(s *corev1.Service) { s.Name = fmt.Sprint("s", i) })
		sl := func(j int) *discoveryv1.EndpointSlice {
			return testSlice(fmt.Sprint("s", i, "-", j), func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = svc.Name })
		}
		m.SetSlice(sl(0))
		m.SetService(svc)
		m.SetSlice(sl(1))
		m.SetSlice(sl(2))
		m.DeleteSlice("default", sl(1).Name)
		m.DeleteService("default", svc.Name)
		m.DeleteSlice("default", sl(2).Name)
		m.DeleteSlice("default", sl(0).Name)
	}
	m.Take()
	if len(m.services)+len(m.slices)+len(m.dirty)+len(m.queued) != 0 {
		t.Errorf("left: %d services, %d slices, %d dirty", len(m.services), len(m.slices), len(m.dirty))
	}
}

// I5, F4: what says nothing new dirties nothing.
func TestModelSameContent(t *testing.T) {
	m := NewModel(Options{NodeName: "own"})
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "own"}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}}
	second := func(s *discoveryv1.EndpointSlice) {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.1.0.2"}, NodeName: new("own")},
			discoveryv1.Endpoint{Addresses: []string{"bad"}})
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new("b"), Port: new(int32(9))})
	}
	ips := func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1", "192.0.2.2"} }
	m.SetNode(node)
	m.SetService(testService(ips))
	m.SetSlice(testSlice("web-1", second))
	<-m.Changed()
	m.Take()

	noise := func(o metav1.Object) {
		o.SetResourceVersion("7")
		o.SetUID("u")
		o.SetGeneration(8)
		o.SetAnnotations(map[string]string{"a": "b"})
		o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: "x"}})
	}
	svc := testService(ips, func(s *corev1.Service) {
		noise(s)
		s.Labels = map[string]string{"app": "x"}
		slices.Reverse(s.Spec.ExternalIPs)
		s.Spec.Selector = map[string]string{"a": "b"}
		s.Status.Conditions = []metav1.Condition{{Type: "x"}}
	})
	m.SetService(svc)
	m.SetSlice(testSlice("web-1", second, func(s *discoveryv1.EndpointSlice) {
		noise(s)
		s.Endpoints[0], s.Endpoints[1] = s.Endpoints[1], s.Endpoints[0]
		s.Endpoints[0].TargetRef, s.Endpoints[0].Hostname = &corev1.ObjectReference{Name: "p"}, new("h")
		s.Endpoints[1].Conditions.Ready = new(true)
		slices.Reverse(s.Ports)
	}))
	noise(node)
	node.Status.Conditions = []corev1.NodeCondition{{Type: "Ready"}}
	m.SetNode(node)
	m.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	m.DeleteNode("other")
	m.DeleteService("default", "absent")
	m.DeleteSlice("default", "absent")
	expectDirty(t, m)
}

func TestModelNodeAndSynced(t *testing.T) {
	m := NewModel(Options{NodeName: "own"})
	if got := m.Node(); got.Name != "own" {
		t.Errorf("Node() = %v", got)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "own", Labels: map[string]string{"topology.kubernetes.io/zone": "z"}}}
	node.Spec.PodCIDR = "nonsense"
	if probs := m.SetNode(node); len(probs) != 1 || !slices.Equal(probs, m.Problems(ID{})) {
		t.Errorf("Problems: %v and %v", probs, m.Problems(ID{}))
	}
	<-m.Changed()
	if dirty, changed, synced := m.Take(); len(dirty) != 0 || !changed || synced || m.Node().Zone != "z" {
		t.Errorf("Take() = %v, %v, %v; %v", dirty, changed, synced, m.Node())
	}
	m.SetSynced()
	<-m.Changed()
	if _, changed, synced := m.Take(); changed || !synced {
		t.Errorf("Take() = %v, %v", changed, synced)
	}
	m.SetSynced()
	m.DeleteNode("own")
	if _, changed, synced := m.Take(); !changed || !synced || m.Node().Zone != "z" || m.Node().Name != "own" || m.Node().Known {
		t.Errorf("Take() = %v, %v; %v; want one that is gone, and its zone held (B84)", changed, synced, m.Node())
	}
	node.Labels = nil
	m.SetNode(node)
	if m.Take(); m.Node().Zone != "z" {
		t.Errorf("registered anew, and nothing filled in yet: %v; want the zone held", m.Node())
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	m.SetNode(node)
	if m.Take(); m.Node().Zone != "" {
		t.Errorf("the label is taken away: %v; want no zone", m.Node())
	}
}

func TestModelProblems(t *testing.T) {
	m := NewModel(Options{})
	bad := func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = nil }
	m.SetSlice(testSlice("web-2", bad))
	m.SetSlice(testSlice("web-1", bad))
	if got := m.Problems(web); got != nil {
		t.Errorf("Problems of an absent Service: %v", got)
	}
	m.SetService(testService(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"x"} }))
	var objects []string
	for _, p := range m.Problems(web) {
		objects = append(objects, p.Object)
	}
	want := []string{"Service default/web", "EndpointSlice default/web-1", "EndpointSlice default/web-2"}
	if !slices.Equal(objects, want) {
		t.Errorf("Problems of %v, want %v", objects, want)
	}
	m.Take()
	<-m.Changed()
	m.SetSlice(testSlice("web-1", func(s *discoveryv1.EndpointSlice) { s.Ports = nil })) // no endpoint more or less
	expectDirty(t, m, web)
	m.SetService(testService(func(s *corev1.Service) { s.Spec.Type = "Odd" }))
	if got := reasons(m.Problems(web)); !slices.Equal(got, []string{"spec.type: ServiceType"}) {
		t.Errorf("Problems of a Service of unknown type: %v", got)
	}
	m.DeleteService("default", "web")
	if got := m.Problems(web); got != nil {
		t.Errorf("Problems of a deleted Service: %v", got)
	}
}

func TestModelNil(t *testing.T) {
	m := NewModel(Options{})
	m.SetService(nil)
	m.SetSlice(nil)
	m.SetNode(nil)
	m.SetService(&corev1.Service{})
	m.SetSlice(&discoveryv1.EndpointSlice{})
	m.SetNode(&corev1.Node{})
	m.Get(ID{})
	m.Problems(ID{})
	if len(m.Services()) != 0 {
		t.Error("Services of nothing")
	}
}

// world is a source of random objects with few names, so that they meet.
type world struct{ *rand.Rand }

func (w world) pick(from ...string) string { return from[w.IntN(len(from))] }

func (w world) service() *corev1.Service {
	return testService(func(s *corev1.Service) {
		s.Name = w.pick("a", "b", "c")
		s.Spec.Type = corev1.ServiceType(w.pick("ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "Odd"))
		s.Spec.ClusterIPs = []string{w.pick("10.96.0.1", "10.96.0.2", "None", "bad")}
		s.Spec.Ports[0].Port = int32(w.IntN(4))
		s.Spec.ExternalIPs = []string{w.pick("192.0.2.1", "192.0.2.2"), w.pick("192.0.2.1", "192.0.2.3")}
	})
}

func (w world) slice() *discoveryv1.EndpointSlice {
	s := testSlice(w.pick("1", "2", "3", "4", "5"))
	s.Labels = map[string]string{discoveryv1.LabelServiceName: w.pick("a", "b", "c", "")}
	s.Endpoints = nil
	for range w.IntN(4) {
		ep := discoveryv1.Endpoint{Addresses: []string{w.pick("10.1.0.1", "10.1.0.2", "10.1.0.3", "::1")}}
		ep.Conditions.Ready = []*bool{nil, new(true), new(false)}[w.IntN(3)]
		ep.NodeName = []*string{nil, new("own"), new("n2")}[w.IntN(3)]
		s.Endpoints = append(s.Endpoints, ep)
	}
	s.Ports[0].Port = []*int32{nil, new(int32(80)), new(int32(81))}[w.IntN(3)]
	return s
}

type snapshot map[ID]reading

type reading struct {
	Svc      *Service
	Eps      []Endpoint
	Problems []Problem
}

func (m *Model) snapshot() snapshot {
	s := snapshot{}
	for _, name := range []string{"a", "b", "c"} {
		id := ID{"default", name}
		svc, eps := m.Get(id)
		s[id] = reading{svc, eps, m.Problems(id)}
	}
	return s
}

// F5, F7: whatever the way, the final objects alone decide; and a change that
// Get would show is never without its Service in the dirty set.
func TestModelOrderIndependence(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for round := range 100 {
		w := world{rand.New(rand.NewPCG(seed, uint64(round)))}
		walked := NewModel(Options{NodeName: "own"})
		services, endpointSlices := map[string]*corev1.Service{}, map[string]*discoveryv1.EndpointSlice{}
		for range 60 {
			before := walked.snapshot()
			switch w.IntN(6) {
			case 0, 1:
				s := w.service()
				services[s.Name] = s
				walked.SetService(s)
			case 2, 3, 4:
				s := w.slice()
				endpointSlices[s.Name] = s
				walked.SetSlice(s)
			default:
				s, e := w.service().Name, w.slice().Name
				delete(services, s)
				delete(endpointSlices, e)
				walked.DeleteService("default", s)
				walked.DeleteSlice("default", e)
			}
			dirty, _, _ := walked.Take()
			after := walked.snapshot()
			for id := range before {
				if changed := !cmp.Equal(before[id], after[id], netipComparer); changed && !slices.Contains(dirty, id) {
					t.Fatalf("round %d: %s changed and is not dirty\n%s", round, id, cmp.Diff(before[id], after[id], netipComparer))
				}
			}
		}
		for range 3 {
			fresh := NewModel(Options{NodeName: "own"})
			var feed []func()
			for _, s := range services {
				feed = append(feed, func() { fresh.SetService(s) })
			}
			for _, s := range endpointSlices {
				feed = append(feed, func() { fresh.SetSlice(s) })
			}
			w.Shuffle(len(feed), func(i, j int) { feed[i], feed[j] = feed[j], feed[i] })
			for _, f := range feed {
				f()
			}
			if diff := cmp.Diff(fresh.snapshot(), walked.snapshot(), netipComparer); diff != "" {
				t.Fatalf("round %d: (-fresh +walked)\n%s", round, diff)
			}
		}
		// F4: a relist of the same objects is silent.
		for _, s := range services {
			walked.SetService(s.DeepCopy())
		}
		for _, s := range endpointSlices {
			walked.SetSlice(s.DeepCopy())
		}
		if dirty, _, _ := walked.Take(); len(dirty) != 0 {
			t.Fatalf("round %d: a relist dirties %v", round, dirty)
		}
	}
}

// Sources and loop at once: the loop ends with the final state, having heard
// of it through Changed alone.
func TestModelConcurrent(t *testing.T) {
	m := NewModel(Options{NodeName: "own"})
	var sources sync.WaitGroup
	for n := range uint64(4) {
		sources.Go(func() {
			w := world{rand.New(rand.NewPCG(n, 0))}
			for range 500 {
				m.SetService(w.service())
				m.SetSlice(w.slice())
				m.DeleteSlice("default", w.slice().Name)
			}
		})
	}
	go func() {
		sources.Wait()
		m.SetSynced()
	}()
	seen := snapshot{}
	for synced := false; !synced; {
		<-m.Changed()
		var dirty []ID
		dirty, _, synced = m.Take()
		for _, id := range dirty {
			svc, eps := m.Get(id)
			seen[id] = reading{svc, eps, m.Problems(id)}
		}
		m.Services()
		m.Node()
	}
	for id, want := range m.snapshot() {
		if diff := cmp.Diff(want, seen[id], netipComparer); diff != "" {
			t.Errorf("%s (-model +loop):\n%s", id, diff)
		}
	}
}

// scramble fills a value with anything its type allows, nil above all.
func scramble(r *rand.Rand, v reflect.Value, depth int) {
	words := []string{
		"", "None", "10.0.0.1", "::1", "fd00::1", "IPv4", "IPv6", "ClientIP", "Local", "TCP", "LoadBalancer", "\xff\x00",
		"kubernetes.io/service-name", "1.2.3.4/99", "%", "...", "0.0.0.0/0",
	}
	switch v.Kind() {
	case reflect.Pointer:
		if depth > 0 && r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			scramble(r, v.Elem(), depth-1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				scramble(r, v.Field(i), depth-1)
			}
		}
	case reflect.Slice:
		if n := r.IntN(4); depth > 0 && n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				scramble(r, v.Index(i), depth-1)
			}
		}
	case reflect.Map:
		if depth > 0 && r.IntN(3) > 0 && v.Type().Elem().Kind() == reflect.String {
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.ValueOf(words[r.IntN(len(words))]).Convert(v.Type().Key()), reflect.ValueOf("web").Convert(v.Type().Elem()))
			v.SetMapIndex(reflect.ValueOf(discoveryv1.LabelServiceName).Convert(v.Type().Key()), reflect.ValueOf("").Convert(v.Type().Elem()))
		}
	case reflect.String:
		v.SetString(words[r.IntN(len(words))])
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt([]int64{0, 1, -1, 80, 65535, 65536, -1 << 31, 1<<31 - 1}[r.IntN(8)]) // cut to size
	}
}

// I10: nothing in an API object panics, and what comes out is in range.
func TestRandomObjectsNeverPanic(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m := NewModel(Options{})
	fill := func(obj any) {
		scramble(r, reflect.ValueOf(obj).Elem(), 9)
	}
	found := 0
	for range 3000 {
		var svc corev1.Service
		var sl discoveryv1.EndpointSlice
		var node corev1.Node
		fill(&svc)
		fill(&sl)
		fill(&node)
		if r.IntN(2) == 0 { // or hardly anything would be looked at in depth
			svc.ObjectMeta = metav1.ObjectMeta{Namespace: "default", Name: "web"}
			svc.Spec.Type, svc.Spec.ClusterIP = "LoadBalancer", "10.96.0.1"
			svc.Spec.ClusterIPs = slices.DeleteFunc(svc.Spec.ClusterIPs, func(s string) bool { return s == "None" })
			sl.ObjectMeta, sl.AddressType = testSlice(fmt.Sprint(r.IntN(3))).ObjectMeta, "IPv4"
			sl.Ports = append(sl.Ports, testSlice("").Ports...)
			svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Port: 80}) // the same name, none
		}
		node.Name = ""
		probs := slices.Concat(m.SetService(&svc), m.SetSlice(&sl), m.SetNode(&node))
		for _, p := range probs {
			if p.Reason == "" || p.Field == "" || p.Count < 1 || p.String() == "" {
				t.Fatalf("incomplete Problem %+v", p)
			}
		}
		for _, id := range m.Services() {
			found += checkRanges(t, m, id)
			m.Problems(id)
		}
	}
	if found < 100 {
		t.Errorf("only %d endpoints were looked at: the test tests nothing", found)
	}
}

// checkRanges checks what the doc comments promise, and counts the endpoints.
func checkRanges(t *testing.T, m *Model, id ID) int {
	svc, eps := m.Get(id)
	for _, a := range slices.Concat(svc.ClusterIPs, svc.ExternalIPs, svc.LoadBalancerIPs) {
		if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
			t.Fatalf("address %s", a)
		}
	}
	for _, p := range svc.Ports {
		if p.Port == 0 {
			t.Fatalf("port %v", p)
		}
	}
	for _, e := range eps {
		if !e.Addr.IsGlobalUnicast() || e.Addr.Is4In6() || e.Port == 0 || e.Protocol == 0 {
			t.Fatalf("endpoint %v", e)
		}
	}
	return len(eps)
}
