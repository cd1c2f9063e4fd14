package manifests

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/chart"
)

func addMonitoring(s *runtime.Scheme) error { return monitoringv1.AddToScheme(s) }

// The chart makes what the kustomization makes, object by object. Helm renders it in a module of its own; the file that it
// wrote there names the chart that it is of.
func TestChart(t *testing.T) {
	text, err := os.ReadFile("testdata/chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	sum, err := chart.Sum(dir + "chart")
	if err != nil {
		t.Fatal(err)
	}
	if first, _, _ := strings.Cut(string(text), "\n"); !strings.HasSuffix(first, " "+sum+".") {
		t.Fatalf("testdata/chart.yaml is of another chart: make chart writes it anew")
	}
	got, want := decodeAll(t, text), render(t, "fresh")
	monitor, rule := only[*monitoringv1.PodMonitor](t, got), only[*monitoringv1.PrometheusRule](t, got)
	got = slices.DeleteFunc(got, func(o runtime.Object) bool { return o == runtime.Object(monitor) || o == runtime.Object(rule) })
	monitored(t, monitor, rule)
	ofChart(t, got)
	ofKustomization(t, want)
	byKind := func(a, b runtime.Object) int {
		return strings.Compare(reflect.TypeOf(a).String(), reflect.TypeOf(b).String())
	}
	slices.SortFunc(got, byKind)
	slices.SortFunc(want, byKind)
	if len(got) != len(want) {
		t.Fatalf("the chart has %d objects, the kustomization %d", len(got), len(want))
	}
	for i := range got {
		if got, want := asYAML(t, got[i]), asYAML(t, want[i]); got != want {
			t.Errorf("the chart has\n%s\nthe kustomization\n%s", got, want)
		}
	}
	ds := only[*appsv1.DaemonSet](t, got)
	port := *monitor.Spec.PodMetricsEndpoints[0].Port
	if !slices.ContainsFunc(ds.Spec.Template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == port }) {
		t.Errorf("the PodMonitor asks at the port %s, and the pods have none of that name", port)
	}
	for key, value := range monitor.Spec.Selector.MatchLabels {
		if ds.Spec.Template.Labels[key] != value {
			t.Errorf("the PodMonitor selects %s=%s, the pods have %v", key, value, ds.Spec.Template.Labels)
		}
	}
}

// monitored: the chart's monitoring is that of manifests/monitoring, where the dashboard is in a ConfigMap that Grafana takes.
func monitored(t *testing.T, monitor *monitoringv1.PodMonitor, rule *monitoringv1.PrometheusRule) {
	t.Helper()
	objects := render(t, "monitoring")
	if len(objects) != 3 {
		t.Errorf("%d objects of monitoring, want three", len(objects))
	}
	if want := only[*monitoringv1.PodMonitor](t, objects); !reflect.DeepEqual(monitor.Spec, want.Spec) {
		t.Errorf("the chart's PodMonitor is\n%s\nwant\n%s", asYAML(t, monitor), asYAML(t, want))
	}
	if want := only[*monitoringv1.PrometheusRule](t, objects); !reflect.DeepEqual(rule.Spec, want.Spec) || len(rule.Spec.Groups) == 0 {
		t.Errorf("the chart's PrometheusRule is\n%s\nwant\n%s", asYAML(t, rule), asYAML(t, want))
	}
	board := only[*corev1.ConfigMap](t, objects)
	if board.Labels["grafana_dashboard"] != "1" || !json.Valid([]byte(board.Data["dashboard.json"])) || board.Namespace != "kube-system" {
		t.Errorf("the dashboard is in %s/%s with the labels %v and %d bytes", board.Namespace, board.Name, board.Labels, len(board.Data["dashboard.json"]))
	}
}

// ofChart takes away what Helm's objects have besides: labels that say so, and how a change of the configuration comes to
// the pods.
func ofChart(t *testing.T, objects []runtime.Object) {
	t.Helper()
	for _, o := range objects {
		m, err := meta.Accessor(o)
		if err != nil {
			t.Fatal(err)
		}
		labels := m.GetLabels()
		if labels["app.kubernetes.io/managed-by"] != "Helm" || labels["app.kubernetes.io/name"] != "ipvs-proxy" {
			t.Errorf("%T %s has the labels %v", o, m.GetName(), labels)
		}
		m.SetLabels(nil)
	}
	ds := only[*appsv1.DaemonSet](t, objects)
	if a := ds.Spec.Template.Annotations; len(a) != 1 || len(a["ipvs-proxy.io/configuration"]) != 64 {
		t.Errorf("annotations of the pods: %v", a)
	}
	ds.Spec.Template.Annotations = nil
	for _, c := range [][]corev1.Container{ds.Spec.Template.Spec.InitContainers, ds.Spec.Template.Spec.Containers} {
		if c[0].ImagePullPolicy != corev1.PullIfNotPresent { // the default for any tag but latest
			t.Errorf("pull policy %s", c[0].ImagePullPolicy)
		}
		c[0].ImagePullPolicy = ""
	}
	config := only[*corev1.ConfigMap](t, objects)
	if !strings.Contains(config.Data["config.conf"], "metricsBindAddress: 0.0.0.0:10249\n") {
		t.Errorf("Prometheus reaches no metrics:\n%s", config.Data["config.conf"])
	}
	config.Data["config.conf"] = strings.Replace(config.Data["config.conf"], "metricsBindAddress: 0.0.0.0:10249\n", "", 1)
	plain(t, config)
}

// ofKustomization takes away the hash in the ConfigMap's name, which does for kustomize what the annotation does for Helm.
func ofKustomization(t *testing.T, objects []runtime.Object) {
	t.Helper()
	ds, config := only[*appsv1.DaemonSet](t, objects), only[*corev1.ConfigMap](t, objects)
	ds.Labels = nil
	config.Name = "ipvs-proxy"
	ds.Spec.Template.Spec.Volumes[0].ConfigMap.Name = config.Name
	plain(t, config)
}

// plain takes comments out of the files in a ConfigMap, and puts their keys into one order.
func plain(t *testing.T, config *corev1.ConfigMap) {
	t.Helper()
	for name, text := range config.Data {
		var documents []string
		for _, document := range strings.Split(text, "---\n") {
			var value any
			if err := yaml.UnmarshalStrict([]byte(document), &value); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, document)
			}
			documents = append(documents, asYAML(t, value))
		}
		config.Data[name] = strings.Join(documents, "---\n")
	}
}
