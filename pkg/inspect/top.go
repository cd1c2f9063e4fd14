package inspect

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// Top are the busiest frontends of a node.
type Top struct {
	Head Head       `json:"head"`
	Rows []Busy     `json:"rows"`
	Last []Change   `json:"lastChanges"`
	All  Throughput `json:"all"`
	// Quiet counts those that are not listed.
	Quiet int `json:"notListed"`
}

// Busy is a frontend and what goes through it.
type Busy struct {
	Row
	Throughput
}

// Throughput is per second, by the kernel's estimates, which are averages of some 8 s.
type Throughput struct {
	Connections uint64 `json:"newConnectionsPerSecond"`
	PacketsIn   uint64 `json:"packetsInPerSecond"`
	BytesIn     uint64 `json:"bytesInPerSecond"`
	BytesOut    uint64 `json:"bytesOutPerSecond"`
}

func throughput(r ipvs.Rates) Throughput {
	return Throughput{Connections: r.Conns, PacketsIn: r.In.Packets, BytesIn: r.In.Bytes, BytesOut: r.Out.Bytes}
}

// Busiest keeps the busiest virtual servers of those that it is told of.
type Busiest struct {
	most  int
	found []ipvs.Counted
	// Of counts all, and All is what they do together.
	Of  int
	All Throughput
}

// NewBusiest keeps so many.
func NewBusiest(most int) *Busiest { return &Busiest{most: most} }

// Add tells it of one.
func (b *Busiest) Add(c ipvs.Counted) error {
	t := throughput(c.Counters.Rates)
	b.Of++
	b.All.Connections += t.Connections
	b.All.PacketsIn += t.PacketsIn
	b.All.BytesIn += t.BytesIn
	b.All.BytesOut += t.BytesOut
	if b.found = append(b.found, c); len(b.found) >= 2*b.most+100 {
		b.found = b.first()
	}
	return nil
}

// first are the busiest: by new connections, then by bytes, then by connections ever.
func (b *Busiest) first() []ipvs.Counted {
	slices.SortFunc(b.found, func(x, y ipvs.Counted) int {
		p, q := x.Counters.Rates, y.Counters.Rates
		return cmp.Or(cmp.Compare(q.Conns, p.Conns), cmp.Compare(q.In.Bytes+q.Out.Bytes, p.In.Bytes+p.Out.Bytes),
			cmp.Compare(y.Counters.Conns, x.Counters.Conns), x.Key.Compare(y.Key))
	})
	return b.found[:min(b.most, len(b.found))]
}

// Keys are the busiest, in that order.
func (b *Busiest) Keys() (keys []ipvs.Key) {
	for _, c := range b.first() {
		keys = append(keys, c.Key)
	}
	return keys
}

// Rows are the busiest with their names, one by one; without names they have none. Counts has their real servers.
func (b *Busiest) Rows(names []Name, counts Counts) []Busy {
	rows := []Busy{}
	for i, c := range b.first() {
		if full, found := counts[c.Key]; found {
			c.Reals = full.Reals
		}
		r := UnnamedRow(c)
		if i < len(names) {
			if names[i].Service == "" {
				r.State = Foreign
			}
			r.Service, r.Port, r.By = names[i].Service, names[i].Port, names[i].By
		}
		rows = append(rows, Busy{r, throughput(c.Counters.Rates)})
	}
	return rows
}

// Text prints it as a table.
func (t Top) Text(s Style) string {
	var b strings.Builder
	if !s.NoHeaders {
		b.WriteString(t.Head.Text(s))
		b.WriteString("now: " + count(t.All.Connections) + " new connections/s, " + Bytes(t.All.BytesIn) + "/s in, " + Bytes(t.All.BytesOut) + "/s out\n\n")
	}
	g := grid{columns: []column{{name: "SERVICE", least: 16}, {name: "PORT", least: 9}, {name: "FRONTEND", breaks: 21}, {name: "NEW/s", right: true}, {name: "ACTIVE", right: true},
		{name: "CONNS", right: true}, {name: "PKT/s", right: true, wide: true}, {name: "IN/s", right: true}, {name: "OUT/s", right: true}, {name: "STATE", wide: true}}}
	for _, r := range t.Rows {
		service := r.Service
		if service == "" {
			service = "-"
		}
		g.add("", service, r.port(), r.Frontend, count(r.Connections), count(r.Active), count(r.Conns), count(r.PacketsIn), Bytes(r.BytesIn), Bytes(r.BytesOut), string(r.State))
	}
	g.write(&b, s)
	if !s.NoHeaders && t.Quiet > 0 {
		b.WriteString("and " + preview.Plural(t.Quiet, "frontend") + " with less\n")
	}
	if !s.NoHeaders && len(t.Last) > 0 {
		b.WriteString("\nlast changes\n" + Log{Changes: t.Last}.Text(s))
	}
	return b.String()
}
