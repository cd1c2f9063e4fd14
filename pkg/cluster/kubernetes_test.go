package cluster

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	return b.String() + "zone=" + o.m.Node().Zone
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

// TestB1Selectors: what is not ours is not even asked for, and the API server's
// own endpoints are, whichever Services are ours (B61).
func TestB1Selectors(t *testing.T) {
	const name = "service.kubernetes.io/service-proxy-name"
	labelled := func(value string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Labels = map[string]string{name: value} }
	}
	headless := apiSlice("headless-1", "headless", "10.1.0.9")
	headless.Labels[corev1.IsHeadlessService] = ""
	for _, test := range []struct{ proxyName, services, state string }{
		{"", "!" + name, "a=[10.96.0.1][10.1.0.1] zone=z1"},
		{"other", name + "=other", "b=[10.96.0.2][] zone=z1"},
	} {
		t.Run(test.proxyName, func(t *testing.T) {
			f := newFakeAPI(t)
			f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"), apiService("b", "10.96.0.2", labelled("other")),
				apiService("headless", "None"), headless, apiSlice("kubernetes", "kubernetes", "192.0.2.1"), apiNode("own", "z1"), apiNode("strange", "z2"))
			o := follow(t, f.connection(), Options{NodeName: "own", ServiceProxyName: test.proxyName})
			o.synced()
			o.expect(test.state)
			for resource, want := range map[string][2]string{
				"services":       {"spec.clusterIP!=None", test.services},
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

// TestDroppedWatch: a watch that ends goes on where it ended, without a list.
func TestDroppedWatch(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	o := follow(t, f.connection(), ownNode)
	o.synced()
	for _, kind := range []string{"Service", "EndpointSlice", "Node"} { // a watch that ends without a word is another matter
		o.bookmarked(f, kind)
	}
	f.drop()
	f.set(apiSlice("a-1", "a", "10.1.0.2"))
	o.expect("a=[10.96.0.1][10.1.0.2] zone=")
	for _, a := range f.asked("endpointslices")[1:] {
		if a.query.Get("watch") == "" || a.query.Get("sendInitialEvents") != "" {
			t.Errorf("a list: %v", a.query)
		}
	}
}

// TestF2Unreachable: an API server that is not there, at the start and later,
// is told of once each time, with the reason, and takes nothing away.
func TestF2Unreachable(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	conn := f.connection()
	f.stop()
	o := follow(t, conn, ownNode)
	eventually(t, "three kinds that cannot be had", func() bool {
		o.source.contact.mu.Lock()
		defer o.source.contact.mu.Unlock()
		return len(o.source.contact.faults) == 3
	})
	if o.source.Reachable() || o.source.Age() <= 0 {
		t.Error("reachable, or as new as can be")
	}
	if dirty, _, synced := o.m.Take(); synced || o.m.Complete() || len(dirty) > 1 { // default/kubernetes, for its address
		t.Errorf("synced %t, complete %t, dirty %v without a word from the API server", synced, o.m.Complete(), dirty)
	}
	f.restart()
	o.synced()
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	eventually(t, "reachable", o.source.Reachable)

	f.stop()
	eventually(t, "unreachable", func() bool { return !o.source.Reachable() })
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	f.restart()
	eventually(t, "reachable", o.source.Reachable)
	// How the connection died may be told first, and comes along then.
	var lines []string
	for _, line := range o.reports() {
		if strings.Contains(line, "dial tcp "+f.addr+": connect: connection refused") {
			lines = append(lines, strings.SplitAfter(line, "https://"+f.addr)[0])
		}
	}
	server := "API server https://" + f.addr
	if diff := cmp.Diff([]string{server, "mended: " + server, server, "mended: " + server}, lines); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// TestContactTellsOnce: an outage is told of when it begins, for a new reason,
// and when it is over, not for each attempt.
func TestContactTellsOnce(t *testing.T) {
	var told []string
	c := newContact("https://api:6443", []string{"Service", "Node"}, func(err error) { told = append(told, err.Error()) })
	get := func(err error) error {
		return fmt.Errorf("wrapped: %w", &url.Error{Op: "Get", URL: fmt.Sprintf("https://api:6443/?timeoutSeconds=%d", len(told)), Err: err})
	}
	for port := range 100 {
		c.failed("Service", get(fmt.Errorf("read tcp 192.0.2.7:%d->192.0.2.1:6443: connection reset", 32000+port)))
		c.failed("Node", get(fmt.Errorf("read tcp [2001:db8::7]:%d->[2001:db8::1]:6443: connection reset", 32000+port)))
		if port > 50 {
			c.failed("Node", get(errors.New("no route to host")))
		}
	}
	c.answered("Service")
	if c.reachable() {
		t.Error("reachable with one kind that fails")
	}
	c.hear("Node")
	if !c.reachable() {
		t.Error("not reachable with both")
	}
	for range 1000 {
		c.failed("Node", fmt.Errorf("another reason each time: %d", len(told)))
	}
	const head, four, six = "API server https://api:6443: ", "read tcp 192.0.2.1:6443: connection reset", "read tcp [2001:db8::1]:6443: connection reset"
	const stays = "; the last state stays"
	want := []string{head + four + stays, head + four + "; " + six + stays, head + four + "; " + six + "; no route to host" + stays,
		"mended: " + head + four + "; " + six + "; no route to host" + stays}
	if diff := cmp.Diff(want, told[:min(len(told), len(want))]); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if n := len(told) - len(want); n != mostReasons {
		t.Errorf("%d reasons of one outage told, want %d", n, mostReasons)
	}
}

// relay forwards TCP connections, and can make those that there are hang, as a
// network does that drops all packets.
type relay struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	hangs chan struct{} // closed: the connections made so far hang
	conns []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, to: to, hangs: make(chan struct{})}
	go r.accept()
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range r.conns {
			c.Close()
		}
	})
	return r
}

