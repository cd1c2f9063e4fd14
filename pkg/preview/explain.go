package preview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Explained is what becomes of one Service on a node, and why. Its fields are what -o json gives.
type Explained struct {
	Node    string `json:"node"`
	Service string `json:"service"`
	// Type and the policies are the Service's.
	Type           string `json:"type"`
	InternalPolicy string `json:"internalTrafficPolicy"`
	// ExternalPolicy is "" where it cannot be reached from outside.
	ExternalPolicy string     `json:"externalTrafficPolicy,omitempty"`
	Frontends      []Frontend `json:"frontends"`
	// Refused is what it may not have.
	Refused []Finding `json:"refused"`
	// Writes are what the kernel lacks of it, or has too much; none: they agree.
	Writes []Write `json:"writes"`
}

// Frontend is one address, port and protocol of a Service.
type Frontend struct {
	Key string `json:"frontend"`
	// By says what the address is: ClusterIP, load balancer, node port, external IP.
	By string `json:"by"`
	// Inside is where clients inside the cluster are sent in its place; "": nowhere.
	Inside string `json:"redirectsInside,omitempty"`
	Scheduling
	Endpoints []Endpoint `json:"endpoints"`
	// Reason is why it does not serve, or not everybody.
	Reason
}

// Endpoint is one of a frontend, or one that is left out.
type Endpoint struct {
	Addr string `json:"address"`
	Node string `json:"node,omitempty"`
	Used bool   `json:"used"`
	// Weight is the one that it is to have now, where the Service asks for weights, Full what it has in the end, and Grows when
	// it has that; 0 and nil: it has it.
	Weight *uint16    `json:"weight,omitempty"`
	Full   uint16     `json:"fullWeight,omitempty"`
	Grows  *time.Time `json:"growsUntil,omitempty"`
	// Reason is why it is left out, or used all the same.
	Reason
}

// UnknownServiceError: there is no such Service, or it is not for this proxy.
type UnknownServiceError struct {
	Service cluster.ID
	Near    []cluster.ID // that may have been meant
}

func (e *UnknownServiceError) Error() string {
	text := fmt.Sprintf("no Service %s that this proxy serves", e.Service)
	if len(e.Near) == 0 {
		return text
	}
	var names []string
	for _, id := range e.Near {
		names = append(names, id.String())
	}
	return text + "; there is " + strings.Join(names, ", ")
}

// Explain says what becomes of a Service. The error is an UnknownServiceError.
func Explain(in Input, id cluster.ID) (*Explained, error) {
	s := in.Start.Snapshot(id)
	if s.Service == nil {
		return nil, UnknownService(id, in.Services)
	}
	b := newBecause(in.Start, []cluster.ID{id})
	x := explained(in.Node, id, s, b.explained[id], in.Start.Growing)
	for _, step := range in.Start.Steps {
		if w := b.write(step); w.Service == id.String() {
			x.Writes = append(x.Writes, w)
		}
	}
	return x, nil
}

// ExplainSnapshot says the same of a Service by what an agent at work knows of it. Pending is what it has still to write
// for it, and growing which endpoints are on the way to their weight.
func ExplainSnapshot(node string, id cluster.ID, s desk.Snapshot, pending ipvs.Plan, growing func(ipvs.Key) []desk.Growing) *Explained {
	x := explained(node, id, s, s.Explain(), growing)
	for _, step := range pending {
		is := step.Op.Effect()
		x.Writes = append(x.Writes, Write{Verb: verbOf(is), Kind: kindOf(is), Set: string(is.Set), Line: step.Op.String(), Service: id.String()})
	}
	return x
}

// explained is what becomes of a Service, whatever the kernel has of it.
func explained(node string, id cluster.ID, s desk.Snapshot, e desk.Explanation, growing func(ipvs.Key) []desk.Growing) *Explained {
	x := &Explained{Node: node, Service: id.String(), Type: s.Service.Type.String(), InternalPolicy: s.Service.InternalPolicy(), ExternalPolicy: s.Service.ExternalPolicy(),
		Frontends: []Frontend{}, Refused: []Finding{}, Writes: []Write{}}
	for _, f := range e.Frontends {
		x.Frontends = append(x.Frontends, frontendOf(f, growing(f.Key)))
	}
	for _, r := range e.Refused {
		x.Refused = append(x.Refused, Finding{r.What(), Coded(r.Why)})
	}
	return x
}

