// Package preview says what the agent's start would do to a node, and for which Services it makes a difference. It reads
// and writes nothing itself.
package preview

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// Report is what there is to say. Its fields are what -o json gives, whole: only the table is cut.
type Report struct {
	Node string `json:"node"`
	// Kernel says whose state the kernel holds.
	Kernel State `json:"kernel"`
	// Agent: one is at work on this node.
	Agent bool `json:"agentRunning"`
	// Counts are of all that an agent keeps, by kind.
	Counts []Count `json:"counts"`
	// Foreign are other programs' virtual servers: they stay as they are.
	Foreign Servers `json:"foreign"`
	// Leaving counts real servers that take no new connections already and go once theirs have ended.
	Leaving int `json:"leaving"`
	// SetUp are the writes to what all stands on: sysctls, interface, table. They come first.
	SetUp []string `json:"setUp"`
	// Writes are those for Services, in the order in which they would come.
	Writes []Write `json:"writes"`
	// Services are those that behave differently from how kube-proxy's ipvs mode serves them, by namespace and name.
	Services []Different `json:"services"`
	// Of are the Services that were looked at.
	Of int `json:"servicesTotal"`
	// Leftovers are what kube-proxy has, or has left, beside IPVS; nil: nothing.
	Leftovers *Leftovers `json:"leftovers,omitempty"`
	// Warnings say what could not be set up.
	Warnings []string `json:"warnings"`
}

// State says whose a kernel's state is.
type State string

// The states.
const (
	StateAgent     State = "ipvs-proxy"
	StateEmpty     State = "nobody"
	StateKubeProxy State = "kube-proxy"
)

// Servers counts virtual and real servers.
type Servers struct {
	Virtual int `json:"virtualServers"`
	Real    int `json:"realServers"`
}

// Count says what becomes of things of a kind.
type Count struct {
	Kind   string `json:"kind"`
	Stay   int    `json:"stay"`
	Come   int    `json:"come"`
	Change int    `json:"change"`
	Go     int    `json:"go"`
}

// Verb is what becomes of a thing.
type Verb string

// The verbs.
const (
	Come   Verb = "come"
	Change Verb = "change"
	Go     Verb = "go"
)

// Write is one write to the kernel.
type Write struct {
	Verb Verb `json:"verb"`
	// Kind is that of its Count.
	Kind string `json:"kind"`
	// Set is the nftables set that an element is of.
	Set string `json:"set,omitempty"`
	// Service is whose it is; "": no Service's.
	Service string `json:"service,omitempty"`
	// Line is what a person would type.
	Line string `json:"line"`
	Reason
}

// Reason says why, and what to do where that is not wanted. Either may be empty.
type Reason struct {
	// Code is that of docs/reasons.md; "": there is none.
	Code string `json:"code,omitempty"`
	Why  string `json:"why,omitempty"`
	Do   string `json:"do,omitempty"`
}

// Different is a Service that behaves differently.
type Different struct {
	Service string    `json:"service"`
	Points  []Finding `json:"points"`
}

// Finding is one point in which a Service behaves differently.
type Finding struct {
	What string `json:"what"`
	Reason
}

// Leftovers are what kube-proxy has in the kernel beside IPVS.
type Leftovers struct {
	// Mode is kube-proxy's, as far as the names of its chains tell; "": they do not.
	Mode string `json:"mode,omitempty"`
	// Kept: all of it stays, by the configuration.
	Kept bool `json:"kept"`
	// Writes are those that take it out, once all Services are programmed; with Kept, those that are left undone.
	Writes []string `json:"writes"`
	// Stays says what of it stays in any case, and why.
	Stays []string `json:"stays"`
}

// Input is what a Report is made of.
type Input struct {
	Node     string
	Start    *sync.Rehearsal
	Services []cluster.ID
	// Clients says how the node tells clients apart, and Asking which Services ask for an address: for packets.
	Clients  Clients
	Asking   func(netip.Addr) []cluster.ID
	Agent    bool
	Mode     string  // of kube-proxy, by the names of its chains
	Kept     bool    // what it left stays
	Problems []error // with what could not be seen
}

