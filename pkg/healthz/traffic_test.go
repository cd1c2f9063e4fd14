package healthz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"
)

// traffic is a kernel that has counted.
type traffic struct {
	refused  []Refusal
	services ServicesTraffic
	err      error
	reads    int
	during   func(context.Context)
}

func (f *traffic) Refused(ctx context.Context) ([]Refusal, error) {
	if f.during != nil {
		f.during(ctx)
	}
	f.reads++
	return f.refused, f.err
}

func (f *traffic) Services(context.Context) (ServicesTraffic, error) { return f.services, f.err }

// lines is a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Enabled(zapcore.Level) bool        { return true }
func (l *lines) With([]zapcore.Field) zapcore.Core { return l }
func (l *lines) Sync() error                       { return nil }
func (l *lines) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(e, l)
}

func (l *lines) Write(e zapcore.Entry, fields []zapcore.Field) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range fields {
		if e.Message += " " + f.String; f.Interface != nil {
			e.Message += fmt.Sprint(f.Interface)
		}
	}
	l.all = append(l.all, e.Message)
	return nil
}

// trafficLines scrapes, and gives what there is of the metrics that are read at a scrape.
func (r *rig) trafficLines() (found []string) {
	r.t.Helper()
	h, err := r.MetricsHandler(Pages{})
	if err != nil {
		r.t.Fatal(err)
	}
	w := r.get(h, "/metrics")
	if w.Code != 200 {
		r.t.Fatalf("%d %s", w.Code, w.Body)
	}
	for line := range strings.Lines(w.Body.String()) {
		for _, name := range []string{"ipvsproxy_service", "ipvsproxy_refused", "ipvsproxy_dropped"} {
			if strings.HasPrefix(line, name) {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}

func (r *rig) wantsTraffic(what string, want ...string) {
	r.t.Helper()
	if got := r.trafficLines(); !slices.Equal(got, want) {
		r.t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What the kernel has counted is shown as it is at the scrape. What cannot be read is absent, the log says so once, and the
// other metrics are there all the same (row B72).
func TestTraffic(t *testing.T) {
	r := newRig(t)
	r.wantsTraffic("nothing counted", "ipvsproxy_services_without_metrics 0")
	r.pass(time.Minute)
	r.traffic.refused = []Refusal{{"IPX0301", false, IPv4, 7}, {"IPX0301", false, IPv6, 0}, {"IPX0303", true, IPv6, 9}}
	r.traffic.services = ServicesTraffic{Left: 3, List: []ServiceTraffic{
		{Namespace: "shop", Service: "web", Port: "http", Counted: Counted{Conns: 1, In: Volume{2, 3}, Out: Volume{4, 5}}, Active: 6, Inactive: 7, Ready: 8, Draining: 9},
		{Namespace: "shop", Service: "web", Port: "53"},
		{Namespace: "shop", Service: "no text \xff", Port: "53"},
	}}
	const web = `namespace="shop",port="http",service="web"`
	const dns = `namespace="shop",port="53",service="web"`
	full := []string{
		`ipvsproxy_dropped_total{ip_family="IPv6",reason="IPX0303"} 9`,
		`ipvsproxy_refused_total{ip_family="IPv4",reason="IPX0301"} 7`,
		`ipvsproxy_refused_total{ip_family="IPv6",reason="IPX0301"} 0`,
		`ipvsproxy_service_active_connections{` + dns + `} 0`,
		`ipvsproxy_service_active_connections{` + web + `} 6`,
		`ipvsproxy_service_backends{` + dns + `,state="draining"} 0`,
		`ipvsproxy_service_backends{` + dns + `,state="ready"} 0`,
		`ipvsproxy_service_backends{` + web + `,state="draining"} 9`,
		`ipvsproxy_service_backends{` + web + `,state="ready"} 8`,
		`ipvsproxy_service_bytes_total{direction="in",` + dns + `} 0`,
		`ipvsproxy_service_bytes_total{direction="in",` + web + `} 3`,
		`ipvsproxy_service_bytes_total{direction="out",` + dns + `} 0`,
		`ipvsproxy_service_bytes_total{direction="out",` + web + `} 5`,
		`ipvsproxy_service_connections_total{` + dns + `} 0`,
		`ipvsproxy_service_connections_total{` + web + `} 1`,
		`ipvsproxy_service_inactive_connections{` + dns + `} 0`,
		`ipvsproxy_service_inactive_connections{` + web + `} 7`,
		`ipvsproxy_service_packets_total{direction="in",` + dns + `} 0`,
		`ipvsproxy_service_packets_total{direction="in",` + web + `} 2`,
		`ipvsproxy_service_packets_total{direction="out",` + dns + `} 0`,
		`ipvsproxy_service_packets_total{direction="out",` + web + `} 4`,
		`ipvsproxy_services_without_metrics 3`,
	}
	r.wantsTraffic("counted", full...)
	r.traffic.err = errors.New("no answer")
	r.wantsTraffic("just read", full...)
	for range 3 {
		r.pass(trafficFresh)
		r.wantsTraffic("cannot be read")
	}
	r.traffic.err = nil
	r.pass(trafficFresh)
	r.wantsTraffic("again", full...)
	want := []string{}
	for _, said := range []string{"metrics are absent until this can be read %s no answer", "metrics are there again %s"} {
		for _, what := range []string{"what is refused and dropped", "traffic by Service"} {
			want = append(want, strings.ReplaceAll(said, "%s", what))
		}
	}
	if !slices.Equal(r.log.all, want) {
		t.Errorf("the log has %q, want %q", r.log.all, want)
	}
}

// Many who scrape at once cost one reading, and one that hangs is given up in time for all of them.
func TestTrafficReadOnce(t *testing.T) {
	r := newRig(t)
	r.traffic.during = func(ctx context.Context) {
		deadline, bounded := ctx.Deadline()
		if left := time.Until(deadline); !bounded || left <= 0 || left > trafficTimeout {
			t.Errorf("a reading may take %s, bounded: %t", left, bounded)
		}
	}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { r.trafficLines() })
	}
	all.Wait()
	if r.traffic.reads != 1 {
		t.Errorf("read %d times, want once", r.traffic.reads)
	}
	r.pass(trafficFresh)
	if r.trafficLines(); r.traffic.reads != 2 {
		t.Errorf("read %d times, want once more", r.traffic.reads)
	}
}
