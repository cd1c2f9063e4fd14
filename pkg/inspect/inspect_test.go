package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// service is one of so many ports, in the namespace before the slash.
func service(name, ip string, ports ...int32) *corev1.Service {
	namespace, name, _ := strings.Cut(name, "/")
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}}}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", p), Port: p, Protocol: corev1.ProtocolTCP})
	}
	return s
}

// slice has endpoints "address@node".
func slice(svc *corev1.Service, addrs ...string) *discoveryv1.EndpointSlice {
	e := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}}}
	target := int32(8080)
	for i := range svc.Spec.Ports {
		e.Ports = append(e.Ports, discoveryv1.EndpointPort{Name: &svc.Spec.Ports[i].Name, Port: &target, Protocol: &svc.Spec.Ports[i].Protocol})
	}
	for _, a := range addrs {
		addr, node, _ := strings.Cut(a, "@")
		e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node})
	}
	return e
}

// node is one whose loop runs on a kernel in memory until the test ends.
type node struct {
	*Node
	kernel *fake.Kernel
	model  *cluster.Model
}

func newNode(t testing.TB, objs ...any) *node {
	t.Helper()
	n := &node{kernel: fake.New(), model: cluster.NewModel(cluster.Options{NodeName: "node1"})}
	n.give(objs...)
	n.model.SetSynced()
	n.model.SetComplete()
	loop := sync.New(n.kernel, n.model, zap.NewNop(), sync.Options{})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = loop.Run(ctx)
	}()
	t.Cleanup(func() { stop(); <-ended })
	n.Node = New(loop, About{Version: "v1", Kernel: "6.1.0"})
	n.until(t, func(h Head) bool { return h.Programmed })
	return n
}

func (n *node) give(objs ...any) {
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Service:
			n.model.SetService(o)
		case *discoveryv1.EndpointSlice:
			n.model.SetSlice(o)
		}
	}
}

// until waits until the head is so.
func (n *node) until(t testing.TB, so func(Head) bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		h, err := n.Head(t.Context())
		if err == nil && so(h) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the head stays %+v, %v", h, err)
		}
	}
}

// counts are as the kernel would give them for the fake one's servers: each connection goes to the first real server.
func counts(k *fake.Kernel, conns uint64) Counts {
	c := Counts{}
	for key, s := range k.Servers {
		is := ipvs.Counted{Key: key, Server: s, Counters: ipvs.Counters{Conns: conns}}
		for i, r := range s.Reals {
			real := ipvs.CountedReal{Real: r}
			if i == 0 {
				real.Counters.Conns, real.Active = conns, uint32(conns)
			}
			is.Reals = append(is.Reals, real)
		}
		c[key] = is
	}
	return c
}

