package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const monitoring = "../manifests/monitoring/"

// documented are the metrics of docs/metrics.md, which a test writes from the code that makes them.
func documented(t *testing.T) (names []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	prefix := ""
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, " | ")
		switch {
		case strings.HasPrefix(line, "## kube-proxy's"):
			prefix = "kubeproxy_"
		case strings.HasPrefix(line, "## The agent's own"):
			prefix = "ipvsproxy_"
		case len(cells) < 4 || strings.HasPrefix(line, "| name") || strings.HasPrefix(line, "| ---"):
		case cells[1] == "histogram":
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				names = append(names, prefix+cells[0][2:]+part)
			}
		default:
			names = append(names, prefix+cells[0][2:])
		}
	}
	if len(names) < 40 {
		t.Fatalf("%d metrics in docs/metrics.md: they are not found", len(names))
	}
	return names
}

// B72: every metric that alerts and dashboard ask for is one that the agent has. hack/monitoring asks a Prometheus.
func TestB72MonitoringKnowsTheMetrics(t *testing.T) {
	known, used := documented(t), 0
	for _, file := range []string{"prometheusrule.yaml", "dashboard.json"} {
		text, err := os.ReadFile(monitoring + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\b(ipvsproxy|kubeproxy)_[a-z_]+\b`).FindAllString(string(text), -1) {
			used++
			if !slices.Contains(known, name) {
				t.Errorf("%s asks for %s, which docs/metrics.md does not have", file, name)
			}
		}
	}
	if used < 50 {
		t.Errorf("alerts and dashboard name %d metrics: they are not found", used)
	}
}

// The chart cannot read what is outside of it: what it has of alerts and dashboard is what manifests/monitoring has, and
// what each alert means stands in docs/monitoring.md.
func TestB72ChartHasTheSameMonitoring(t *testing.T) {
	read := func(file string) string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	const files = "../manifests/chart/files/"
	if read(files+"dashboard.json") != read(monitoring+"dashboard.json") {
		t.Errorf("%sdashboard.json is another: cp %s %s", files, filepath.Clean(monitoring+"dashboard.json"), files)
	}
	_, spec, found := strings.Cut(read(monitoring+"prometheusrule.yaml"), "\nspec:\n")
	var lines []string
	for line := range strings.Lines(spec) {
		lines = append(lines, strings.TrimPrefix(line, "  "))
	}
	if want := strings.Join(lines, ""); !found || read(files+"rules.yaml") != want {
		t.Errorf("%srules.yaml is not the spec of prometheusrule.yaml:\n%s", files, want)
	}
	var rule struct {
		Spec struct {
			Groups []struct{ Rules []struct{ Alert string } }
		}
	}
	if err := yaml.Unmarshal([]byte(read(monitoring+"prometheusrule.yaml")), &rule); err != nil {
		t.Fatal(err)
	}
	page, n := read("../docs/monitoring.md"), 0
	for _, g := range rule.Spec.Groups {
		for _, r := range g.Rules {
			if n++; !strings.Contains(page, "| "+r.Alert+" |") {
				t.Errorf("docs/monitoring.md has nothing about %s", r.Alert)
			}
		}
	}
	if n < 10 {
		t.Errorf("%d alerts: they are not found", n)
	}
}
