package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// inNode gives the test a namespace with an interface that has an address of each family and the default
// routes, as a node has.
func inNode(t *testing.T) netlink.Link {
	t.Helper()
	needsIPVS(t)
	inNetns(t)
	up := &netlink.Dummy{LinkAttrs: netlink.NewLinkAttrs()}
	up.Name = "up0"
	must(t, netlink.LinkAdd(up))
	must(t, netlink.LinkSetUp(up))
	addNodeAddr(t, up, "192.168.7.5/24")
	addNodeAddr(t, up, "fd00:7::5/64")
	defaultRoute(t, up, "192.168.7.1", "")
	defaultRoute(t, up, "fd00:7::1", "")
	return up
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addNodeAddr(t *testing.T, link netlink.Link, prefix string) {
	t.Helper()
	a, err := netlink.ParseAddr(prefix)
	must(t, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	must(t, netlink.AddrAdd(link, a))
}

func defaultRoute(t *testing.T, link netlink.Link, gateway, source string) {
	t.Helper()
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway), Src: net.ParseIP(source)}
	must(t, netlink.RouteReplace(r))
}

// openNode opens the door with a binding in the namespace where the test is.
func openNode(t *testing.T, binding Binding) *Kernel {
	t.Helper()
	k, err := Open(context.Background(), Config{Binding: binding})
	must(t, err)
	t.Cleanup(k.Close)
	_, err = k.Base(context.Background())
	must(t, err)
	return k
}

func try(t *testing.T, k *Kernel, op ipvs.Op, want error) {
	t.Helper()
	o := k.Do(context.Background(), ipvs.Plan{{Op: op}})[0]
	if o.Unknown || want == nil && o.Err != nil || !errors.Is(o.Err, want) {
		t.Fatalf("%s: %+v, want %v", op, o, want)
	}
}

// stands checks what is read of an address by Observe.
func stands(t *testing.T, k *Kernel, a netip.Addr, bind, misbound bool) {
	t.Helper()
	got, err := k.Observe(context.Background(), []ipvs.Key{ipvs.AddrKey(a)})
	must(t, err)
	var f ipvs.Frontend
	if o, ok := got[ipvs.AddrKey(a)]; ok {
		f = *o.Have
	}
	if f.Bind != bind || f.Misbound != misbound {
		t.Fatalf("%s: bound %v, misbound %v; want %v, %v", a, f.Bind, f.Misbound, bind, misbound)
	}
}

// forms says in which forms an address stands on our interface.
func forms(t *testing.T, k *Kernel, a netip.Addr) (addr, route bool) {
	t.Helper()
	list, err := k.link.addresses(context.Background(), k.link.index)
	must(t, err)
	for _, s := range list {
		addr = addr || s.addr == a
	}
	routes, err := k.link.routes(context.Background())
	must(t, err)
	_, route = routes[a]
	return addr, route
}

// sourceOf is the address that a connection of the node to a virtual IP carries.
func sourceOf(t *testing.T, a netip.Addr) netip.Addr {
	t.Helper()
	c, err := net.Dial("udp", netip.AddrPortFrom(a, 53).String())
	must(t, err)
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

var vips = []struct{ vip, node, node2, prefix2, gateway string }{
	{"10.96.0.10", "192.168.7.5", "192.168.7.6", "192.168.7.6/24", "192.168.7.1"},
	{"fd00:96::10", "fd00:7::5", "fd00:7::6", "fd00:7::6/64", "fd00:7::1"},
}

// TestBindingChanges: another binding is taken up in place, back and forth, and removal removes both.
func TestBindingChanges(t *testing.T) {
	for _, c := range vips {
		t.Run(c.vip, func(t *testing.T) {
			inNode(t)
			vip, node := netip.MustParseAddr(c.vip), netip.MustParseAddr(c.node)
			byAddr, byRoute := openNode(t, BindAddress), openNode(t, BindRoute)
			try(t, byAddr, ipvs.Bind{Addr: vip}, nil)
			stands(t, byAddr, vip, true, false)
			for range 2 {
				stands(t, byRoute, vip, false, true)
				try(t, byRoute, ipvs.Bind{Addr: vip}, nil)
				stands(t, byRoute, vip, true, false)
				stands(t, byAddr, vip, false, true)
				if addr, route := forms(t, byRoute, vip); addr || !route {
					t.Fatalf("address %v, route %v; want the route alone", addr, route)
				}
				if got := sourceOf(t, vip); got != node {
					t.Errorf("the node's own connection carries %s, want %s", got, node)
				}
				try(t, byRoute, ipvs.Bind{Addr: vip}, unix.EEXIST)
				try(t, byAddr, ipvs.Bind{Addr: vip}, nil)
				stands(t, byAddr, vip, true, false)
				if addr, route := forms(t, byAddr, vip); !addr || route {
					t.Fatalf("address %v, route %v; want the address alone", addr, route)
				}
				try(t, byAddr, ipvs.Bind{Addr: vip}, unix.EEXIST)
			}
			try(t, byAddr, ipvs.Unbind{Addr: vip}, nil)
			for _, k := range []*Kernel{byAddr, byRoute} {
				both(t, byAddr, byRoute, vip)
				stands(t, k, vip, false, true)
				try(t, k, ipvs.Unbind{Addr: vip}, nil)
				stands(t, k, vip, false, false)
				if addr, route := forms(t, k, vip); addr || route {
					t.Fatalf("address %v, route %v are left", addr, route)
				}
				try(t, k, ipvs.Unbind{Addr: vip}, unix.EADDRNOTAVAIL)
			}
		})
	}
}

// TestRoutesOutliveAddresses: taking the last address off the interface leaves the routes of the others.
func TestRoutesOutliveAddresses(t *testing.T) {
	inNode(t)
	byAddr, byRoute := openNode(t, BindAddress), openNode(t, BindRoute)
	moved, removed := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.96.0.11")
	try(t, byAddr, ipvs.Bind{Addr: moved}, nil)
	try(t, byAddr, ipvs.Bind{Addr: removed}, nil)
	try(t, byRoute, ipvs.Bind{Addr: moved}, nil)
	try(t, byRoute, ipvs.Unbind{Addr: removed}, nil)
	stands(t, byRoute, moved, true, false)
	stands(t, byRoute, removed, false, false)
}

// both makes an address stand in both forms, as a crash in the middle of a change leaves it.
func both(t *testing.T, byAddr, byRoute *Kernel, vip netip.Addr) {
	t.Helper()
	l := byRoute.link
	v4, v6, err := l.sources(context.Background())
	must(t, err)
	rs := l.each(context.Background(), []netip.Addr{vip}, func(a netip.Addr) {
		l.putRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a, sourceFor(a, v4, v6))
	})
	must(t, rs[0].err)
	l = byAddr.link
	rs = l.each(context.Background(), []netip.Addr{vip}, func(a netip.Addr) {
		l.putAddr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
	})
	must(t, rs[0].err)
	if addr, route := forms(t, byAddr, vip); !addr || !route {
		t.Fatalf("address %v, route %v; want both", addr, route)
	}
}

