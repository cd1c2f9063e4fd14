package healthz

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/component-base/metrics/legacyregistry"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// What dashboards and alerts that were made for kube-proxy select (B52): facts of pkg/proxy/metrics/metrics.go in
// Kubernetes 1.36 and 1.37, written down here a second time.
func TestB52KubeProxysMetrics(t *testing.T) {
	const latency = "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384"
	programming := []string{"0", "0.25", "0.5"} // the 0 comes from MergeBuckets, and kube-proxy has it
	for s := 1; s < 60; s++ {
		programming = append(programming, strconv.Itoa(s))
	}
	for s := 60; s < 120; s += 5 {
		programming = append(programming, strconv.Itoa(s))
	}
	for s := 120; s <= 300; s += 30 {
		programming = append(programming, strconv.Itoa(s))
	}
	want := map[string]string{
		"sync_proxy_rules_duration_seconds":                "histogram ip_family: " + latency,
		"sync_full_proxy_rules_duration_seconds":           "histogram ip_family: " + latency,
		"sync_partial_proxy_rules_duration_seconds":        "histogram ip_family: " + latency,
		"sync_proxy_rules_last_timestamp_seconds":          "gauge ip_family",
		"sync_proxy_rules_last_queued_timestamp_seconds":   "gauge ip_family",
		"network_programming_duration_seconds":             "histogram ip_family: " + strings.Join(programming, " "),
		"sync_proxy_rules_endpoint_changes_pending":        "gauge ",
		"sync_proxy_rules_endpoint_changes_total":          "counter ",
		"sync_proxy_rules_service_changes_pending":         "gauge ",
		"sync_proxy_rules_service_changes_total":           "counter ",
		"sync_proxy_rules_no_local_endpoints_total":        "gauge traffic_policy,ip_family",
		"sync_proxy_rules_nftables_sync_failures_total":    "counter ip_family",
		"sync_proxy_rules_nftables_cleanup_failures_total": "counter ip_family",
		"sync_proxy_rules_iptables_restore_failures_total": "counter ip_family",
		"proxy_healthz_total":                              "counter code",
		"proxy_livez_total":                                "counter code",
		"conntrack_reconciler_sync_duration_seconds":       "histogram ip_family: " + latency,
		"conntrack_reconciler_deleted_entries_total":       "counter ip_family",
	}
	r := newRig(t)
	types := map[string]string{}
	gathered, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range gathered {
		types[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	for _, m := range r.Metrics() {
		name, of := strings.CutPrefix(m.Name, "kubeproxy_")
		if !of {
			continue
		}
		got := m.Type + " " + strings.Join(m.Labels, ",")
		if m.Buckets != nil {
			got += ": " + buckets(m)
		}
		if got != want[name] {
			t.Errorf("%s\n got  %s\n want %s", m.Name, got, want[name])
		}
		if types[m.Name] != m.Type {
			t.Errorf("%s is exposed as %q: it has to be there from the start", m.Name, types[m.Name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("kubeproxy_%s is missing", name)
	}
}

func buckets(m Metric) string {
	text := make([]string, len(m.Buckets))
	for i, b := range m.Buckets {
		text[i] = strconv.FormatFloat(b, 'g', 10, 64)
	}
	return strings.Join(text, " ")
}

// The registry of the process has what every component of Kubernetes has, and the version of Kubernetes that is
// built in.
func TestB52ProcessMetrics(t *testing.T) {
	h := New(Options{})
	h.Heard(0, 0)
	gathered, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, f := range gathered {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "git_version" || l.GetName() == "ip_family" {
					found[f.GetName()] = l.GetValue()
				}
			}
			if len(m.GetLabel()) == 0 {
				found[f.GetName()] = ""
			}
		}
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds", "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"} {
		if _, there := found[name]; !there {
			t.Errorf("no metric %s", name)
		}
	}
	if found["kubernetes_build_info"] == "" {
		t.Error("no kubernetes_build_info")
	}
	deps := []*debug.Module{{Path: "k8s.io/api", Version: "v0.99.1"}, {Path: "k8s.io/component-base", Version: "v0.36.3"}}
	if major, minor, full := kubernetesVersion(deps); major != "1" || minor != "36" || full != "v1.36.3" {
		t.Errorf("version %s.%s, %s", major, minor, full)
	}
}

// Every hook moves its metric, by what it is given.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	family := []string{"ip_family", "IPv6"}
	r.Heard(5, 9)
	r.Heard(7, 9)
	pending := func(what string, services, endpoints float64) {
		t.Helper()
		for kind, want := range map[string]float64{"service": services, "endpoint": endpoints} {
			if got := r.value("kubeproxy_sync_proxy_rules_" + kind + "_changes_pending"); got != want {
				t.Errorf("%s: %v %s changes pending, want %v", what, got, kind, want)
			}
		}
	}
	pending("heard", 7, 9)
	r.Stands(Standing{Waiting: [families]bool{IPv6: true}, Queued: 3, Frontends: [families]int{4, 2}, Failing: [families]int{1, 2}, Draining: 6})
	pending("one family waits", 7, 9)
	r.pass(2 * time.Second)
	r.Confirmed(IPv6)
	r.Wrote(IPv6, SetServer, nil)
	r.Wrote(IPv6, AddElement, fmt.Errorf("x: %w", syscall.EEXIST))
	r.Wrote(IPv6, RemoveElement, context.DeadlineExceeded)
	r.Wrote(IPv6, Bind, errors.New("x"))
	r.Round(IPv6, 3*time.Second)
	r.Started(IPv6, 5*time.Second)
	r.Programmed(IPv6, 7*time.Second)
	r.NoLocal(true, IPv6, 2)
	r.NoLocal(true, IPv6, -1)
	r.Problems("WrongFamily", 4)
	r.SetSetup([]string{"a", "b"})
	r.SetUp(3)
	r.Audited(2*time.Second, 6)
	r.Lost(2)
	r.Overrun()
	r.Forgot(IPv6, 4*time.Second, 11)
	const k, o = "kubeproxy_", "ipvsproxy_"
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{o + "notifications_lost_total", nil, 1},
		{k + "sync_proxy_rules_service_changes_total", nil, 7},
		{k + "sync_proxy_rules_endpoint_changes_total", nil, 9},
		{k + "sync_proxy_rules_last_queued_timestamp_seconds", family, seconds(r.now) - 2},
		{k + "sync_proxy_rules_last_timestamp_seconds", family, seconds(r.now)},
		{k + "sync_proxy_rules_duration_seconds", family, 3},
		{k + "sync_partial_proxy_rules_duration_seconds", family, 3},
		{k + "sync_full_proxy_rules_duration_seconds", family, 5},
		{k + "network_programming_duration_seconds", family, 7},
		{k + "sync_proxy_rules_no_local_endpoints_total", append(family, "traffic_policy", "external"), 1},
		{k + "sync_proxy_rules_no_local_endpoints_total", append(family, "traffic_policy", "internal"), 0},
		{k + "sync_proxy_rules_nftables_sync_failures_total", family, 1},
		{k + "sync_proxy_rules_nftables_cleanup_failures_total", family, 1},
		{k + "sync_proxy_rules_iptables_restore_failures_total", family, 0},
		{k + "conntrack_reconciler_sync_duration_seconds", family, 4},
		{k + "conntrack_reconciler_deleted_entries_total", family, 11},
		{o + "queue_length", nil, 3}, {o + "draining_real_servers", nil, 6},
		{o + "frontends", family, 2}, {o + "frontends_failing", family, 2},
		{o + "kernel_writes_total", []string{"operation", "set_virtual_server"}, 1},
		{o + "kernel_writes_total", []string{"operation", "add_element"}, 0},
		{o + "kernel_errors_total", []string{"errno", "EEXIST"}, 1},
		{o + "kernel_errors_total", []string{"errno", "timeout"}, 1},
		{o + "kernel_errors_total", []string{"errno", "other"}, 1},
		{o + "problems", []string{"reason", "WrongFamily"}, 4},
		{o + "node_problems", nil, 2}, {o + "node_repairs_total", nil, 3},
		{o + "audit_duration_seconds", nil, 2}, {o + "audit_differences_total", nil, 8},
		{o + "cluster_age_seconds", nil, 7},
	} {
		if got := r.value(c.name, c.labels...); got != c.want {
			t.Errorf("%s %v: %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	r.Stands(Standing{})
	pending("at rest", 0, 0)
	(*Health)(nil).Wrote(IPv4, Bind, nil) // where nobody wants to know
}

// how says what this agent makes of kube-proxy's metrics where that is not plain.
var how = map[string]string{
	"kubeproxy_sync_proxy_rules_duration_seconds":                "One round of writes, of up to 64 frontends; nothing is observed where nothing is to be written.",
	"kubeproxy_sync_full_proxy_rules_duration_seconds":           "From reading the whole kernel until it is as the cluster wants it: at the start, and after interface or table were lost.",
	"kubeproxy_sync_partial_proxy_rules_duration_seconds":        "The same as the duration of all rounds.",
	"kubeproxy_sync_proxy_rules_last_timestamp_seconds":          "The last time that the kernel confirmed a frontend, or that all was found to be right.",
	"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds":   "The last time that the cluster changed. Much newer than the timestamp before: something hangs.",
	"kubeproxy_network_programming_duration_seconds":             "Until the kernel has confirmed every frontend that the change concerns. Changes from before the start do not count, and of those that wait for one frontend, because it fails, the first eight do.",
	"kubeproxy_sync_proxy_rules_iptables_restore_failures_total": "Stays 0: the agent has no iptables.",
	"kubeproxy_sync_proxy_rules_nftables_sync_failures_total":    "Set elements that could not be added.",
	"kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total": "Set elements that could not be removed.",
	"kubeproxy_sync_proxy_rules_service_changes_total":           "Each told once, not once a family.",
	"kubeproxy_sync_proxy_rules_endpoint_changes_total":          "Each told once, not once a family.",
}

// docs/metrics.md lists all metrics. It is written by: go test ./pkg/healthz -run Docs -update
func TestMetricsDocs(t *testing.T) {
	const file = "../../docs/metrics.md"
	var b strings.Builder
	b.WriteString(`# Metrics

Port 10249, path ` + "`/metrics`" + `. Written by ` + "`go test ./pkg/healthz -run Docs -update`" + ` from the code that makes them.

Beside these there are ` + "`go_*`, `process_*`, `rest_client_*`, `kubernetes_build_info`" + ` and the rest of what
every component of Kubernetes has. All names below carry their prefix. Only ` + "`ipvsproxy_service_…`" + ` have labels for
a Service, of the Services that [ask for it](monitoring.md#services), 500 at most unless ` + "`serviceMetrics`" + ` says otherwise.
`)
	list := newRig(t).Metrics()
	for _, part := range []struct{ prefix, title, text string }{
		{"kubeproxy_", "kube-proxy's", "Name, type, labels, help and buckets are those of kube-proxy 1.36.\n`ip_family` is IPv4 or IPv6."},
		{"ipvsproxy_", "The agent's own", "Not a contract yet: they may still change."},
	} {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| name | type | labels | |\n| --- | --- | --- | --- |\n", part.title, part.text)
		for _, m := range list {
			name, of := strings.CutPrefix(m.Name, part.prefix)
			if !of {
				continue
			}
			text := m.Help + "."
			if note := how[m.Name]; note != "" {
				text += " *" + note + "*"
			}
			if m.Buckets != nil {
				text += " Buckets: " + short(strings.Fields(buckets(m))) + "."
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, m.Type, strings.Join(m.Labels, ", "), text)
		}
	}
	for name := range how {
		if !slices.ContainsFunc(list, func(m Metric) bool { return m.Name == name }) {
			t.Errorf("no metric %s", name)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != b.String() {
		t.Errorf("docs/metrics.md is not what the code makes (%v): go test ./pkg/healthz -run Docs -update", err)
	}
}

// short leaves out the middle of a long list.
func short(list []string) string {
	if len(list) > 20 {
		list = slices.Concat(list[:4], []string{"…"}, list[len(list)-3:])
	}
	return strings.Join(list, ", ")
}
