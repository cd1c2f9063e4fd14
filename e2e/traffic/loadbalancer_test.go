package traffic

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// noticed is the second in which the node's own addresses are followed, on a machine that is 15 times slower
// than metal and shared.
const noticed = 3 * time.Second

// announced gives a LoadBalancer addresses in its status, as its controller does; none: it is pending.
func announced(svc lab.Service, ips ...string) lab.Service {
	return announcedAs("", svc, ips...)
}

// announcedAs does so with an ipMode.
func announcedAs(mode string, svc lab.Service, ips ...string) lab.Service {
	list := []map[string]any{}
	for _, ip := range ips {
		in := map[string]any{"ip": ip}
		if mode != "" {
			in["ipMode"] = mode
		}
		list = append(list, in)
	}
	svc.Status = map[string]any{"loadBalancer": map[string]any{"ingress": list}}
	return svc
}

// inTurn: everyone who asks a frontend three times gets each of the three pods.
func (s *stage) inTurn(t *testing.T, to netip.AddrPort) {
	t.Helper()
	for _, c := range s.everyone() {
		answers(t, c.Host, to)
		hits(t, c, to, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1})
	}
}

// wantBound waits until an address stands on a node's kube-ipvs0, or does not.
func wantBound(t testing.TB, n *lab.Node, a netip.Addr, want bool) {
	t.Helper()
	lab.Eventually(t, soon, "binding", func() error { return isBound(t, n, a, want) })
}

// B12: the addresses of a LoadBalancer's status are served on every node, to every kind of client; while there
// are none the node port works; and they are followed live when they come, change and go. The Service beside it
// has no node ports, since allocateLoadBalancerNodePorts is false.
func TestB12LoadBalancer(t *testing.T) {
	s := newStage(t).start()
	svc, plain := balanced(web(12), 12), announced(web(13), "203.0.113.13", "fd20:113::13")
	plain.Type, plain.Spec = "LoadBalancer", map[string]any{"allocateLoadBalancerNodePorts": false}
	pending, moved := announced(svc), announced(svc, "203.0.113.112", "fd20:113::112")
	own := func(svc lab.Service, family int) netip.AddrPort { return s.frontends(svc, family)["NodePort"] }
	lb := func(svc lab.Service, family int) netip.AddrPort { return s.frontends(svc, family)["LoadBalancer"] }

	s.apply(pending, s.pods()...)
	each(t, func(t *testing.T, family int) { s.inTurn(t, own(svc, family)) })
	has := frontends(svc)
	for _, a := range []string{"172.28.128.11", "10.244.1.1", "fd28:128::11", "fd10:244:1::1"} {
		has = append(has, "tcp "+netip.AddrPortFrom(netip.MustParseAddr(a), svc.Ports[0].NodePort).String())
	}
	wantHas(t, s.w.Node(1), has...)

	s.apply(svc, s.pods()...)
	s.apply(plain, s.pods()...)
	for _, svc := range []lab.Service{svc, plain} {
		each(t, func(t *testing.T, family int) { s.inTurn(t, lb(svc, family)) })
	}
	has = append(has, frontends(plain)...)
	for _, svc := range []lab.Service{svc, plain} {
		has = append(has, "tcp "+lb(svc, 4).String(), "tcp "+lb(svc, 6).String())
	}
	wantHas(t, s.w.Node(1), has...)
	if err := s.w.ClientViaNode(2); err != nil { // whichever node the traffic comes to
		t.Fatal(err)
	}
	each(t, func(t *testing.T, family int) { s.inTurn(t, lb(svc, family)) })

	s.apply(moved, s.pods()...)
	each(t, func(t *testing.T, family int) {
		s.inTurn(t, lb(moved, family))
		s.wantGone(t, lb(svc, family))
		s.inTurn(t, own(svc, family))
	})
	s.apply(pending, s.pods()...)
	each(t, func(t *testing.T, family int) {
		s.wantGone(t, lb(moved, family))
		s.inTurn(t, own(svc, family))
		s.inTurn(t, lb(plain, family))
	})
}

