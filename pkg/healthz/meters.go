package healthz

import (
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	_ "k8s.io/component-base/metrics/prometheus/restclient" // rest_client_*
	"k8s.io/component-base/version"
)

// Metric describes one of the metrics that this package makes.
type Metric struct {
	Name, Type, Help string
	Labels           []string
	Buckets          []float64 // upper bounds, of a histogram
}

// maker makes metrics, registers them, and remembers what it made. Values of a metric count only once it is
// registered.
type maker struct {
	register func(...metrics.Registerable)
	raw      func(...prometheus.Collector)
	made     []Metric
}

func (m *maker) note(kind, name, help string, buckets []float64, labels []string) {
	m.made = append(m.made, Metric{Name: name, Type: kind, Help: help, Labels: labels, Buckets: buckets})
}

func (m *maker) counter(name, help string, labels ...string) *metrics.CounterVec {
	v := metrics.NewCounterVec(&metrics.CounterOpts{Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	m.register(v)
	m.note("counter", name, help, nil, labels)
	return v
}

func (m *maker) gauge(name, help string, labels ...string) *metrics.GaugeVec {
	v := metrics.NewGaugeVec(&metrics.GaugeOpts{Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
	m.register(v)
	m.note("gauge", name, help, nil, labels)
	return v
}

func (m *maker) histogram(name, help string, buckets []float64, labels ...string) *metrics.HistogramVec {
	v := metrics.NewHistogramVec(&metrics.HistogramOpts{Name: name, Help: help, Buckets: buckets, StabilityLevel: metrics.ALPHA}, labels)
	m.register(v)
	m.note("histogram", name, help, buckets, labels)
	return v
}

const byFamily = "ip_family"

func (m *maker) counters(name, help string) (c [families]metrics.CounterMetric) {
	v := m.counter(name, help, byFamily)
	for f := range c {
		c[f] = v.WithLabelValues(Family(f).String())
	}
	return c
}

func (m *maker) gauges(name, help string) (g [families]metrics.GaugeMetric) {
	v := m.gauge(name, help, byFamily)
	for f := range g {
		g[f] = v.WithLabelValues(Family(f).String())
	}
	return g
}

func (m *maker) histograms(name, help string, buckets []float64) (h [families]metrics.ObserverMetric) {
	v := m.histogram(name, help, buckets, byFamily)
	for f := range h {
		h[f] = v.WithLabelValues(Family(f).String())
	}
	return h
}

// meters are all our metrics.
type meters struct {
	made []Metric
	kubeProxyMeters
	ownMeters
}

// kubeProxyMeters have the names that kube-proxy gives them.
type kubeProxyMeters struct {
	rounds, full, partial, programming [families]metrics.ObserverMetric
	synced, queued                     [families]metrics.GaugeMetric
	changes                            [2]metrics.CounterMetric // of Services, of EndpointSlices
	pending                            [2]metrics.GaugeMetric
	noLocal                            [2][families]metrics.GaugeMetric // internal, external
	healthz, livez                     *metrics.CounterVec
	nftFailures, nftCleanupFailures    [families]metrics.CounterMetric
	conntrack                          [families]metrics.ObserverMetric
	conntrackDeleted                   [families]metrics.CounterMetric
}

// ownMeters are those that kube-proxy has none of.
type ownMeters struct {
	queue, draining, setup, away metrics.GaugeMetric
	leavings                     metrics.CounterMetric
	frontends, failing           [families]metrics.GaugeMetric
	writes                       [ops]metrics.CounterMetric
	errors                       *metrics.CounterVec
	problems                     *metrics.GaugeVec
	audits                       metrics.ObserverMetric
	differences, setups          metrics.CounterMetric
	overruns                     metrics.CounterMetric
}

func newMeters(o Options) *meters {
	mk := &maker{register: legacyregistry.MustRegister, raw: legacyregistry.RawMustRegister}
	if o.Registry != nil {
		mk.register, mk.raw = o.Registry.MustRegister, o.Registry.RawMustRegister
	}
	m := &meters{}
	mk.kubernetes()
	m.kubeProxyMeters.make(mk)
	m.ownMeters.make(mk, o)
	mk.traffic(o)
	m.made = mk.made
	return m
}

// make makes the metrics of kube-proxy: names, types, labels, help and buckets are those of
// pkg/proxy/metrics/metrics.go in Kubernetes 1.36 and 1.37. What only its other modes have is there as well, because
// dashboards select it.
func (m *kubeProxyMeters) make(mk *maker) {
	const p = "kubeproxy_"
	latency := metrics.ExponentialBuckets(0.001, 2, 15)
	m.rounds = mk.histograms(p+"sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", latency)
	m.full = mk.histograms(p+"sync_full_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for full resyncs", latency)
	m.partial = mk.histograms(p+"sync_partial_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for partial resyncs", latency)
	m.synced = mk.gauges(p+"sync_proxy_rules_last_timestamp_seconds", "The last time proxy rules were successfully synced")
	m.queued = mk.gauges(p+"sync_proxy_rules_last_queued_timestamp_seconds", "The last time a sync of proxy rules was queued")
	m.programming = mk.histograms(p+"network_programming_duration_seconds", "In Cluster Network Programming Latency in seconds",
		metrics.MergeBuckets(metrics.LinearBuckets(0.25, 0.25, 2), metrics.LinearBuckets(1, 1, 59),
			metrics.LinearBuckets(60, 5, 12), metrics.LinearBuckets(120, 30, 7)))
	for i, kind := range []string{"Service", "Endpoint"} {
		name := p + "sync_proxy_rules_" + map[string]string{"Service": "service", "Endpoint": "endpoint"}[kind] + "_changes_"
		m.pending[i] = mk.gauge(name+"pending", "Pending proxy rules "+kind+" changes").WithLabelValues()
		m.changes[i] = mk.counter(name+"total", "Cumulative proxy rules "+kind+" changes").WithLabelValues()
	}
	noLocal := mk.gauge(p+"sync_proxy_rules_no_local_endpoints_total", "Number of services with a Local traffic policy and no endpoints",
		"traffic_policy", byFamily)
	for i, policy := range []string{"internal", "external"} {
		for f := range m.noLocal[i] {
			m.noLocal[i][f] = noLocal.WithLabelValues(policy, Family(f).String())
		}
	}
	m.healthz = mk.counter(p+"proxy_healthz_total", "Cumulative proxy healthz HTTP status", "code")
	m.livez = mk.counter(p+"proxy_livez_total", "Cumulative proxy livez HTTP status", "code")
	for _, v := range []*metrics.CounterVec{m.healthz, m.livez} {
		v.WithLabelValues("200")
		v.WithLabelValues("503")
	}
	mk.counters(p+"sync_proxy_rules_iptables_restore_failures_total", "Cumulative proxy iptables restore failures") // stays 0
	m.nftFailures = mk.counters(p+"sync_proxy_rules_nftables_sync_failures_total", "Cumulative proxy nftables sync failures")
	m.nftCleanupFailures = mk.counters(p+"sync_proxy_rules_nftables_cleanup_failures_total", "Cumulative proxy nftables cleanup failures")
	m.conntrack = mk.histograms(p+"conntrack_reconciler_sync_duration_seconds", "ReconcileConntrackFlowsLatency latency in seconds", latency)
	m.conntrackDeleted = mk.counters(p+"conntrack_reconciler_deleted_entries_total", "Cumulative conntrack flows deleted by conntrack reconciler")
}

// kubernetes makes the metric by which monitoring compares versions across the cluster
// (k8s.io/component-base/metrics/prometheus/version). That package knows its version only where the linker is told;
// the module of it that is built in knows by itself.
func (m *maker) kubernetes() {
	v := metrics.NewGaugeVec(&metrics.GaugeOpts{Name: "kubernetes_build_info", StabilityLevel: metrics.BETA,
		Help: "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running."},
		[]string{"major", "minor", "git_version", "git_commit", "git_tree_state", "build_date", "go_version", "compiler", "platform"})
	m.register(v)
	i := version.Get()
	var deps []*debug.Module
	if info, ok := debug.ReadBuildInfo(); ok {
		deps = info.Deps
	}
	major, minor, full := kubernetesVersion(deps)
	v.WithLabelValues(major, minor, full, "", "", "", i.GoVersion, i.Compiler, i.Platform).Set(1)
}

// kubernetesVersion is the release of Kubernetes whose modules are built in: v0.37.2 of them belong to v1.37.2.
func kubernetesVersion(deps []*debug.Module) (major, minor, full string) {
	for _, d := range deps {
		if rest, of := strings.CutPrefix(d.Version, "v0."); of && d.Path == "k8s.io/component-base" {
			minor, _, _ = strings.Cut(rest, ".")
			return "1", minor, "v1." + rest
		}
	}
	i := version.Get()
	return i.Major, i.Minor, i.GitVersion
}

func (m *ownMeters) make(mk *maker, o Options) {
	const p = "ipvsproxy_"
	mk.gauge(p+"build_info", "Always 1; the labels say which agent this is", "version", "revision", "go_version").
		WithLabelValues(o.Version, o.Revision, runtime.Version()).Set(1)
	m.queue = mk.gauge(p+"queue_length", "Frontends that will have their turn: to be written, retried, or looked at again").WithLabelValues()
	m.frontends = mk.gauges(p+"frontends", "Frontends (address, port and protocol) that this node is to serve")
	m.failing = mk.gauges(p+"frontends_failing", "Frontends whose last try failed; each is tried again at least every 1.5 s")
	m.draining = mk.gauge(p+"draining_real_servers", "Real servers at weight 0 that wait for their connections to end").WithLabelValues()
	m.away = mk.gauge(p+"stepped_back", "1 while another proxy is at work on this node, and nothing is written: /healthz says what was heard of it").WithLabelValues()
	m.leavings = mk.counter(p+"leavings_removed_total", "Writes that took out what another proxy had left").WithLabelValues()
	writes := mk.counter(p+"kernel_writes_total", "Writes that the kernel has confirmed", "operation")
	for i := range m.writes {
		m.writes[i] = writes.WithLabelValues(Op(i).String())
	}
	m.errors = mk.counter(p+"kernel_errors_total", "Writes that the kernel has refused or not answered, by its error (timeout and other are none of its own)", "errno")
	m.problems = mk.gauge(p+"problems", "Things in Services and EndpointSlices that cannot be used, now, by reason", "reason")
	m.setup = mk.gauge(p+"node_problems", "Things about this node that could not be set up, now: the log and /healthz?verbose of the metrics port name them").WithLabelValues()
	m.setups = mk.counter(p+"node_repairs_total", "Writes to interface, nftables table and sysctls, at the start and after changes by others").WithLabelValues()
	m.audits = mk.histogram(p+"audit_duration_seconds", "Time that one look for changes by other programs took", metrics.ExponentialBuckets(0.001, 4, 8)).WithLabelValues()
	m.differences = mk.counter(p+"audit_differences_total", "Changes by other programs to what is ours that were found and put right").WithLabelValues()
	m.overruns = mk.counter(p+"notifications_lost_total", "Times that the kernel had no room for what it tells of changes by other programs; all is looked at then").WithLabelValues()
	if dropped := o.LogLinesDropped; dropped != nil {
		name, help := p+"log_lines_dropped_total", "Lines of the log that were dropped because whoever reads it was too slow"
		mk.raw(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(dropped()) }))
		mk.note("counter", name, help, nil, nil)
	}
	if age := o.ClusterAge; age != nil {
		name, help := p+"cluster_age_seconds", "Time since the source of the cluster's objects last gave a sign of life"
		mk.raw(metrics.NewGaugeFunc(&metrics.GaugeOpts{Name: name, Help: help, StabilityLevel: metrics.ALPHA}, func() float64 { return age().Seconds() }))
		mk.note("gauge", name, help, nil, nil)
	}
}
