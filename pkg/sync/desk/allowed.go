package desk

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// allowed takes from a field's addresses those that the Service may have on this node, and notes why it may
// not have the others.
func (c *compiler) allowed(addrs []netip.Addr, field string, refuse func(netip.Addr) refusal) []netip.Addr {
	var ok []netip.Addr
	c.nodes = c.site.nodesAmong(addrs)
	for i, a := range addrs {
		switch why := refuse(a); {
		case a.Is6() && c.site.Local.NoIPv6: // said once for the node
			c.asked.refuse(Refused{Addr: a, Field: field, Why: IPv6Off})
		case why != allowed:
			c.asked.refuse(Refused{Addr: a, Field: field, Why: why.code})
			own := why.here
			c.f.Problems = note(c.f.Problems, Problem{Reason: why.code.name(), Here: own, Anywhere: !own},
				func() string { return fmt.Sprintf("%s: %s %s: not served", field, a, why.text) })
		case ok == nil && len(addrs) == 1:
			return addrs
		default:
			if ok == nil {
				ok = make([]netip.Addr, 0, len(addrs)-i)
			}
			ok = append(ok, a)
		}
	}
	return ok
}

// nodesAmong gives of each family, IPv4 and IPv6, the address of this node's that stands in a list; invalid: none does.
// Such a list names nodes: k3s's ServiceLB writes all of theirs into a load balancer's status.
func (s Site) nodesAmong(addrs []netip.Addr) (nodes [2]netip.Addr) {
	for _, a := range s.Node.Addrs {
		if slices.Contains(addrs, a) {
			nodes[family(a.Is4())] = a
		}
	}
	return nodes
}

// refusal says why a Service may not have an address. The zero value: it may.
type refusal struct {
	code Code
	text string
	here bool // it is this node's to say; of any other address another node may say the same
}

var allowed refusal

// refuseClusterIP: a Service that had the node's own address would cut the node off.
func (c *compiler) refuseClusterIP(a netip.Addr) refusal { return c.refuseOwn(a) }

// refuseOwn says why an address is this node's. While its Node object is not known, that may be any of them.
func (c *compiler) refuseOwn(a netip.Addr) refusal {
	switch {
	case slices.Contains(c.site.Node.Addrs, a):
		return refusal{code: NodeAddress, text: "is an address of this node", here: true}
	case len(c.site.Node.Addrs) == 0 && c.site.isLocal(a):
		return refusal{code: NodeAddress, text: "stands on this node, whose own addresses are not known yet", here: true}
	}
	return allowed
}

// refuseSecond says why an address is this node's that its Node object does not name: a second interface's, the gateway
// of the bridge that its pods are on.
func (c *compiler) refuseSecond(a netip.Addr) refusal {
	if _, own := slices.BinarySearchFunc(c.site.Local.Own, a, netip.Addr.Compare); own {
		return refusal{code: NodeAddress, text: "stands on an interface of this node, with its subnet"}
	}
	return allowed
}

// refuseExternal says why no Service may have an address from outside the range of ClusterIPs (B61).
func (c *compiler) refuseExternal(a netip.Addr) refusal {
	own := c.refuseOwn(a)
	switch {
	case own != allowed:
		return own
	case slices.Contains(c.site.APIServers, a):
		return refusal{code: APIServerAddress, text: "is an address of the API server"}
	case inAny(c.opt.Protected, a):
		return refusal{code: ProtectedAddress, text: "is in a protected range"}
	case inAny(c.opt.Pods, a) || inAny(c.site.Node.PodCIDRs, a):
		return refusal{code: PodAddress, text: "is in a range of the cluster's pods"}
	case c.nodes[family(a.Is4())].IsValid():
		return c.hinted(refusal{code: OthersAddress, text: "stands beside " + c.nodes[family(a.Is4())].String() + ", which is this node's, so it is taken for another node's"})
	case c.site.isEdge(a) || classE.Contains(a):
		return refusal{code: NoHostAddress, text: "can be no host's"}
	case !c.hasFamily(a):
		return refusal{code: FamilyMissing, text: "is of a family that the Service does not have"}
	}
	if second := c.refuseSecond(a); second != allowed {
		return second
	}
	return c.refuseEndpoint(a)
}

