package cluster

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
)

// kubeconfig writes a file that leads to f. Credentials is YAML of the user.
func (f *fakeAPI) kubeconfig(server, credentials string) string {
	f.t.Helper()
	ca := filepath.Join(f.t.TempDir(), "ca.crt")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		f.t.Fatal(err)
	}
	file := filepath.Join(f.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q, tls-server-name: example.com}}]
users: [{name: u, user: {%s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, server, ca, credentials)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return file
}

func (f *fakeAPI) connection() Connection {
	return Connection{Kubeconfig: f.kubeconfig("https://"+f.addr, ""), ContentType: "application/vnd.kubernetes.protobuf", QPS: -1}
}

// observer has a source at work on a Model.
type observer struct {
	t      *testing.T
	m      *Model
	source *Kubernetes
	stop   func()

	mu   sync.Mutex
	told []string
}

// follow runs a source with short pauses.
func follow(t *testing.T, conn Connection, opt Options) *observer {
	t.Helper()
	o := &observer{t: t, m: NewModel(opt)}
	var err error
	o.source, err = NewKubernetes(conn, o.m, func(err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.told = append(o.told, err.Error())
	})
	if err != nil {
		t.Fatal(err)
	}
	o.source.backoff = wait.Backoff{Duration: 5 * time.Millisecond, Cap: 50 * time.Millisecond, Steps: 10, Factor: 2, Jitter: 1}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := o.source.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	o.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(o.stop)
	return o
}

func (o *observer) reports() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.told)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func (o *observer) synced() {
	o.t.Helper()
	eventually(o.t, "synced and complete", func() bool {
		o.m.mu.Lock()
		defer o.m.mu.Unlock()
		return o.m.synced && o.m.complete
	})
}

// state is the Model in short: Services with ClusterIPs and endpoints, and the
// zone of the Node.
func (o *observer) state() string {
	var b strings.Builder
	for _, id := range o.m.Services() {
		svc, eps := o.m.Get(id)
		if svc == nil {
			continue // gone since
		}
		fmt.Fprintf(&b, "%s=%s[", id.Name, svc.ClusterIPs)
		for i, ep := range eps {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(ep.Addr.String())
		}
		b.WriteString("] ")
	}
	node := o.m.Node()
	if !node.Known {
		node.Zone = "" // held, which is another test's matter
	}
	return b.String() + "zone=" + node.Zone
}

func (o *observer) expect(want string) {
	o.t.Helper()
	for end := time.Now().Add(30 * time.Second); o.state() != want; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("not within 30 s: %s\nbut: %s", want, o.state())
		}
	}
}

func apiService(name, ip string, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("0a1b2c3d-0000-4000-8000-000000000001")},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80}}},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func apiSlice(name, service string, addresses ...string) *discoveryv1.EndpointSlice {
	port, proto := int32(8080), corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port, Protocol: &proto}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

func apiNode(name, zone string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
}

var ownNode = Options{NodeName: "own"}

// TestKubernetesFollows: what the API server has and what changes in it, in
// protobuf and JSON, with streaming lists and without.
func TestKubernetesFollows(t *testing.T) {
	for _, test := range []struct {
		name, contentType, accept string
		streaming                 bool
	}{
		{"protobuf", "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf, */*", true},
		{"JSON", "application/json", "application/json, */*", true},
		{"plain lists", "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf, */*", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFakeAPI(t)
			f.streaming = test.streaming
			f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"), apiNode("own", "z1"), apiNode("other", "z2"))
			conn := f.connection()
			conn.ContentType = test.contentType
			o := follow(t, conn, ownNode)
			o.synced()
			o.expect("a=[10.96.0.1][10.1.0.1] zone=z1")

			b := apiService("b", "10.96.0.2")
			f.set(b, apiSlice("a-1", "a", "10.1.0.1", "10.1.0.2"), apiSlice("b-1", "b", "10.1.0.3"))
			o.expect("a=[10.96.0.1][10.1.0.1 10.1.0.2] b=[10.96.0.2][10.1.0.3] zone=z1")
			f.remove(b)
			f.set(apiNode("own", "z3"))
			o.expect("a=[10.96.0.1][10.1.0.1 10.1.0.2] zone=z3")
			f.remove(apiSlice("a-1", "a"))
			f.remove(apiNode("own", ""))
			o.expect("a=[10.96.0.1][] zone=")
			for _, r := range f.asked("services") {
				if r.accept != test.accept {
					t.Errorf("Accept: %s, want %s", r.accept, test.accept)
				}
			}
			if told := o.reports(); len(told) > 0 {
				t.Errorf("told of trouble: %q", told)
			}
		})
	}
}

// quietly does something to the API server that ends in a new list of every
// kind, and wants nothing to have become dirty by it.
func (o *observer) quietly(f *fakeAPI, do func()) {
	o.t.Helper()
	lists := func() int {
		n := 0
		for _, r := range []string{"services", "endpointslices", "nodes"} {
			for _, a := range f.asked(r) {
				if a.query.Get("watch") == "" || a.query.Get("sendInitialEvents") == "true" {
					n++
				}
			}
		}
		return n
	}
	before := lists()
	o.m.Take()
	do()
	eventually(o.t, "a new list of each kind", func() bool { return lists() >= before+3 })
	// What follows the lists on each stream has been taken over: so were they.
	for _, kind := range []string{"Service", "EndpointSlice", "Node"} {
		o.bookmarked(f, kind)
	}
	if dirty, node, _ := o.m.Take(); len(dirty) > 0 || node {
		o.t.Errorf("dirty: %v, Node %t", dirty, node)
	}
}

