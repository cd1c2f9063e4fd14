package main

import (
	"fmt"
	"net/netip"

	mobyipvs "github.com/moby/ipvs"
	"github.com/sirupsen/logrus"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

func init() {
	// The library tries modprobe and complains where there is none; the module is in the kernel already.
	logrus.SetLevel(logrus.ErrorLevel)
}

// counted waits until the kernel has added up its counts, which it does every 2 s.
func (s *show) counted(n *lab.Node) error {
	return eventually("the kernel counts connections", func() error {
		return n.Do(func() error {
			h, err := mobyipvs.New("")
			if err != nil {
				return err
			}
			defer h.Close()
			services, err := h.GetServices()
			if err != nil {
				return err
			}
			for _, svc := range services {
				if svc.Stats.Connections == 0 {
					return fmt.Errorf("none at %s", addrPort(svc.Address, svc.Port))
				}
			}
			return nil
		})
	})
}

// table prints a node's IPVS table as ipvsadm does, read by a library that is not the agent's own writer.
func (s *show) table(n *lab.Node) error {
	return n.Do(func() error {
		h, err := mobyipvs.New("")
		if err != nil {
			return fmt.Errorf("open the IPVS table of %s: %w", n.Name, err)
		}
		defer h.Close()
		services, err := h.GetServices()
		if err != nil {
			return fmt.Errorf("read the IPVS table of %s: %w", n.Name, err)
		}
		s.say("    %-28s %-9s %6s %11s %8s %8s", "TCP virtual server", "scheduler", "weight", "connections", "active", "inactive")
		for _, svc := range services {
			s.say("    %-28s %-9s %6s %11d", addrPort(svc.Address, svc.Port), svc.SchedName, "", svc.Stats.Connections)
			dests, err := h.GetDestinations(svc)
			if err != nil {
				return fmt.Errorf("read the real servers of %s: %w", addrPort(svc.Address, svc.Port), err)
			}
			for _, d := range dests {
				s.say("      -> %-23s %-9s %6d %11d %8d %8d", addrPort(d.Address, d.Port), "", d.Weight, d.Stats.Connections, d.ActiveConnections, d.InactiveConnections)
			}
		}
		return nil
	})
}

func addrPort(ip []byte, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}