// With adds who else is on the node.
func (in Input) With(agent bool, mode string, problems []error) Input {
	in.Agent, in.Mode, in.Problems = agent, mode, problems
	return in
}

// leftovers are what kube-proxy has beside IPVS.
func (in Input) leftovers() *Leftovers {
	if in.Mode == "" && len(in.Start.Left)+len(in.Start.Stays) == 0 {
		return nil
	}
	return &Leftovers{Mode: in.Mode, Kept: in.Kept, Writes: append([]string{}, in.Start.Left...), Stays: append([]string{}, in.Start.Stays...)}
}

// The kinds that are counted, in their order.
const (
	kindServer  = "virtual servers"
	kindReal    = "real servers"
	kindAddress = "addresses of kube-ipvs0"
	kindElement = "nftables elements"
)

// Make makes a Report.
func Make(in Input) *Report {
	r := &Report{Node: in.Node, Agent: in.Agent, Leftovers: in.leftovers(), Of: len(in.Services),
		SetUp: append([]string{}, in.Start.Base.Wrote...), Writes: []Write{}, Services: []Different{}, Warnings: []string{}}
	for _, w := range slices.Concat(in.Problems, in.Start.Base.Warnings) {
		r.Warnings = append(r.Warnings, w.Error())
	}
	for _, scheduler := range slices.Sorted(maps.Keys(in.Start.Site().Lacking)) {
		r.Warnings = append(r.Warnings, fmt.Sprintf("this kernel has no scheduler %s: rr serves in its place; modprobe ip_vs_%s where it is wanted", scheduler, scheduler))
	}
	b := newBecause(in.Start, in.Services)
	c := newCounter(in.Start)
	for _, step := range in.Start.Steps {
		w := b.write(step)
		c.count(w, step)
		r.Writes = append(r.Writes, w)
	}
	c.report(r)
	r.Kernel = stateOf(in, r.Leftovers, c)
	r.Services = b.differences(in.Services)
	return r
}

// stateOf says whose the kernel's state is.
func stateOf(in Input, left *Leftovers, c *counter) State {
	switch {
	case in.Start.Adopted:
		return StateAgent
	case left != nil || c.bound > 0:
		return StateKubeProxy
	}
	return StateEmpty
}

// Differs reports whether there is anything to write.
func (r *Report) Differs() bool {
	return len(r.SetUp)+len(r.Writes) > 0 || r.Leftovers != nil && !r.Leftovers.Kept && len(r.Leftovers.Writes) > 0
}

// kindOf is the kind of what an operation is about.
func kindOf(is ipvs.Effect) string {
	switch {
	case is.Table == ipvs.TableInterface:
		return kindAddress
	case is.Table == ipvs.TableSets:
		return kindElement
	case is.Real.IsValid():
		return kindReal
	}
	return kindServer
}

// verbOf is what an operation means for what it is about. A real server at weight 0 is on its way out.
func verbOf(is ipvs.Effect) Verb {
	switch {
	case is.Gone, is.Real.IsValid() && is.Removes:
		return Go
	case is.Made:
		return Come
	}
	return Change
}

// counter counts what there is, and what becomes of it.
type counter struct {
	start   *sync.Rehearsal
	kinds   []Count
	bound   int
	foreign Servers
	leaving int
	// came are the things that come: one that goes again was only needed on the way.
	came map[thing]bool
}

// thing is what an operation is about.
type thing struct {
	kind  string
	set   ipvs.Set
	key   ipvs.Key
	real  netip.AddrPort
	addr  netip.Addr
	first netip.Addr // of a range of sources
}

