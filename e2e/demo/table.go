package main

import (
	"fmt"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// counted waits until the kernel has added up its counts, which it does every 2 s.
func (s *show) counted(n *lab.Node) error {
	return eventually("the kernel counts connections", func() error {
		servers, err := n.VirtualServers()
		if err != nil {
			return err
		}
		for _, v := range servers {
			if v.Connections == 0 {
				return fmt.Errorf("none at %s", v.Addr)
			}
		}
		return nil
	})
}

// table prints a node's IPVS table as ipvsadm does, read by a library that is not the agent's own writer.
func (s *show) table(n *lab.Node) error {
	servers, err := n.VirtualServers()
	if err != nil {
		return err
	}
	s.say("    %-28s %-9s %6s %11s %8s %8s", "TCP virtual server", "scheduler", "weight", "connections", "active", "inactive")
	for _, v := range servers {
		s.say("    %-28s %-9s %6s %11d", v.Addr, v.Scheduler, "", v.Connections)
		for _, r := range v.Reals {
			s.say("      -> %-23s %-9s %6d %11d %8d %8d", r.Addr, "", r.Weight, r.Connections, r.Active, r.Inactive)
		}
	}
	return nil
}
