package desk

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// order keeps the Services that are ours in their order, so that a page of them costs the page and not a sort of all.
type order struct {
	sorted []cluster.ID
	// news are those that came since, and false for those that went: each put into its place at once would cost the
	// square of a start.
	news map[cluster.ID]bool
	// bare are those that claim nothing: all others are in the ledger.
	bare map[cluster.ID]struct{}
}

func newOrder() order {
	return order{news: map[cluster.ID]bool{}, bare: map[cluster.ID]struct{}{}}
}

// newsMost is how many changes may wait: putting them into place costs some 0.1 ms at 10,000 Services.
const newsMost = 512

// enlist notes whether there is a Service that claims so much. Before, it claimed something or not. It costs the same
// however many there are.
func (o *order) enlist(id cluster.ID, claimed, is bool, claims int) {
	_, bare := o.bare[id]
	mark(o.bare, id, is && claims == 0)
	if was := claimed || bare; was == is {
		return
	}
	if _, back := o.news[id]; back { // it is again what it was
		delete(o.news, id)
		return
	}
	if o.news[id] = is; len(o.news) >= newsMost {
		o.fold()
	}
}

// fold puts what came and went into place.
func (o *order) fold() {
	if len(o.news) == 0 {
		return
	}
	came := slices.SortedFunc(maps.Keys(o.news), cluster.ID.Compare)
	merged := make([]cluster.ID, 0, len(o.sorted)+len(came))
	for _, id := range o.sorted {
		for len(came) > 0 && came[0].Less(id) {
			if o.news[came[0]] {
				merged = append(merged, came[0])
			}
			came = came[1:]
		}
		if len(came) > 0 && came[0] == id { // it went: one that stays is no news
			came = came[1:]
			continue
		}
		merged = append(merged, id)
	}
	for _, id := range came {
		if o.news[id] {
			merged = append(merged, id)
		}
	}
	o.sorted = merged
	clear(o.news)
}

// page gives up to most Services behind one, in a list of its own, and whether there are more.
func (o *order) page(after cluster.ID, most int) (ids []cluster.ID, more bool) {
	o.fold()
	at, there := slices.BinarySearchFunc(o.sorted, after, cluster.ID.Compare)
	if there {
		at++
	}
	rest := o.sorted[at:]
	return slices.Clone(rest[:min(most, len(rest))]), len(rest) > most
}

// len counts them.
func (o *order) len() int {
	o.fold()
	return len(o.sorted)
}

// Page gives up to most of the Services that were decided and are ours, in their order, behind one of them; the zero ID:
// from the first. It says whether there are more.
func (d *Desk) Page(after cluster.ID, most int) (ids []cluster.ID, more bool) {
	return d.order.page(after, most)
}

// Count counts the Services that were decided and are ours.
func (d *Desk) Count() int { return d.order.len() }

// Held says who has a Key, by what he claims it, and what is wanted of it: the claim of its owner. The wish must not be
// changed. False: nobody.
func (d *Desk) Held(k ipvs.Key) (c Claim, is bool) {
	if c := d.ledger.owner(k); c != nil {
		return *c, true
	}
	return c, false
}

// OwnersAt gives the Services that have a Key of an address, sorted, so many at most.
func (d *Desk) OwnersAt(a netip.Addr, most int) (ids []cluster.ID) {
	found := map[cluster.ID]bool{}
	for k := range d.KeysAt(a) {
		if c := d.ledger.owner(k); c != nil {
			found[c.Service] = true
		}
		if len(found) == most {
			break
		}
	}
	return slices.SortedFunc(maps.Keys(found), cluster.ID.Compare)
}

// PortName is the name of the Service's port that a claim of a Key is for; "": it has none.
func (d *Desk) PortName(k ipvs.Key, c Claim) string {
	return PortOf(d.cluster.Ports(c.Service), k, c.Rank).Name
}

// PortOf is the port of a Service by which it claims a Key; the zero Port: none of these.
func PortOf(ports []cluster.Port, k ipvs.Key, rank Rank) (port cluster.Port) {
	for _, p := range ports {
		number := p.Port
		if rank == RankNodePort {
			number = p.NodePort
		}
		if number == k.Port && ipvs.Proto(p.Protocol) == k.Proto {
			return p
		}
	}
	return port
}
