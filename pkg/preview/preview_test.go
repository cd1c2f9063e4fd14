package preview

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares what was printed with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != got {
		t.Errorf("%s is not what is printed: go test ./pkg/preview -update (%v)\n%s", file, err, got)
	}
}

// scene is a cluster and a kernel.
type scene struct {
	kernel *fake.Kernel
	model  *cluster.Model
	opt    sync.Options
	mode   string
	agent  bool
	// clients is how the node tells clients apart.
	clients Clients
}

const thisNode = "node1"

func newScene() *scene {
	s := &scene{kernel: fake.New(), model: cluster.NewModel(cluster.Options{NodeName: thisNode}), clients: Clients{Pods: podRanges}}
	s.kernel.Node.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::1"}}
	s.model.SetNode(node)
	s.model.SetSynced()
	s.model.SetComplete()
	return s
}

// service adds a Service with one port, TCP 80, and endpoints "address@node".
func (s *scene) service(name string, vips []string, change func(*corev1.Service), endpoints ...string) {
	namespace, short, _ := strings.Cut(name, "/")
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: short}}
	svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: vips[0], ClusterIPs: vips,
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}
	if change != nil {
		change(svc)
	}
	s.model.SetService(svc)
	slices := map[discoveryv1.AddressType]*discoveryv1.EndpointSlice{}
	port, portName, proto := int32(8080), "http", corev1.ProtocolTCP
	for _, e := range endpoints {
		addr, node, _ := strings.Cut(e, "@")
		family := discoveryv1.AddressTypeIPv4
		if strings.Contains(addr, ":") {
			family = discoveryv1.AddressTypeIPv6
		}
		if slices[family] == nil {
			slices[family] = &discoveryv1.EndpointSlice{AddressType: family,
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: short + "-" + strings.ToLower(string(family)), Labels: map[string]string{discoveryv1.LabelServiceName: short}},
				Ports:      []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}}}
		}
		slices[family].Endpoints = append(slices[family].Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node})
	}
	for _, sl := range slices {
		s.model.SetSlice(sl)
	}
}

// server puts a virtual server with real servers of weight 1 into the kernel; bound, its address on the interface, too.
func (s *scene) server(at string, bound bool, scheduler string, reals ...string) {
	vip := netip.MustParseAddrPort(at)
	server := ipvs.Server{Scheduler: scheduler}
	for _, r := range reals {
		server.Reals = append(server.Reals, ipvs.Real{Addr: netip.MustParseAddrPort(r), Weight: 1})
	}
	server.Reals = ipvs.SortReals(server.Reals)
	s.kernel.Servers[ipvs.Key{Addr: vip.Addr(), Port: vip.Port(), Proto: ipvs.TCP}] = server
	if bound {
		s.kernel.Link = true
		s.kernel.Addrs[vip.Addr()] = true
	}
}

// rehearse goes through a start.
func (s *scene) rehearse(t testing.TB) *sync.Rehearsal {
	t.Helper()
	start, err := sync.Rehearse(context.Background(), s.kernel.Look(), s.model, s.opt)
	if err != nil {
		t.Fatal(err)
	}
	return start
}

func (s *scene) report(t *testing.T) *Report {
	t.Helper()
	return Make(Input{Node: thisNode, Start: s.rehearse(t), Services: s.model.Services()}.With(s.agent, s.mode, nil))
}

