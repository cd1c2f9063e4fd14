package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is a node of the cluster.
type Node struct {
	*Host
	Index int // 1 for node1
	// ReadOnlySysctls: agents that are started from now on may not write
	// /proc/sys, as in a container that is not privileged.
	ReadOnlySysctls bool
	// WithoutCaps are capabilities (unix.CAP_*) that agents lack which are
	// started from now on.
	WithoutCaps []uintptr
	// Container is where agents run that are started from now on; nil for the machine itself.
	Container          *Container
	PodCIDR4, PodCIDR6 netip.Prefix
	Gateway4, Gateway6 netip.Addr // of cni0
	cni0, eth0         netlink.Link
	world              *World
	nextPod            int
}

var defaultRoutes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

func wireAddrs(host int) (netip.Addr, netip.Addr) {
	return netip.MustParseAddr(fmt.Sprintf("172.28.128.%d", host)),
		netip.MustParseAddr(fmt.Sprintf("fd28:128::%d", host))
}

// mac gives every link of the world its own address. It follows from the
// place, so that a pod that takes over the IP address of another is found at
// once: neighbours would keep a random one of its predecessor for seconds.
func mac(kind, node, host int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x28, byte(kind), byte(node), byte(host >> 8), byte(host)}
}

// buildWire makes the wire: a plain switch. Its bridge has the address to which
// the nodes' default routes point, and forwards nothing: what a node sends to
// the rest of the world is lost there without an answer.
func (w *World) buildWire() (err error) {
	if w.Wire, err = newHost("wire"); err != nil {
		return err
	}
	// Frames on the wire are the wire's own business: were they taken through
	// its netfilter hooks, they would cost time and could be tracked there.
	if err := w.Wire.bridgeNetfilter(false); err != nil {
		return err
	}
	br0, err := w.Wire.addBridge("br0", mac(0, 0, 1))
	if err != nil {
		return err
	}
	w.Wire.V4, w.Wire.V6 = wireAddrs(1)
	return w.Wire.addAddrs(br0, WireCIDR4, WireCIDR6)
}

// addAddrs gives an interface the host's two addresses.
func (h *Host) addAddrs(link netlink.Link, of4, of6 netip.Prefix) error {
	if err := h.addAddr(link, netip.PrefixFrom(h.V4, of4.Bits())); err != nil {
		return err
	}
	return h.addAddr(link, netip.PrefixFrom(h.V6, of6.Bits()))
}

// bridgeNetfilter says whether bridged packets pass the hooks of IP.
func (h *Host) bridgeNetfilter(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	for _, key := range []string{"iptables", "ip6tables"} {
		if err := h.sysctl("net/bridge/bridge-nf-call-"+key, value); err != nil {
			if !on {
				continue // no br_netfilter in this kernel: off already
			}
			return fmt.Errorf("is br_netfilter loaded? %w", err)
		}
	}
	return nil
}

// attach plugs a host into the wire.
func (w *World) attach(h *Host, number int) (netlink.Link, error) {
	h.V4, h.V6 = wireAddrs(number)
	br0, err := w.Wire.up("br0")
	if err != nil {
		return nil, err
	}
	eth0, _, err := w.Wire.plug(br0, h.Name, h, mac(0, 0, number))
	if err != nil {
		return nil, err
	}
	return eth0, h.addAddrs(eth0, WireCIDR4, WireCIDR6)
}

func (w *World) buildNode(i int) error {
	h, err := newHost(fmt.Sprintf("node%d", i))
	if err != nil {
		return err
	}
	n := &Node{Host: h, Index: i, world: w,
		PodCIDR4: netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
		PodCIDR6: netip.MustParsePrefix(fmt.Sprintf("fd10:244:%d::/64", i)),
		Gateway4: netip.MustParseAddr(fmt.Sprintf("10.244.%d.1", i)),
		Gateway6: netip.MustParseAddr(fmt.Sprintf("fd10:244:%d::1", i)),
	}
	w.mu.Lock()
	w.Nodes = append(w.Nodes, n)
	w.mu.Unlock()
	if err := n.configure(!w.cfg.NoBridgeNetfilter); err != nil {
		return err
	}
	if n.eth0, err = w.attach(h, 10+i); err != nil {
		return err
	}
	if n.cni0, err = h.addBridge("cni0", mac(1, i, 1)); err != nil {
		return err
	}
	if err := h.addAddr(n.cni0, netip.PrefixFrom(n.Gateway4, n.PodCIDR4.Bits())); err != nil {
		return err
	}
	return h.addAddr(n.cni0, netip.PrefixFrom(n.Gateway6, n.PodCIDR6.Bits()))
}

