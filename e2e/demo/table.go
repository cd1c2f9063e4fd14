package main

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// frontends reads these frontends of a node's IPVS table, with a library that is not the agent's own writer.
func frontends(n *lab.Node, at ...netip.AddrPort) ([]lab.VirtualServer, error) {
	servers, err := n.VirtualServers()
	if err != nil {
		return nil, err
	}
	servers = slices.DeleteFunc(servers, func(v lab.VirtualServer) bool { return !slices.Contains(at, v.Addr) })
	if len(servers) != len(at) {
		return nil, fmt.Errorf("%s has %d of the frontends %v", n.Name, len(servers), at)
	}
	return servers, nil
}

// counted reads frontends once the kernel, which adds up every 2 s, has counted that many connections to each.
func counted(n *lab.Node, connections uint32, at ...netip.AddrPort) (servers []lab.VirtualServer, err error) {
	err = eventually("the kernel counts connections", func() (err error) {
		if servers, err = frontends(n, at...); err != nil {
			return err
		}
		for _, v := range servers {
			if v.Connections < connections {
				return fmt.Errorf("%d of %d at %s", v.Connections, connections, v.Addr)
			}
		}
		return nil
	})
	return servers, err
}

// table prints frontends as ipvsadm does, once each has had that many connections.
func (s *show) table(n *lab.Node, connections uint32, at ...netip.AddrPort) error {
	servers, err := counted(n, connections, at...)
	if err != nil {
		return err
	}
	s.say("    %-28s %-9s %6s %11s %8s %8s", "virtual server", "scheduler", "weight", "connections", "active", "inactive")
	for _, v := range servers {
		s.say("    %-4s %-23s %-9s %6s %11d", v.Protocol, v.Addr, v.Scheduler, "", v.Connections)
		for _, r := range v.Reals {
			s.say("      -> %-23s %-9s %6d %11d %8d %8d", r.Addr, "", r.Weight, r.Connections, r.Active, r.Inactive)
		}
	}
	return nil
}
