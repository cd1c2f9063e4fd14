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
	// Problems are what it may not have.
	Problems []Problem
	// NoLocal says for which ways in, and families, the policy is Local and no endpoint here may serve, while
	// others could: by internal and external, IPv4 and IPv6.
	NoLocal noLocal
	// Sensitive: which addresses the node has decides what the Service becomes.
	Sensitive bool
	// Zonal: which zone the node is in may decide it.
	Zonal bool
}

// noLocal is what kube-proxy counts of policies that find no endpoint: [internal, external][IPv4, IPv6].
type noLocal [2][2]bool

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
		external := port.NodePort != 0 || len(balancerIPs)+len(externalIPs) > 0
		p := portCompiler{compiler: &c, port: port, external: external, eps: portEndpoints(port, eps)}
		p.claim(rankClusterIP, clusterIPs, port.Port, internal)
		p.claim(rankLoadBalancer, balancerIPs, port.Port, outward)
		p.claim(rankExternalIP, externalIPs, port.Port, outward)
		if port.NodePort != 0 {
			p.claim(rankNodePort, site.NodePorts, port.NodePort, outward)
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

// portCompiler compiles one port. Frontends of one family that are reached in the same way share their real
// servers, which are made when the first one is.
type portCompiler struct {
	*compiler
	port     cluster.Port
	external bool               // it can be reached from outside the cluster
	eps      []cluster.Endpoint // of the port, both families
	chosen   [2]*scopes         // IPv4, IPv6
	made     [2][2]*backends    // by the way, and IPv4, IPv6
}

// way is how a frontend is reached.
type way int

const (
	internal way = iota // by the ClusterIP
	outward             // by any other address
)

// backends are real servers, and whose hairpins they bring.
type backends struct {
	reals   []ipvs.Real
	hairpin []netip.Addr
}

// claim claims a port of some addresses.
func (c *portCompiler) claim(rank uint8, addrs []netip.Addr, number uint16, w way) {
	for _, a := range addrs {
		if rank == rankNodePort && !c.hasFamily(a) {
			continue
		}
		fe := c.frontend(c.backends(a.Is4(), w))
		fe.Guard.Sources = c.sources(w)
		if rank != rankNodePort && !c.site.isLocal(a) {
			// On another interface it is another program's, or the node's: served, but neither bound nor closed.
			fe.Guard.VIP, fe.Bind = true, true
		}
		c.f.Claims = append(c.f.Claims, KeyClaim{
			Key:   ipvs.Key{Addr: a, Port: number, Proto: ipvs.Proto(c.port.Protocol)},
			Claim: Claim{Rank: rank, Created: c.svc.Created, Service: c.svc.ID, Want: fe},
		})
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

// frontend is a frontend with some real servers.
func (c *compiler) frontend(b *backends) *ipvs.Frontend {
	fe := &ipvs.Frontend{
		Server: ipvs.Server{Scheduler: c.site.scheduler(c.opt.Scheduler), Reals: b.reals},
		Guard:  ipvs.Guard{Owned: true, Open: len(b.reals) > 0, Hairpin: b.hairpin},
	}
	if c.svc.AffinitySeconds > 0 {
		fe.Server.Flags, fe.Server.Timeout = ipvs.Persistent, c.svc.AffinitySeconds
	}
	return fe
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
		ofFamily := slices.Collect(func(yield func(cluster.Endpoint) bool) {
			for _, ep := range c.eps {
				if ep.Addr.Is4() == ipv4 && !yield(ep) {
					return
				}
			}
		})
		s := scopesOf(c.svc, c.external, ofFamily, c.site.Node)
		c.f.Zonal = c.f.Zonal || s.zonal
		*at = &s
	}
	return *at
}

// backends are the real servers of one family for a way.
func (c *portCompiler) backends(ipv4 bool, w way) *backends {
	at := &c.made[w][family(ipv4)]
	if *at != nil {
		return *at
	}
	s := c.scopes(ipv4)
	eps, local := s.cluster, c.svc.InternalLocal
	if w == outward {
		local = c.svc.ExternalLocal
	}
	if local {
		eps = s.local
		if len(eps) == 0 && s.any {
			c.f.NoLocal[w][family(ipv4)] = true
		}
	}
	b := &backends{}
	for _, ep := range eps {
		b.reals = append(b.reals, ipvs.Real{Addr: netip.AddrPortFrom(ep.Addr, ep.Port), Weight: 1})
		if ep.NodeName == c.site.Node.Name || ep.NodeName == "" { // made by hand: it may be a pod of this node
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
