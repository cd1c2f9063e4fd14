// Package desk says who wants what of this node's kernel, and why. It knows no kernel, no clock, no socket and no
// logger: what is wanted follows from the cluster's objects and from the site alone, so a desk can be asked wherever
// these are at hand, without a running agent as well.
package desk

import (
	"iter"
	"maps"
	"net/netip"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Cluster is what the desk reads of the cluster's objects.
type Cluster interface {
	Objects
	Answers
}

// Objects are what Services and slices say, each by its Service.
type Objects interface {
	// Get gives a Service that is ours, with its endpoints; nil: there is none.
	Get(cluster.ID) (*cluster.Service, []cluster.Endpoint)
	// Ports gives the ports of a Service that is ours.
	Ports(cluster.ID) []cluster.Port
	// Endpoints gives the endpoints of a Service, whoever serves it.
	Endpoints(cluster.ID) []cluster.Endpoint
	// Held gives the ClusterIPs of a Service that another proxy serves, sorted, and when that was made.
	Held(cluster.ID) ([]netip.Addr, int64)
	// Services lists those that are ours, sorted.
	Services() []cluster.ID
}

// Answers are what is asked of all of them.
type Answers interface {
	// Named says who has an address as an endpoint.
	Named(netip.Addr) cluster.Named
	// Lists reports whether a slice of a Service names an address, ready or not, with a port of that number.
	Lists(cluster.ID, netip.AddrPort) bool
	// Problems gives what of a Service's objects cannot be used; for the zero ID of the own Node.
	Problems(cluster.ID) []cluster.Problem
}

// Desk keeps what all Services want. It is used by one goroutine at a time.
type Desk struct {
	cluster Cluster
	opt     Options
	site    Site
	ledger  *ledger
	// sensitive are the Services for which it matters which addresses the node has.
	sensitive map[cluster.ID]struct{}
	zonal     map[cluster.ID]struct{} // and those for which it matters in which zone it is
	dns       map[cluster.ID]struct{} // those that are the cluster's DNS by their label
	// scheduled are the Services that need each scheduler which the kernel may lack, and theirs.
	scheduled   map[string]map[cluster.ID]struct{}
	schedulesOf map[cluster.ID][]string
	starts      map[cluster.ID]*starts // of the Services with a slow start
	// refused are the Services with an endpoint that is a virtual IP.
	refused    map[netip.Addr]map[cluster.ID]struct{}
	refusedOf  map[cluster.ID][]netip.Addr // these addresses of a Service
	checkPorts checkPorts
	order      order
	// away are addresses of the node with node ports that are gone, or were a moment ago.
	away map[netip.Addr]absence
}

// New makes a Desk at which nothing was decided yet. Before the first Decide it must know its site, see Move.
func New(c Cluster, opt Options) *Desk {
	if opt.Scheduler == "" {
		opt.Scheduler = fallbackScheduler
	}
	return &Desk{
		cluster: c, opt: opt,
		ledger:    newLedger(),
		sensitive: map[cluster.ID]struct{}{},
		zonal:     map[cluster.ID]struct{}{},
		dns:       map[cluster.ID]struct{}{},
		scheduled: map[string]map[cluster.ID]struct{}{}, schedulesOf: map[cluster.ID][]string{},
		starts:     map[cluster.ID]*starts{},
		refused:    map[netip.Addr]map[cluster.ID]struct{}{},
		refusedOf:  map[cluster.ID][]netip.Addr{},
		checkPorts: newCheckPorts(),
		order:      newOrder(),
		away:       map[netip.Addr]absence{},
	}
}

// Wish is what is wanted of a Key.
type Wish struct {
	// Frontend is nil where nobody wants anything.
	Frontend *ipvs.Frontend
	// Service is whose wish it is. It is zero where there is none.
	Service cluster.ID
	// Urgent: nothing in the cluster works without the Service.
	Urgent bool
	// Spared: what stands at the Key's address is never removed, whoever made it.
	Spared bool
	// Drain is how long its real servers may keep their connections on their way out, where that is not the node's to say.
	Drain cluster.Deadline
	// Until is when the answer ends to hold and the Key has to be asked for again; zero: it holds until a decision says
	// otherwise.
	Until time.Time
	// Grows is when a real server is to have more weight; zero: none is. The Key has to be asked for again then, or a
	// little later where many grow at once.
	Grows time.Time

	needs needs
}

// Needs reports whether a shared fact of the Key's address is needed, by whichever Key.
func (w Wish) Needs(kind ipvs.FactKind) bool { return int(kind) < len(w.needs) && w.needs[kind] > 0 }

// Want says what is wanted of a Key now. It is the only passage from what Services want to what the kernel has.
func (d *Desk) Want(k ipvs.Key, now time.Time) Wish {
	w := Wish{needs: d.ledger.needs[k.Addr], Spared: len(d.opt.Spared) > 0 && k != ipvs.Adopted && inAny(d.opt.Spared, k.Addr)}
	if c := d.ledger.owner(k); c != nil {
		if gap := d.away[k.Addr]; gap.lasts && c.Rank == RankNodePort {
			if !now.Before(gap.until) || d.ledger.isVIP(k.Addr) {
				return w
			}
			w.Until = gap.until
		}
		w.Frontend, w.Service, w.Drain = c.Want, c.Service, c.Drain
		if s := d.starts[c.Service]; s != nil && c.SlowStart > 0 && now.Before(s.until) {
			w.Frontend, w.Grows = s.at(k, c.Want, now)
		}
		w.Urgent = d.Urgent(c.Service)
	}
	return w
}

// Keys gives every Key that is claimed, in no order. Some of them nobody may have.
func (d *Desk) Keys() iter.Seq[ipvs.Key] { return maps.Keys(d.ledger.claims) }

// Sizes counts the claimed Keys by family, IPv4 and IPv6.
func (d *Desk) Sizes() [2]int { return d.ledger.sizes }

// KeysOf are the Keys that a Service claims, in canonical order. They must not be changed.
func (d *Desk) KeysOf(id cluster.ID) []ipvs.Key { return d.ledger.byService[id] }

// KeysAt gives every Key of an address that is claimed, once or more.
func (d *Desk) KeysAt(a netip.Addr) iter.Seq[ipvs.Key] {
	return func(yield func(ipvs.Key) bool) {
		for k := range d.ledger.external[a] {
			if !yield(k) {
				return
			}
		}
		for _, h := range d.ledger.holding[a] {
			for _, k := range d.ledger.byService[h.service] {
				if k.Addr == a && !yield(k) {
					return
				}
			}
		}
	}
}

// Lists reports whether a slice of a Service names an endpoint, ready or not.
func (d *Desk) Lists(id cluster.ID, addr netip.AddrPort) bool {
	return d.cluster.Lists(id, addr)
}

// IsNodePort reports whether a Key on one of the node's own addresses has the port of a node port: the proxy before may
// have served it on more addresses than are configured now.
func (d *Desk) IsNodePort(k ipvs.Key) bool {
	if !d.site.isLocal(k.Addr) {
		return false
	}
	for _, a := range d.site.NodePorts {
		if owner := d.ledger.owner(ipvs.Key{Addr: a, Port: k.Port, Proto: k.Proto}); owner != nil && owner.Rank == RankNodePort {
			return true
		}
	}
	return false
}