// configure writes the sysctls of a node, before its links exist, so that they
// inherit them. rp_filter is 2 on interfaces and 0 for all, as systemd's
// 50-default.conf has it on Debian.
func (n *Node) configure(bridgeNetfilter bool) error {
	for _, kv := range [][2]string{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv6/conf/default/forwarding", "1"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "2"},
	} {
		if err := n.sysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	return n.bridgeNetfilter(bridgeNetfilter)
}

// routeNodes tells each node the pod ranges of the others, and that everything
// else is behind the wire.
func (w *World) routeNodes() error {
	for _, n := range w.Nodes {
		for i, gw := range []netip.Addr{w.Wire.V4, w.Wire.V6} {
			if err := n.addRoute(n.eth0, defaultRoutes[i], gw); err != nil {
				return err
			}
		}
		if w.cfg.Overlay {
			if err := errors.Join(n.oneHash(), n.tunnel(w.Nodes)); err != nil {
				return err
			}
			continue
		}
		for _, other := range w.Nodes {
			if other == n {
				continue
			}
			if err := n.addRoute(n.eth0, other.PodCIDR4, other.V4); err != nil {
				return err
			}
			if err := n.addRoute(n.eth0, other.PodCIDR6, other.V6); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *World) buildClient() error {
	h, err := newHost("client")
	if err != nil {
		return err
	}
	w.Client = h
	if w.cfg.Overlay {
		if err := h.oneHash(); err != nil {
			return err
		}
	}
	if _, err = w.attach(h, 100); err != nil || w.cfg.ClientVia < 0 {
		return err
	}
	return w.ClientViaNode(w.cfg.ClientVia)
}

// ClientHas gives the client outside a whole range of addresses, to which all nodes have a route: as many clients as it
// has addresses, for whoever tells them apart by these.
func (w *World) ClientHas(p netip.Prefix) error {
	lo, err := w.Client.up("lo")
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}
	if err := w.Client.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("the client's addresses %s: %w", p, err)
	}
	via := w.Client.V4
	if p.Addr().Is6() {
		via = w.Client.V6
		if err := w.Client.sysctl("net/ipv6/ip_nonlocal_bind", "1"); err != nil { // IPv6 binds to no address of a range
			return err
		}
	}
	for _, n := range w.Nodes {
		r := &netlink.Route{LinkIndex: n.eth0.Attrs().Index, Dst: ipNet(p), Gw: via.AsSlice()}
		if err := n.nl.RouteAdd(r); err != nil {
			return fmt.Errorf("route of %s to the client's addresses %s: %w", n.Name, p, err)
		}
	}
	return nil
}

// ClientViaNode has the client reach all virtual IPs through another node (1 for node1), from its next packet on:
// a router outside that chooses another of several ways.
func (w *World) ClientViaNode(i int) error {
	if i < 1 || i > len(w.Nodes) {
		return fmt.Errorf("the client goes via node %d, but there are %d nodes", i, len(w.Nodes))
	}
	eth0, err := w.Client.up("eth0")
	if err != nil {
		return err
	}
	via := w.Node(i)
	for _, p := range virtualRanges {
		gw := via.V4
		if p.Addr().Is6() {
			gw = via.V6
		}
		r := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(p), Gw: gw.AsSlice()}
		if err := w.Client.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("the client's route to %s via %s: %w", p, via.Name, err)
		}
	}
	return nil
}
