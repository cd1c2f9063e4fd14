package desk

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// TestB90SourceRangesOnce: source ranges are sorted and merged once for each family of a Service, however many ports and
// addresses it has. Where the node is in one of them, each address that is in none has a list of its own, for all ports.
func TestB90SourceRangesOnce(t *testing.T) {
	const ranges, ports = 1000, 100
	for name, c := range map[string]struct {
		node  string
		lists int
	}{
		"the node is in none": {"192.0.2.7", 2},
		// Of the six addresses one is in a range, and three are IPv6.
		"the node is in one": {"198.18.0.4", 1 + 1 + 2},
	} {
		t.Run(name, func(t *testing.T) {
			svc := balancer("web", "10.96.0.1", "203.0.113.1", 1)
			svc.ClusterIPs = append(svc.ClusterIPs, netip.MustParseAddr("fd20::1"))
			svc.LoadBalancerIPs = addrsOf("198.18.0.0", "203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8::2", "2001:db8::3")
			svc.SourceRangesGiven = true
			svc.Ports = service("web", "10.96.0.1", slices.Collect(numbers(ports))...).Ports
			for i := range ranges {
				svc.SourceRanges = append(svc.SourceRanges,
					netip.MustParsePrefix(fmt.Sprintf("198.18.%d.%d/32", 2*i>>8, 2*i&255)), netip.MustParsePrefix(fmt.Sprintf("2001:db8:0:%x::/64", 2*i+2)))
			}
			f := Compile(svc, nil, nil, Site{Node: nodeNamed(c.node)}, Options{})
			lists, limited := map[*ipvs.Range]int{}, 0
			for _, claim := range f.Claims {
				if claim.Claim.Rank != RankLoadBalancer {
					continue
				}
				limited++
				guard := claim.Claim.Want.Guard
				lists[&guard.Ranges[0]]++
				inside := c.lists > 2 && claim.Key.Addr.Is4()
				if mayCome := slices.ContainsFunc(guard.Ranges, func(r ipvs.Range) bool { return r.Contains(claim.Key.Addr) }); mayCome != (inside || claim.Key.Addr == addrsOf("198.18.0.0")[0]) {
					t.Errorf("%s: the node's own packets may come: %t", claim.Key, mayCome)
				}
			}
			t.Logf("%d limited frontends have %d lists of ranges: %v", limited, len(lists), lists)
			if limited != 6*ports || len(lists) != c.lists {
				t.Errorf("%d limited frontends have %d lists of ranges, want %d with %d", limited, len(lists), 6*ports, c.lists)
			}
		})
	}
}

// numbers are 1 to n.
func numbers(n uint16) func(func(uint16) bool) {
	return func(yield func(uint16) bool) {
		for i := range n {
			if !yield(i + 1) {
				return
			}
		}
	}
}
