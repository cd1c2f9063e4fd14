package healthz

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// recordings are what kube-proxy itself serves in ipvs mode, of each release that is tested;
// make record-kube-proxy makes them.
var recordings = []string{"1.35.4", "1.36.3", "1.37.2"}

// eachRecording is a test against each.
func eachRecording(t *testing.T, test func(t *testing.T, release string)) {
	for _, release := range recordings {
		t.Run(release, func(t *testing.T) { test(t, release) })
	}
}

// recorded reads a page of a recording: status, headers and body.
func recorded(t *testing.T, release, page string) (code int, header http.Header, body string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "kube-proxy-"+release, page+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	head, body, ok := strings.Cut(string(b), "\n\n")
	status, lines, _ := strings.Cut(head, "\n")
	f := strings.Fields(status)
	if !ok || len(f) < 2 {
		t.Fatalf("%s: no answer of HTTP: %.80s", page, b)
	}
	if code, err = strconv.Atoi(f[1]); err != nil {
		t.Fatal(err)
	}
	header = http.Header{}
	for line := range strings.Lines(lines) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		header.Set(k, v)
	}
	return code, header, body
}

// B52: every metric of kube-proxy's own is ours, too, with its type, help, labels and buckets.
func TestB52Recording(t *testing.T) { eachRecording(t, metricsLike) }

func metricsLike(t *testing.T, release string) {
	_, _, text := recorded(t, release, "metrics")
	p := expfmt.NewTextParser(model.UTF8Validation)
	theirs, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	gathered, err := newRig(t).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]*dto.MetricFamily{}
	for _, f := range gathered {
		ours[f.GetName()] = f
	}
	compared := 0
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		if !strings.HasPrefix(name, "kubeproxy_") {
			continue
		}
		compared++
		want, got := theirs[name], ours[name]
		switch {
		case got == nil:
			t.Errorf("no metric %s", name)
		case got.GetType() != want.GetType():
			t.Errorf("%s is a %s, want a %s", name, got.GetType(), want.GetType())
		case got.GetHelp() != want.GetHelp():
			t.Errorf("%s: help %q, want %q", name, got.GetHelp(), want.GetHelp())
		default:
			if g, w := shape(got), shape(want); g != w {
				t.Errorf("%s has %s, want %s", name, g, w)
			}
		}
	}
	if compared < 13 {
		t.Errorf("the recording has %d metrics of kube-proxy's own: it cannot be whole", compared)
	}
}

// shape is the labels and buckets of a metric.
func shape(f *dto.MetricFamily) string {
	if len(f.Metric) == 0 {
		return "nothing"
	}
	var parts []string
	for _, l := range f.Metric[0].GetLabel() {
		parts = append(parts, l.GetName())
	}
	slices.Sort(parts)
	for _, b := range f.Metric[0].GetHistogram().GetBucket() {
		if bound := strconv.FormatFloat(b.GetUpperBound(), 'g', 10, 64); bound != "+Inf" {
			parts = append(parts, bound)
		}
	}
	return strings.Join(parts, " ")
}

// B51: the pages of both ports answer as kube-proxy's: code, type of content, and where it is JSON, its fields.
func TestB51Recording(t *testing.T) { eachRecording(t, pagesLike) }

func pagesLike(t *testing.T, release string) {
	r := newRig(t)
	r.settled()
	r.SetNode(true)
	config, internal := recordedConfig(t, release)
	metricsPort := r.pages(Pages{Config: config, Flags: map[string]string{"v": "2"}, Version: "v9", Statusz: true})
	for _, page := range []struct {
		name, path string
		handler    http.Handler
	}{
		{"metrics", "/metrics", metricsPort}, {"proxymode", "/proxyMode", metricsPort}, {"configz", "/configz", metricsPort},
		{"flagz", "/flagz", metricsPort}, {"statusz", "/statusz", metricsPort}, {"notfound", "/no-such-page", metricsPort},
		{"healthz-metrics-port", "/healthz", metricsPort},
		{"healthz", "/healthz", r.HealthHandler()}, {"livez", "/livez", r.HealthHandler()},
	} {
		code, header, body := recorded(t, release, page.name)
		w := r.get(page.handler, page.path)
		if w.Code != code {
			t.Errorf("%s answers %d, kube-proxy %d", page.path, w.Code, code)
		}
		for _, k := range []string{"Content-Type", "X-Content-Type-Options"} {
			if got := w.Header().Get(k); got != header.Get(k) {
				t.Errorf("%s has the header %s: %q, kube-proxy's has %q", page.path, k, got, header.Get(k))
			}
		}
		if !strings.HasPrefix(header.Get("Content-Type"), "application/json") || page.name == "configz" && internal {
			continue
		}
		var got, want any
		if err := json.NewDecoder(bytes.NewReader(w.Body.Bytes())).Decode(&got); err != nil {
			t.Fatalf("%s: %v", page.path, err)
		}
		if err := json.Unmarshal([]byte(body), &want); err != nil {
			t.Fatal(err)
		}
		if g, w := keys("", got), keys("", want); !slices.Equal(g, w) {
			t.Errorf("%s has the keys\n%s\nkube-proxy's has\n%s", page.path, strings.Join(g, "\n"), strings.Join(w, "\n"))
		}
	}
}

// recordedConfig is the configuration that kube-proxy had. Up to 1.35 it shows the fields of its own memory in place of those of
// its files (internal): then it is that of the release after.
func recordedConfig(t *testing.T, release string) (config *kubeproxy.KubeProxyConfiguration, internal bool) {
	t.Helper()
	_, _, shown := recorded(t, release, "configz")
	var c map[string]*kubeproxy.KubeProxyConfiguration
	if err := json.Unmarshal([]byte(shown), &c); err != nil {
		t.Fatal(err)
	}
	config = c["kubeproxy.config.k8s.io"]
	if config.Kind != "" {
		return config, false
	}
	next := slices.Index(recordings, release) + 1
	if next == len(recordings) {
		t.Fatalf("%s shows no kind of its configuration", release)
	}
	config, _ = recordedConfig(t, recordings[next])
	return config, true
}

// keys are the paths of all fields of a JSON document. Feature gates are not fields but a map of what is set.
func keys(prefix string, v any) []string {
	m, ok := v.(map[string]any)
	if !ok || strings.HasSuffix(prefix, ".featureGates") {
		return []string{prefix}
	}
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, keys(prefix+"."+k, m[k])...)
	}
	return all
}
