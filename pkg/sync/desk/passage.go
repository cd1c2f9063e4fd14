package desk

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Passage is all that is wanted of this node for packets to one Key: a value that can be asked elsewhere and later, while
// the desk goes on. It costs the size of the frontend, and of what else is served at its address.
type Passage struct {
	Key  ipvs.Key
	Site Site
	// Frontend is what is wanted of the Key; nil: nobody wants anything.
	Frontend *ipvs.Frontend
	// Service has the Key; where nobody has, it has the address, or other ports of it. Zero: the address is nobody's.
	Service cluster.ID
	// Rank says by what it has the Key; nothing where Frontend is nil.
	Rank Rank
	// VIP: what is not open at the address is refused. Bound: the address stands on our interface.
	VIP, Bound bool
	// Ports are the Keys that somebody has at a virtual IP, in canonical order, passagePorts of them at most, and More how
	// many others there are.
	Ports []ipvs.Key
	More  int
	// Hairpin are those of the real servers, here and of Inside, that are this node's pods. Sorted.
	Hairpin []netip.Addr
	// Named says whose endpoint an address is that no Service has.
	Named cluster.Named
	// Inside is the same of the Key to which clients inside the cluster are redirected; nil: they are not.
	Inside *Passage
}

// passagePorts is how many ports a Passage lists: enough for whoever asked for a wrong one.
const passagePorts = 8

// Passage takes what is wanted for packets to a Key now.
func (d *Desk) Passage(k ipvs.Key, now time.Time) Passage {
	p := d.passage(k, now)
	if p.Frontend != nil && p.Frontend.Guard.Redirect.IsValid() {
		to := p.Frontend.Guard.Redirect
		inside := d.passage(ipvs.Key{Addr: to.Addr(), Port: to.Port(), Proto: k.Proto}, now)
		p.Inside = &inside
		p.Hairpin = ipvs.SortAddrs(slices.Concat(p.Hairpin, inside.Hairpin))
	}
	return p
}

// passage is a Passage without what it leads on to.
func (d *Desk) passage(k ipvs.Key, now time.Time) Passage {
	w := d.Want(k, now)
	p := Passage{Key: k, Site: d.site, Frontend: w.Frontend, Service: w.Service,
		VIP: w.Needs(ipvs.FactVIP), Bound: w.Needs(ipvs.FactBind)}
	if k.HasServer() && w.Frontend == nil && !p.VIP { // else nobody asks; thousands may name one address
		p.Named = d.cluster.Named(k.Addr)
	}
	if c := d.ledger.owner(k); c != nil {
		p.Rank = c.Rank
	} else {
		p.Service, _ = d.Closed(k)
	}
	if p.VIP {
		for other := range d.KeysAt(k.Addr) {
			if d.ledger.owner(other) != nil {
				p.Ports = append(p.Ports, other)
			}
		}
		slices.SortFunc(p.Ports, ipvs.Key.Compare)
		p.Ports = slices.Compact(p.Ports)
		p.More = max(len(p.Ports)-passagePorts, 0)
		p.Ports = slices.Clip(p.Ports[:len(p.Ports)-p.More])
	}
	if p.Frontend != nil {
		for _, r := range p.Frontend.Server.Reals {
			if d.ledger.needs[r.Addr.Addr()][ipvs.FactHairpin] > 0 {
				p.Hairpin = append(p.Hairpin, r.Addr.Addr())
			}
		}
		p.Hairpin = ipvs.SortAddrs(p.Hairpin)
	}
	return p
}

// IsLocal reports whether an address stands on an interface of the node other than ours.
func (s Site) IsLocal(a netip.Addr) bool { return s.isLocal(a) }
