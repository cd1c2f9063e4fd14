package sync

import (
	"cmp"
	"net/netip"
	"sort"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Fragment is what one Service wants of this node's kernel.
type Fragment struct {
	Claims []KeyClaim // in the order of the Keys, which are unique
}

// KeyClaim is a Claim and the Key that it claims.
type KeyClaim struct {
	Key   ipvs.Key
	Claim Claim
}

// The ranks of claims: the lower one owns the Key (B60).
const rankClusterIP uint8 = 0

// CompileOptions are the parts of the configuration that decide what Services become.
type CompileOptions struct {
	// Scheduler is the kernel's name of the scheduler of every virtual server.
	Scheduler string
}

// Compile says what a Service wants of this node's kernel. It is pure and total: the same Service, endpoints
// and node give the same Fragment on every node, whatever the objects hold. The endpoints are sorted by port
// name and protocol, as the model gives them.
func Compile(svc *cluster.Service, eps []cluster.Endpoint, node cluster.Node, opt CompileOptions) Fragment {
	if svc == nil {
		return Fragment{}
	}
	var f Fragment
	for _, ip := range svc.ClusterIPs {
		for _, port := range svc.Ports {
			f.Claims = append(f.Claims, KeyClaim{
				Key: ipvs.Key{Addr: ip, Port: port.Port, Proto: ipvs.Proto(port.Protocol)},
				Claim: Claim{Rank: rankClusterIP, Created: svc.Created, Service: svc.ID,
					Want: clusterIPFrontend(svc, port, ip.Is4(), eps, node, opt)},
			})
		}
	}
	sortClaims(f.Claims)
	return f
}

// clusterIPFrontend is the frontend of one port of a Service on its ClusterIP of one family.
func clusterIPFrontend(svc *cluster.Service, port cluster.Port, ipv4 bool, eps []cluster.Endpoint, node cluster.Node, opt CompileOptions) *ipvs.Frontend {
	fe := &ipvs.Frontend{
		Server: ipvs.Server{Scheduler: opt.Scheduler},
		Guard:  ipvs.Guard{Owned: true, VIP: true},
		Bind:   true,
	}
	if svc.AffinitySeconds > 0 {
		fe.Server.Flags, fe.Server.Timeout = ipvs.Persistent, svc.AffinitySeconds
	}
	for _, ep := range portEndpoints(port, eps) {
		if !ep.Ready || ep.Addr.Is4() != ipv4 {
			continue
		}
		fe.Server.Reals = append(fe.Server.Reals, ipvs.Real{Addr: netip.AddrPortFrom(ep.Addr, ep.Port), Weight: 1})
		if ep.NodeName == node.Name {
			fe.Guard.Hairpin = append(fe.Guard.Hairpin, ep.Addr)
		}
	}
	fe.Server.Reals = ipvs.SortReals(fe.Server.Reals)
	fe.Guard.Hairpin = ipvs.SortAddrs(fe.Guard.Hairpin)
	fe.Guard.Open = len(fe.Server.Reals) > 0
	return fe
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