// Every state that a frontend can have is said, with its reason, and what the kernel counts beside it.
func TestB73States(t *testing.T) {
	web, none, local := service("default/web", "10.96.0.10", 80), service("default/none", "10.96.0.11", 80), service("default/local", "10.96.0.12", 80)
	policy := corev1.ServiceInternalTrafficPolicyLocal
	local.Spec.InternalTrafficPolicy = &policy
	first, second := service("a/first", "10.96.0.13", 80), service("b/second", "10.96.0.13", 80)
	ext := service("default/ext", "10.96.0.14", 80)
	ext.Spec.ExternalIPs = []string{"198.51.100.1"}
	broken := service("default/broken", "10.96.0.15", 80)
	n := newNode(t, web, slice(web, "10.244.1.5@node1", "10.244.2.10@node2"), none, local, slice(local, "10.244.2.11@node2"),
		first, slice(first, "10.244.2.12@node2"), second, ext, slice(ext, "10.244.2.13@node2"))
	n.kernel.Fail = func(op ipvs.Op) error {
		if is := op.Effect(); is.OfServer() && is.Key.Addr == netip.MustParseAddr("10.96.0.15") {
			return errors.New("no room")
		}
		return nil
	}
	n.give(broken)
	n.until(t, func(h Head) bool { return h.Failing > 0 })
	l, err := n.List(t.Context(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	c := counts(n.kernel, 7)
	delete(c, ipvs.Key{Addr: netip.MustParseAddr("10.96.0.14"), Port: 80, Proto: ipvs.TCP})
	var got []string
	for _, r := range l.Rows {
		r.Count(c)
		got = append(got, fmt.Sprintf("%s %s %s %d(%d) %d/%d %s %s", r.Service, r.Port, r.Frontend, r.Backends, r.Here, r.Active, r.Conns, r.State, r.Code))
	}
	want := []string{
		"a/first p80 10.96.0.13:80 1(0) 7/7 open ",
		"b/second p80 10.96.0.13:80 0(0) 0/0 taken IPX0207",
		"default/broken p80 10.96.0.15:80 0(0) 0/0 failing ",
		"default/ext p80 10.96.0.14:80 1(0) 0/0 waiting ",
		"default/ext  198.51.100.1 0(0) 0/0 forbidden IPX0203",
		"default/local p80 10.96.0.12:80 0(0) 0/7 no-local IPX0303",
		"default/none p80 10.96.0.11:80 0(0) 0/7 no-endpoints IPX0302",
		"default/web p80 10.96.0.10:80 2(1) 7/7 open ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	for _, r := range l.Rows {
		if r.State == Failing && !strings.Contains(r.Why, "no room") || r.State == Taken && !strings.Contains(r.Why, "a/first") {
			t.Errorf("%s: %s", r.State, r.Why)
		}
	}
	for _, c := range []struct {
		query Query
		want  int
	}{{Query{State: Open, Not: true}, 5}, {Query{State: Open}, 3}, {Query{Namespace: "b"}, 1}, {Query{Text: "we"}, 1},
		{Query{Address: netip.MustParseAddr("198.51.100.1")}, 0}, {Query{Address: netip.MustParseAddr("10.96.0.13")}, 1}} {
		l, err := n.List(t.Context(), c.query)
		if err != nil || len(l.Rows) != c.want {
			t.Errorf("%+v: %d rows, %v; want %d", c.query, len(l.Rows), err, c.want)
		}
	}
}

// What is still to be written for a Service stands below it, and since when it waits, as a person would type it; nothing where all is
// written.
func TestB73StillToBeWritten(t *testing.T) {
	web := service("default/web", "10.96.0.10", 80)
	n := newNode(t, web, slice(web, "10.244.1.5@node1"))
	id := cluster.ID{Namespace: "default", Name: "web"}
	look := func(head Head) (*Service, string) {
		t.Helper()
		s, err := n.Service(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return s, s.Text(head, Style{Now: head.Now})
	}
	if s, text := look(Head{Now: time.Now()}); s.Pending != nil || s.Since != nil || strings.Contains(text, "written") {
		t.Errorf("all is written, and it says %q since %v:\n%s", s.Pending, s.Since, text)
	}
	n.kernel.Fail = func(op ipvs.Op) error {
		if _, is := op.(ipvs.AddReal); is {
			return errors.New("no room")
		}
		return nil
	}
	before := time.Now()
	var eps []string
	for i := range 25 {
		eps = append(eps, fmt.Sprintf("10.244.2.%d@node2", i+1))
	}
	n.give(slice(web, append(eps, "10.244.1.5@node1")...))
	n.until(t, func(h Head) bool { return h.Failing > 0 })
	s, _ := look(Head{})
	if len(s.Pending) != 25 || s.Pending[0] != "ipvsadm -a -t 10.96.0.10:80 -r 10.244.2.1:8080 -m -w 1" || s.Since == nil || s.Since.Before(before) || s.Since.After(time.Now()) {
		t.Fatalf("%q since %v", s.Pending, s.Since)
	}
	_, text := look(Head{Now: s.Since.Add(90 * time.Second)})
	for _, want := range []string{"\nstill to be written: 25 changes, for 1m30s\n  ipvsadm -a -t 10.96.0.10:80 -r 10.244.2.1:8080 -m -w 1\n", "\n  and 5 more: -o json has all\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
}

// A Service's backends stand with their nodes, their share, and why some are left out or drain.
func TestB73Backends(t *testing.T) {
	web := service("default/web", "10.96.0.10", 80)
	n := newNode(t, web, slice(web, "10.244.1.5@node1", "10.244.2.10@node2"))
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	unready := slice(web, "10.244.1.5@node1", "10.244.2.11@node2")
	no := false
	unready.Endpoints[1].Conditions.Ready = &no
	n.give(unready)
	n.until(t, func(h Head) bool { return h.Draining == 1 })
	id := cluster.ID{Namespace: "default", Name: "web"}
	s, err := n.Service(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	c := Counts{key: {Key: key, Server: ipvs.Server{Scheduler: "rr"}, Counters: ipvs.Counters{Conns: 10}, Reals: []ipvs.CountedReal{
		{Real: ipvs.Real{Addr: netip.MustParseAddrPort("10.244.1.5:8080"), Weight: 1}, Counters: ipvs.Counters{Conns: 4, Out: ipvs.Volume{Bytes: 99}}},
		{Real: ipvs.Real{Addr: netip.MustParseAddrPort("10.244.2.10:8080")}, Conns: ipvs.Conns{Active: 2}, Counters: ipvs.Counters{Conns: 6}},
		{Real: ipvs.Real{Addr: netip.MustParseAddrPort("192.0.2.1:1"), Weight: 1}}}}}
	s.Count(c)
	f := s.Frontends[0]
	var got []string
	for _, b := range f.Of {
		got = append(got, fmt.Sprintf("%s %s w%d %s %.1f %d %d %s drains=%t", b.Address, b.Node, b.Weight, b.State, b.Share, b.Active, b.Out, b.Code, b.Until != nil))
	}
	want := []string{"10.244.1.5:8080 node1 w1 ready 0.4 0 99  drains=false", "10.244.2.11:8080 node2 w0 left out 0.0 0 0 IPX0101 drains=false",
		"10.244.2.10:8080  w0 draining 0.6 2 0  drains=true", "192.0.2.1:1  w1 stray 0.0 0 0  drains=false"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	if f.Backends != 1 || f.Here != 1 || f.Active != 2 {
		t.Errorf("%+v", f.Row)
	}
	s2, _ := n.Service(t.Context(), id)
	if s2.Count(Counts{}); s2.Frontends[0].State != Waiting {
		t.Errorf("without a virtual server it is %s", s2.Frontends[0].State)
	}
	text, err := json.Marshal(s)
	var back Service
	if err != nil || json.Unmarshal(text, &back) != nil || back.Frontends[0].Of[0].Share != 0.4 || back.Frontends[0].State != Open {
		t.Errorf("as JSON %s, %v", text, err)
	}
	_, err = n.Service(t.Context(), cluster.ID{Namespace: "default", Name: "wbe"})
	var unknown *preview.UnknownServiceError
	if !errors.As(err, &unknown) || !strings.Contains(err.Error(), "there is default/web") {
		t.Errorf("a name that is misspelt: %v", err)
	}
	log, err := n.Log(t.Context(), sync.Selection{Service: id, Last: 1})
	if err != nil || len(log.Changes) != 1 || log.Changes[0].Cause != "object" || log.Changes[0].Heard == nil ||
		log.Changes[0].Line != "ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.10:8080 -m -w 0" || log.Changes[0].Service != "default/web" {
		t.Errorf("the last change: %+v, %v", log, err)
	}
}

// Pages go through all Services, each once, and those that few answer to are found, too.
func TestB73Pages(t *testing.T) {
	var objs []any
	for i := range 2300 {
		svc := service(fmt.Sprintf("ns%d/s%04d", i%3, i), fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), 80)
		objs = append(objs, svc)
		if i != 2222 {
			objs = append(objs, slice(svc, "10.244.2.10@node2"))
		}
	}
	n := newNode(t, objs...)
	all := func(q Query) (rows []Row, pages int) {
		for {
			l, err := n.List(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			rows, pages = append(rows, l.Rows...), pages+1
			if q.After = l.Next; q.After == "" {
				return rows, pages
			}
		}
	}
	for _, c := range []struct {
		walk walk
		want int
	}{{walk{want: 28}, 28}, {walk{want: 500}, sync.PageServices}, {walk{want: 1, query: Query{State: Waiting}}, sync.PageServices}} {
		w := c.walk
		w.node = n.Node
		if _, some, err := w.next(t.Context()); !some || err != nil || len(w.page) != c.want-1 {
			t.Errorf("%d rows are wanted, of state %q, and the loop is asked for %d Services, %v", w.want, w.query.State, len(w.page)+1, err)
		}
	}
	rows, pages := all(Query{})
	if len(rows) != 2300 || pages != 5 || !slices.IsSortedFunc(rows, func(a, b Row) int { return strings.Compare(a.Service, b.Service) }) {
		t.Errorf("%d rows in %d pages", len(rows), pages)
	}
	if rows, _ := all(Query{Namespace: "ns1", Most: 100}); len(rows) != 767 || rows[0].Service != "ns1/s0001" {
		t.Errorf("of a namespace %d rows", len(rows))
	}
	if rows, _ := all(Query{State: Open, Not: true}); len(rows) != 1 || rows[0].Service != "ns2/s2222" {
		t.Errorf("of those that are not open %d rows", len(rows))
	}
}
