package preview

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// View is where what is wanted of this node is read: a desk, or a copy of what it says.
type View interface {
	// Passage takes what is wanted for packets to a Key.
	Passage(ipvs.Key) desk.Passage
	// Snapshot takes what decides what a Service becomes.
	Snapshot(cluster.ID) desk.Snapshot
	// Asking are the Services that ask for an address from outside, whether they may have it or not.
	Asking(netip.Addr) []cluster.ID
}

// Ground is what a Question is answered from.
type Ground struct {
	Node    string
	Clients Clients
	View    View
	// Kernel is what the kernel holds now; nil: nobody has looked.
	Kernel Facts
	// SetUp are the writes to what all stands on that the kernel still lacks, and Pending those for Keys.
	SetUp   []string
	Pending ipvs.Plan
}

// Answer is what becomes of a packet on this node, and why. Its fields are what -o json gives.
type Answer struct {
	Node    string     `json:"node"`
	Client  string     `json:"client"`
	Address string     `json:"address"`
	Kind    ClientKind `json:"clientIs"`
	// Service is the one that the packet is for; "": none.
	Service string `json:"service,omitempty"`
	// Steps are what decides it, in the order in which the kernel does.
	Steps   []Stage `json:"steps"`
	Verdict Verdict `json:"verdict"`
	// How it is refused or dropped, in words.
	How string `json:"how,omitempty"`
	// Redirected is the ClusterIP and port to which the client is sent in place of the address; "": it is not.
	Redirected string `json:"redirected,omitempty"`
	// Scheduler is IPVS's, AffinitySeconds for how long a client comes back to its endpoint; 0: for no longer than by chance.
	Scheduler       string    `json:"scheduler,omitempty"`
	AffinitySeconds uint32    `json:"affinitySeconds,omitempty"`
	Backends        []Backend `json:"backends"`
	// LeftOut are the endpoints that it does not go to.
	LeftOut []Endpoint `json:"leftOut"`
	// Reason is why it is not served.
	Reason
	Kernel *KernelSays `json:"kernel,omitempty"`
}

// Stage is one step of a packet's way.
type Stage struct {
	// At is where on the way: client, address, port, redirect, ranges, policy, guard, backends, source.
	At   string `json:"at"`
	Says string `json:"says"`
}

// Backend is a real server to which the packet may go.
type Backend struct {
	Addr string `json:"address"`
	Node string `json:"node,omitempty"`
	// Chance is from 0 to 1; 0 where it depends on the connections or the client's address.
	Chance float64 `json:"chance,omitempty"`
	// Masqueraded: it sees an address of this node in place of the client's.
	Masqueraded bool `json:"masqueraded"`
	// Sees is the client's address that it sees; "": one of this node's, by the way that leads there.
	Sees string `json:"sees,omitempty"`
	// Reason is why it is used though it is about to end.
	Reason
	why string
}

// KernelSays is what becomes of the packet by what the kernel holds now.
type KernelSays struct {
	// Agrees: nothing is to be written that bears on the packet, and its way is the same.
	Agrees   bool     `json:"agrees"`
	Verdict  Verdict  `json:"verdict"`
	Backends []string `json:"backends"`
	// Writes are what the kernel lacks, or has too much.
	Writes []string `json:"writes"`
}

// InOrder reports whether the packet is served, or is for somebody else, and the kernel agrees as far as it was looked at.
func (a *Answer) InOrder() bool {
	return (a.Kernel == nil || a.Kernel.Agrees) && (a.Verdict == Served || a.Verdict == Passes && !(a.Code >= "IPX0200" && a.Code < "IPX0300"))
}

// AnswerPacket says what becomes of a packet. It reads nothing but what the Ground gives.
func AnswerPacket(g Ground, q Question) *Answer {
	to := g.View.Passage(q.To)
	w := wanted{to}
	from := g.Clients.clientOf(q, to.Site)
	if a := from.addr; from.kind != ClientNode && g.View.Passage(ipvs.AddrKey(a)).Bound {
		from.kind, from.why = ClientNode, fmt.Sprintf("%s itself: %s is a virtual IP, which nobody else has as a source", to.Site.Node.Name, a)
	}
	t := &teller{Answer: &Answer{Node: g.Node, Client: q.client(), Address: q.To.String(), Kind: from.kind,
		Steps: []Stage{}, Backends: []Backend{}, LeftOut: []Endpoint{}},
		packet: packet{q.To, from, to.Site, w}, ground: g, to: to}
	t.fate = t.way()
	t.tell()
	if g.Kernel != nil {
		t.askKernel()
	}
	return t.Answer
}

// wanted are the Facts of a Passage.
type wanted struct{ desk.Passage }

// at is the part of it that is about an address.
func (w wanted) at(a netip.Addr) *desk.Passage {
	switch {
	case a == w.Key.Addr:
		return &w.Passage
	case w.Inside != nil && a == w.Inside.Key.Addr:
		return w.Inside
	}
	return nil
}

// Frontend gives what is wanted of a Key.
func (w wanted) Frontend(k ipvs.Key) *ipvs.Frontend {
	switch {
	case k == w.Key:
		return w.Passage.Frontend
	case w.Inside != nil && k == w.Inside.Key:
		return w.Inside.Frontend
	}
	return nil
}

// Has reports a fact that is wanted.
func (w wanted) Has(f ipvs.Fact) bool {
	if f.Kind == ipvs.FactHairpin {
		_, is := slices.BinarySearchFunc(w.Hairpin, f.Addr, netip.Addr.Compare)
		return is
	}
	at := w.at(f.Addr)
	return at != nil && (f.Kind == ipvs.FactVIP && at.VIP || f.Kind == ipvs.FactBind && at.Bound)
}

// askKernel follows the same packet through what the kernel holds.
func (t *teller) askKernel() {
	p := t.packet
	p.facts = t.ground.Kernel
	f := p.way()
	says := &KernelSays{Verdict: f.verdict, Backends: addresses(f.reals), Writes: append([]string{}, t.ground.SetUp...)}
	for _, step := range t.ground.Pending {
		if t.concerns(step) {
			says.Writes = append(says.Writes, step.Op.String())
		}
	}
	says.Agrees = len(says.Writes) == 0 && f.verdict == t.fate.verdict && slices.Equal(says.Backends, addresses(t.fate.reals))
	if f.verdict == Served && t.Verdict == Passes {
		t.Reason = Coded(desk.OthersServer)
	}
	t.Kernel = says
}

// concerns reports whether a write bears on the packet.
func (t *teller) concerns(step ipvs.Step) bool {
	at := func(a netip.Addr) bool { return a == t.packet.to.Addr || a == t.fate.hit.Addr }
	if f := step.Op.Effect().Fact; f.Addr.IsValid() {
		return at(f.Addr) || f.Kind == ipvs.FactHairpin && slices.ContainsFunc(t.fate.reals, func(r ipvs.Real) bool { return r.Addr.Addr() == f.Addr })
	}
	return step.Key == t.packet.to || step.Key == t.fate.hit
}

func addresses(reals []ipvs.Real) []string {
	list := []string{}
	for _, r := range reals {
		list = append(list, r.Addr.String())
	}
	return list
}
