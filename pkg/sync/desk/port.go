package desk

import (
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// portCompiler compiles one port. Frontends of one family that are reached in the same way share their real
// servers, which are made when the first one is.
type portCompiler struct {
	*compiler
	port       cluster.Port
	external   bool               // it can be reached from outside the cluster
	clusterIPs []netip.Addr       // those that are served
	eps        []cluster.Endpoint // of the port, both families
	chosen     [2]*scopes         // IPv4, IPv6
	made       [2][2]*backends    // by the way, and IPv4, IPv6
}

// way is how a frontend is reached.
type way int

const (
	internal way = iota // by the ClusterIP
	outward             // by any other address
)

// backends are the real servers of a way, and what the guard holds because of them.
type backends struct {
	reals    []ipvs.Real
	weighted bool // somebody asked for weights
	hairpin  []netip.Addr
	open     bool
	barred   ipvs.Barred
	redirect netip.AddrPort
	by       choice // of the endpoints
}

// claim claims a port of some addresses.
func (c *portCompiler) claim(rank Rank, addrs []netip.Addr, number uint16, w way) {
	for _, a := range addrs {
		if rank == RankNodePort && !c.hasFamily(a) {
			continue
		}
		b := c.backends(a.Is4(), w)
		fe := c.frontend(b)
		fe.Guard.Sources = c.sources(w)
		if rank != RankNodePort && !c.site.isLocal(a) {
			// On another interface it is another program's, or the node's: served, but neither bound nor closed.
			fe.Guard.VIP, fe.Bind = true, true
		}
		if rank == RankLoadBalancer {
			fe.Guard.Limited, fe.Guard.Ranges = c.svc.SourceRangesGiven, c.ranges(a)
		}
		c.f.Claims = append(c.f.Claims, KeyClaim{
			Key:   ipvs.Key{Addr: a, Port: number, Proto: ipvs.Proto(c.port.Protocol)},
			Claim: Claim{Rank: rank, Created: c.svc.Created, Service: c.svc.ID, Want: fe, Drain: c.svc.Scheduling.DrainDeadline, SlowStart: c.f.SlowStart},
		})
		if c.asked != nil {
			c.explain(c.f.Claims[len(c.f.Claims)-1], b, w)
		}
	}
}

// frontend is a frontend with some real servers.
func (c *portCompiler) frontend(b *backends) *ipvs.Frontend {
	return &ipvs.Frontend{
		Server: c.server(b),
		Guard:  ipvs.Guard{Owned: true, Open: b.open, Barred: b.barred, Redirect: b.redirect, Hairpin: b.hairpin},
	}
}

// sources says as whom clients are seen.
func (c *portCompiler) sources(w way) ipvs.Sources {
	switch {
	case w == internal:
		return ipvs.SourcesByOrigin
	case c.svc.ExternalLocal:
		return ipvs.SourcesKept
	}
	return ipvs.SourcesMasqueraded
}

// family is the place of a family in a pair.
func family(ipv4 bool) int {
	if ipv4 {
		return 0
	}
	return 1
}

// scopes are the endpoints of one family that may be used.
func (c *portCompiler) scopes(ipv4 bool) *scopes {
	at := &c.chosen[family(ipv4)]
	if *at == nil {
		ofFamily := make([]cluster.Endpoint, 0, len(c.eps))
		for _, ep := range c.eps {
			if ep.Addr.Is4() == ipv4 {
				ofFamily = append(ofFamily, ep)
			}
		}
		s := scopesOf(c.svc, c.external, ofFamily, c.site.Node)
		c.f.Zonal = c.f.Zonal || s.zonal
		for _, text := range s.stray {
			c.warn(ReasonHints, text)
		}
		for _, ep := range ofFamily {
			if s.partial && (ep.Ready || lingers(ep)) {
				c.f.Considered = append(c.f.Considered, ep.Addr)
			}
		}
		*at = &s
	}
	return *at
}

// warn notes a Problem that is nobody's in particular, once for all ports and families.
func (c *compiler) warn(reason, text string) {
	if c.warned[text] {
		return
	}
	if c.warned == nil {
		c.warned = map[string]bool{}
	}
	c.warned[text] = true
	c.f.Problems = note(c.f.Problems, Problem{Reason: reason, Anywhere: true}, func() string { return text })
}

// backends are the real servers of one family for a way.
func (c *portCompiler) backends(ipv4 bool, w way) *backends {
	at := &c.made[w][family(ipv4)]
	if *at == nil {
		s := c.scopes(ipv4)
		switch {
		case w == outward && c.svc.ExternalLocal:
			*at = c.externalLocal(s, ipv4)
		case w == internal && c.svc.InternalLocal:
			*at = c.serve(s.local, s.byNode)
			if len(s.local) == 0 && s.any {
				(*at).barred = ipvs.BarredAll
				c.f.NoLocal[w][family(ipv4)] = true
			}
		default:
			*at = c.serve(s.cluster, s.byTopology)
		}
	}
	return *at
}

// externalLocal: clients outside the cluster get the endpoints of this node, or nothing. Those inside get what the
// ClusterIP serves, by a redirection. Where that has local endpoints only as well, they get these as long as there
// are any; once there are none and no outside client is let in any more, the endpoints of other nodes are for them.
func (c *portCompiler) externalLocal(s *scopes, ipv4 bool) *backends {
	eps, by := s.local, s.byNode
	var redirect netip.AddrPort
	if len(s.cluster) > 0 { // else all are refused here
		redirect = c.redirect(ipv4)
	}
	if len(eps) == 0 && !redirect.IsValid() {
		eps, by = s.cluster, s.byTopology
	}
	b := c.serve(eps, by)
	b.redirect = redirect
	b.open = b.open || redirect.IsValid()
	if len(s.local) == 0 && s.any {
		b.barred = ipvs.BarredOutside
		c.f.NoLocal[outward][family(ipv4)] = true
	}
	return b
}

// redirect is the ClusterIP of a family, where it serves the endpoints of all nodes.
func (c *portCompiler) redirect(ipv4 bool) (to netip.AddrPort) {
	at := slices.IndexFunc(c.clusterIPs, func(a netip.Addr) bool { return a.Is4() == ipv4 })
	if at < 0 || c.svc.InternalLocal {
		return to
	}
	return netip.AddrPortFrom(c.clusterIPs[at], c.port.Port)
}

// serve makes real servers of endpoints.
func (c *portCompiler) serve(eps []cluster.Endpoint, by choice) *backends {
	b := &backends{by: by}
	weights, weighted := c.weights(eps)
	b.weighted = weighted
	for i, ep := range eps {
		b.reals = append(b.reals, ipvs.Real{Addr: netip.AddrPortFrom(ep.Addr, ep.Port), Weight: weights[i], Most: c.svc.Scheduling.MaxConnections})
		if ep.NodeName == c.site.Node.Name || ep.NodeName == "" { // made by hand: it may be a pod of this node
			b.hairpin = append(b.hairpin, ep.Addr)
		}
	}
	b.reals, b.hairpin = ipvs.SortReals(b.reals), ipvs.SortAddrs(b.hairpin)
	b.open = len(b.reals) > 0
	return b
}
