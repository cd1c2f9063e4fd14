package lab

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddr gives the node's eth0 another address, as kube-vip or keepalived would. It can be used at once: no
// duplicate address detection, and whoever on the wire knew it as somebody else's has forgotten that. As theirs,
// it is deprecated: not a source for the node's own connections, which other nodes would answer to themselves.
func (n *Node) AddAddr(p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p), ValidLft: math.MaxInt32} // no PreferedLft: deprecated
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.nl.AddrAdd(n.eth0, a); err != nil {
		return fmt.Errorf("address %s on eth0 of %s: %w", p, n.Name, err)
	}
	if err := n.local(p.Addr()); err != nil {
		return err
	}
	// Before its group is heard on the wire, nobody finds an IPv6 address.
	var group netip.Addr
	if p.Addr().Is6() {
		group = p.Addr()
	}
	return errors.Join(n.settled("eth0", group), n.world.forgetNeighbour(p.Addr()))
}

// DelAddr takes an address from the node's eth0.
func (n *Node) DelAddr(p netip.Prefix) error {
	if err := n.nl.AddrDel(n.eth0, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
		return fmt.Errorf("removing address %s from eth0 of %s: %w", p, n.Name, err)
	}
	return nil
}

// AddDummy makes a dummy interface that is up, with addresses that the node takes for its own.
func (n *Node) AddDummy(name string, prefixes ...netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := n.nl.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("dummy interface %s on %s: %w", name, n.Name, err)
	}
	link, err := n.up(name)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		if err := n.addAddr(link, p); err != nil {
			return err
		}
		if err := n.local(p.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// DelLink removes an interface of the node with its addresses, if there is one of that name.
func (n *Node) DelLink(name string) error { return n.unplug(name) }

// local waits until packets to an address are the host's own: IPv6 makes the
// route for it a little after the address, and would forward them until then.
func (h *Host) local(a netip.Addr) error {
	deadline := time.Now().Add(settleTime)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		routes, err := h.nl.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not local to %s after %s: routes %v: %w", a, h.Name, settleTime, routes, err)
		}
		time.Sleep(pause)
	}
}

// forgetNeighbour has every host on the wire ask anew who has an address. It
// stands for the announcement that the new owner would send, and that a kernel
// ignores for a second after it has learnt another answer.
func (w *World) forgetNeighbour(a netip.Addr) error {
	hosts := map[*Host]string{w.Client: "eth0", w.Wire: "br0"}
	for _, n := range w.Nodes {
		hosts[n.Host] = "eth0"
	}
	var errs []error
	for h, link := range hosts {
		if err := h.forgetNeighbour(link, a); err != nil {
			errs = append(errs, fmt.Errorf("forgetting neighbour %s of %s: %w", a, h.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (h *Host) forgetNeighbour(name string, a netip.Addr) error {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	list, err := h.nl.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, n := range list {
		if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap() != a {
			continue
		}
		if err := h.nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}
