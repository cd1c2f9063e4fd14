package desk

import (
	"fmt"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// hintKind is what hints of a kind are for, and where an endpoint is and this node.
type hintKind struct {
	field, what string
	hints       func(cluster.Endpoint) []string
	place       func(cluster.Endpoint) string
	own         func(cluster.Node) string
}

var (
	nodeHints = hintKind{"hints.forNodes", "node", func(ep cluster.Endpoint) []string { return ep.NodeHints },
		func(ep cluster.Endpoint) string { return ep.NodeName }, func(n cluster.Node) string { return n.Name }}
	zoneHints = hintKind{"hints.forZones", "zone", func(ep cluster.Endpoint) []string { return ep.ZoneHints },
		func(ep cluster.Endpoint) string { return ep.Zone }, func(n cluster.Node) string { return n.Zone }}
)

// strayHints says which hints seem to be for nobody. It is usual that none is for this node or its zone: there may be
// no endpoint near. And one may be for a zone without endpoints, which only its own nodes know. But where every ready
// endpoint has a hint and none of them is for a place in which an endpoint is, they are for a place that does not
// exist, or are misspelt.
//
// zonal: the node's zone matters.
func strayHints(eps []cluster.Endpoint, node cluster.Node, zonal bool) (list []string) {
	kinds := []hintKind{nodeHints}
	if zonal {
		kinds = append(kinds, zoneHints)
	}
	for _, kind := range kinds {
		if name, stray := kind.stray(eps, kind.own(node)); stray {
			list = append(list, fmt.Sprintf("endpoints: %s: %.64q: neither an endpoint nor this node is in such a %s: not followed", kind.field, name, kind.what))
		}
	}
	return list
}

// stray gives one of the names in stray hints.
func (k hintKind) stray(eps []cluster.Endpoint, own string) (name string, stray bool) {
	places := map[string]bool{own: true}
	for _, ep := range eps {
		if !ep.Ready {
			continue
		}
		place, hints := k.place(ep), k.hints(ep)
		if place == "" || len(hints) == 0 || slices.Contains(hints, place) || slices.Contains(hints, own) {
			return "", false // nearly always at the first one
		}
		places[place] = true
	}
	for _, ep := range eps {
		if !ep.Ready {
			continue
		}
		if slices.ContainsFunc(k.hints(ep), func(h string) bool { return places[h] }) {
			return "", false
		}
		if name == "" {
			name = k.hints(ep)[0]
		}
	}
	return name, name != ""
}