func thingOf(kind string, op ipvs.Op) thing {
	is := op.Effect()
	t := thing{kind: kind, set: is.Set, key: is.Key, real: is.Real, addr: is.Fact.Addr}
	if e, is := op.(ipvs.Element); is {
		t.first = e.From.First
	}
	return t
}

func newCounter(start *sync.Rehearsal) *counter {
	c := &counter{start: start, came: map[thing]bool{}, kinds: []Count{{Kind: kindServer}, {Kind: kindReal}, {Kind: kindAddress}, {Kind: kindElement}}}
	gone := map[ipvs.Key]bool{}
	for _, s := range start.Steps {
		if is := s.Op.Effect(); is.Kind == ipvs.KindDelServer {
			gone[is.Key] = true
		}
	}
	for k, o := range start.Found {
		c.found(k, o.Have, gone[k] || start.Ours(k))
	}
	return c
}

// found counts what the kernel holds of a Key.
func (c *counter) found(k ipvs.Key, have *ipvs.Frontend, ours bool) {
	if have.Server.Exists() && !ours {
		c.foreign.Virtual++
		c.foreign.Real += len(have.Server.Reals)
	} else if have.Server.Exists() {
		c.of(kindServer).Stay++
		c.of(kindReal).Stay += len(have.Server.Reals)
		c.leaving += c.drained(k, have.Server)
	}
	if have.Bind || have.Misbound {
		c.of(kindAddress).Stay++
		c.bound++
	}
	c.of(kindElement).Stay += elements(have.Guard)
}

// drained counts the real servers at weight 0 that nobody wants.
func (c *counter) drained(k ipvs.Key, s ipvs.Server) (n int) {
	want := c.start.Want(k).Frontend
	if want == nil {
		return 0
	}
	for _, r := range s.Reals {
		if r.Weight == 0 && !slices.ContainsFunc(want.Server.Reals, func(w ipvs.Real) bool { return w.Addr == r.Addr }) {
			n++
		}
	}
	return n
}

// elements counts those that a Guard stands for.
func elements(g ipvs.Guard) (n int) {
	for _, s := range ipvs.KeySets {
		if g.Has(s) {
			n++
		}
	}
	if g.VIP {
		n++
	}
	return n + len(g.Hairpin) + len(g.Ranges)
}

func (c *counter) of(kind string) *Count {
	return &c.kinds[slices.IndexFunc(c.kinds, func(x Count) bool { return x.Kind == kind })]
}

// count counts a write.
func (c *counter) count(w Write, s ipvs.Step) {
	n, is, what := c.of(w.Kind), s.Op.Effect(), thingOf(w.Kind, s.Op)
	if w.Verb == Go && c.came[what] {
		n.Come--
		return
	}
	c.came[what] = w.Verb == Come
	switch w.Verb {
	case Come:
		if is.Binds() && c.misbound(is) {
			n.Stay--
			n.Change++
			return
		}
		n.Come++
	case Change:
		n.Stay--
		n.Change++
	case Go:
		n.Stay--
		n.Go++
		if is.Kind == ipvs.KindDelServer { // with its real servers
			reals := c.of(kindReal)
			reals.Stay -= len(c.start.Found[is.Key].Have.Server.Reals)
			reals.Go += len(c.start.Found[is.Key].Have.Server.Reals)
		}
	}
}

// misbound: the address stands on the interface in another form than is configured.
func (c *counter) misbound(is ipvs.Effect) bool {
	have := c.start.Found[ipvs.AddrKey(is.Fact.Addr)].Have
	return have != nil && have.Misbound
}

func (c *counter) report(r *Report) { r.Counts, r.Foreign, r.Leaving = c.kinds, c.foreign, c.leaving }

// byVerb orders writes for a person: what goes comes first, it is what needs a look.
func byVerb(a, b Write) int {
	rank := map[Verb]int{Go: 0, Change: 1, Come: 2}
	return cmp.Or(cmp.Compare(rank[a.Verb], rank[b.Verb]), cmp.Compare(a.Service, b.Service))
}
