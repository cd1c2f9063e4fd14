package desk

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Fragment is what one Service wants of this node's kernel.
type Fragment struct {
	Claims []KeyClaim // in the order of the Keys, which are unique
	// Ours: there is such a Service, and this proxy serves it.
	Ours bool
	// Problems are what it may not have.
	Problems []Problem
	// NoLocal says for which ways in, and families, the policy is Local and no endpoint here may serve, while
	// others could: by internal and external, IPv4 and IPv6.
	NoLocal NoLocal
	// Sensitive: which addresses the node has decides what the Service becomes.
	Sensitive bool
	// Zonal: which zone the node is in may decide it.
	Zonal bool
	// DNS: it is the cluster's, by its label.
	DNS bool
	// Schedulers are those that it needs beside the node's own, sorted. The kernel may lack them.
	Schedulers []string
	// SlowStart is over how long the weights of new endpoints grow; 0: they do not.
	SlowStart time.Duration
	// Considered are addresses of endpoints that decided something without being real servers everywhere. Sorted.
	Considered []netip.Addr
	// Local is what the balancer in front of the cluster wants to know of this node.
	Local Local
	// Holds are the ClusterIPs of a Service that another proxy serves, which claims nothing. Sorted.
	Holds   []netip.Addr
	Created int64 // when that Service was made, in Unix seconds
}

// Local says where it is answered how many endpoints of a Service stand on this node.
type Local struct {
	// HealthCheckNodePort is where the load balancer asks; 0: nowhere.
	HealthCheckNodePort uint16
	// At are the load balancer's addresses, where one that passes packets on as they are asks.
	At []netip.Addr
	// Created is when the Service was, in Unix seconds; of several that want one port the oldest gets it.
	Created int64
}

// NoLocal is what kube-proxy counts of policies that find no endpoint: [internal, external][IPv4, IPv6].
type NoLocal [2][2]bool

// KeyClaim is a Claim and the Key that it claims.
type KeyClaim struct {
	Key   ipvs.Key
	Claim Claim
}

// Rank says by what a Service claims a Key.
type Rank uint8

// The ranks of claims: the lower one owns the Key (B60).
const (
	RankClusterIP Rank = iota
	RankLoadBalancer
	RankNodePort
	RankExternalIP
	// RankHealthCheck is by a load balancer's address and the healthCheckNodePort.
	RankHealthCheck
)

var rankNames = map[Rank]string{RankClusterIP: "ClusterIP", RankLoadBalancer: "load balancer", RankNodePort: "node port", RankExternalIP: "external IP"}

// String says what an address is by which a Service claims it; "" of a health check's.
func (r Rank) String() string { return rankNames[r] }

// Options are the parts of the configuration that decide what Services become.
type Options struct {
	// Scheduler is the kernel's name of the scheduler of every virtual server.
	Scheduler string
	// NodePorts says on which of the node's addresses node ports are served.
	NodePorts NodePortAddresses
	// ExternalIPs are the ranges from which spec.externalIPs may be; without any, none are served.
	ExternalIPs []netip.Prefix
	// Protected are ranges that no Service may have as an external address: other nodes', the API server's.
	Protected []netip.Prefix
	// Pods are the ranges of the whole cluster's pods, as far as they are configured: no Service may have one as an
	// external address.
	Pods []netip.Prefix
	// Spared are the ranges of addresses whose virtual servers are never removed, whoever made them
	// (ipvs.excludeCIDRs). What Services want there is made and kept right all the same, as kube-proxy does it.
	Spared []netip.Prefix
}

// Named are those of the addresses that a Service asks for from outside that are endpoints, with whose.
type Named map[netip.Addr]cluster.Named

// Compile says what a Service wants of this node's kernel. It is pure and total: the same Service, endpoints
// and site give the same Fragment on every node, whatever the objects hold. The endpoints are sorted by port
// name and protocol, as the model gives them.
func Compile(svc *cluster.Service, eps []cluster.Endpoint, named Named, site Site, opt Options) Fragment {
	if svc == nil {
		return Fragment{}
	}
	c := compiler{svc: svc, named: named, site: site, opt: opt}
	c.f.Ours = true
	c.compile(eps)
	return c.f
}

// NamedOf gives the Named of a Service.
func NamedOf(svc *cluster.Service, of func(netip.Addr) cluster.Named) (named Named) {
	if svc == nil {
		return nil
	}
	for _, list := range [][]netip.Addr{svc.LoadBalancerIPs, svc.ExternalIPs} {
		for _, a := range list {
			if n := of(a); n != (cluster.Named{}) {
				if named == nil {
					named = Named{}
				}
				named[a] = n
			}
		}
	}
	return named
}