// start has an agent start on the scene's kernel, by writing what was said.
func (s *scene) start(t testing.TB) {
	t.Helper()
	start := s.rehearse(t)
	if _, err := s.kernel.Base(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, step := range start.Steps { // in their order
		if o := s.kernel.Do(context.Background(), ipvs.Plan{step})[0]; o.Err != nil {
			t.Fatal(o.Err)
		}
	}
}

func local(svc *corev1.Service) {
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.81"}}
}

// kubeProxys is a node as kube-proxy in mode ipvs has it, with what an agent sees otherwise.
func kubeProxys() *scene {
	s := newScene()
	s.mode, s.opt.Proxies = "ipvs", left{"nft flush chain ip nat KUBE-SERVICES", "ipset destroy KUBE-CLUSTER-IP"}
	s.service("default/web", []string{"10.96.0.80", "fd00:96::80"}, nil, "10.244.1.10@node1", "10.244.2.10@node2", "fd10:244:1::10@node1")
	s.server("10.96.0.80:80", true, "rr", "10.244.1.10:8080", "10.244.2.10:8080")
	s.server("[fd00:96::80]:80", true, "rr", "[fd10:244:1::10]:8080")
	s.service("default/legacy", []string{"10.96.0.81"}, func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{"198.51.100.9"} }, "10.244.2.10@node2")
	s.server("10.96.0.81:80", true, "rr", "10.244.2.10:8080")
	s.server("198.51.100.9:80", true, "rr", "10.244.2.10:8080")
	s.service("shop/edge", []string{"10.96.0.82"}, local, "10.244.1.11@node1", "10.244.2.11@node2")
	s.server("10.96.0.82:80", true, "rr", "10.244.1.11:8080", "10.244.2.11:8080")
	s.server("203.0.113.81:80", true, "rr", "10.244.1.11:8080", "10.244.2.11:8080")
	s.service("shop/idle", []string{"10.96.0.83"}, func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, "fd00:96::83")
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "2001:db8:113::83"}}
	}, "10.244.2.12@node2")
	s.server("10.96.0.83:80", true, "wlc", "10.244.2.12:8080", "10.244.2.99:8080") // another scheduler, and a pod that is gone
	s.server("10.96.0.99:80", true, "rr", "10.244.2.13:8080")                      // a Service that is gone
	s.server("172.16.0.1:443", false, "wlc", "172.16.1.1:443")                     // another program's
	return s
}

// B73: the table and its reasons beside kube-proxy, on a kernel of nobody's, and where nothing is to do.
func TestB73Tables(t *testing.T) {
	s := kubeProxys()
	r := s.report(t)
	golden(t, "kube-proxy.txt", r.Text(false))
	golden(t, "kube-proxy-all.txt", r.Text(true))
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "kube-proxy.json", string(b)+"\n")

	s.start(t)
	s.agent, s.mode, s.opt.Proxies = true, "", nil
	if r = s.report(t); r.Differs() {
		t.Errorf("after the start there is something to do: %v", r.Writes)
	}
	golden(t, "agent.txt", r.Text(false))
	web := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.80"), Port: 80, Proto: ipvs.TCP}
	changed := s.kernel.Servers[web]
	changed.Reals = []ipvs.Real{{Addr: netip.MustParseAddrPort("10.244.1.10:8080"), Weight: 5}, changed.Reals[1]}
	s.kernel.Servers[web] = changed
	golden(t, "agent-changed.txt", s.report(t).Text(false))

	fresh := newScene()
	fresh.service("default/web", []string{"10.96.0.80"}, nil, "10.244.1.10@node1")
	fresh.opt.Desk.Scheduler, fresh.kernel.Schedulers = "wlc", []string{"rr"}
	golden(t, "fresh.txt", fresh.report(t).Text(false))
}

// B73: each count is of what there is: what stays and what goes is what was there.
func TestB73CountsAddUp(t *testing.T) {
	s := kubeProxys()
	servers, reals := 0, 0
	for k, v := range s.kernel.Servers {
		if k.Addr != netip.MustParseAddr("172.16.0.1") {
			servers, reals = servers+1, reals+len(v.Reals)
		}
	}
	r := s.report(t)
	for _, want := range []struct {
		kind string
		n    int
	}{{kindServer, servers}, {kindReal, reals}, {kindAddress, len(s.kernel.Addrs)}, {kindElement, 0}} {
		for _, c := range r.Counts {
			if c.Kind == want.kind && (c.Stay+c.Change+c.Go != want.n || min(c.Stay, c.Come, c.Change, c.Go) < 0) {
				t.Errorf("%s: %+v do not add up to %d", want.kind, c, want.n)
			}
		}
	}
	if r.Foreign != (Servers{1, 1}) {
		t.Errorf("foreign: %+v", r.Foreign)
	}
}

