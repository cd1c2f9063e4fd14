package kernel

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func addLink(t *testing.T, l netlink.Link) int {
	t.Helper()
	must(t, netlink.LinkAdd(l))
	found, err := netlink.LinkByName(l.Attrs().Name)
	must(t, err)
	return found.Attrs().Index
}

func named(name string, master int) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MasterIndex = name, master
	return a
}

// TestBridgeTrouble: a bridge counts when it has a pod's port, and each family for itself.
func TestBridgeTrouble(t *testing.T) {
	needsIPVS(t) // and bridges
	inNetns(t)
	const v4, v6 = "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"
	values := func(of4, of6 string) map[string]string {
		return map[string]string{v4: of4, v6: of6, "net/ipv6/conf/all/forwarding": "1"}
	}
	check := func(name string, values map[string]string, want ...string) {
		t.Helper()
		found, err := bridgeTrouble(context.Background(), procSys(t, values))
		if err != nil || len(found) != len(want) {
			t.Errorf("%s: %q, %v; want %d", name, found, err, len(want))
			return
		}
		for i := range want {
			for _, part := range strings.Split(want[i], "|") {
				if !strings.Contains(found[i].Error(), part) {
					t.Errorf("%s: %q does not say %q", name, found[i], part)
				}
			}
		}
	}
	check("no bridge", values("0", "0"))
	// One without ports, one with a port that is no pod's.
	addLink(t, &netlink.Bridge{LinkAttrs: named("empty0", 0)})
	uplinks := addLink(t, &netlink.Bridge{LinkAttrs: named("uplink0", 0)})
	addLink(t, &netlink.Dummy{LinkAttrs: named("eth0", uplinks)})
	check("no pods on bridges", values("0", "0"))
	pods := addLink(t, &netlink.Bridge{LinkAttrs: named("cni0", 0)})
	veth := &netlink.Veth{LinkAttrs: named("veth0", pods), PeerName: "veth1"}
	addLink(t, veth)
	check("all right", values("1", "1"))
	check("off for IPv4", values("0", "1"), v4+" is 0|bridge cni0:|IPv4|sysctl -w "+v4+"=1")
	check("off for IPv6", values("1", "0"), v6+" is 0|bridge cni0:|IPv6|sysctl -w "+v6+"=1")
	check("off", values("0", "0"), v4+" is 0 and "+v6+" is 0|bridge cni0:|IPv4 and IPv6 connections|sysctl -w "+v4+"=1|sysctl -w "+v6+"=1")
	check("not loaded", map[string]string{"net/ipv6/conf/all/forwarding": "1"},
		"br_netfilter is not loaded|cni0:|IPv4 and IPv6 connections|modprobe br_netfilter")
	check("not loaded, and IPv6 is off", map[string]string{}, "cni0: IPv4 connections")
}

// B43: the module is asked for before there is a bridge: the first pod brings that, when nobody looks any more.
func TestB43BridgeNetfilterBeforeBridges(t *testing.T) {
	const v4, v6 = "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"
	for _, c := range []struct {
		values  map[string]string
		missing bool
		says    []string // nothing: all is right
	}{
		{map[string]string{v4: "1", v6: "1", "net/ipv6/x": ""}, false, nil},
		{map[string]string{v4: "1", v6: "0"}, false, nil}, // IPv6 is off
		{map[string]string{"net/ipv6/x": ""}, true, []string{"br_netfilter is not loaded", "once pods stand on a bridge", "IPv4 and IPv6", "modprobe br_netfilter"}},
		{map[string]string{"net/ipv4/x": ""}, true, []string{"once pods stand on a bridge, IPv4 connections"}},
		{map[string]string{v4: "1", v6: "0", "net/ipv6/x": ""}, false, []string{v6 + " is 0: ", "IPv6 connections", "sysctl -w " + v6 + "=1"}},
	} {
		err := bridgeNetfilter(procSys(t, c.values))
		if (err != nil) != (len(c.says) > 0) || errors.Is(err, ErrNoBridgeNetfilter) != c.missing {
			t.Errorf("%v: %v", c.values, err)
			continue
		}
		for _, part := range c.says {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v: %q does not say %q", c.values, err, part)
			}
		}
	}
}

// TestBridgeWithItsOwnSwitch: a bridge may hand its packets to netfilter though the sysctl says no.
func TestBridgeWithItsOwnSwitch(t *testing.T) {
	needsIPVS(t) // and br_netfilter
	inNetns(t)
	root := procSys(t, map[string]string{"net/bridge/bridge-nf-call-iptables": "0", "net/bridge/bridge-nf-call-ip6tables": "0", "net/ipv6/x": ""})
	pods := addLink(t, &netlink.Bridge{LinkAttrs: named("cni0", 0)})
	addLink(t, &netlink.Veth{LinkAttrs: named("veth0", pods), PeerName: "veth1"})
	for i, f := range bridgeFamilies {
		found, err := bridgeTrouble(context.Background(), root)
		if err != nil || len(found) != 1 || !strings.Contains(found[0].Error(), f.name) || strings.Contains(found[0].Error(), "IPv4") != (i == 0) {
			t.Errorf("before %s is switched on: %q, %v", f.name, found, err)
		}
		must(t, ask(context.Background(), unix.NETLINK_ROUTE, func(b *batch) {
			b.begin(unix.RTM_NEWLINK, 0, make([]byte, unix.SizeofIfInfomsg))
			b.attrString(unix.IFLA_IFNAME, "cni0")
			b.nest(unix.IFLA_LINKINFO, func() {
				b.attrString(unix.IFLA_INFO_KIND, "bridge")
				b.nest(unix.IFLA_INFO_DATA, func() { b.attr(f.attr, []byte{1}) })
			})
		}))
	}
	if found, err := bridgeTrouble(context.Background(), root); err != nil || len(found) > 0 {
		t.Errorf("both switched on: %q, %v", found, err)
	}
}
