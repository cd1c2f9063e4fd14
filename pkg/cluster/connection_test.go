package cluster

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

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
	next := func() []netip.Addr {
		select {
		case got := <-heard:
			return got
		case <-time.After(20 * time.Second):
			t.Fatal("no address within 20 s")
		}
		return nil
	}
	if got := next(); !slices.Equal(got, addrs4("127.0.0.1")) {
		t.Errorf("from the connection: %v", got)
	}
	if got := next(); !slices.Contains(got, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("from the name: %v", got)
	}

	if added := m.AddAPIServers(usable(addrs("192.0.2.2", "192.0.2.1", "192.0.2.2"))); len(added) != 2 {
		t.Errorf("added %v", added)
	}
	expectDirty(t, m, kubernetes)
	if added := m.AddAPIServers(addrs("192.0.2.1")); len(added) > 0 {
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
