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
		var near func(cluster.Endpoint) bool
		near, s.zonal = nearness(eps, node)
		s.cluster = scope(eps, near)
		s.stray = strayHints(eps, node, s.zonal)
		s.partial = slices.ContainsFunc(eps, func(ep cluster.Endpoint) bool { return len(ep.ZoneHints)+len(ep.NodeHints) > 0 })
	}
	if svc.InternalLocal || external && svc.ExternalLocal {
		s.local, s.partial = scope(eps, func(ep cluster.Endpoint) bool { return ep.NodeName == node.Name }), true
	}
	return s
}

// scope is what may be used of the endpoints in it: the ready ones, or else those that linger.
func scope(eps []cluster.Endpoint, in func(cluster.Endpoint) bool) []cluster.Endpoint {
	usable := make([]cluster.Endpoint, 0, len(eps))
	for _, usableIf := range []func(cluster.Endpoint) bool{isReady, lingers} {
		for _, ep := range eps {
			if usableIf(ep) && in(ep) {
				usable = append(usable, ep)
			}
		}
		if len(usable) > 0 {
			break
		}
	}
	return usable
}

func isReady(ep cluster.Endpoint) bool { return ep.Ready }

// lingers: the pod is about to end and still answers.
func lingers(ep cluster.Endpoint) bool { return !ep.Ready && ep.Serving && ep.Terminating }

// nearness says which endpoints hints leave to this node, and whether its zone matters for that. A hint counts
// only while every ready endpoint has one of its kind and at least one names this node, or else its zone: a
// hint that is missing may be one that is yet to come, and a node that nobody thought of must be served as well.
func nearness(eps []cluster.Endpoint, node cluster.Node) (near func(cluster.Endpoint) bool, zonal bool) {
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
	switch everywhere := func(cluster.Endpoint) bool { return true }; {
	case ready == 0:
		return everywhere, false
	case nodes == ready && forNode:
		return func(ep cluster.Endpoint) bool { return slices.Contains(ep.NodeHints, node.Name) }, false
	case zones == ready && forZone:
		return func(ep cluster.Endpoint) bool { return slices.Contains(ep.ZoneHints, node.Zone) }, true
	default:
		return everywhere, zones == ready
	}
}