func (r *relay) accept() {
	for {
		near, err := r.l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", r.to)
		if err != nil {
			near.Close()
			continue
		}
		r.mu.Lock()
		hangs := r.hangs
		r.conns = append(r.conns, near, far)
		r.mu.Unlock()
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				buffer := make([]byte, 64<<10)
				for {
					n, err := way[0].Read(buffer)
					select {
					case <-hangs:
						return // nothing is closed
					default:
					}
					if err != nil {
						way[1].Close()
						return
					}
					_, _ = way[1].Write(buffer[:n])
				}
			}()
		}
	}
}

func (r *relay) hang() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.hangs)
	r.hangs = make(chan struct{})
}

// TestF3HalfOpen: a connection over which nothing comes any more, and which
// nobody closes, is found by HTTP/2's pings and replaced. Their times are
// shortened by the environment here, which also shows that our transport has
// them at all.
func TestF3HalfOpen(t *testing.T) {
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "1")
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	network := newRelay(t, f.addr)
	conn := f.connection()
	conn.Kubeconfig = f.kubeconfig("https://"+network.l.Addr().String(), "")
	o := follow(t, conn, ownNode)
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	network.hang()
	f.set(apiSlice("a-1", "a", "10.1.0.2"))
	o.expect("a=[10.96.0.1][10.1.0.2] zone=")
}

// TestForbidden: an API server that answers and does not give what is asked is
// trouble, too, and names what it does not give.
func TestForbidden(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"))
	f.refuse = func(r *http.Request) *metav1.Status {
		if !strings.HasSuffix(r.URL.Path, "/endpointslices") {
			return nil
		}
		return &metav1.Status{Status: "Failure", Code: 403, Reason: metav1.StatusReasonForbidden, Message: "endpointslices is forbidden: no"}
	}
	o := follow(t, f.connection(), ownNode)
	o.expect("a=[10.96.0.1][] zone=")
	eventually(t, "told", func() bool { return len(o.reports()) == 1 })
	if got := o.reports()[0]; !strings.Contains(got, "endpointslices is forbidden: no") {
		t.Error(got)
	}
	if o.m.Complete() || o.source.Reachable() {
		t.Error("complete or well without EndpointSlices")
	}
}

// TestTokenIsReadAgain: a token that was replaced in its file is used after the
// API server refused the old one.
func TestTokenIsReadAgain(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"))
	token := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	valid := "one"
	f.refuse = func(r *http.Request) *metav1.Status {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") == "Bearer "+valid {
			return nil
		}
		return &metav1.Status{Status: "Failure", Code: 401, Reason: metav1.StatusReasonUnauthorized, Message: "Unauthorized"}
	}
	write("one")
	conn := f.connection()
	conn.Kubeconfig = f.kubeconfig("https://"+f.addr, fmt.Sprintf("tokenFile: %q", token))
	o := follow(t, conn, ownNode)
	o.synced()
	write("two")
	mu.Lock()
	valid = "two"
	mu.Unlock()
	f.drop()
	f.set(apiService("a", "10.96.0.2"))
	o.expect("a=[10.96.0.2][] zone=")
}

// TestAge: it starts anew with all that the API server says, a bookmark at the
// least, and grows with the kind that it is silent about.
func TestAge(t *testing.T) {
	f := newFakeAPI(t)
	o := follow(t, f.connection(), ownNode)
	o.synced()
	c := o.source.contact
	var mu sync.Mutex
	ahead := time.Hour
	c.mu.Lock()
	c.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}
	c.mu.Unlock()
	if age := o.source.Age(); age < time.Hour {
		t.Errorf("age %s an hour after the last word", age)
	}
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a"))
	o.expect("a=[10.96.0.1][] zone=")
	if age := o.source.Age(); age < time.Hour {
		t.Errorf("age %s with no word about the Node", age)
	}
	f.bookmark()
	eventually(t, "young again", func() bool { return o.source.Age() < time.Minute })
}