// refuseEndpoint says why an address is an endpoint's. One on a node is a pod's, or the node's: whoever had it would take
// what is meant for that. One that is written by hand may as well be a virtual IP that somebody wants to lead to: the
// older of the two Services decides, so that neither takes from the other what was there.
func (c *compiler) refuseEndpoint(a netip.Addr) refusal {
	switch n := c.named[a]; {
	case n.Pod != (cluster.ID{}):
		return c.hinted(refusal{code: EndpointAddress, text: "is an endpoint of Service " + n.Pod.String()})
	case n.ByHand != (cluster.ID{}) && (holder{n.Created, n.ByHand}).compare(holder{c.svc.Created, c.svc.ID}) < 0:
		return refusal{code: EndpointAddress, text: "is an endpoint of Service " + n.ByHand.String() + ", which is older"}
	}
	return allowed
}

// hinted adds what to do where the address may be a node's that nobody has named (B86).
func (c *compiler) hinted(r refusal) refusal {
	if len(c.opt.Protected) == 0 {
		r.text += "; where that is a node's, name the nodes' ranges in protectedCIDRs, which is empty"
	}
	return r
}

// refuseExternalIP: whoever may write a Service could take any address, so they are served only by leave
// (CVE-2020-8554).
func (c *compiler) refuseExternalIP(a netip.Addr) refusal {
	if !inAny(c.opt.ExternalIPs, a) {
		return refusal{code: ExternalIP, text: "is not in the ranges that --external-ip-cidrs allows"}
	}
	return c.refuseExternal(a)
}

// hasFamily reports whether the Service has ClusterIPs of an address's family.
func (c *compiler) hasFamily(a netip.Addr) bool {
	return slices.ContainsFunc(c.svc.ClusterIPs, func(ip netip.Addr) bool { return ip.Is4() == a.Is4() })
}

func inAny(ranges []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// NodePortAddresses says on which of the node's addresses node ports are served. The zero value: on all of
// them, as in kube-proxy's ipvs mode; loopback is never among them, since IPVS takes no packet from there.
type NodePortAddresses struct {
	// Primary: on the first address of each family that the Node object has, and on no other, but for Ranges.
	Primary bool
	// Nowhere4 and Nowhere6: on none of the family, but for Ranges and Primary.
	Nowhere4, Nowhere6 bool
	// Ranges are those that count. A family with none counts as a whole, unless it is served nowhere.
	Ranges []netip.Prefix
}

func (n NodePortAddresses) selects(a netip.Addr, primaries []netip.Addr) bool {
	first := slices.IndexFunc(primaries, func(p netip.Addr) bool { return p.Is4() == a.Is4() })
	if n.Primary && first >= 0 && primaries[first] == a {
		return true
	}
	ofFamily := func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }
	if slices.ContainsFunc(n.Ranges, ofFamily) {
		return inAny(n.Ranges, a)
	}
	return !n.Primary && (a.Is4() && !n.Nowhere4 || a.Is6() && !n.Nowhere6)
}

// checkAddresses are those on which healthCheckNodePorts are served: where node ports are, and on all where these are
// not limited, which spares a new address a new listener.
func (n NodePortAddresses) checkAddresses(s Site) []netip.Addr {
	if n.Primary || n.Nowhere4 || n.Nowhere6 || len(n.Ranges) > 0 {
		return s.NodePorts
	}
	if s.Local.NoIPv6 {
		return []netip.Addr{netip.IPv4Unspecified()}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// ParseNodePortAddresses reads the setting nodePortAddresses: CIDRs and the words primary, all and localhost, which add
// up (kube-proxy 1.36 wants a word by itself, 1.37 does not). What is of one family alone means all addresses of the
// other. The warnings say what is accepted and serves nothing.
func ParseNodePortAddresses(list []string) (n NodePortAddresses, warnings []string, err error) {
	const nothing = "IPVS takes no packet from the loopback interface, so node ports are not served there"
	for _, s := range list {
		switch s {
		case "all":
			continue
		case "primary":
			n.Primary = true
			continue
		case "localhost":
			n.Nowhere4, n.Nowhere6 = true, true
			warnings = append(warnings, "node ports on localhost: "+nothing)
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return n, nil, fmt.Errorf("%q is neither an address range like 192.0.2.0/24 nor one of primary, all and localhost", s)
		}
		if p = p.Masked(); p.Addr().IsLoopback() {
			n.Nowhere4, n.Nowhere6 = n.Nowhere4 || p.Addr().Is4(), n.Nowhere6 || p.Addr().Is6()
			warnings = append(warnings, fmt.Sprintf("node ports on %s: %s", p, nothing))
			continue
		}
		n.Ranges = append(n.Ranges, p)
	}
	if slices.Contains(list, "all") {
		return NodePortAddresses{}, warnings, nil
	}
	return n, warnings, nil
}
