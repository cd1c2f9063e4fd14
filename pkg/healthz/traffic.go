package healthz

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Traffic reads what the kernel has counted. It is asked at a scrape, by one goroutine at a time.
type Traffic interface {
	// Refused gives the packets that were refused or dropped.
	Refused(ctx context.Context) ([]Refusal, error)
	// Services gives the traffic of the Services of which metrics are kept, each port once.
	Services(ctx context.Context) (ServicesTraffic, error)
}

// Refusal is how many packets of a family met a reason for which they are not let in.
type Refusal struct {
	Reason  string // a code, see docs/reasons.md
	Dropped bool   // in silence; else the sender is told
	Family  Family
	Packets uint64
}

// ServicesTraffic is that of Services.
type ServicesTraffic struct {
	List []ServiceTraffic
	// Left counts the Services that there is no room for.
	Left int
}

// ServiceTraffic is that of one port of a Service on this node, on all its addresses.
type ServiceTraffic struct {
	// Port is the port's name, or its number where it has no name. No two of a list have all three in common.
	Namespace, Service, Port string
	// Counted never goes backwards as long as this process lives.
	Counted
	// Active and Inactive count connections as IPVS does: those established, and those beginning or ending, or of UDP.
	Active, Inactive int
	// Ready and Draining count endpoints: those that get new connections, and those that keep the ones they have.
	Ready, Draining int
}

// Counted is what went through a port of a Service.
type Counted struct {
	Conns uint64 // that were given to an endpoint
	// In is what clients sent, Out what they were answered.
	In, Out Volume
}

// Volume is an amount of traffic.
type Volume struct{ Packets, Bytes uint64 }

const (
	// trafficTimeout is how long one reading may take: much less than a scrape may.
	trafficTimeout = 3 * time.Second
	// trafficFresh is how long a reading is good for, so that many who scrape cost no more than one.
	trafficFresh = time.Second
)

// trafficMeters are the metrics that are read at a scrape.
type trafficMeters struct {
	source Traffic
	log    *zap.Logger
	now    func() time.Time

	trafficDescs

	mu    sync.Mutex
	read  time.Time // when it was last read
	last  []prometheus.Metric
	fails [2]bool // refusals, Services
	// labels are those of the ports that were there at the last reading.
	labels map[measuredPort]portLabels
}

// trafficDescs are the metrics that it makes.
type trafficDescs struct {
	refused, dropped                              *prometheus.Desc
	conns, packets, bytes                         *prometheus.Desc
	activeConns, inactiveConns, backends, without *prometheus.Desc
}

var perService = []string{"namespace", "service", "port"}

// traffic makes the metrics that are read at a scrape, if there is a source.
func (m *maker) traffic(o Options) {
	if o.Traffic == nil {
		return
	}
	const p = "ipvsproxy_"
	desc := func(kind, name, help string, labels ...string) *prometheus.Desc {
		m.note(kind, p+name, help, nil, labels)
		return prometheus.NewDesc(p+name, help, labels, nil)
	}
	of := func(labels ...string) []string { return append(labels, perService...) }
	t := &trafficMeters{source: o.Traffic, log: o.Log, now: o.Now, trafficDescs: trafficDescs{
		refused: desc("counter", "refused_total", "Packets that were refused, the sender being told, by the reason's code", "reason", byFamily),
		dropped: desc("counter", "dropped_total", "Packets that were dropped in silence, by the reason's code", "reason", byFamily),
		conns:   desc("counter", "service_connections_total", "Connections that were given to an endpoint", perService...),
		packets: desc("counter", "service_packets_total", "Packets: in is what clients sent, out what they were answered", of("direction")...),
		bytes:   desc("counter", "service_bytes_total", "Bytes, IP headers included: in is what clients sent, out what they were answered", of("direction")...),

		activeConns:   desc("gauge", "service_active_connections", "TCP and SCTP connections that are established", perService...),
		inactiveConns: desc("gauge", "service_inactive_connections", "Connections that begin or end, and UDP flows", perService...),
		backends:      desc("gauge", "service_backends", "Endpoints in this node's kernel: ready ones get new connections, draining ones keep those that they have", of("state")...),
		without:       desc("gauge", "services_without_metrics", "Services that would have metrics of their own, and for which serviceMetrics.limit leaves no room"),
	}}
	m.raw(t)
}

// Describe implements [prometheus.Collector].
func (t *trafficMeters) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{t.refused, t.dropped, t.conns, t.packets, t.bytes, t.activeConns, t.inactiveConns, t.backends, t.without} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. What cannot be read is absent, as nobody knows it; the log says so once.
func (t *trafficMeters) Collect(ch chan<- prometheus.Metric) {
	for _, m := range t.current() {
		ch <- m
	}
}

// current reads, unless that was done just now.
func (t *trafficMeters) current() []prometheus.Metric {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.read.IsZero() || t.now().Sub(t.read) >= trafficFresh {
		t.last = make([]prometheus.Metric, 0, len(t.last)) // who has the one before may not be done with it
		ctx, cancel := context.WithTimeout(context.Background(), trafficTimeout)
		t.readRefusals(ctx)
		t.readServices(ctx)
		cancel()
		t.read = t.now() // also where it failed: the next one does not wait as long
	}
	return t.last
}

func (t *trafficMeters) readRefusals(ctx context.Context) {
	list, err := t.source.Refused(ctx)
	t.say(0, "what is refused and dropped", err)
	if err != nil {
		return
	}
	for _, r := range list {
		d := t.refused
		if r.Dropped {
			d = t.dropped
		}
		t.add(d, prometheus.CounterValue, float64(r.Packets), r.Reason, r.Family.String())
	}
}

func (t *trafficMeters) readServices(ctx context.Context) {
	all, err := t.source.Services(ctx)
	t.say(1, "traffic by Service", err)
	if err != nil {
		return
	}
	t.add(t.without, prometheus.GaugeValue, float64(all.Left))
	t.addServices(all.List)
}

// add adds a metric. One whose labels are no text is left out: the others count.
func (t *trafficMeters) add(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
	if m, err := prometheus.NewConstMetric(d, kind, value, labels...); err == nil {
		t.last = append(t.last, m)
	}
}

// say has the log say once that something cannot be read, and once that it can be again.
func (t *trafficMeters) say(which int, what string, err error) {
	switch fails := err != nil; {
	case fails && !t.fails[which]:
		t.log.Warn("metrics are absent until this can be read", zap.String("what", what), zap.Error(err))
	case !fails && t.fails[which]:
		t.log.Info("metrics are there again", zap.String("what", what))
	}
	t.fails[which] = err != nil
}
