package preview

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Clients says how this node tells the clients of Services apart.
type Clients struct {
	// Pods are the ranges of the cluster's pods by which the node knows them (detectLocalMode ClusterCIDR).
	Pods []netip.Prefix
	// NodePods: the ranges of the Node object are taken in their place (NodeCIDR).
	NodePods bool
	// Interface is the one from which pods send, or the beginning of several names where it ends in "*" (BridgeInterface,
	// InterfaceNamePrefix). With it ranges do not count.
	Interface string
	// MasqueradeAll: every client is masqueraded on its way to a ClusterIP.
	MasqueradeAll bool
	// Routes: virtual IPs stand on the node as routes, so that its own connections have the node's source.
	Routes bool
}

// ClientKind is what a client is to this node.
type ClientKind string

// The kinds of clients.
const (
	ClientNode    ClientKind = "node"
	ClientPod     ClientKind = "pod"
	ClientOutside ClientKind = "outside"
)

// client is who asks, as this node takes him.
type client struct {
	kind ClientKind
	addr netip.Addr // with which the packet comes to the guard
	// chosen: the kernel has chosen the source of the node's own packet.
	chosen bool
	// known: the node can tell pods from others. Where it cannot, all but itself are outside.
	known bool
	why   string
}

// inside: the client counts as inside the cluster.
func (c client) inside() bool { return c.kind != ClientOutside }

// clientOf says who asks.
func (c Clients) clientOf(q Question, site desk.Site) client {
	ranges, field := c.ranges(site, q.To.Addr.Is4())
	known := c.Interface != "" || len(ranges) > 0
	switch a := q.Client; {
	case !a.IsValid():
		from := c.chosenSource(q.To.Addr, site)
		return client{ClientNode, from, true, known, fmt.Sprintf("%s itself, by a process of it or a pod with hostNetwork", site.Node.Name)}
	case site.IsLocal(a) || slices.Contains(site.Node.Addrs, a):
		return client{ClientNode, a, false, known, fmt.Sprintf("%s itself: %s is an address of its own, and a process is bound to it", site.Node.Name, a)}
	case a.IsLoopback():
		return client{ClientNode, a, false, known, fmt.Sprintf("%s itself, by its loopback interface", site.Node.Name)}
	case c.Interface != "":
		return c.byInterface(a, site)
	case !known:
		return client{ClientOutside, a, false, false, fmt.Sprintf("taken for outside the cluster: without %s no pod is known of, and none is told from others", field)}
	default:
		for _, p := range ranges {
			if p.Contains(a) {
				return client{ClientPod, a, false, true, fmt.Sprintf("a pod%s: in %s of %s", elsewhere(a, site), p, field)}
			}
		}
		return client{ClientOutside, a, false, true, fmt.Sprintf("outside the cluster: neither in %s (%s) nor an address of %s", field, list(ranges), site.Node.Name)}
	}
}

// elsewhere says where a pod is, as far as the Node object tells.
func elsewhere(a netip.Addr, site desk.Site) string {
	ofFamily := false
	for _, p := range site.Node.PodCIDRs {
		if p.Contains(a) {
			return " of this node"
		}
		ofFamily = ofFamily || p.Addr().Is4() == a.Is4()
	}
	if ofFamily {
		return " of another node"
	}
	return ""
}

// ranges are those of pods of a family, and the setting that they are from.
func (c Clients) ranges(site desk.Site, ipv4 bool) (ofFamily []netip.Prefix, field string) {
	all, field := c.Pods, "clusterCIDR"
	if c.NodePods {
		all, field = site.Node.PodCIDRs, "the Node's podCIDRs"
	}
	for _, p := range all {
		if p.Addr().Is4() == ipv4 {
			ofFamily = append(ofFamily, p)
		}
	}
	return ofFamily, field
}

// byInterface guesses through which interface a client sends: the pods of this node have addresses of its ranges.
func (c Clients) byInterface(a netip.Addr, site desk.Site) client {
	for _, p := range site.Node.PodCIDRs {
		if p.Contains(a) {
			return client{ClientPod, a, false, true, fmt.Sprintf("a pod of this node, if it comes by %s: in the Node's range %s", c.Interface, p)}
		}
	}
	return client{ClientOutside, a, false, true, fmt.Sprintf("outside the cluster, unless it comes by %s: in none of the Node's podCIDRs", c.Interface)}
}

// chosenSource is the source that the kernel chooses for the node's own packet to an address: that address itself, where it
// stands on the node.
func (c Clients) chosenSource(to netip.Addr, site desk.Site) netip.Addr {
	if !c.Routes || site.IsLocal(to) {
		return to
	}
	for _, a := range site.Local.Sources {
		if a.Is4() == to.Is4() {
			return a
		}
	}
	return to
}

func list(ranges []netip.Prefix) string {
	var texts []string
	for _, p := range ranges {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}