// B73: of 10,000 Services the table names a few and counts the others; everything is in the JSON, and with --all.
func TestB73TableIsBounded(t *testing.T) {
	const n = 10000
	s := newScene()
	for i := range n {
		vip := fmt.Sprintf("10.100.%d.%d", i/250, i%250+1)
		s.service(fmt.Sprintf("many/s%05d", i), []string{vip}, func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{"198.51.100.9"} }, "10.244.2.10@node2", "10.244.2.11@node2")
	}
	r := s.report(t)
	text := r.Text(false)
	if lines := strings.Count(text, "\n"); lines > 160 {
		t.Errorf("%d lines", lines)
	}
	for _, want := range []string{"virtual servers                  0    10,000", "and 39,980 other writes (+39,980)", "and 9,980 other Services", "owned +10,001"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table does not say %q:\n%s", want, text)
		}
	}
	if len(r.Writes) < 7*n || len(r.Services) != n {
		t.Errorf("%d writes, %d Services", len(r.Writes), len(r.Services))
	}
	if all := r.Text(true); strings.Count(all, "\n") < 7*n {
		t.Errorf("--all has %d lines", strings.Count(all, "\n"))
	}
}

// What is no command fits the width.
func TestTableFitsItsWidth(t *testing.T) {
	for _, all := range []bool{false, true} {
		for line := range strings.Lines(kubeProxys().report(t).Text(all)) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > Width {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}

// left is what another proxy left.
type left []string

func (l left) Left(context.Context) (list []ipvs.Leaving, stays []string, err error) {
	for _, text := range l {
		list = append(list, ipvs.Leaving{Text: text, Take: func(context.Context) error { panic("taken out") }})
	}
	return list, []string{"chain ip nat KUBE-MARK-DROP: the kubelet's"}, nil
}

func (left) Trace(context.Context) (uint64, error)    { return 0, nil }
func (left) Before(context.Context) ([]string, error) { return nil, nil }

// unreadable is what another proxy left, where it cannot be read.
type unreadable struct{ left }

func (unreadable) Left(context.Context) ([]ipvs.Leaving, []string, error) {
	return nil, nil, syscall.EPERM
}

// B73: where it cannot be seen what another proxy left, the rest is said all the same.
func TestB73LeftoversUnread(t *testing.T) {
	s := newScene()
	s.start(t)
	s.opt.Proxies = unreadable{}
	r := s.report(t)
	if text := r.Text(false); r.Differs() || !strings.Contains(text, "nothing to do") || !strings.Contains(text, "warning: look for what another proxy left: operation not permitted") {
		t.Errorf("differs %t:\n%s", r.Differs(), text)
	}
}

// B73: what kube-proxy left and would be taken out is something to do, and what is kept is not.
func TestB73Leftovers(t *testing.T) {
	s := newScene()
	s.start(t)
	s.mode, s.opt.Proxies = "iptables", left{"nft flush chain ip nat KUBE-SERVICES"}
	r := s.report(t)
	if text := r.Text(false); !r.Differs() || !strings.Contains(text, "taken out once all Services are programmed\n  - nft flush chain ip nat KUBE-SERVICES\n  stays: chain ip nat KUBE-MARK-DROP") {
		t.Errorf("differs %t:\n%s", r.Differs(), text)
	}
	s.opt.KeepLeftovers = true
	start, err := sync.Rehearse(context.Background(), s.kernel.Look(), s.model, s.opt)
	if err != nil {
		t.Fatal(err)
	}
	r = Make(Input{Node: thisNode, Start: start, Mode: "iptables", Kept: true})
	if text := r.Text(false); r.Differs() || !strings.Contains(text, "kept by takeover.leftovers\n  = nft flush chain ip nat KUBE-SERVICES\n") {
		t.Errorf("differs %t:\n%s", r.Differs(), text)
	}
}
