package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// overlayPort is where the nodes take VXLAN from each other: flannel's.
const overlayPort = 8472

// overlay is one family's tunnel of a node, as flannel's backend vxlan makes it (pkg/backend/vxlan of flannel): the first
// address of the node's range of pods, and by netlink alone who is where: nothing is learnt and nobody is asked.
type overlay struct {
	family int
	link   string
	vni    int
	kind   int // of mac
}

var overlays = []overlay{{4, "flannel.1", 1, 3}, {6, "flannel-v6.1", 2, 4}}

func (o overlay) of(n *Node) (outer netip.Addr, inner netip.Addr, pods netip.Prefix, hw net.HardwareAddr) {
	pods = n.PodCIDR4
	if o.family == 6 {
		pods = n.PodCIDR6
	}
	return n.Addr(o.family), pods.Addr(), pods, mac(o.kind, n.Index, 1)
}

// oneHash keeps a socket's hash when a SYN is sent again (sk_rethink_txhash). Between namespaces a packet takes it along, and
// VXLAN its source port from it, so that what was lost would come through at the second try; a network card hands no hash on.
// Kernels before 5.18 have no such switch.
func (h *Host) oneHash() error {
	err := h.sysctl("net/core/txrehash", "0")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tunnel gives a node the tunnels to all others.
func (n *Node) tunnel(others []*Node) error {
	for _, o := range overlays {
		outer, inner, _, hw := o.of(n)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = o.link, hw
		vxlan := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: o.vni, VtepDevIndex: n.eth0.Attrs().Index, SrcAddr: outer.AsSlice(), Port: overlayPort}
		if err := n.nl.LinkAdd(vxlan); err != nil {
			return fmt.Errorf("%s of %s: %w", o.link, n.Name, err)
		}
		link, err := n.up(o.link)
		if err != nil {
			return err
		}
		if err := n.addAddr(link, netip.PrefixFrom(inner, inner.BitLen())); err != nil {
			return err
		}
		for _, other := range others {
			if other == n {
				continue
			}
			if err := n.tunnelTo(other, o, link); err != nil {
				return fmt.Errorf("%s of %s to %s: %w", o.link, n.Name, other.Name, err)
			}
		}
	}
	return nil
}

func (n *Node) tunnelTo(other *Node, o overlay, link netlink.Link) error {
	outer, inner, pods, hw := o.of(other)
	family := map[int]int{4: unix.AF_INET, 6: unix.AF_INET6}[o.family]
	index := link.Attrs().Index
	for _, e := range []*netlink.Neigh{
		{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: inner.AsSlice(), HardwareAddr: hw},
		{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: outer.AsSlice(), HardwareAddr: hw},
	} {
		if err := n.nl.NeighSet(e); err != nil {
			return fmt.Errorf("neighbour %s: %w", e, err)
		}
	}
	return n.nl.RouteAdd(&netlink.Route{LinkIndex: index, Dst: ipNet(pods), Gw: inner.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
}