// B12: with ipMode Proxy an address is the load balancer's own, and what the cluster sends there must get
// there: it is neither bound nor served. The mode is followed live.
func TestB12IPModeProxy(t *testing.T) {
	s := newStage(t).start()
	addrs := []string{"203.0.113.14", "fd20:113::14"}
	svc := announced(balanced(web(14), 14), addrs...)
	// The load balancer is a machine on the wire, behind the nodes' default route.
	s.outsiders(80)
	br0, err := s.w.Wire.Netlink().LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip := netip.MustParseAddr(a)
		if err := s.w.Wire.Netlink().AddrAdd(br0, &netlink.Addr{IPNet: netipNet(netip.PrefixFrom(ip, ip.BitLen()))}); err != nil {
			t.Fatal(err)
		}
	}
	inside := []*lab.Host{s.w.Pod("pod-a").Host, s.w.Node(1).Host, s.w.Pod("pod-c").Host, s.w.Node(2).Host}
	for _, step := range []struct{ mode, want string }{{"Proxy", "wire"}, {"VIP", "pod-b"}, {"Proxy", "wire"}, {"", "pod-b"}} {
		s.apply(announcedAs(step.mode, svc, addrs...), s.w.Pod("pod-b"))
		s.ready(svc)
		each(t, func(t *testing.T, family int) {
			to := netip.AddrPortFrom(balancerAddr(svc, family), 80)
			for _, n := range s.w.Nodes {
				wantBound(t, n, to.Addr(), step.want != "wire")
			}
			for _, h := range inside {
				wantHit(t, h, to, step.want)
			}
			if step.want == "wire" {
				for _, n := range s.w.Nodes {
					wantReals(t, n, to)
				}
			}
		})
	}
}

// followed changes a node's addresses and waits until the agent has drawn its conclusion, in time.
func (s *stage) followed(t *testing.T, n *lab.Node, what string, change, concluded func() error) {
	t.Helper()
	limit := s.inTime(t, n, noticed)
	began := time.Now()
	if err := change(); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, limit, what, concluded)
	t.Logf("%s after %s", what, time.Since(began).Round(time.Millisecond))
}

// isBound says what is wrong when an address stands on a node's kube-ipvs0, or does not.
func isBound(t testing.TB, n *lab.Node, a netip.Addr, want bool) error {
	if is := bound(t, n, a); is != want {
		return fmt.Errorf("%s on kube-ipvs0 of %s: %t, want %t", a, n.Name, is, want)
	}
	return nil
}

// B12: an address that stands on another interface of the node, where kube-vip or keepalived put it, is served
// there, but neither bound nor closed: it is not ours. It comes and goes live, and a start finds it as it is.
func TestB12AddressOfAnother(t *testing.T) {
	s := newStage(t).start()
	leader, other := s.w.Node(1), s.w.Node(2)
	for _, n := range s.w.Nodes {
		daemon(t, n, 22)
	}
	svc := web(15)
	svc.Ports = append(svc.Ports, lab.Port{Name: "load", Port: 81, TargetPort: 8080})
	svc = balanced(svc, 15)
	s.apply(svc, s.pods()...)
	each(t, func(t *testing.T, family int) {
		vip := balancerAddr(svc, family)
		prefix := netip.PrefixFrom(vip, vip.BitLen())
		s.isOurs(t, leader, vip)
		s.isOurs(t, other, vip)
		// Half of the connections stand while the address comes.
		load := s.w.Client.StartLoad(netip.AddrPortFrom(vip, 81), lab.LoadConfig{Rate: 20, Wait: 500 * time.Millisecond, Timeout: patient})
		s.followed(t, leader, "an address that came to another interface is left to it",
			func() error { return leader.AddAddr(prefix) },
			func() error { return isBound(t, leader, vip, false) })
		s.isTheirs(t, leader, vip)
		s.isOurs(t, other, vip)
		s.restart(0)
		s.isTheirs(t, leader, vip)
		if r := load.Stop(); r.Lost > 0 || r.Answered == 0 {
			t.Errorf("load while the address came: %s", r)
		} else {
			t.Logf("load while the address came: %s", r)
		}
		s.followed(t, leader, "an address that left the other interface is bound",
			func() error { return leader.DelAddr(prefix) },
			func() error { return isBound(t, leader, vip, true) })
		s.isOurs(t, leader, vip)
		wouldNotice(t, s.w.Client, leader, netip.AddrPortFrom(vip, 81))
	})
}