func frontendOf(f desk.Explained, growing []desk.Growing) Frontend {
	is := Frontend{Key: f.Key.String(), By: f.Rank.String(), Scheduling: SchedulingOf(f.Shares), Endpoints: []Endpoint{}, Reason: Coded(f.Why)}
	grows := desk.GrowingByAddr(growing)
	if f.Owner != (cluster.ID{}) {
		is.Why = "It is " + f.Owner.String() + "'s. " + is.Why
	}
	if f.Redirect.IsValid() {
		is.Inside = f.Redirect.String()
	}
	for _, ep := range f.Endpoints {
		e := Endpoint{Addr: ep.Addr.String(), Node: ep.Node, Used: ep.Used(), Reason: Coded(ep.Why)}
		if w, weighs := f.Shares.Weights[ep.Addr]; weighs && e.Used {
			e.Weight = &w
			if g, is := grows[ep.Addr]; is {
				e.Weight, e.Full, e.Grows = &g.Weight, g.Of, &g.Until
			}
		}
		is.Endpoints = append(is.Endpoints, e)
	}
	return is
}

// InOrder reports whether all of it serves, and the kernel agrees.
func (x *Explained) InOrder() bool {
	return len(x.Writes)+len(x.Refused) == 0 && !slices.ContainsFunc(x.Frontends, func(f Frontend) bool { return f.Reason != Reason{} })
}

// nearest is how many Services an UnknownServiceError names.
const nearest = 3

// near are the Services that may have been meant: of the name in other namespaces, and those spelt alike.
func near(id cluster.ID, all []cluster.ID) (list []cluster.ID) {
	type candidate struct {
		id   cluster.ID
		away int
	}
	var found []candidate
	for _, o := range all {
		away := distance(id.String(), o.String())
		if o.Name == id.Name {
			away = 0
		}
		if away <= 3 {
			found = append(found, candidate{o, away})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return cmp.Compare(a.away, b.away) })
	for _, c := range found[:min(len(found), nearest)] {
		list = append(list, c.id)
	}
	return list
}

// distance counts the letters to change, add or drop that make a text another one; of very different lengths, their
// difference.
func distance(a, b string) int {
	if d := len(a) - len(b); max(d, -d) > 3 {
		return max(d, -d)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Text prints it for a person.
func (x *Explained) Text() string {
	t := &table{}
	head := fmt.Sprintf("%s  %s on %s, internal policy %s", x.Service, x.Type, x.Node, x.InternalPolicy)
	if x.ExternalPolicy != "" {
		head += ", external policy " + x.ExternalPolicy
	}
	t.line("%s", head)
	for _, f := range x.Frontends {
		t.frontend(f)
	}
	for _, r := range x.Refused {
		t.line("\nrefused: %s", r.What)
		t.reason("    ", r.Reason)
	}
	t.line("")
	if len(x.Writes) == 0 {
		t.line("kernel: agrees")
		return t.b.String()
	}
	t.line("kernel: differs")
	for _, w := range x.Writes {
		t.command("  "+marks[w.Verb]+" ", w.Line)
	}
	return t.b.String()
}

func (t *table) frontend(f Frontend) {
	t.line("\n%s  %s", f.Key, f.By)
	t.reason("    ", f.Reason)
	if shares := f.Scheduling.Text(); shares != "" {
		t.wrap("  scheduler ", "    ", shares)
	}
	if f.Inside != "" {
		t.line("  clients inside the cluster are sent to %s", f.Inside)
	}
	for _, used := range []bool{true, false} {
		for _, ep := range f.Endpoints {
			if ep.Used != used {
				continue
			}
			to := "  -> "
			if !used {
				to = "  x  "
			}
			where := ep.Addr
			if ep.Node != "" {
				where += "  " + ep.Node
			}
			if ep.Grows != nil {
				where += "  " + GrowingText(*ep.Weight, ep.Full, *ep.Grows)
			} else if ep.Weight != nil {
				where += fmt.Sprintf("  weight %d", *ep.Weight)
			}
			t.line("%s%s", to, where)
			t.reason("       ", ep.Reason)
		}
	}
}
