package desk

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Site is the place for which Services are compiled: this node, and what must be kept safe on it.
type Site struct {
	Node cluster.Node
	// Local are the addresses of the node's interfaces other than ours, and whether it has IPv6.
	Local ipvs.Local
	// NodePorts are the addresses on which node ports are served, sorted.
	NodePorts []netip.Addr
	// Edges are the network and the broadcast addresses of the node's subnets, which no host can have. Sorted.
	Edges []netip.Addr
	// APIServers are the addresses by which the API server is reached, and the endpoints of its Service, sorted.
	APIServers []netip.Addr
	// Lacking are the schedulers that the kernel does not have: rr serves in their place.
	Lacking map[string]bool
}

// kubernetes is the API server's own Service.
var kubernetes = cluster.ID{Namespace: "default", Name: "kubernetes"}

// NewSite puts a Site together.
func NewSite(node cluster.Node, local ipvs.Local, apiServers []netip.Addr, opt Options) Site {
	s := Site{Node: node, Local: local, APIServers: apiServers}
	primaries := node.Addrs
	if len(primaries) == 0 { // the Node object is not known, or gone for a moment
		primaries = local.Sources
	}
	s.Edges = edges(local.Subnets)
	for _, a := range local.Addrs {
		if opt.NodePorts.selects(a, primaries) {
			s.NodePorts = append(s.NodePorts, a)
		}
	}
	return s
}

// classE is what no host has, unless somebody made it his own: clusters ran out of private addresses and took it for pods.
var classE = netip.MustParsePrefix("240.0.0.0/4")

// edges are the network and broadcast addresses of some subnets; of IPv6, which has no broadcast, the address of whatever
// router there is.
func edges(subnets []netip.Prefix) (list []netip.Addr) {
	for _, p := range subnets {
		if p.Addr().BitLen()-p.Bits() < 2 {
			continue // two hosts, or one
		}
		list = append(list, p.Masked().Addr())
		if p.Addr().Is4() {
			list = append(list, ipvs.RangeOf(p).Last)
		}
	}
	return ipvs.SortAddrs(list)
}

func (s Site) isEdge(a netip.Addr) bool {
	_, is := slices.BinarySearchFunc(s.Edges, a, netip.Addr.Compare)
	return is
}

// hostless: no host can have an address, as far as this node knows.
func (s Site) hostless(a netip.Addr, opt Options) bool {
	return s.isEdge(a) || classE.Contains(a) && !inAny(s.Local.Subnets, a) && !inAny(s.Node.PodCIDRs, a) && !inAny(opt.Pods, a)
}

// primary is the node's first address of a family; invalid: it has none.
func (s Site) primary(ipv4 bool) netip.Addr {
	for _, list := range [][]netip.Addr{s.Node.Addrs, s.Local.Sources} {
		for _, a := range list {
			if a.Is4() == ipv4 {
				return a
			}
		}
	}
	return netip.Addr{}
}

// equal reports whether two Sites give every Service the same Fragment.
func (s Site) equal(o Site) bool { return s.Node.Zone == o.Node.Zone && s.equalButZone(o) }

func (s Site) equalButZone(o Site) bool {
	return s.Node.Name == o.Node.Name && slices.Equal(s.Node.Addrs, o.Node.Addrs) &&
		slices.Equal(s.Node.PodCIDRs, o.Node.PodCIDRs) && slices.Equal(s.Local.Own, o.Local.Own) && slices.Equal(s.Local.Subnets, o.Local.Subnets) &&
		s.Local.NoIPv6 == o.Local.NoIPv6 && slices.Equal(s.Local.Addrs, o.Local.Addrs) &&
		slices.Equal(s.Local.Sources, o.Local.Sources) && maps.Equal(s.Lacking, o.Lacking) && slices.Equal(s.NodePorts, o.NodePorts) && slices.Equal(s.APIServers, o.APIServers)
}

// isLocal reports whether an address stands on another interface of the node.
func (s Site) isLocal(a netip.Addr) bool {
	_, found := slices.BinarySearchFunc(s.Local.Addrs, a, netip.Addr.Compare)
	return found
}

// Site is the place for which the Desk decides. Its lists must not be changed.
func (d *Desk) Site() Site { return d.site }

// CheckAddresses are those on which healthCheckNodePorts are served.
func (d *Desk) CheckAddresses() []netip.Addr { return d.opt.NodePorts.checkAddresses(d.site) }

