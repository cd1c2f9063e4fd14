package preview

import (
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// Ground is what packets are asked of where a start was gone through.
func (in Input) Ground() Ground {
	return Ground{Node: in.Node, Clients: in.Clients, View: rehearsed{in.Start, in.Asking}, Kernel: found{in.Start},
		SetUp: in.Start.Base.Wrote, Pending: in.Start.Steps}
}

// rehearsed is the View of a start that was gone through.
type rehearsed struct {
	*sync.Rehearsal
	asking func(netip.Addr) []cluster.ID
}

// Asking are the Services that ask for an address.
func (r rehearsed) Asking(a netip.Addr) []cluster.ID {
	if r.asking == nil {
		return nil
	}
	return r.asking(a)
}

// found are the Facts of the kernel as it was found.
type found struct{ start *sync.Rehearsal }

// Frontend gives what the kernel holds of a Key.
func (f found) Frontend(k ipvs.Key) *ipvs.Frontend { return f.start.Found[k].Have }

// Has reports a fact that the kernel holds.
func (f found) Has(fact ipvs.Fact) (has bool) {
	ipvs.FactsOf(ipvs.AddrKey(fact.Addr), f.Frontend(ipvs.AddrKey(fact.Addr)), func(is ipvs.Fact) {
		has = has || is == fact || fact.Kind == ipvs.FactBind && is == ipvs.Fact{Kind: ipvs.FactMisbound, Addr: fact.Addr}
	})
	return has
}
