package inspect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// Fleet is what several nodes serve, put together.
type Fleet struct {
	// Nodes are those that said something, sorted; NotInOrder those of them whose agent has work to do or fails.
	Nodes      []string    `json:"nodes"`
	NotInOrder []string    `json:"notInOrder"`
	Rows       []FleetRow  `json:"rows"`
	Busy       []FleetBusy `json:"busy,omitempty"`
}

// FleetRow is a frontend that one or several nodes have.
type FleetRow struct {
	// Row has the sums; its State is the worst that a node says, and its Backends are those of the node with the most.
	Row
	// States are the nodes by what they say of it.
	States map[State][]string `json:"states"`
}

// FleetBusy is a frontend of one node and what goes through it.
type FleetBusy struct {
	Node string `json:"node"`
	Busy
}

// order is from the best state to the worst.
var order = []State{Open, Foreign, NoLocal, NoEndpoints, Taken, Forbidden, Waiting, Failing}

// MergeLists puts the lists of nodes together: a frontend that several have is one row.
func MergeLists(lists map[string]List) Fleet {
	f := Fleet{Nodes: slices.Sorted(maps.Keys(lists)), NotInOrder: []string{}, Rows: []FleetRow{}}
	type key struct{ service, frontend, protocol string }
	at := map[key]int{}
	for _, node := range f.Nodes {
		l := lists[node]
		if l.Head.Version != "" && !l.Head.Programmed {
			f.NotInOrder = append(f.NotInOrder, node)
		}
		for _, r := range l.Rows {
			k := key{r.Service, r.Frontend, r.Protocol}
			i, known := at[k]
			if !known {
				i = len(f.Rows)
				at[k] = i
				first := r
				first.Load = Load{}
				f.Rows = append(f.Rows, FleetRow{Row: first, States: map[State][]string{}})
			}
			f.Rows[i].add(node, r)
		}
	}
	slices.SortStableFunc(f.Rows, func(a, b FleetRow) int {
		// As on a node: by Service, and what nobody knows last.
		return cmp.Or(cmp.Compare(unnamed(a), unnamed(b)), strings.Compare(a.Service, b.Service))
	})
	return f
}

func unnamed(r FleetRow) int {
	if r.Service == "" {
		return 1
	}
	return 0
}

func (f *FleetRow) add(node string, r Row) {
	f.States[r.State] = append(f.States[r.State], node)
	f.Active += r.Active
	f.Inactive += r.Inactive
	f.Conns += r.Conns
	f.In += r.In
	f.Out += r.Out
	f.Rate += r.Rate
	f.Backends = max(f.Backends, r.Backends)
	f.Here += r.Here
	if slices.Index(order, r.State) > slices.Index(order, f.State) {
		f.State, f.Reason = r.State, r.Reason
	}
}

// says are the states, the worst first, each with its node or how many say so.
func (f *FleetRow) says(of int) string {
	var parts []string
	for _, s := range slices.Backward(order) {
		switch nodes := f.States[s]; {
		case len(nodes) == 0:
		case len(nodes) == of:
			parts = append(parts, string(s))
		case len(nodes) == 1:
			parts = append(parts, string(s)+" on "+nodes[0])
		default:
			parts = append(parts, fmt.Sprintf("%s on %d", s, len(nodes)))
		}
	}
	return strings.Join(parts, "; ")
}

// MergeTops puts the busiest frontends of nodes together, so many.
func MergeTops(tops map[string]Top, most int) Fleet {
	f := Fleet{Nodes: slices.Sorted(maps.Keys(tops)), NotInOrder: []string{}, Rows: []FleetRow{}, Busy: []FleetBusy{}}
	for _, node := range f.Nodes {
		for _, r := range tops[node].Rows {
			f.Busy = append(f.Busy, FleetBusy{node, r})
		}
	}
	slices.SortStableFunc(f.Busy, func(a, b FleetBusy) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), cmp.Compare(b.BytesIn+b.BytesOut, a.BytesIn+a.BytesOut))
	})
	f.Busy = f.Busy[:min(most, len(f.Busy))]
	return f
}

// Text prints it as a table.
func (f Fleet) Text(s Style) string {
	var b strings.Builder
	if !s.NoHeaders {
		line := preview.Plural(len(f.Nodes), "node")
		if len(f.NotInOrder) > 0 {
			line += "; not all programmed: " + strings.Join(f.NotInOrder, ", ")
		}
		b.WriteString(wrap("", "  ", line, " ") + "\n")
	}
	if f.Busy != nil {
		f.busy(&b, s)
		return b.String()
	}
	g := grid{columns: []column{{name: "SERVICE", least: 16}, {name: "PORT", least: 9}, {name: "FRONTEND", breaks: 21}, {name: "BACKENDS", right: true, drop: 1},
		{name: "ACTIVE", right: true}, {name: "CONNS", right: true}, {name: "STATE", least: 20}}}
	for i := range f.Rows {
		r := &f.Rows[i]
		service := r.Service
		if service == "" {
			service = "-"
		}
		cells := r.numbers()
		g.add(colourOf(r.State), service, r.port(), r.Frontend, fmt.Sprint(r.Backends), cells[0], cells[2], r.says(len(f.Nodes)))
	}
	g.write(&b, s)
	return b.String()
}

func (f Fleet) busy(b *strings.Builder, s Style) {
	g := grid{columns: []column{{name: "NODE", least: 12}, {name: "SERVICE", least: 16}, {name: "PORT", least: 9}, {name: "FRONTEND", breaks: 21}, {name: "NEW/s", right: true},
		{name: "ACTIVE", right: true}, {name: "IN/s", right: true}, {name: "OUT/s", right: true}}}
	for _, r := range f.Busy {
		service := r.Service
		if service == "" {
			service = "-"
		}
		g.add("", r.Node, service, r.port(), r.Frontend, count(r.Connections), count(r.Active), Bytes(r.BytesIn), Bytes(r.BytesOut))
	}
	g.write(b, s)
}
