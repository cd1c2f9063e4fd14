package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// place is a network namespace with one link to the node, which is the namespace that the process began in. Its
// neighbours are written down, so that nobody asks for an address while packets are counted.
type place struct {
	name  string
	ns    netns.NsHandle
	addrs [2]netip.Prefix // IPv4, IPv6
	ends  [2]netip.Prefix // the node's end of the link
	port  uint16          // the source port that was used last
}

// The places: two pods, and a client that is not of the cluster.
func places() (client, server, outside *place) {
	at := func(name, v4, end4, v6, end6 string) *place {
		return &place{name: name, port: 10000, addrs: [2]netip.Prefix{netip.MustParsePrefix(v4), netip.MustParsePrefix(v6)},
			ends: [2]netip.Prefix{netip.MustParsePrefix(end4), netip.MustParsePrefix(end6)}}
	}
	return at("client", "10.250.1.10/24", "10.250.1.1/24", "fd10:244:1::10/64", "fd10:244:1::1/64"),
		at("server", "10.250.2.10/24", "10.250.2.1/24", "fd10:244:2::10/64", "fd10:244:2::1/64"),
		at("outside", "172.28.0.100/24", "172.28.0.11/24", "fd28::100/64", "fd28::11/64")
}

// podRanges are those of the pods.
func podRanges() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd10:244::/32")}
}

// build makes the namespace and its link. The thread is locked to its goroutine.
func (p *place) build(i byte) error {
	node, err := netns.Get()
	if err != nil {
		return err
	}
	defer node.Close()
	if p.ns, err = netns.New(); err != nil {
		return fmt.Errorf("namespace of the %s: %w", p.name, err)
	}
	if err := netns.Set(node); err != nil {
		return err
	}
	here, there := net.HardwareAddr{2, 0, 0, 0, 1, i}, net.HardwareAddr{2, 0, 0, 0, 2, i}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "to-"+p.name, here
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: there, PeerNamespace: netlink.NsFd(p.ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("link to the %s: %w", p.name, err)
	}
	mine, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer mine.Close()
	its, err := netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer its.Close()
	if err := furnish(mine, attrs.Name, p.ends, p.addrs, there); err != nil {
		return fmt.Errorf("the node's end of the link to the %s: %w", p.name, err)
	}
	if err := furnish(its, "lo", [2]netip.Prefix{}, [2]netip.Prefix{}, nil); err != nil {
		return err
	}
	if err := furnish(its, "eth0", p.addrs, p.ends, here); err != nil {
		return fmt.Errorf("interface of the %s: %w", p.name, err)
	}
	return defaultRoutes(its, p.ends)
}

// furnish has an interface up, with addresses, and its neighbours known.
func furnish(h *netlink.Handle, name string, addrs, neighbours [2]netip.Prefix, mac net.HardwareAddr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for i, a := range addrs {
		if !a.IsValid() {
			continue
		}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		n := neighbours[i].Addr()
		if err := h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: n.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}); err != nil {
			return fmt.Errorf("neighbour %s: %w", n, err)
		}
	}
	return nil
}

func defaultRoutes(h *netlink.Handle, by [2]netip.Prefix) error {
	link, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	for i, gw := range by {
		all := netip.PrefixFrom([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[i], 0)
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gw.Addr().AsSlice()}); err != nil {
			return fmt.Errorf("default route by %s: %w", gw, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// buildPlaces makes all three, and a router of the node.
func buildPlaces(ps ...*place) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i, p := range ps {
		if err := p.build(byte(i)); err != nil {
			return err
		}
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/"+key, []byte("1"), 0); err != nil {
			return err
		}
	}
	// The link-local addresses of IPv6 are looked for on the links, for a second or two: not while packets are counted.
	time.Sleep(5 * time.Second)
	return nil
}

// in calls f on a thread that is in the place's namespace.
func (p *place) in(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(p.ns); err != nil {
			done <- fmt.Errorf("enter the namespace of the %s: %w", p.name, err)
			return
		}
		done <- f()
	}()
	return <-done
}
