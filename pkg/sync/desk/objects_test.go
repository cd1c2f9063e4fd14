package desk

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

const thisNode = "node1"

// objects is a cluster by hand.
type objects map[cluster.ID]object

type object struct {
	svc *cluster.Service
	eps []cluster.Endpoint
	// foreign is the Service where another proxy serves it.
	foreign *cluster.Service
}

func (o objects) Get(id cluster.ID) (*cluster.Service, []cluster.Endpoint) {
	return o[id].svc, o[id].eps
}

func (o objects) Ports(id cluster.ID) []cluster.Port {
	if svc := o[id].svc; svc != nil {
		return svc.Ports
	}
	return nil
}

func (o objects) Endpoints(id cluster.ID) []cluster.Endpoint {
	once := map[netip.Addr]cluster.Endpoint{}
	for _, ep := range o[id].eps {
		ep.Port, ep.PortName, ep.Protocol = 0, "", 0
		once[ep.Addr] = ep
	}
	return slices.SortedFunc(maps.Values(once), func(a, b cluster.Endpoint) int { return a.Addr.Compare(b.Addr) })
}

func (o objects) Lists(id cluster.ID, addr netip.AddrPort) bool {
	return slices.ContainsFunc(o[id].eps, func(ep cluster.Endpoint) bool { return netip.AddrPortFrom(ep.Addr, ep.Port) == addr })
}

func (o objects) Named(a netip.Addr) (is cluster.Named) {
	for id, obj := range o {
		for _, ep := range obj.eps {
			switch {
			case ep.Addr != a:
			case ep.NodeName != "" && (is.Pod == (cluster.ID{}) || id.Less(is.Pod)):
				is.Pod = id
			case ep.NodeName == "" && obj.svc != nil && (is.ByHand == (cluster.ID{}) ||
				(holder{obj.svc.Created, id}).compare(holder{is.Created, is.ByHand}) < 0):
				is.ByHand, is.Created = id, obj.svc.Created
			}
		}
	}
	return is
}

func (o objects) Held(id cluster.ID) ([]netip.Addr, int64) {
	if svc := o[id].foreign; svc != nil {
		return svc.ClusterIPs, svc.Created
	}
	return nil, 0
}

func (objects) Problems(cluster.ID) []cluster.Problem { return nil }

func (o objects) Services() []cluster.ID { return slices.SortedFunc(maps.Keys(o), cluster.ID.Compare) }

func idOf(name string) cluster.ID { return cluster.ID{Namespace: "default", Name: name} }

func addrsOf(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return ipvs.SortAddrs(out)
}

func nodeNamed(address string) cluster.Node {
	return cluster.Node{Name: thisNode, Known: true, Addrs: addrsOf(address)}
}

// service is a ClusterIP Service with ports named p80, p443, …
func service(name, ip string, ports ...uint16) *cluster.Service {
	s := &cluster.Service{Identity: cluster.Identity{ID: idOf(name)}, ClusterIPs: addrsOf(ip)}
	for _, p := range ports {
		s.Ports = append(s.Ports, cluster.Port{Name: fmt.Sprintf("p%d", p), Protocol: cluster.TCP, Port: p})
	}
	return s
}

// balancer is a LoadBalancer with an address, made at some time.
func balancer(name, clusterIP, address string, created int64, ports ...uint16) *cluster.Service {
	s := service(name, clusterIP, ports...)
	s.Created, s.Type, s.LoadBalancerIPs = created, cluster.TypeLoadBalancer, addrsOf(address)
	return s
}

// nodePorts gives a Service's ports node ports.
func nodePorts(s *cluster.Service, ports ...uint16) *cluster.Service {
	s.Type = max(s.Type, cluster.TypeNodePort)
	for i, p := range ports {
		s.Ports[i].NodePort = p
	}
	return s
}

func external(s *cluster.Service, created int64, ips ...string) *cluster.Service {
	s.Created, s.ExternalIPs = created, addrsOf(ips...)
	return s
}
