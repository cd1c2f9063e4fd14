package healthz

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/component-base/metrics"
)

// busy is the traffic of many Services.
type busy struct{ list []ServiceTraffic }

func newBusy(n int) *busy {
	b := &busy{}
	for i := range n {
		b.list = append(b.list, ServiceTraffic{Namespace: fmt.Sprintf("team-%02d", i%40), Service: fmt.Sprintf("service-%05d", i), Port: "http", Ready: 10, Active: i})
	}
	return b
}

func (*busy) Refused(context.Context) ([]Refusal, error) { return nil, nil }

// Services gives them as they are now: half of them have had traffic meanwhile.
func (b *busy) Services(context.Context) (ServicesTraffic, error) {
	for i := range b.list {
		if i%2 == 0 {
			b.list[i].Conns++
			b.list[i].In.Bytes += 1000
		}
	}
	return ServicesTraffic{List: b.list}, nil
}

// BenchmarkScrape is a scrape with the metrics of 500 Services, as Prometheus asks for it, the kernel apart.
func BenchmarkScrape(b *testing.B) {
	now := time.Now()
	h := New(Options{Registry: metrics.NewKubeRegistry(), Traffic: newBusy(500), Now: func() time.Time { return now }})
	page, err := h.MetricsHandler(Pages{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Minute)
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept-Encoding", "gzip")
		page.ServeHTTP(httptest.NewRecorder(), r)
	}
}
