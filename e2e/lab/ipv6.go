package lab

import (
	"errors"
	"net/netip"
)

// SwitchIPv6 switches a node's IPv6 off, which takes its IPv6 addresses and routes away, or on again with those
// that it had when the world was built.
func (n *Node) SwitchIPv6(on bool) error {
	value := "1"
	if on {
		value = "0"
	}
	for _, which := range []string{"all", "default"} {
		if err := n.sysctl("net/ipv6/conf/"+which+"/disable_ipv6", value); err != nil {
			return err
		}
	}
	if !on {
		return nil
	}
	if err := errors.Join(n.addAddr(n.eth0, netip.PrefixFrom(n.V6, WireCIDR6.Bits())),
		n.addAddr(n.cni0, netip.PrefixFrom(n.Gateway6, n.PodCIDR6.Bits()))); err != nil {
		return err
	}
	if err := errors.Join(n.settled("eth0", n.V6), n.settled("cni0", n.Gateway6), n.local(n.V6), n.local(n.Gateway6)); err != nil {
		return err
	}
	errs := []error{n.addRoute(n.eth0, defaultRoutes[1], n.world.Wire.V6)}
	for _, other := range n.world.Nodes {
		if other != n {
			errs = append(errs, n.addRoute(n.eth0, other.PodCIDR6, other.V6))
		}
	}
	return errors.Join(errs...)
}
