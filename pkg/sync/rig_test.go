package sync

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

const thisNode = "node1"

// rig is a loop on a fake kernel and a real model. It lives in a synctest bubble: time passes only when
// everything waits.
type rig struct {
	t      *testing.T
	mu     sync.Mutex // held by the loop while it is in the kernel, and by tamper
	kernel *fake.Kernel
	model  *cluster.Model
	stop   func()
	opt    Options
	loop   *Loop
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, kernel: fake.New(), model: cluster.NewModel(cluster.Options{NodeName: thisNode}), stop: func() {}}
}

// locked lets the loop and a test share the fake kernel.
type locked struct {
	mu *sync.Mutex
	k  Kernel
}

func (l *locked) Base(ctx context.Context) (ipvs.BaseReport, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Base(ctx)
}

func (l *locked) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Observe(ctx, keys)
}

func (l *locked) Connections(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Connections(ctx, keys)
}

func (l *locked) Scan(ctx context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Scan(ctx, f)
}

func (l *locked) Detect(ctx context.Context, f func(ipvs.Key, *ipvs.Frontend, uint32)) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Detect(ctx, f)
}

func (l *locked) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Do(ctx, plan)
}

func (l *locked) Local(ctx context.Context) (ipvs.Local, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Local(ctx)
}

func (l *locked) LocalChanged() <-chan struct{} { return l.k.LocalChanged() }

func (l *locked) Tampered() <-chan struct{} { return l.k.Tampered() }

func (l *locked) Tampering() ipvs.Tampering {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Tampering()
}

func (l *locked) Canary(ctx context.Context) (ipvs.Census, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Canary(ctx)
}

func (l *locked) SetPods(pods []netip.Prefix) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.SetPods(pods)
}

func (l *locked) Shield(ctx context.Context, on bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.k.Shield(ctx, on)
}

// tamper changes the fake kernel while a loop runs.
func (r *rig) tamper(f func()) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// start starts a loop, as a new process would.
func (r *rig) start() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	loop := New(&locked{&r.mu, r.kernel}, r.model, zaptest.NewLogger(r.t), r.opt)
	r.loop = loop
	go func() {
		defer close(done)
		if err := loop.Run(ctx); err != nil {
			r.t.Errorf("loop: %v", err)
		}
	}()
	r.stop = func() { cancel(); <-done; r.stop = func() {} }
	synctest.Wait()
}

// restart stops the loop and starts one that has to learn everything from a model of the same content.
func (r *rig) restart(objs ...any) {
	r.t.Helper()
	r.stop()
	r.model = cluster.NewModel(cluster.Options{NodeName: thisNode})
	r.set(objs...)
	r.synced()
	r.start()
}

// synced: the model has all that there is.
func (r *rig) synced() {
	r.model.SetSynced()
	r.model.SetComplete()
}

// set tells the model of one object after the other. Each is done with before the next comes, as the API server's
// watches tell them: left to the scheduler, the loop would take two of them in one turn now and then.
func (r *rig) set(objs ...any) {
	for _, o := range objs {
		synctest.Wait()
		switch o := o.(type) {
		case *corev1.Service:
			r.model.SetService(o)
		case *discoveryv1.EndpointSlice:
			r.model.SetSlice(o)
		default:
			r.t.Fatalf("no object: %T", o)
		}
	}
}

// writes runs f and returns the writes that follow from it.
func (r *rig) writes(f func()) []string {
	r.t.Helper()
	r.tamper(func() { r.kernel.Log = nil })
	f()
	synctest.Wait()
	return lines(r.kernel.Log)
}

func lines(ops []ipvs.Op) (out []string) {
	for _, o := range ops {
		out = append(out, o.String())
	}
	return out
}

// wantLines compares printed operations.
func wantLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got  %s\n want %s", what, strings.Join(got, "\n      "), strings.Join(want, "\n      "))
	}
}

// dumpOf prints all that the kernel holds, sorted, so that two kernels can be compared.
func dumpOf(k *fake.Kernel) string {
	var b strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(k.Servers), ipvs.Key.Compare) {
		s := k.Servers[key]
		fmt.Fprintf(&b, "%s %s flags=%d timeout=%d\n", key, s.Scheduler, s.Flags, s.Timeout)
		for _, r := range s.Reals {
			fmt.Fprintf(&b, "  -> %s weight %d\n", r.Addr, r.Weight)
		}
	}
	for _, s := range ipvs.Sets {
		for _, key := range slices.SortedFunc(maps.Keys(k.Sets[s]), ipvs.Key.Compare) {
			fmt.Fprintf(&b, "%s %s", s, key)
			if s == ipvs.SetRedirect {
				fmt.Fprintf(&b, " to %s", k.Redirects[key])
			}
			b.WriteByte('\n')
		}
	}
	for _, key := range sorted(k.Ranges) {
		fmt.Fprintf(&b, "%s from %s\n", key, k.Ranges[key])
	}
	for _, a := range slices.SortedFunc(maps.Keys(k.Addrs), netip.Addr.Compare) {
		fmt.Fprintf(&b, "addr %s\n", a)
	}
	return b.String()
}

// service is a ClusterIP Service with ports named p80, p443, …
func service(name, ip string, ports ...int32) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}},
	}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("p%d", p), Port: p, Protocol: corev1.ProtocolTCP})
	}
	return s
}

// slice has every port of the Service at target port 8080 of each address. An address ending in "@node"
// stands on that node, the others on node2.
func slice(svc *corev1.Service, addrs ...string) *discoveryv1.EndpointSlice {
	e := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, p := range svc.Spec.Ports {
		target := int32(8080)
		e.Ports = append(e.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &target, Protocol: &p.Protocol})
	}
	for _, a := range addrs {
		addr, node, given := strings.Cut(a, "@")
		if !given {
			node = "node2"
		}
		ep := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
		e.Endpoints = append(e.Endpoints, ep)
		if strings.Contains(addr, ":") {
			e.AddressType = discoveryv1.AddressTypeIPv6
		}
	}
	return e
}
