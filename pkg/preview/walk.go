package preview

import (
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Verdict is what becomes of a packet.
type Verdict string

// The verdicts.
const (
	Served  Verdict = "served"
	Refused Verdict = "refused"
	Dropped Verdict = "dropped"
	Passes  Verdict = "passes" // it is not ours
)

// Facts are what a kernel holds, or is to hold, as far as packets meet it.
type Facts interface {
	// Frontend gives what there is for a Key; nil: nothing.
	Frontend(ipvs.Key) *ipvs.Frontend
	// Has reports a fact that the Keys of an address share.
	Has(ipvs.Fact) bool
}

// fate is what becomes of a packet by some Facts.
type fate struct {
	verdict Verdict
	why     desk.Code
	// hit is the Key that decides: that of the question, or the one to which the client is redirected.
	hit   ipvs.Key
	reals []ipvs.Real // to which IPVS leads
}

// packet is a new connection's first one on its way, in the order of the kernel's hooks: destination NAT, the guard before
// IPVS, IPVS. See docs/architecture.md, "What is in the kernel".
type packet struct {
	to    ipvs.Key
	from  client
	site  desk.Site
	facts Facts
}

// way follows it.
func (p packet) way() fate {
	asked := p.facts.Frontend(p.to)
	f := fate{hit: p.to}
	if p.redirected(asked) {
		to := asked.Guard.Redirect
		f.hit = ipvs.Key{Addr: to.Addr(), Port: to.Port(), Proto: p.to.Proto}
	}
	hit := p.facts.Frontend(f.hit)
	guarded := f.hit
	if p.from.kind == ClientNode {
		guarded = p.to // its own packets pass the guard before they are redirected
	} else if !p.stands(f.hit.Addr) {
		return f.end(Passes, desk.NobodysIP)
	}
	if v, why := p.guard(asked, guarded); v != "" {
		return f.end(v, why)
	}
	if hit == nil || !hit.Server.Exists() {
		if v, why := p.guard(asked, f.hit); v != "" && p.stands(f.hit.Addr) {
			return f.end(v, why)
		}
		return f.end(Passes, desk.NobodysIP)
	}
	f.reals = slices.DeleteFunc(slices.Clone(hit.Server.Reals), func(r ipvs.Real) bool { return r.Weight == 0 })
	if len(f.reals) == 0 {
		return f.end(Refused, desk.NoEndpoint)
	}
	return f.end(Served, desk.None)
}

// guard is what stands before IPVS; "": it lets the packet through.
func (p packet) guard(asked *ipvs.Frontend, k ipvs.Key) (Verdict, desk.Code) {
	guarded := p.facts.Frontend(k)
	order := []func() (Verdict, desk.Code){
		func() (Verdict, desk.Code) { return p.ranges(asked) },
		func() (Verdict, desk.Code) { return p.policy(guarded) },
		func() (Verdict, desk.Code) { return p.closed(k, guarded) },
	}
	if k.Proto == ipvs.UDP { // whose policies come first: a client that keeps sending is no connection that lives
		order[0], order[1] = order[1], order[0]
	}
	for _, rule := range order {
		if v, why := rule(); v != "" {
			return v, why
		}
	}
	return "", desk.None
}

func (f fate) end(v Verdict, why desk.Code) fate {
	f.verdict, f.why = v, why
	return f
}

// redirected: clients inside the cluster go to the ClusterIP. Where pods are not known, only the node is.
func (p packet) redirected(fe *ipvs.Frontend) bool {
	return fe != nil && fe.Guard.Redirect.IsValid() && p.from.inside()
}

// stands: the address is one of the node's, so that packets are for it.
func (p packet) stands(a netip.Addr) bool {
	return p.site.IsLocal(a) || p.facts.Has(ipvs.Fact{Kind: ipvs.FactBind, Addr: a})
}

// ranges are looked at for the address that was asked, wherever the client was redirected.
func (p packet) ranges(asked *ipvs.Frontend) (Verdict, desk.Code) {
	if asked != nil && asked.Guard.Limited && !slices.ContainsFunc(asked.Guard.Ranges, func(r ipvs.Range) bool { return r.Contains(p.from.addr) }) {
		return Dropped, desk.OutOfRanges
	}
	return "", desk.None
}

func (p packet) policy(hit *ipvs.Frontend) (Verdict, desk.Code) {
	if hit != nil && (hit.Guard.Barred&ipvs.BarredAll != 0 || hit.Guard.Barred&ipvs.BarredOutside != 0 && !p.from.inside()) {
		return Dropped, desk.NoneForSome
	}
	return "", desk.None
}

func (p packet) closed(k ipvs.Key, hit *ipvs.Frontend) (Verdict, desk.Code) {
	owned, open := hit != nil && hit.Guard.Owned, hit != nil && hit.Guard.Open
	switch vip := p.facts.Has(ipvs.Fact{Kind: ipvs.FactVIP, Addr: k.Addr}); {
	case open, !vip && !owned:
		return "", desk.None
	case owned:
		return Refused, desk.NoEndpoint
	}
	return Refused, desk.NoSuchPort
}

// sight says as whom a real server sees the client, and why.
type sight struct {
	masqueraded bool
	why         string
}

// seen says it, by the rules of postrouting in their order. They go by the address that was asked.
func (p packet) seen(real netip.Addr, c Clients) sight {
	asked := p.facts.Frontend(p.to)
	if asked == nil || !asked.Guard.Owned {
		return sight{false, "no Service of this proxy has it"}
	}
	kept := asked.Guard.Sources&ipvs.SourcesKept != 0
	switch {
	case p.from.kind != ClientNode && p.site.IsLocal(real):
		return sight{false, "the endpoint is on the node's own network: the packet does not leave the node"}
	case asked.Guard.Sources&ipvs.SourcesMasqueraded != 0:
		return sight{true, "replies to clients of an external address have to come back through this node"}
	case p.from.kind == ClientNode:
		return sight{true, "none of the node's own connections leaves with a virtual IP as its source"}
	case real == p.from.addr && p.pod(real):
		return sight{true, "a pod that reaches itself (hairpin) would answer itself past the node"}
	case kept && !p.facts.Has(ipvs.Fact{Kind: ipvs.FactVIP, Addr: p.to.Addr}) && !p.pod(real):
		return sight{true, "the endpoint is on another node, and by a node port its replies would not come back through this one"}
	case kept:
		return sight{false, "externalTrafficPolicy Local"}
	case c.MasqueradeAll:
		return sight{true, "masqueradeAll"}
	case !p.from.known:
		return sight{false, "on the way to a ClusterIP nobody is masqueraded where pods cannot be told from others"}
	case p.from.kind == ClientPod:
		return sight{false, "pods keep their address on the way to a ClusterIP"}
	}
	return sight{true, "replies to clients outside the cluster have to come back through this node"}
}

// pod: an address is that of a pod of this node behind a frontend.
func (p packet) pod(a netip.Addr) bool {
	return p.facts.Has(ipvs.Fact{Kind: ipvs.FactHairpin, Addr: a})
}