// bookmarked waits until the source has taken over a bookmark about a kind.
func (o *observer) bookmarked(f *fakeAPI, kind string) {
	o.t.Helper()
	heard := func() time.Time {
		c := o.source.contact
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.heard[kind]
	}
	before := heard()
	eventually(o.t, "a bookmark about "+kind, func() bool { f.bookmark(); return heard().After(before) })
}

// TestB1Selectors: what is headless is not even asked for. Services and endpoints of other proxies are (B60, B61):
// nobody may have their addresses. They are not served.
func TestB1Selectors(t *testing.T) {
	const name = "service.kubernetes.io/service-proxy-name"
	labelled := func(value string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Labels = map[string]string{name: value} }
	}
	headless := apiSlice("headless-1", "headless", "10.1.0.9")
	headless.Labels[corev1.IsHeadlessService] = ""
	for _, test := range []struct{ proxyName, state string }{
		{"", "a=[10.96.0.1][10.1.0.1] zone=z1"},
		{"other", "b=[10.96.0.2][] zone=z1"},
	} {
		t.Run(test.proxyName, func(t *testing.T) {
			f := newFakeAPI(t)
			f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"), apiService("b", "10.96.0.2", labelled("other")),
				apiService("headless", "None"), headless, apiSlice("kubernetes", "kubernetes", "192.0.2.1"), apiNode("own", "z1"), apiNode("strange", "z2"))
			o := follow(t, f.connection(), Options{NodeName: "own", ServiceProxyName: test.proxyName})
			o.synced()
			o.expect(test.state)
			for resource, want := range map[string][2]string{
				"services":       {"spec.clusterIP!=None", ""},
				"endpointslices": {"", "!" + corev1.IsHeadlessService},
				"nodes":          {"metadata.name=own", ""},
			} {
				asked := f.asked(resource)
				if len(asked) != 1 {
					t.Errorf("%s: %d requests, want one streaming list", resource, len(asked))
				}
				for _, a := range asked {
					got := [2]string{a.query.Get("fieldSelector"), a.query.Get("labelSelector")}
					if got != want || a.query.Get("sendInitialEvents") != "true" || a.query.Get("allowWatchBookmarks") != "true" {
						t.Errorf("%s: selectors %q, want %q; query %v", resource, got, want, a.query)
					}
				}
			}
			eps := o.m.Endpoints(kubernetes)
			if len(eps) != 1 || eps[0].Addr != netip.MustParseAddr("192.0.2.1") {
				t.Errorf("endpoints of default/kubernetes: %v", eps)
			}
		})
	}
}

// TestB1LabelComesAndGoes: the label on a live Service takes effect at once.
func TestB1LabelComesAndGoes(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	o := follow(t, f.connection(), ownNode)
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	f.set(apiService("a", "10.96.0.1", func(s *corev1.Service) {
		s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": ""}
	}))
	o.expect("zone=")
	f.set(apiService("a", "10.96.0.1"))
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
}

// TestF4SameContent: after 410, after a cut, and when the API server says the
// same in other objects, nothing is dirty.
func TestF4SameContent(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"), apiNode("own", "z1"), apiNode("strange", "z1"))
	o := follow(t, f.connection(), ownNode)
	o.synced()
	for range 3 {
		o.quietly(f, f.compact)
	}
	f.mu.Lock()
	f.streaming = false
	f.mu.Unlock()
	o.quietly(f, f.compact)
	o.expect("a=[10.96.0.1][10.1.0.1] zone=z1")
	if told := o.reports(); len(told) > 0 {
		t.Errorf("410 is no trouble: %q", told)
	}
}

// TestRelistDeletes: what is gone when a list comes anew is gone, all of it if
// need be: the API server says so.
func TestRelistDeletes(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiService("b", "10.96.0.2"), apiSlice("a-1", "a", "10.1.0.1"), apiSlice("b-1", "b", "10.1.0.2"), apiNode("own", "z1"))
	o := follow(t, f.connection(), ownNode)
	o.expect("a=[10.96.0.1][10.1.0.1] b=[10.96.0.2][10.1.0.2] zone=z1")
	f.swap("services", 1000, apiService("b", "10.96.0.2"))
	o.expect("b=[10.96.0.2][10.1.0.2] zone=z1")
	f.swap("endpointslices", 2000)
	f.swap("nodes", 2001)
	o.expect("b=[10.96.0.2][] zone=")
	f.swap("services", 3000)
	o.expect("zone=")
	if n := len(o.m.services) + len(o.m.slices); n > 0 {
		t.Errorf("%d things are left in the Model", n)
	}
}

// TestF5OlderThenNewer: an API server that falls back behind what it said, as
// one restored from a backup, is believed, and so is what comes after.
func TestF5OlderThenNewer(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	f.set(apiSlice("a-1", "a", "10.1.0.1", "10.1.0.2"))
	o := follow(t, f.connection(), ownNode)
	o.expect("a=[10.96.0.1][10.1.0.1 10.1.0.2] zone=")
	f.swap("endpointslices", 50, apiSlice("a-1", "a", "10.1.0.1"))
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	f.set(apiSlice("a-1", "a", "10.1.0.1", "10.1.0.2", "10.1.0.3"))
	o.expect("a=[10.96.0.1][10.1.0.1 10.1.0.2 10.1.0.3] zone=")
}
