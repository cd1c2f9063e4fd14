package monitoring

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/netip"
	gosync "sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/servicemetrics"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// agent is an agent as it is but for the kernel, which is one in memory that counts traffic by itself.
type agent struct {
	*fake.Kernel
	mu       gosync.Mutex // held while the loop writes, and while somebody reads what is counted
	reads    uint64
	refuses  bool // the next write
	model    *cluster.Model
	loop     *sync.Loop
	services *servicemetrics.Reader
}

// startAgent starts one, and gives the address of its metrics.
func startAgent(t *testing.T) (a *agent, address string) {
	t.Helper()
	a = &agent{Kernel: fake.New(), model: cluster.NewModel(cluster.Options{NodeName: "node1"})}
	a.Fail = func(op ipvs.Op) error {
		if _, real := op.(ipvs.AddReal); real && a.refuses {
			a.refuses = false
			return syscall.ENOMEM
		}
		return nil
	}
	h := healthz.New(healthz.Options{Version: "v1", Revision: "abc", Traffic: a, ClusterAge: func() time.Duration { return time.Second }})
	a.loop = sync.New(a, a.model, zap.NewNop(), sync.Options{Health: h})
	a.services = servicemetrics.New(a.model, a, a, servicemetrics.Options{Limit: 500})
	if err := a.services.Prime(t.Context()); err != nil {
		t.Fatal(err)
	}
	pages, err := h.MetricsHandler(healthz.Pages{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(pages)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return a, server.Listener.Addr().String()
}

// Do implements sync.Writer.
func (a *agent) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.Kernel.Do(ctx, plan)
}

// Servers implements servicemetrics.Kernel.
func (a *agent) Servers(context.Context, func(ipvs.Counted) error) error { return nil }

// Of implements servicemetrics.Kernel: at each reading there was more traffic.
func (a *agent) Of(_ context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads++
	for _, k := range keys {
		s, there := a.Kernel.Servers[k]
		if !there {
			continue
		}
		c := ipvs.Counted{Key: k, Server: s, Counters: ipvs.Counters{Conns: 3 * a.reads, In: ipvs.Volume{Packets: 9 * a.reads, Bytes: 900 * a.reads},
			Out: ipvs.Volume{Packets: 8 * a.reads, Bytes: 9000 * a.reads}}}
		for _, r := range s.Reals {
			c.Reals = append(c.Reals, ipvs.CountedReal{Real: r, Conns: ipvs.Conns{Active: 2, Inactive: 1}})
		}
		if err := visit(c); err != nil {
			return err
		}
	}
	return nil
}

// Refused implements healthz.Traffic.
func (a *agent) Refused(context.Context) (list []healthz.Refusal, err error) {
	for i, code := range []string{"IPX0301", "IPX0302", "IPX0303", "IPX0304"} {
		for _, f := range healthz.Families {
			list = append(list, healthz.Refusal{Reason: code, Dropped: i >= 2, Family: f, Packets: a.reads})
		}
	}
	return list, nil
}

// Services implements healthz.Traffic.
func (a *agent) Services(ctx context.Context) (healthz.ServicesTraffic, error) {
	return a.services.Read(ctx)
}

// Owned implements servicemetrics.Owners.
func (a *agent) Owned(ctx context.Context, services []cluster.ID) (list []servicemetrics.Owned, err error) {
	err = a.loop.Ask(ctx, func(v *sync.View) {
		keys, _ := v.Keys(services)
		for _, k := range keys {
			list = append(list, servicemetrics.Owned(k))
		}
	})
	return list, err
}

// fill gives it a cluster: a Service with endpoints that asks for metrics, one without, and one with a field that cannot
// be used.
func (a *agent) fill() {
	for i, name := range []string{"web", "empty", "bad"} {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		svc.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 10+i)
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
		svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
		switch name {
		case "web":
			svc.Annotations = map[string]string{cluster.MetricsAnnotation: "true"}
		case "bad":
			svc.Spec.ExternalIPs = []string{"300.0.0.1"}
		}
		a.model.SetService(svc)
	}
	a.endpoints(2)
	a.model.SetSynced()
	a.model.SetComplete()
}

// endpoints gives the Service web so many endpoints, of a change that took place just now.
func (a *agent) endpoints(n int) {
	port, proto, yes := int32(8080), corev1.ProtocolTCP, true
	sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: &port, Protocol: &proto}}}
	sl.Namespace, sl.Name = "shop", "web-1"
	sl.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	sl.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Add(-time.Second).Format(time.RFC3339Nano)}
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)}).String()
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}})
	}
	a.model.SetSlice(sl)
}

// refuse has the kernel refuse the next real server.
func (a *agent) refuse() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuses = true
}
