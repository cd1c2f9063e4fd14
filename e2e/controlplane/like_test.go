package controlplane

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// alike are the metrics that dashboards of kube-proxy use: its own, those of its talk with the API server, and those
// of its process. (go_godebug_... and the like say what a program was built with.) The duration and size of requests
// are not among them: kube-proxy gets its Node, the agent only watches, and client-go measures no watches.
var alike = regexp.MustCompile(`^(kubeproxy_|rest_client_requests_total$|process_|kubernetes_build_info$|go_(goroutines|info|threads|memstats_.*|gc_duration_seconds)$)`)

// B52: the agent, at work with a real API server, has every metric that kube-proxy has there, of the same type, with
// the same labels and buckets.
func TestMetricsLikeKubeProxy(t *testing.T) {
	s := newStage(t, 1)
	s.startKubia()
	n := s.w.Node(1)
	for _, page := range []string{"/healthz", "/livez"} {
		if err := healthy(n.Host, "127.0.0.1:10256"+page); err != nil {
			t.Error(err)
		}
	}
	theirs, err := os.ReadFile(filepath.Join(os.Getenv("LAB_DIR"), "recording", "metrics.txt"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := get(n.Host, recorded["metrics.txt"])
	if err != nil {
		t.Fatal(err)
	}
	want, got, compared := families(t, theirs), families(t, page), 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !alike.MatchString(name) {
			continue
		}
		compared++
		switch g, w := got[name], want[name]; {
		case g == nil:
			t.Errorf("no metric %s", name)
		case g.GetType() != w.GetType():
			t.Errorf("%s is a %s, want a %s", name, g.GetType(), w.GetType())
		case !slices.Equal(labels(g), labels(w)):
			t.Errorf("%s has the labels %v, want %v", name, labels(g), labels(w))
		case !slices.Equal(bounds(g), bounds(w)):
			t.Errorf("%s has the buckets %v, want %v", name, bounds(g), bounds(w))
		}
	}
	t.Logf("%d metrics compared", compared)
	if compared < 40 {
		t.Errorf("%d metrics compared: the recording cannot be whole", compared)
	}
}

// families reads an answer of /metrics.
func families(t *testing.T, answer []byte) map[string]*dto.MetricFamily {
	t.Helper()
	_, body, _ := strings.Cut(string(answer), "\n\n")
	p := expfmt.NewTextParser(model.UTF8Validation)
	f, err := p.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func labels(f *dto.MetricFamily) (names []string) {
	for _, l := range f.Metric[0].GetLabel() {
		names = append(names, l.GetName())
	}
	slices.Sort(names)
	return names
}

func bounds(f *dto.MetricFamily) (all []float64) {
	for _, b := range f.Metric[0].GetHistogram().GetBucket() {
		all = append(all, b.GetUpperBound())
	}
	return all
}
