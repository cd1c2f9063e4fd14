package sync

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Fragment is what one Service wants of this node's kernel.
type Fragment struct {
	Claims []KeyClaim // in the order of the Keys, which are unique
	// Problems are what it may not have, a line each that names the field.
	Problems []string
	// Sensitive: which addresses the node has decides what the Service becomes.
	Sensitive bool
}

// KeyClaim is a Claim and the Key that it claims.
type KeyClaim struct {
	Key   ipvs.Key
	Claim Claim
}

// The ranks of claims: the lower one owns the Key (B60).
const (
	rankClusterIP uint8 = iota
	rankLoadBalancer
	rankNodePort
	rankExternalIP
)

// CompileOptions are the parts of the configuration that decide what Services become.
type CompileOptions struct {
	// Scheduler is the kernel's name of the scheduler of every virtual server.
	Scheduler string
	// NodePorts says on which of the node's addresses node ports are served.
	NodePorts NodePortAddresses
	// ExternalIPs are the ranges from which spec.externalIPs may be; without any, none are served.
	ExternalIPs []netip.Prefix
	// Protected are ranges that no Service may have as an external address: other nodes', the API server's.
	Protected []netip.Prefix
}

// Compile says what a Service wants of this node's kernel. It is pure and total: the same Service, endpoints
// and site give the same Fragment on every node, whatever the objects hold. The endpoints are sorted by port
// name and protocol, as the model gives them.
func Compile(svc *cluster.Service, eps []cluster.Endpoint, site Site, opt CompileOptions) Fragment {
	if svc == nil {
		return Fragment{}
	}
	c := compiler{svc: svc, site: site, opt: opt}
	clusterIPs := c.allowed(svc.ClusterIPs, "spec.clusterIPs", c.refuseClusterIP)
	balancerIPs := c.allowed(svc.LoadBalancerIPs, "status.loadBalancer", c.refuseExternal)
	externalIPs := c.allowed(svc.ExternalIPs, "spec.externalIPs", c.refuseExternalIP)
	for _, port := range svc.Ports {
		own := portEndpoints(port, eps)
		internal, external := roleInternal(svc), roleExternal(svc)
		c.claim(rankClusterIP, clusterIPs, port.Port, port, &internal, own)
		c.claim(rankLoadBalancer, balancerIPs, port.Port, port, &external, own)
		c.claim(rankExternalIP, externalIPs, port.Port, port, &external, own)
		if port.NodePort != 0 {
			c.claim(rankNodePort, site.NodePorts, port.NodePort, port, &external, own)
		}
	}
	c.f.Sensitive = svc.Type != cluster.TypeClusterIP || len(svc.ExternalIPs) > 0 || len(c.f.Problems) > 0
	slices.SortFunc(c.f.Claims, func(a, b KeyClaim) int {
		return cmp.Or(a.Key.Compare(b.Key), cmp.Compare(a.Claim.Rank, b.Claim.Rank))
	})
	c.f.Claims = slices.CompactFunc(c.f.Claims, func(a, b KeyClaim) bool { return a.Key == b.Key })
	return c.f
}

// compiler carries a Service and what it has become so far.
type compiler struct {
	svc  *cluster.Service
	site Site
	opt  CompileOptions
	f    Fragment
}

// role is what the frontends of a port have in common that are reached in the same way. Those of one family
// share their virtual server's configuration and real servers, which are made when the first one is.
type role struct {
	local   bool // only endpoints on this node
	sources ipvs.Sources
	made    [2]*backends // IPv4, IPv6
}

type backends struct {
	reals   []ipvs.Real
	hairpin []netip.Addr
}

func roleInternal(svc *cluster.Service) role { return role{local: svc.InternalLocal} }

func roleExternal(svc *cluster.Service) role {
	if svc.ExternalLocal {
		return role{local: true, sources: ipvs.SourcesKept}
	}
	return role{sources: ipvs.SourcesMasqueraded}
}

// claim claims a port of some addresses.
func (c *compiler) claim(rank uint8, addrs []netip.Addr, number uint16, port cluster.Port, r *role, eps []cluster.Endpoint) {
	for _, a := range addrs {
		if rank == rankNodePort && !c.hasFamily(a) {
			continue
		}
		fe := c.frontend(a, r.backends(a.Is4(), eps, c.site.Node.Name))
		fe.Guard.Sources = r.sources
		if rank != rankNodePort && !c.site.isLocal(a) {
			// On another interface it is another program's, or the node's: served, but neither bound nor closed.
			fe.Guard.VIP, fe.Bind = true, true
		}
		c.f.Claims = append(c.f.Claims, KeyClaim{
			Key:   ipvs.Key{Addr: a, Port: number, Proto: ipvs.Proto(port.Protocol)},
			Claim: Claim{Rank: rank, Created: c.svc.Created, Service: c.svc.ID, Want: fe},
		})
	}
}

// frontend is a frontend with some real servers.
func (c *compiler) frontend(a netip.Addr, b *backends) *ipvs.Frontend {
	fe := &ipvs.Frontend{
		Server: ipvs.Server{Scheduler: c.site.scheduler(c.opt.Scheduler), Reals: b.reals},
		Guard:  ipvs.Guard{Owned: true, Open: len(b.reals) > 0, Hairpin: b.hairpin},
	}
	if c.svc.AffinitySeconds > 0 {
		fe.Server.Flags, fe.Server.Timeout = ipvs.Persistent, c.svc.AffinitySeconds
	}
	return fe
}

// backends are the real servers of one family.
func (r *role) backends(ipv4 bool, eps []cluster.Endpoint, node string) *backends {
	at := &r.made[0]
	if !ipv4 {
		at = &r.made[1]
	}
	if *at != nil {
		return *at
	}
	b := &backends{}
	for _, ep := range eps {
		here := ep.NodeName == node
		if !ep.Ready || ep.Addr.Is4() != ipv4 || r.local && !here {
			continue
		}
		b.reals = append(b.reals, ipvs.Real{Addr: netip.AddrPortFrom(ep.Addr, ep.Port), Weight: 1})
		if here || ep.NodeName == "" { // made by hand: it may be a pod of this node
			b.hairpin = append(b.hairpin, ep.Addr)
		}
	}
	b.reals, b.hairpin = ipvs.SortReals(b.reals), ipvs.SortAddrs(b.hairpin)
	*at = b
	return b
}

// portEndpoints cuts out a port's endpoints: the model sorts them by port name and protocol. With many ports,
// looking through all endpoints for each would cost their product.
func portEndpoints(port cluster.Port, eps []cluster.Endpoint) []cluster.Endpoint {
	after := func(beyond int) func(int) bool {
		return func(i int) bool {
			return cmp.Or(cmp.Compare(eps[i].PortName, port.Name), cmp.Compare(eps[i].Protocol, port.Protocol)) >= beyond
		}
	}
	return eps[sort.Search(len(eps), after(0)):sort.Search(len(eps), after(1))]
}
