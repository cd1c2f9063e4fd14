package healthz

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/zap"
	"k8s.io/component-base/metrics"
)

// rig is a Health on a clock of its own, with metrics of its own.
type rig struct {
	*Health
	t       *testing.T
	now     time.Time
	traffic traffic
	log     lines
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, now: time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)}
	r.Health = New(Options{Registry: metrics.NewKubeRegistry(), Version: "v1", Revision: "abc", Now: func() time.Time { return r.now },
		ClusterAge: func() time.Duration { return 7 * time.Second }, LogLinesDropped: func() uint64 { return 3 }, Traffic: &r.traffic, Log: zap.New(&r.log)})
	return r
}

func (r *rig) pass(d time.Duration) { r.now = r.now.Add(d) }

// waits: work of both families waits.
var waits = Standing{Waiting: [families]bool{true, true}}

// settled: a change was heard, and the kernel has confirmed what follows from it.
func (r *rig) settled() {
	r.Heard(1, 1)
	r.Stands(waits)
	r.Confirmed(IPv4)
	r.Stands(Standing{})
}

func (r *rig) get(h http.Handler, path string, header ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	req := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// wants compares an answer with a code and a body.
func (r *rig) wants(h http.Handler, path string, code int, body string) {
	r.t.Helper()
	w := r.get(h, path)
	if w.Code != code || w.Body.String() != body {
		r.t.Errorf("%s: %d\n got  %s\n want %d\n      %s", path, w.Code, w.Body, code, body)
	}
}

// value reads a metric; labels come as name and value.
func (r *rig) value(name string, labels ...string) float64 {
	r.t.Helper()
	want := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		want[labels[i]] = labels[i+1]
	}
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			got := map[string]string{}
			for _, l := range m.GetLabel() {
				got[l.GetName()] = l.GetValue()
			}
			if maps.Equal(got, want) {
				switch {
				case m.Gauge != nil:
					return m.Gauge.GetValue()
				case m.Counter != nil:
					return m.Counter.GetValue()
				}
				return m.Histogram.GetSampleSum()
			}
		}
	}
	r.t.Fatalf("no metric %s %v", name, labels)
	return 0
}
