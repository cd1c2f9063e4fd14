package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// fakeCounts are what a kernel counts that only remembers: so many connections as the last byte of the address says,
// dealt out in turn. They are read while the loop that writes to it waits.
type fakeCounts struct {
	k    *fake.Kernel
	loop *sync.Loop
}

func (f fakeCounts) counted(k ipvs.Key) (ipvs.Counted, bool) {
	s, has := f.k.Servers[k]
	if !has {
		return ipvs.Counted{}, false
	}
	a := k.Addr.AsSlice()
	n := uint64(a[len(a)-1])
	c := ipvs.Counted{Key: k, Server: ipvs.Server{Scheduler: s.Scheduler, Flags: s.Flags, Timeout: s.Timeout}}
	open := 0
	for _, r := range s.Reals {
		open += min(int(r.Weight), 1)
	}
	for _, r := range s.Reals {
		is := ipvs.CountedReal{Real: r}
		if open > 0 {
			is.Counters = ipvs.Counters{Conns: n, In: ipvs.Volume{Packets: 6 * n, Bytes: 900 * n}, Out: ipvs.Volume{Packets: 5 * n, Bytes: 12_000 * n}}
			is.Active = uint32(n / 10)
		}
		c.Counters.Conns += is.Counters.Conns
		c.Counters.In.Bytes += is.Counters.In.Bytes
		c.Counters.Out.Bytes += is.Counters.Out.Bytes
		c.Reals = append(c.Reals, is)
	}
	c.Counters.Rates = ipvs.Rates{Conns: n / 8, In: ipvs.Volume{Packets: n, Bytes: 100 * n}, Out: ipvs.Volume{Packets: n, Bytes: 1500 * n}}
	return c, true
}

func (f fakeCounts) Of(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	return f.read(ctx, func() []ipvs.Key { return keys }, visit)
}

func (f fakeCounts) All(ctx context.Context, visit func(ipvs.Counted) error) error {
	return f.read(ctx, func() []ipvs.Key { return sortedKeys(f.k.Servers) }, visit)
}

func (f fakeCounts) read(ctx context.Context, keys func() []ipvs.Key, visit func(ipvs.Counted) error) error {
	var found []ipvs.Counted
	err := f.loop.Ask(ctx, func(*sync.View) {
		for _, k := range keys() {
			if c, has := f.counted(k); has {
				found = append(found, c)
			}
		}
	})
	for _, c := range found {
		err = errors.Join(err, visit(c))
	}
	return err
}

func (f fakeCounts) Servers(ctx context.Context, visit func(ipvs.Counted) error) error {
	return f.All(ctx, visit)
}

func (fakeCounts) Close() {}

// shown is a node that can be asked: an agent at work on a kernel that only remembers.
type shown struct {
	sources
	kernel *fake.Kernel
	model  *cluster.Model
	node   *inspect.Node
}

// shownAt is the time on its clock, which stands still.
var shownAt = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func showNode(t *testing.T, objs ...any) *shown {
	t.Helper()
	s := &shown{kernel: fake.New(), model: cluster.NewModel(cluster.Options{NodeName: "node1"})}
	s.kernel.Node = ipvs.Local{Addrs: addrs("172.28.128.11"), Sources: addrs("172.28.128.11")}
	s.give(objs...)
	s.model.SetSynced()
	s.model.SetComplete()
	ports, _, err := desk.ParseNodePortAddresses([]string{"primary"})
	if err != nil {
		t.Fatal(err)
	}
	loop := sync.New(s.kernel, s.model, zap.NewNop(), sync.Options{Desk: desk.Options{NodePorts: ports}, Now: func() time.Time { return shownAt }})
	ctx, stop := context.WithCancel(context.Background())
	s.node = inspect.New(loop, inspect.About{Version: "v0.2.0", Since: shownAt.Add(-76 * time.Hour), Kernel: "6.1.0"})
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s.node.WithPackets(preview.Clients{}, s.model.Asking).Handler()}
	ended := make(chan error, 2)
	go func() { ended <- loop.Run(ctx) }()
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() { stop(); _ = server.Close(); <-ended; <-ended })
	s.sources = sources{kernel: func(context.Context) (counter, error) { return fakeCounts{s.kernel, loop}, nil },
		agent: func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }}
	s.until(t, func(h inspect.Head) bool { return h.Programmed })
	return s
}