// compile compiles the Service with some endpoints.
func (c *compiler) compile(eps []cluster.Endpoint) {
	c.f.SlowStart = c.slowStart()
	svc, site := c.svc, c.site
	eps = c.hosts(eps)
	clusterIPs := c.allowed(svc.ClusterIPs, "spec.clusterIPs", c.refuseClusterIP)
	balancerIPs := c.allowed(svc.LoadBalancerIPs, "status.loadBalancer", c.refuseExternal)
	externalIPs := c.allowed(svc.ExternalIPs, "spec.externalIPs", c.refuseExternalIP)
	for _, port := range svc.Ports {
		external := port.NodePort != 0 || len(balancerIPs)+len(externalIPs) > 0
		p := portCompiler{compiler: c, port: port, external: external, clusterIPs: clusterIPs, eps: portEndpoints(port, eps)}
		p.claim(RankClusterIP, clusterIPs, port.Port, internal)
		p.claim(RankLoadBalancer, balancerIPs, port.Port, outward)
		p.claim(RankExternalIP, externalIPs, port.Port, outward)
		if port.NodePort != 0 {
			p.claim(RankNodePort, site.NodePorts, port.NodePort, outward)
		}
	}
	c.f.Local.HealthCheckNodePort, c.f.Local.Created = svc.HealthCheckNodePort, svc.Created
	c.claimChecks(balancerIPs)
	c.f.DNS = isDNS(svc)
	c.f.Zonal = c.f.Zonal || svc.Scheduling.Weights.Given
	slices.Sort(c.f.Schedulers)
	c.f.Schedulers = slices.Compact(c.f.Schedulers)
	c.f.Considered = ipvs.SortAddrs(c.f.Considered)
	c.f.Sensitive = svc.Type != cluster.TypeClusterIP || len(svc.ExternalIPs) > 0 || len(c.f.Problems) > 0
	slices.SortFunc(c.f.Claims, func(a, b KeyClaim) int {
		return cmp.Or(a.Key.Compare(b.Key), cmp.Compare(a.Claim.Rank, b.Claim.Rank))
	})
	c.f.Claims = slices.CompactFunc(c.f.Claims, func(a, b KeyClaim) bool { return a.Key == b.Key })
}

// claimChecks claims the healthCheckNodePort of a load balancer's addresses: a balancer that passes packets on as they are
// asks there. No virtual server takes these packets, the guard lets them through to the process that answers.
func (c *compiler) claimChecks(addrs []netip.Addr) {
	port := c.svc.HealthCheckNodePort
	if port == 0 {
		return
	}
	for _, a := range addrs {
		c.f.Local.At = append(c.f.Local.At, a)
		if c.site.isLocal(a) { // another program's: nothing is refused there
			continue
		}
		c.f.Claims = append(c.f.Claims, KeyClaim{
			Key: ipvs.Key{Addr: a, Port: port, Proto: ipvs.TCP},
			Claim: Claim{Rank: RankHealthCheck, Created: c.svc.Created, Service: c.svc.ID,
				Want: &ipvs.Frontend{Guard: ipvs.Guard{Owned: true, Open: true, Answered: true, VIP: true}, Bind: true}},
		})
	}
}

// hosts leaves out the endpoints whose address no host can have, and notes them: the kernel would drop what is sent
// there, beside good ones every other connection.
func (c *compiler) hosts(eps []cluster.Endpoint) []cluster.Endpoint {
	if !slices.ContainsFunc(eps, func(ep cluster.Endpoint) bool { return c.site.hostless(ep.Addr, c.opt) }) {
		return eps
	}
	said := map[netip.Addr]bool{}
	return slices.DeleteFunc(slices.Clone(eps), func(ep cluster.Endpoint) bool {
		if !c.site.hostless(ep.Addr, c.opt) {
			return false
		}
		if c.asked != nil {
			c.hostless = append(c.hostless, ep)
		}
		if ep.Ready && c.hasFamily(ep.Addr) && !said[ep.Addr] { // any other one is used by nobody, or not for long
			said[ep.Addr] = true
			c.f.Problems = note(c.f.Problems, Problem{Reason: ReasonNoHost, Here: ep.NodeName == c.site.Node.Name, Anywhere: ep.NodeName == ""},
				func() string { return "endpoint " + ep.Addr.String() + " can be no host's: left out" })
		}
		return true
	})
}

// compiler carries a Service and what it has become so far.
type compiler struct {
	svc   *cluster.Service
	named Named
	site  Site
	opt   Options
	f     Fragment
	// taken are the source ranges of each family, IPv4 and IPv6, once a frontend has asked for them.
	taken [2]*sourceRanges
	// warned are the texts of Problems that were noted already.
	warned map[string]bool
	// asked is where reasons go; nil: nobody asks, and none is made.
	asked *Explanation
	// virtual are the endpoints that were left out before, for who asks, and hostless those that no host can have.
	virtual, hostless []cluster.Endpoint
	// nodes are this node's addresses, IPv4 and IPv6, in the list of addresses that is being looked at.
	nodes [2]netip.Addr
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
