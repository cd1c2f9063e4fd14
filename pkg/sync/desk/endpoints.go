package desk

import (
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// scopes are the endpoints of a Service's port, of one family, that this node may send connections to.
type scopes struct {
	// cluster are those for policy Cluster, topology taken into account; nil where the Service never uses it.
	cluster []cluster.Endpoint
	// local are those on this node, for policy Local; nil where the Service never uses it.
	local []cluster.Endpoint
	// byTopology and byNode are how those two were chosen.
	byTopology, byNode choice
	// any: somewhere in the cluster there is an endpoint that could be used. Where a policy allows none all the
	// same, clients are dropped, not refused.
	any bool
	// partial: an endpoint may decide something without being in both.
	partial bool
	// zonal: which zone the node is in may decide what cluster holds.
	zonal bool
	// stray are the hints that nobody can follow, in words.
	stray []string
}

// scopesOf chooses endpoints as kube-proxy does (CategorizeEndpoints in pkg/proxy/topology.go of Kubernetes 1.36).
// Ready ones count; where a scope has none, those that terminate and still serve (KEP-1669), each scope by itself.
// Hints (KEP-2433, KEP-3015) limit the scope cluster only. external: the port can be reached from outside at all.
func scopesOf(svc *cluster.Service, external bool, eps []cluster.Endpoint, node cluster.Node) (s scopes) {
	for _, ep := range eps {
		s.any = s.any || ep.Ready || lingers(ep)
	}
	if external || !svc.InternalLocal {
		var far func(cluster.Endpoint) Code
		far, s.zonal = farness(eps, node)
		s.byTopology = choose(eps, far)
		s.cluster = s.byTopology.of(eps)
		s.stray = strayHints(eps, node, s.zonal)
		s.partial = slices.ContainsFunc(eps, func(ep cluster.Endpoint) bool { return len(ep.ZoneHints)+len(ep.NodeHints) > 0 })
	}
	if svc.InternalLocal || external && svc.ExternalLocal {
		s.byNode = choose(eps, func(ep cluster.Endpoint) Code { return unless(ep.NodeName == node.Name, Elsewhere) })
		s.local, s.partial = s.byNode.of(eps), true
	}
	return s
}

// choice is how the endpoints of a scope are chosen: the ready ones, or else those that linger.
type choice struct {
	out       func(cluster.Endpoint) Code // why an endpoint is not in the scope, however ready it is
	lingering bool                        // none in it is ready
}

func choose(eps []cluster.Endpoint, out func(cluster.Endpoint) Code) choice {
	return choice{out, !slices.ContainsFunc(eps, func(ep cluster.Endpoint) bool { return ep.Ready && out(ep) == None })}
}

// takes reports whether an endpoint may be used.
func (c choice) takes(ep cluster.Endpoint) bool {
	return (ep.Ready || c.lingering && lingers(ep)) && c.out(ep) == None
}

// of are those endpoints that may be used.
func (c choice) of(eps []cluster.Endpoint) []cluster.Endpoint {
	usable := make([]cluster.Endpoint, 0, len(eps))
	for _, ep := range eps {
		if c.takes(ep) {
			usable = append(usable, ep)
		}
	}
	return usable
}

// why says why an endpoint is left out, or why one is used that is about to end; None: it is ready and used.
func (c choice) why(ep cluster.Endpoint) Code {
	switch {
	case !ep.Ready && !ep.Terminating:
		return NotReady
	case !ep.Ready && !lingers(ep):
		return NotServing
	case c.out(ep) != None:
		return c.out(ep)
	case ep.Ready:
		return None
	case c.lingering:
		return LastOnes
	}
	return Terminating
}

// lingers: the pod is about to end and still answers.
func lingers(ep cluster.Endpoint) bool { return !ep.Ready && ep.Serving && ep.Terminating }

// farness says which endpoints hints take away from this node, and whether its zone matters for that. A hint counts
// only while every ready endpoint has one of its kind and at least one names this node, or else its zone: a
// hint that is missing may be one that is yet to come, and a node that nobody thought of must be served as well.
func farness(eps []cluster.Endpoint, node cluster.Node) (far func(cluster.Endpoint) Code, zonal bool) {
	ready, nodes, zones := 0, 0, 0
	forNode, forZone := false, false
	for _, ep := range eps {
		if !ep.Ready {
			continue
		}
		ready++
		if len(ep.NodeHints) > 0 {
			nodes++
			forNode = forNode || slices.Contains(ep.NodeHints, node.Name)
		}
		if len(ep.ZoneHints) > 0 {
			zones++
			forZone = forZone || node.Zone != "" && slices.Contains(ep.ZoneHints, node.Zone)
		}
	}
	switch {
	case ready == 0:
		return nowhere, false
	case nodes == ready && forNode:
		return func(ep cluster.Endpoint) Code { return unless(slices.Contains(ep.NodeHints, node.Name), OtherNode) }, false
	case zones == ready && forZone:
		return func(ep cluster.Endpoint) Code { return unless(slices.Contains(ep.ZoneHints, node.Zone), OtherZone) }, true
	default:
		return nowhere, zones == ready
	}
}

func nowhere(cluster.Endpoint) Code { return None }

func unless(ok bool, why Code) Code {
	if ok {
		return None
	}
	return why
}