// isOurs: a virtual IP is bound, served to everyone, and closed but for its Service.
func (s *stage) isOurs(t *testing.T, n *lab.Node, vip netip.Addr) {
	t.Helper()
	s.inTurn(t, netip.AddrPortFrom(vip, 80))
	wantBound(t, n, vip, true)
	wantRefused(t, client{n.Name, n.Host}, netip.AddrPortFrom(vip, 22))
}

// isTheirs: an address of a node is served to everyone, and as open as before.
func (s *stage) isTheirs(t *testing.T, n *lab.Node, vip netip.Addr) {
	t.Helper()
	for _, c := range s.clients() {
		wantHit(t, c.Host, netip.AddrPortFrom(vip, 22), "daemon of "+n.Name)
	}
	s.inTurn(t, netip.AddrPortFrom(vip, 80))
	if err := isBound(t, n, vip, false); err != nil {
		t.Error(err)
	}
}

// B18: two Services share a LoadBalancer's address with different ports and protocols. What the one does with
// its own leaves the other's alone, and the address stays until the last user goes.
func TestB18SharedAddress(t *testing.T) {
	s := newStage(t).start()
	b, c := s.w.Pod("pod-b"), s.w.Pod("pod-c")
	s.serveUDP(5353, c)
	shared := []string{"203.0.113.18", "fd20:113::18"}
	one, two := announced(web(18), shared...), announced(web(19), shared...)
	one.Type, two.Type = "LoadBalancer", "LoadBalancer"
	two.Ports = []lab.Port{{Name: "alt", Port: 81, TargetPort: 8080}, {Name: "dns", Protocol: "UDP", Port: 80, TargetPort: 5353}}
	to := func(family int, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(balancerAddr(one, family), port)
	}
	of := func(pod string) map[string]int { return map[string]int{pod: 2} }
	twoServes := func(t *testing.T, family int, from client) {
		t.Helper()
		hits(t, from, to(family, 81), of("pod-c"))
		hitsBy(t, from, to(family, 80), asks[1], of("pod-c"))
	}
	s.apply(one, b)
	s.apply(two, c)
	each(t, func(t *testing.T, family int) {
		for _, from := range s.clients() {
			answers(t, from.Host, to(family, 81))
			wantHit(t, from.Host, to(family, 80), "pod-b")
			twoServes(t, family, from)
		}
	})
	// The first one goes, comes back and moves to another address, while the second serves.
	load := underLoad(t, s.w.Client, to(4, 81), patient, func() {
		for _, gone := range []func(){
			func() { v4, v6 := s.w.SlicesFor(one); s.cluster.Delete(one, v4, v6) },
			func() { s.apply(announced(one, "203.0.113.118", "fd20:113::118"), b) },
		} {
			gone()
			each(t, func(t *testing.T, family int) {
				for _, from := range s.clients() {
					wantRefused(t, from, to(family, 80))
					twoServes(t, family, from)
				}
				for _, n := range s.w.Nodes {
					wantBound(t, n, to(family, 80).Addr(), true)
				}
			})
			s.apply(one, b)
			each(t, func(t *testing.T, family int) { wantHit(t, s.w.Client, to(family, 80), "pod-b") })
		}
	})
	if t.Logf("the Service beside it: %s", load); load.Lost > 0 {
		t.Errorf("the Service beside it: %s", load)
	}
	wouldNotice(t, s.w.Client, s.w.Node(1), to(4, 81))
	lab.Eventually(t, time.Minute, "the agent has mended it", func() error {
		if r := s.w.Client.Ask(to(4, 81), lab.Timeout(time.Second)); r.Verdict != lab.Answered {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	v4, v6 := s.w.SlicesFor(two)
	s.cluster.Delete(two, v4, v6)
	each(t, func(t *testing.T, family int) {
		for _, from := range s.clients() {
			wantRefused(t, from, to(family, 81))
			hits(t, from, to(family, 80), of("pod-b"))
		}
	})
	s.cluster.Delete(one)
	each(t, func(t *testing.T, family int) { s.wantGone(t, to(family, 80)) })
}