// TestNodeAddressChanges: a route with an old source is not bound right, and is mended in place.
func TestNodeAddressChanges(t *testing.T) {
	for _, c := range vips {
		t.Run(c.vip, func(t *testing.T) {
			up := inNode(t)
			vip := netip.MustParseAddr(c.vip)
			k := openNode(t, BindRoute)
			try(t, k, ipvs.Bind{Addr: vip}, nil)
			addNodeAddr(t, up, c.prefix2)
			defaultRoute(t, up, c.gateway, c.node2)
			stands(t, k, vip, false, true)
			try(t, k, ipvs.Bind{Addr: vip}, nil)
			stands(t, k, vip, true, false)
			if got := sourceOf(t, vip).String(); got != c.node2 {
				t.Errorf("the node's own connection carries %s, want %s", got, c.node2)
			}
			// Without a way out, the first address of an interface that is up.
			must(t, netlink.RouteDel(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP(c.gateway)}))
			v4, v6, err := k.link.sources(context.Background())
			must(t, err)
			if got := sourceFor(vip, v4, v6).String(); got != c.node && got != c.node2 {
				t.Errorf("source without a default route: %s", got)
			}
			// Without any address: no source, and bound all the same.
			must(t, netlink.LinkDel(up))
			_ = k.Do(context.Background(), ipvs.Plan{{Op: ipvs.Bind{Addr: vip}}})
			stands(t, k, vip, true, false)
		})
	}
}

// TestLinkGone: on an interface that somebody deleted stands nothing, and Base makes it anew.
func TestLinkGone(t *testing.T) {
	for _, binding := range []Binding{BindAddress, BindRoute} {
		t.Run(string(binding), func(t *testing.T) {
			inNode(t)
			k := openNode(t, binding)
			vip := netip.MustParseAddr("10.96.0.10")
			try(t, k, ipvs.Bind{Addr: vip}, nil)
			link, err := netlink.LinkByName(linkName)
			must(t, err)
			must(t, netlink.LinkDel(link))
			stands(t, k, vip, false, false)
			try(t, k, ipvs.Bind{Addr: vip}, unix.ENODEV)
			r, err := k.Base(context.Background())
			if err != nil || !r.LinkCreated {
				t.Fatalf("%+v, %v; want the interface created", r, err)
			}
			try(t, k, ipvs.Bind{Addr: vip}, nil)
			stands(t, k, vip, true, false)
		})
	}
}

// B85: an IPv6 address is bound so that it is no source as long as there is another one. One that another proxy bound
// otherwise is seen, and put right where it stands.
func TestAddressesAreNoSources(t *testing.T) {
	inNode(t)
	k := openNode(t, BindAddress)
	ours, theirs := netip.MustParseAddr("fd00:96::1"), netip.MustParseAddr("fd00:96::2")
	try(t, k, ipvs.Bind{Addr: ours}, nil)
	link, err := netlink.LinkByName(linkName)
	must(t, err)
	addNodeAddr(t, link, theirs.String()+"/128")
	stands(t, k, ours, true, false)
	stands(t, k, theirs, false, true)
	may := func(a netip.Addr) bool {
		sources, err := k.link.preferred(t.Context())
		must(t, err)
		return sources[a]
	}
	if may(ours) || !may(theirs) {
		t.Errorf("sources: ours %t, theirs %t", may(ours), may(theirs))
	}
	try(t, k, ipvs.Bind{Addr: theirs}, nil)
	stands(t, k, theirs, true, false)
	if may(theirs) {
		t.Error("theirs is a source still")
	}
	try(t, k, ipvs.Bind{Addr: theirs}, unix.EEXIST) // there is nothing to be done
	try(t, k, ipvs.Unbind{Addr: theirs}, nil)
	stands(t, k, theirs, false, false)
}
