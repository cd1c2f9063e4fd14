package desk

import (
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// sourceRanges are the sources of one family that may come to a Service's load balancer.
type sourceRanges struct {
	merged []ipvs.Range // sorted and without overlaps; all frontends share it
	node   bool         // this node is among them
	// with are the lists for those addresses of the load balancer that were asked for, while this node is among them.
	with map[netip.Addr][]ipvs.Range
}

// ranges are the sources that may come to a load balancer's address. A process of the node that asks it is seen
// with that address as its source, so it is let in where the node is.
func (c *compiler) ranges(a netip.Addr) []ipvs.Range {
	s := c.sourceRanges(a.Is4())
	if !s.node {
		return s.merged
	}
	list, known := s.with[a]
	if !known {
		if list = s.merged; !slices.ContainsFunc(list, func(r ipvs.Range) bool { return r.Contains(a) }) {
			list = ipvs.InsertRange(list, ipvs.Range{First: a, Last: a})
		}
		s.with[a] = list
	}
	return list
}

// sourceRanges sorts and merges a Service's source ranges of a family, once for all of its ports and addresses: there
// may be thousands.
func (c *compiler) sourceRanges(ipv4 bool) *sourceRanges {
	at := &c.taken[family(ipv4)]
	if *at == nil {
		s := &sourceRanges{with: map[netip.Addr][]ipvs.Range{}}
		node := c.site.primary(ipv4)
		for _, p := range c.svc.SourceRanges {
			if p.Addr().Is4() == ipv4 {
				s.merged = append(s.merged, ipvs.RangeOf(p))
				s.node = s.node || p.Contains(node)
			}
		}
		s.merged = slices.Clip(ipvs.SortRanges(s.merged))
		*at = s
	}
	return *at
}
