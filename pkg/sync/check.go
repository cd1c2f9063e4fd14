package sync

import (
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
)

// checkOf is what a Service's healthCheckNodePort answers on a node (B22): an address counts once, however many
// ports it has.
func checkOf(svc *cluster.Service, eps []cluster.Endpoint, node string) (c healthz.Check) {
	if svc == nil || svc.HealthCheckNodePort == 0 {
		return c
	}
	c.Port = svc.HealthCheckNodePort
	seen := map[netip.Addr]bool{}
	for _, ep := range eps {
		if ep.Ready && ep.NodeName == node && !seen[ep.Addr] {
			seen[ep.Addr] = true
			c.Local[healthz.FamilyOf(ep.Addr)]++
		}
	}
	return c
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
