// Package chart tests the Helm chart in /manifests/chart by Helm's own library: linted, checked against its schema, packed as
// a release does, loaded and rendered. What it renders with the values of testdata is kept in the module hack/release,
// where a test compares it with the kustomization. This one is a module of its own for the sake of Helm's dependencies,
// which take minutes to compile.
package chart

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"sigs.k8s.io/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/chart"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/install"
)

const (
	dir    = "../../manifests/chart"
	golden = "../release/manifests/testdata/chart.yaml"
)

var update = flag.Bool("update", false, "write what the chart renders to")

// packed is the chart as a release has it, read by Helm.
func packed(t *testing.T) *helmchart.Chart {
	t.Helper()
	var archive bytes.Buffer
	image := install.Image{Repository: "registry.example.com/ipvs-proxy", Tag: "v0.1.0", Digest: "sha256:" + strings.Repeat("0", 64)}
	if err := chart.Pack(&archive, dir, image, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	c, err := loader.LoadArchive(&archive)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func values(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// render gives what helm install sends, by the name of the template.
func render(t *testing.T, text string) (map[string]string, error) {
	t.Helper()
	c := packed(t)
	all, err := chartutil.ToRenderValues(c, values(t, text), chartutil.ReleaseOptions{Name: "ipvs-proxy", Namespace: "kube-system", IsInstall: true, Revision: 1}, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// given are values that have no default.
const given = "clusterCIDR: 10.244.0.0/16\napiServer: https://api.example.com:6443\n"

func TestGolden(t *testing.T) {
	text, err := os.ReadFile("testdata/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := render(t, string(text))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := chart.Sum(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Written by make chart. It is of the chart %s.\n", sum)
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if object := strings.TrimSpace(rendered[name]); object != "" && strings.HasSuffix(name, ".yaml") {
			fmt.Fprintf(&out, "---\n%s\n", object)
		}
	}
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("the chart renders what %s has not: make chart writes it anew.\n%s", golden, out.Bytes())
	}
}

// Helm finds nothing to say, be it an error, a warning or an advice; but for the icon, which we have not.
func TestLint(t *testing.T) {
	linted := lint.AllWithKubeVersion(dir, values(t, given), "kube-system", nil)
	for _, m := range linted.Messages {
		if !strings.Contains(m.Err.Error(), "icon is recommended") {
			t.Error(m)
		}
	}
}

// Values that would make an agent that cannot work, or that name what there is not, are refused, by name.
func TestSchema(t *testing.T) {
	for _, c := range []struct{ values, want string }{
		{given, ""},
		{given + "clusterCIDR: 10.244.0.0/16,fd00:10:244::/56", ""},
		{given + "clusterCIDR: ''", ""},
		{"", "apiServer"},
		{"clusterCIDR: 10.244.0.0/16", "apiServer"},
		{"apiServer: https://api.example.com:6443", "clusterCIDR"},
		{given + "apiServer: api.example.com:6443", "apiServer"},
		{given + "clusterCIDR: 10.244.0.0", "clusterCIDR"},
		{given + "image: {digest: latest}", "digest"},
		{given + "resource: {}", "resource"},
		{given + "podMonitor: {enable: true}", "enable"},
		{given + "prometheusRule: {enable: true}", "enable"},
		{given + "dashboard: {enable: true}", "enable"},
		{given + "podMonitor: {enabled: true}", "metricsBindAddress"},
		{given + "podMonitor: {enabled: true}\nkubeProxyConfiguration: {metricsBindAddress: '127.0.0.1:10249'}", "metricsBindAddress"},
		{given + "podMonitor: {enabled: true}\nkubeProxyConfiguration: {metricsBindAddress: '0.0.0.0:10249'}", ""},
		{given + "kubeProxyConfiguration: {metricsBindAddress: '0.0.0.0:1'}", "metricsBindAddress"},
		{given + "kubeProxyConfiguration: {clusterCIDR: 10.0.0.0/8}", "clusterCIDR"},
	} {
		// The last of a key twice counts: that is how a test overrides what is given.
		text := c.values
		if again := strings.TrimPrefix(text, given); again != text {
			for line := range strings.Lines(given) {
				if key, _, _ := strings.Cut(line, ":"); !strings.HasPrefix(again, key+":") {
					again += "\n" + line
				}
			}
			text = again
		}
		_, err := render(t, text)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n%v; want it to name %q", text, err, c.want)
		}
	}
}

// What values can change.
func TestValues(t *testing.T) {
	all, err := render(t, given+`
image: {tag: v9, digest: '', pullSecrets: [registry]}
kubeProxyConfiguration: {ipvs: {scheduler: wrr, strictARP: true}, metricsBindAddress: '0.0.0.0:10249'}
configuration: {protectedCIDRs: [192.0.2.0/24]}
init: {enabled: false}
podMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
dashboard: {enabled: true}
podLabels: {team: net}
`)
	if err != nil {
		t.Fatal(err)
	}
	for file, wants := range map[string][]string{
		"daemonset.yaml":      {"image: registry.example.com/ipvs-proxy:v9\n", "imagePullSecrets:\n      - name: registry\n", "        team: net\n"},
		"configmap.yaml":      {"      scheduler: wrr\n", "      strictARP: true\n", "    - 192.0.2.0/24\n", "    clusterCIDR: 10.244.0.0/16\n"},
		"podmonitor.yaml":     {"kind: PodMonitor\n", "    release: prometheus\n", "port: metrics\n"},
		"prometheusrule.yaml": {"kind: PrometheusRule\n", "    release: prometheus\n", "\n  groups:\n  - name: ipvs-proxy\n    rules:\n    - alert: IPVSProxyDown\n", "{{ $labels.instance }}"},
		"dashboard.yaml":      {"kind: ConfigMap\n", "    grafana_dashboard: \"1\"\n", "\n  dashboard.json: |\n    {\n      \""},
	} {
		for _, want := range wants {
			if got := all["ipvs-proxy/templates/"+file]; !strings.Contains(got, want) {
				t.Errorf("%s does not say %q:\n%s", file, want, got)
			}
		}
	}
	if got := all["ipvs-proxy/templates/daemonset.yaml"]; strings.Contains(got, "initContainers") || strings.Contains(got, "lib-modules") {
		t.Errorf("init is not wanted:\n%s", got)
	}
	plain, err := render(t, given)
	if err != nil {
		t.Fatal(err)
	}
	sum := func(all map[string]string) string {
		_, after, _ := strings.Cut(all["ipvs-proxy/templates/daemonset.yaml"], "ipvs-proxy.io/configuration: ")
		return after[:64]
	}
	if sum(all) == sum(plain) {
		t.Error("another configuration does not restart the agents")
	}
	for _, file := range []string{"podmonitor.yaml", "prometheusrule.yaml", "dashboard.yaml"} {
		if strings.TrimSpace(plain["ipvs-proxy/templates/"+file]) != "" {
			t.Errorf("%s: nobody asked for it", file)
		}
	}
}
