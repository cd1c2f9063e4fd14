package traffic

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// unnumber has a node's uplink have a link-local IPv6 address alone, as with BGP on unnumbered links: the node's own
// address stands on lo, and a client knows the way.
func unnumber(t *testing.T, n *lab.Node, c *lab.Host) {
	t.Helper()
	do := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	link := func(h *lab.Host, name string) netlink.Link {
		l, err := h.Netlink().LinkByName(name)
		do(name+" of "+h.Name, err)
		return l
	}
	eth0, lo := link(n.Host, "eth0"), link(n.Host, "lo")
	addrs, err := n.Netlink().AddrList(eth0, unix.AF_INET6)
	do("addresses of eth0", err)
	var local netip.Addr
	for _, a := range addrs {
		if ip, _ := netip.AddrFromSlice(a.IP); ip.IsLinkLocalUnicast() {
			local = ip
		} else {
			do("remove the uplink's address", n.Netlink().AddrDel(eth0, &a))
		}
	}
	do("address on lo", n.Netlink().AddrAdd(lo, &netlink.Addr{IPNet: netipNet(netip.PrefixFrom(n.V6, 128)), Flags: unix.IFA_F_NODAD}))
	do("route to the wire", n.Netlink().RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: netipNet(lab.WireCIDR6), Scope: netlink.SCOPE_LINK}))
	do("the client's route", c.Netlink().RouteReplace(&netlink.Route{LinkIndex: link(c, "eth0").Attrs().Index, Dst: netipNet(netip.PrefixFrom(n.V6, 128)), Gw: local.AsSlice()}))
}

// B85: a node whose uplink has only a link-local address, and a virtual IP that is nearer to where it connects than its own
// address: its own connections carry its own address. The control: the same address as another proxy binds it; then the
// kernel chooses it as source, and there is no way back. An agent that starts takes such an address over as it should be.
func TestB85NoSourceOfTheNode(t *testing.T) {
	for _, binding := range []string{"address", "route"} {
		t.Run("binding "+binding, func(t *testing.T) {
			s := newStage(t)
			n, outside := s.w.Node(1), s.w.Client
			unnumber(t, n, outside)
			if _, err := outside.ServeHTTP("outside", 8080); err != nil {
				t.Fatal(err)
			}
			to := netip.AddrPortFrom(outside.V6, 8080) // fd28:128::100
			near := netip.MustParseAddr("fd28:128::101")
			svc := announced(web(85), "203.0.113.85", near.String())
			svc.Type = "LoadBalancer"
			own := func(when string) {
				t.Helper()
				if r := n.Ask(to); r.Verdict != lab.Answered || r.Source != n.V6 {
					t.Errorf("%s: %s, want source %s", when, r, n.V6)
				}
			}
			own("before")
			s.start("--vip-binding=" + binding)
			s.apply(svc, s.pods()...)
			programmed(t, s.agents[0])
			lab.Eventually(t, soon, "the virtual IP is bound", func() error {
				if !bound(t, n, near) {
					return fmt.Errorf("it is not")
				}
				return nil
			})
			own("with the virtual IP")
			s.ready(svc)
			if binding == "route" {
				return
			}
			if err := s.agents[0].Stop(); err != nil {
				t.Fatal(err)
			}
			kube, err := n.Netlink().LinkByName("kube-ipvs0")
			if err != nil {
				t.Fatal(err)
			}
			as := func(a netip.Addr) *netlink.Addr {
				return &netlink.Addr{IPNet: netipNet(netip.PrefixFrom(a, 128)), Flags: unix.IFA_F_NODAD}
			}
			if err := n.Netlink().AddrDel(kube, as(near)); err != nil {
				t.Fatal(err)
			}
			if err := n.Netlink().AddrAdd(kube, as(near)); err != nil { // as kube-proxy does
				t.Fatal(err)
			}
			if r := n.Ask(to, lab.Timeout(time.Second)); r.Verdict == lab.Answered && r.Source == n.V6 {
				t.Errorf("the control, with an address that may be a source: %s", r)
			}
			s.agents[0] = s.w.StartAgent(t, n, s.cluster, s.args...)
			programmed(t, s.agents[0])
			own("after an agent took it over")
			s.ready(svc)
		})
	}
}
