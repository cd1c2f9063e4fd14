package main

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/servicemetrics"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Each verdict has the code of the reason that commands give, and is refused or dropped as that says (row B72).
func TestVerdictsHaveCodes(t *testing.T) {
	said := map[desk.Code]string{}
	for _, r := range desk.Reasons() {
		said[r.Code] = r.Means
	}
	for v, code := range verdicts {
		if dropped := strings.Contains(said[code], "dropped"); said[code] == "" || dropped == v.Refused() {
			t.Errorf("%s is refused: %t, and %s means: %s", v, v.Refused(), code, said[code])
		}
	}
	if len(verdicts) != 4 || verdicts[kernel.NoPort] == verdicts[kernel.NoEndpoint] {
		t.Errorf("verdicts with codes: %v", verdicts)
	}
}

// The document says of which Services there are metrics.
func TestMeasuredServices(t *testing.T) {
	c := config.Default()
	for _, want := range []struct {
		mode string
		opt  servicemetrics.Options
		on   bool
	}{
		{config.ServiceMetricsSelected, servicemetrics.Options{Limit: 500}, true}, {config.ServiceMetricsAll, servicemetrics.Options{All: true, Limit: 7}, true},
		{config.ServiceMetricsOff, servicemetrics.Options{Limit: 7}, false},
	} {
		if want.mode != config.ServiceMetricsSelected {
			c.Own.ServiceMetrics = config.ServiceMetrics{Mode: want.mode, Limit: new(int32(7))}
		}
		if opt, on := measuredServices(c); opt != want.opt || on != want.on || c.Own.ServiceMetrics.Mode != want.mode {
			t.Errorf("%s: %+v, on: %t; want %+v, %t", want.mode, opt, on, want.opt, want.on)
		}
	}
}

// counting is a kernel in memory that has counted; who reads it does so while the loop is at rest.
type counting struct{ *fake.Kernel }

func (c counting) Servers(context.Context, func(ipvs.Counted) error) error { return nil }

func (c counting) Brief(_ context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	for _, k := range keys {
		s := c.Kernel.Servers[k]
		counted := ipvs.Counted{Key: k, Counters: ipvs.Counters{Conns: 7, In: ipvs.Volume{Packets: 8, Bytes: 9}}}
		for _, r := range s.Reals {
			counted.Reals = append(counted.Reals, ipvs.CountedReal{Real: r, Conns: ipvs.Conns{Active: 1}})
		}
		if err := visit(counted); err != nil {
			return err
		}
	}
	return nil
}

// serving gives an agent's metrics page, on a kernel in memory, of a cluster of so many Services with ten endpoints each, of
// which some ask for metrics.
func serving(t testing.TB, services, asking int) (scrape func() string) {
	t.Helper()
	k, model := counting{fake.New()}, cluster.NewModel(cluster.Options{NodeName: "node1"})
	for i := range services {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team%02d", i%40), Name: fmt.Sprintf("service%05d", i)}}
		if i < asking {
			svc.Annotations = map[string]string{cluster.MetricsAnnotation: "true"}
		}
		svc.Spec.ClusterIP = netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}).Next().String()
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
		svc.Spec.ExternalIPs = []string{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).Next().String()}
		svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
		model.SetService(svc)
		sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}}
		sl.Namespace, sl.Name, sl.Labels = svc.Namespace, svc.Name, map[string]string{discoveryv1.LabelServiceName: svc.Name}
		for j := range 10 {
			sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 244, byte(i), byte(10 + j)}).String()}})
		}
		model.SetSlice(sl)
	}
	model.SetSynced()
	model.SetComplete()
	reads := &traffic{counters: kernel.OpenCounters()}
	h := healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry(), Traffic: always{reads}})
	// No looks for changes in between: the kernel in memory takes long to list what it has.
	loop := sync.New(k, model, zap.NewNop(), sync.Options{Health: h, AuditPeriod: time.Hour,
		Desk: desk.Options{ExternalIPs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}}})
	reads.services = servicemetrics.New(model, keyOwners{loop}, k, servicemetrics.Options{Limit: 500})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var s sync.Standing
		if err := loop.Ask(ctx, func(v *sync.View) { s = v.Standing() }); err != nil {
			t.Fatal(err)
		}
		if s.Programmed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not programmed: %+v", s)
		}
	}
	page, err := h.MetricsHandler(healthz.Pages{})
	if err != nil {
		t.Fatal(err)
	}
	return func() string {
		w := httptest.NewRecorder()
		page.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
}

// always has no counters of what is refused: there is no table.
type always struct{ *traffic }

func (always) Refused(context.Context) ([]healthz.Refusal, error) { return nil, nil }

// What a scrape says of Services comes from the loop's Keys and the kernel's counters, and nobody else has such metrics.
func TestScrapeOfServices(t *testing.T) {
	page := serving(t, 30, 3)()
	for _, want := range []string{
		`ipvsproxy_service_active_connections{namespace="team02",port="http",service="service00002"} 20`,
		`ipvsproxy_service_backends{namespace="team02",port="http",service="service00002",state="ready"} 10`,
		`ipvsproxy_services_without_metrics 0`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("the page has not %s", want)
		}
	}
	if n := strings.Count(page, "\nipvsproxy_service_connections_total{"); n != 3 {
		t.Errorf("%d Services have metrics, want 3", n)
	}
}

// The processor's time for a scrape with 500 Services, two frontends and ten endpoints each, of 10,000, beyond what the
// kernel takes to answer.
func BenchmarkScrape(b *testing.B) {
	for _, asking := range []int{0, 500} {
		b.Run(fmt.Sprintf("%d of 10000", asking), func(b *testing.B) {
			scrape := serving(b, 10000, asking)
			scrape()
			var spent time.Duration
			for b.Loop() {
				b.StopTimer()
				time.Sleep(1100 * time.Millisecond) // a reading is good for a second
				began := processor(b)
				b.StartTimer()
				scrape()
				spent += processor(b) - began
			}
			b.ReportMetric(float64(spent.Microseconds())/1000/float64(b.N), "cpu-ms/scrape")
			b.ReportMetric(float64(len(scrape()))/1024, "KiB/page")
		})
	}
}

// processor is the time that this process had a processor.
func processor(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
