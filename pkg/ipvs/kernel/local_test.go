package kernel

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// localDoor opens what Local needs, in a namespace of the test's own. It needs no IPVS.
func localDoor(t *testing.T) *Kernel {
	t.Helper()
	inNetns(t)
	k := &Kernel{}
	var err error
	k.link, err = openLink("")
	must(t, err)
	t.Cleanup(k.link.close)
	must(t, k.listen())
	t.Cleanup(k.watch.close)
	return k
}

func dummy(t *testing.T, name string) netlink.Link {
	t.Helper()
	link := &netlink.Dummy{LinkAttrs: netlink.NewLinkAttrs()}
	link.Name = name
	if err := netlink.LinkAdd(link); err != nil {
		t.Skipf("no dummy interfaces here (%v): the lab has them", err)
	}
	must(t, netlink.LinkSetUp(link))
	return link
}

func wantLocal(t *testing.T, k *Kernel, want ...string) {
	t.Helper()
	got, err := k.Local(context.Background())
	must(t, err)
	var addrs []netip.Addr
	for _, w := range want {
		addrs = append(addrs, netip.MustParseAddr(w))
	}
	if !slices.Equal(got.Addrs, ipvs.SortAddrs(addrs)) {
		t.Errorf("got %v, want %v", got.Addrs, addrs)
	}
}

// heard waits for the token that says that something changed.
func heard(t *testing.T, k *Kernel, what string) {
	t.Helper()
	select {
	case <-k.LocalChanged():
	case <-time.After(30 * time.Second): // a busy machine is slow, not deaf
		t.Errorf("%s: nothing heard", what)
	}
}

// unheard: what happened before a certain change of an address is no news. The change itself is, so that the
// test need not wait for what does not come.
func unheard(t *testing.T, k *Kernel, what string) {
	t.Helper()
	select {
	case <-k.LocalChanged():
		t.Errorf("%s: taken for news", what)
	default:
	}
}

// Local gives the addresses of other interfaces as they come and go, and their changes are heard; those of our
// own interface, loopback and link-local ones do not count.
func TestLocalFollowsAddresses(t *testing.T) {
	k := localDoor(t)
	eth, ours := dummy(t, "eth9"), dummy(t, linkName)
	wantLocal(t, k)
	for len(k.LocalChanged()) > 0 {
		<-k.LocalChanged()
	}
	addNodeAddr(t, ours, "10.96.0.1/32")
	addNodeAddr(t, ours, "fd00:96::1/128")
	wantLocal(t, k)
	// A netlink socket delivers in order: when its answer is here, the notification is in the other one's queue.
	unheard(t, k, "an address of our own interface")
	addNodeAddr(t, eth, "192.168.7.5/24")
	heard(t, k, "a new IPv4 address")
	addNodeAddr(t, eth, "fd00:7::5/64")
	heard(t, k, "a new IPv6 address")
	wantLocal(t, k, "192.168.7.5", "fd00:7::5")
	gone, err := netlink.ParseAddr("192.168.7.5/24")
	must(t, err)
	must(t, netlink.AddrDel(eth, gone))
	heard(t, k, "an address that went")
	wantLocal(t, k, "fd00:7::5")
	must(t, netlink.LinkDel(eth))
	heard(t, k, "an interface that went")
	wantLocal(t, k)
}

// B42: whether the node has IPv6 is read, and that it is switched on is heard.
func TestLocalFollowsIPv6(t *testing.T) {
	k := localDoor(t)
	noIPv6 := func(want bool) {
		t.Helper()
		got, err := k.Local(context.Background())
		must(t, err)
		if got.NoIPv6 != want {
			t.Errorf("IPv6 switched off: %t, want %t", got.NoIPv6, want)
		}
	}
	noIPv6(false)
	set := func(value string) {
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte(value), 0))
	}
	set("1")
	heard(t, k, "IPv6 switched off")
	noIPv6(true)
	set("0")
	heard(t, k, "IPv6 switched on")
	noIPv6(false)
}

// What of Local may become another without a word is seen without reading it: which interface is ours, whether the node has
// IPv6, and with which address its own connections leave.
func TestLocalMoved(t *testing.T) {
	k := localDoor(t)
	eth, ours := dummy(t, "eth9"), dummy(t, linkName)
	ctx, anywhere := context.Background(), &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	look := func() (moved bool) {
		_, _, err := k.link.ensure(ctx)
		must(t, err)
		return k.moved(ctx)
	}
	look()
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"an address, and a way out", func() {
			addNodeAddr(t, eth, "192.168.7.5/24")
			must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: anywhere}))
		}},
		{"another source on that way", func() {
			addNodeAddr(t, eth, "192.168.8.5/24")
			must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: anywhere, Src: net.ParseIP("192.168.8.5")}))
		}},
		{"IPv6 is switched off", func() {
			must(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0))
		}},
		{"another interface is ours", func() { must(t, netlink.LinkDel(ours)) }},
	} {
		if look() {
			t.Errorf("before %s: moved, and nothing happened", c.what)
		}
		if c.do(); !look() {
			t.Errorf("%s: not moved", c.what)
		}
	}
	addNodeAddr(t, dummy(t, "eth8"), "192.168.9.5/24")
	if look() {
		t.Error("an address that is heard of: moved")
	}
}
