package healthz

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// A scrape of 500 Services has 4,500 series. Most of what it would cost to make them anew each time is their labels, which do not
// change: they are made once, and stand in the order in which Prometheus' library wants them.

// column is one of the metrics that each port of a Service has.
type column struct {
	desc    *prometheus.Desc
	counter bool // else it is a gauge
	// more is a label beside those of the port, with its value; "": there is none.
	more, value string
	of          func(*ServiceTraffic) float64
}

// columns are all of them, in groups of which each gives a port after the other: so they are sorted by their labels, as they are to be
// in the end.
func (t *trafficMeters) columns() [][]column {
	return [][]column{
		{{t.conns, true, "", "", func(s *ServiceTraffic) float64 { return float64(s.Conns) }}},
		{{t.packets, true, "direction", "in", func(s *ServiceTraffic) float64 { return float64(s.In.Packets) }}},
		{{t.packets, true, "direction", "out", func(s *ServiceTraffic) float64 { return float64(s.Out.Packets) }}},
		{{t.bytes, true, "direction", "in", func(s *ServiceTraffic) float64 { return float64(s.In.Bytes) }}},
		{{t.bytes, true, "direction", "out", func(s *ServiceTraffic) float64 { return float64(s.Out.Bytes) }}},
		{{t.activeConns, false, "", "", func(s *ServiceTraffic) float64 { return float64(s.Active) }}},
		{{t.inactiveConns, false, "", "", func(s *ServiceTraffic) float64 { return float64(s.Inactive) }}},
		{{t.backends, false, "state", "draining", func(s *ServiceTraffic) float64 { return float64(s.Draining) }},
			{t.backends, false, "state", "ready", func(s *ServiceTraffic) float64 { return float64(s.Ready) }}},
	}
}

// measuredPort is a port of a Service by its names.
type measuredPort struct{ namespace, service, port string }

// portLabels are the labels of a port, by what its column adds to them; nil: a name is no text.
type portLabels map[string][]*dto.LabelPair

// labelsOf makes the labels of a port, for all columns.
func labelsOf(p measuredPort, groups [][]column) portLabels {
	if !utf8.ValidString(p.namespace) || !utf8.ValidString(p.service) || !utf8.ValidString(p.port) {
		return nil
	}
	names := []*dto.LabelPair{label("namespace", p.namespace), label("port", p.port), label("service", p.service)}
	all := portLabels{}
	for _, group := range groups {
		for _, c := range group {
			if _, known := all[c.value]; known {
				continue
			}
			list := slices.Clone(names)
			if c.more != "" {
				list = append(list, label(c.more, c.value))
			}
			slices.SortFunc(list, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
			all[c.value] = list
		}
	}
	return all
}

func label(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

// sample is the value of a series at one reading. It never changes: whoever has it may be slow.
type sample struct {
	desc    *prometheus.Desc
	labels  []*dto.LabelPair
	value   float64
	counter bool
}

// Desc implements [prometheus.Metric].
func (s *sample) Desc() *prometheus.Desc { return s.desc }

// Write implements [prometheus.Metric].
func (s *sample) Write(to *dto.Metric) error {
	if to.Label = s.labels; s.counter {
		to.Counter = &dto.Counter{Value: &s.value}
	} else {
		to.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}

// addServices adds the metrics of Services. A port of which a name is no text is left out: the others count.
func (t *trafficMeters) addServices(list []ServiceTraffic) {
	groups := t.columns()
	if t.labels == nil {
		t.labels = map[measuredPort]portLabels{}
	}
	known := make(map[measuredPort]portLabels, len(list))
	labels := make([]portLabels, len(list))
	for i := range list {
		p := measuredPort{list[i].Namespace, list[i].Service, list[i].Port}
		if labels[i] = t.labels[p]; labels[i] == nil {
			labels[i] = labelsOf(p, groups)
		}
		known[p] = labels[i]
	}
	t.labels = known // those that are gone are forgotten
	for _, group := range groups {
		samples := make([]sample, 0, len(group)*len(list))
		for i := range list {
			for _, c := range group {
				if labels[i] != nil {
					samples = append(samples, sample{c.desc, labels[i][c.value], c.of(&list[i]), c.counter})
				}
			}
		}
		for i := range samples {
			t.last = append(t.last, &samples[i])
		}
	}
}