// awayTime is how long node ports are held on an address that the node does not have any more: netplan, a DHCP client and
// keepalived take addresses away and put them back, and a virtual server that is deleted takes its connections with it
// (B84).
const awayTime = 10 * time.Second

// absence is that of an address with node ports from the node.
type absence struct {
	lasts bool // false: it is back, and its Keys have to be asked for again
	until time.Time
}

// leave notes which addresses with node ports the node does not have any more, and has again.
func (d *Desk) leave(local ipvs.Local, now time.Time) {
	next := Site{Local: local}
	maps.DeleteFunc(d.away, func(_ netip.Addr, gap absence) bool { return !now.Before(gap.until) })
	for _, a := range d.site.NodePorts {
		switch gap, noted := d.away[a]; {
		case a.Is6() && local.NoIPv6: // that is no gap: IPv6 was switched off
			delete(d.away, a)
		case d.site.isLocal(a) && !next.isLocal(a):
			d.away[a] = absence{true, now.Add(awayTime)}
		case noted && gap.lasts && next.isLocal(a), !noted && !d.site.isLocal(a) && next.isLocal(a): // the latter after its time
			d.away[a] = absence{false, now.Add(awayTime)}
		}
	}
}

// AwayEnds is when the first of the times ends for which node ports are held on addresses; zero: none are. The site is
// another one then.
func (d *Desk) AwayEnds() (at time.Time) {
	for _, gap := range d.away {
		if at.IsZero() || gap.until.Before(at) {
			at = gap.until
		}
	}
	return at
}

// isLate: a node port is new on an address that is away. Only what was there is held.
func (d *Desk) isLate(id cluster.ID, c KeyClaim) bool {
	if !d.away[c.Key.Addr].lasts || c.Claim.Rank != RankNodePort {
		return false
	}
	_, there := slices.BinarySearchFunc(d.ledger.byService[id], c.Key, ipvs.Key.Compare)
	return !there
}

// withHeld adds those of some Keys whose address is away, or was: until when their wish holds has to be asked.
func (d *Desk) withHeld(touched []ipvs.Key, keys iter.Seq[ipvs.Key]) []ipvs.Key {
	if len(d.away) == 0 {
		return touched
	}
	for k := range keys {
		if _, away := d.away[k.Addr]; away {
			touched = append(touched, k)
		}
	}
	slices.SortFunc(touched, ipvs.Key.Compare)
	return slices.Compact(touched)
}

// Move takes what this node is by now, and by which addresses the API server is reached. It returns the Services that
// have to be decided anew for it.
func (d *Desk) Move(node cluster.Node, local ipvs.Local, reached []netip.Addr, now time.Time) (again []cluster.ID) {
	old := d.site
	d.leave(local, now)
	site := NewSite(node, local, d.apiServers(reached), d.opt)
	for a, gap := range d.away {
		if gap.lasts {
			site.NodePorts = append(site.NodePorts, a)
		}
	}
	site.NodePorts = ipvs.SortAddrs(site.NodePorts)
	site.Lacking = old.Lacking
	if d.site = site; site.equal(old) {
		return nil
	}
	if old.Local.NoIPv6 != local.NoIPv6 || old.Node.Name != site.Node.Name {
		return d.cluster.Services()
	}
	var affected []cluster.ID
	if old.Node.Zone != site.Node.Zone {
		affected = slices.Collect(maps.Keys(d.zonal))
	}
	if !site.equalButZone(old) {
		affected = slices.AppendSeq(affected, maps.Keys(d.sensitive))
	}
	for _, addrs := range [][]netip.Addr{old.Local.Addrs, site.Local.Addrs, old.Node.Addrs, site.Node.Addrs} {
		for _, a := range addrs { // whose ClusterIP is or was the node's own
			affected = append(affected, d.ledger.holders(a)...)
		}
	}
	for _, a := range site.Edges { // whose endpoint can be no host's any more; those who left it out have a Problem
		affected = append(affected, d.ledger.users[a].ids()...)
	}
	slices.SortFunc(affected, cluster.ID.Compare)
	return slices.Compact(affected)
}

// apiServers are the API server's addresses: those by which it is reached, for as long as this process lives, and the
// endpoints of its Service, whoever serves that, for as long as they are. What a slice says is no more lasting than the
// slice: it may have named another Service's address.
func (d *Desk) apiServers(reached []netip.Addr) []netip.Addr {
	addrs := slices.Clone(reached)
	for _, ep := range d.cluster.Endpoints(kubernetes) {
		addrs = append(addrs, ep.Addr)
	}
	return ipvs.SortAddrs(addrs)
}