func addrs(list ...string) (as []netip.Addr) {
	for _, a := range list {
		as = append(as, netip.MustParseAddr(a))
	}
	return as
}

func (s *shown) give(objs ...any) {
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Service:
			s.model.SetService(o)
		case *discoveryv1.EndpointSlice:
			s.model.SetSlice(o)
		}
	}
}

func (s *shown) until(t *testing.T, so func(inspect.Head) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		h, err := s.node.Head(t.Context())
		if err == nil && so(h) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the head stays %+v, %v", h, err)
		}
	}
}

// aService is a Service with its endpoints, "address@node" each.
func aService(name, ip string, port int32, protocol corev1.Protocol, endpoints ...string) (*corev1.Service, *discoveryv1.EndpointSlice) {
	namespace, name, _ := strings.Cut(name, "/")
	portName, target := "http", int32(8080)
	if port == 53 {
		portName = "dns"
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP,
		ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Name: portName, Port: port, Protocol: protocol, TargetPort: intstr.FromInt32(target)}}}}
	e := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		Ports:      []discoveryv1.EndpointPort{{Name: &portName, Port: &target, Protocol: &protocol}}}
	if netip.MustParseAddr(ip).Is6() {
		e.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, a := range endpoints {
		addr, node, _ := strings.Cut(a, "@")
		e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node})
	}
	return svc, e
}

// scene has a Service of every kind.
func scene(t *testing.T) *shown {
	web, webSlice := aService("default/kubia", "10.96.0.80", 80, corev1.ProtocolTCP, "10.244.1.5@node1", "10.244.1.6@node1", "10.244.2.10@node2")
	web.Spec.Type, web.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30123
	dns, dnsSlice := aService("kube-system/kube-dns", "10.96.0.10", 53, corev1.ProtocolUDP, "10.244.2.53@node2")
	empty, _ := aService("shop/empty", "10.96.0.20", 80, corev1.ProtocolTCP)
	long, longSlice := aService("a-team-with-a-very-long-name-indeed/a-service-whose-name-is-as-long-as-names-may-well-be", "fd00:96:1234:5678:9abc:def0:1234:5678", 8443, corev1.ProtocolTCP, "fd10:244:1::5@node1")
	ext, extSlice := aService("shop/edge", "10.96.0.30", 80, corev1.ProtocolTCP, "10.244.2.30@node2")
	ext.Spec.ExternalIPs = []string{"198.51.100.9"}
	s := showNode(t, web, webSlice, dns, dnsSlice, empty, long, longSlice, ext, extSlice)
	_, without := aService("default/kubia", "10.96.0.80", 80, corev1.ProtocolTCP, "10.244.1.5@node1", "10.244.1.6@node1", "10.244.2.11@node2")
	no := false
	without.Endpoints[1].Conditions.Ready = &no
	s.give(without)
	s.until(t, func(h inspect.Head) bool { return h.Draining == 4 })
	return s
}

// called runs a command and gives what it prints and the error that it ends with.
func called(t *testing.T, cmd *cobra.Command, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "ipvs-proxy", SilenceUsage: true, SilenceErrors: true}
	root.AddGroup(&cobra.Group{ID: groupLook}, &cobra.Group{ID: groupDo})
	root.AddCommand(cmd)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{cmd.Name()}, args...))
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// statusOf is the exit status that an error means.
func statusOf(err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.status
	}
	return 1
}

// golden compares a text with a file, which -update writes anew.
func golden(t *testing.T, file, text string) {
	t.Helper()
	file = filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != text {
		t.Errorf("%s has another text (%v): go test ./cmd/ipvs-proxy -update writes it anew\n%s", file, err, text)
	}
}

func narrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > inspect.Width {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
}