// TestB57OwnClusterIP: an API server that is reached through a ClusterIP that
// is ours to serve is loud trouble, whichever of the two is known first.
func TestB57OwnClusterIP(t *testing.T) {
	const loud = "is the ClusterIP of Service default/kubernetes, and serving that takes this very process"
	f := newFakeAPI(t)
	kubernetesAt := func(ip string) *corev1.Service { return apiService("kubernetes", ip) }
	conn := f.connection()
	conn.Kubeconfig = f.kubeconfig("https://10.96.0.1:443", "")
	var told []string
	tell := func(err error) { told = append(told, err.Error()) }
	m := NewModel(ownNode)
	k, err := NewKubernetes(conn, m, tell)
	if err != nil {
		t.Fatal(err)
	}
	first := &store{kind: "Service", model: m, took: k.took("Service"), heard: func() {}}
	for range 3 {
		if err := first.Add(kubernetesAt("10.96.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "10.96.0.1, which is from the kubeconfig, "+loud) {
		t.Errorf("told: %q", told)
	}

	// A name turns out to lead to a ClusterIP.
	told, m = nil, NewModel(ownNode)
	conn.Kubeconfig = f.kubeconfig("https://kubernetes.default:443", "")
	if k, err = NewKubernetes(conn, m, tell); err != nil {
		t.Fatal(err)
	}
	m.SetService(kubernetesAt("10.96.0.1"))
	k.foundServers(addrs("10.96.0.1", "127.0.0.1"))
	if len(told) != 1 || !strings.Contains(told[0], loud) {
		t.Errorf("told: %q", told)
	}
	if got := m.APIServers(); !slices.Equal(got, addrs("10.96.0.1")) {
		t.Errorf("addresses of the API server: %v", got)
	}

	// An address of its own.
	told, m = nil, NewModel(ownNode)
	conn.Kubeconfig = f.kubeconfig("https://192.0.2.1:6443", "")
	if k, err = NewKubernetes(conn, m, tell); err != nil {
		t.Fatal(err)
	}
	services := &store{kind: "Service", model: m, took: k.took("Service"), heard: func() {}}
	if err := services.Add(kubernetesAt("10.96.0.1")); err != nil {
		t.Fatal(err)
	}
	if len(told) > 0 {
		t.Errorf("told of an address of the API server's own: %q", told)
	}
}

// TestB57Environment: a pod's environment leads to the ClusterIP, unless it was
// set to something else.
func TestB57Environment(t *testing.T) {
	for _, test := range []struct {
		host, tcp string
		own       bool
	}{{"10.96.0.1", "10.96.0.1", true}, {"10.96.0.1", "", true}, {"192.0.2.1", "10.96.0.1", false}} {
		t.Setenv("KUBERNETES_SERVICE_HOST", test.host)
		t.Setenv("KUBERNETES_PORT_443_TCP_ADDR", test.tcp)
		if got := servicesOwn(); got != test.own {
			t.Errorf("host %s, of the Service %s: %t", test.host, test.tcp, got)
		}
	}
}

// TestB61APIServersHost: the addresses by which the API server was reached are
// known to the Model, from the connection itself where the host is a name.
func TestB61APIServersHost(t *testing.T) {
	m := NewModel(ownNode)
	var d *dialer
	heard := make(chan []netip.Addr, 10)
	d = newDialer(func(a []netip.Addr) { heard <- a })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	conn, err := d.dial(t.Context(), "tcp", "localhost:"+port)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got := <-heard; !slices.Equal(got, addrs4("127.0.0.1")) {
		t.Errorf("from the connection: %v", got)
	}
	if got := <-heard; !slices.Contains(got, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("from the name: %v", got)
	}

	if added := m.addAPIServers(usable(addrs("192.0.2.2", "192.0.2.1", "192.0.2.2"))); len(added) != 2 {
		t.Errorf("added %v", added)
	}
	expectDirty(t, m, kubernetes)
	if added := m.addAPIServers(addrs("192.0.2.1")); len(added) > 0 {
		t.Errorf("added again %v", added)
	}
	expectDirty(t, m)
	if got := m.APIServers(); !slices.Equal(got, addrs("192.0.2.1", "192.0.2.2")) {
		t.Error(got)
	}
}

func addrs4(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }

// TestConnectionErrors: what cannot work is an error at once, which says what
// is missing where.
func TestConnectionErrors(t *testing.T) {
	f := newFakeAPI(t)
	good := f.connection()
	bad := func(change func(*Connection)) Connection {
		c := good
		change(&c)
		return c
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, test := range []struct {
		conn Connection
		want string
	}{
		{Connection{}, "no kubeconfig is given, and this is no pod of a cluster"},
		{Connection{Kubeconfig: "/nowhere"}, `kubeconfig "/nowhere": stat /nowhere: no such file`},
		{bad(func(c *Connection) { c.ContentType = "text/html" }), `content type "text/html": want application/vnd.kubernetes.protobuf or application/json`},
		{bad(func(c *Connection) { c.AcceptContentTypes = "application/json, x/y" }), `content type "x/y"`},
	} {
		if _, err := NewKubernetes(test.conn, NewModel(ownNode), nil); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %s", test.conn, err, test.want)
		}
	}
	good.Master = "https://192.0.2.9:6443"
	k, err := NewKubernetes(good, NewModel(ownNode), nil)
	if err != nil || k.Server() != good.Master {
		t.Errorf("--master: %v, %v", k, err)
	}
}
