package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B10: a virtual server for each address, port and protocol of a Service, in both families, reached from
// pods, nodes and outside, evenly spread; its address on kube-ipvs0, and gone with the Service.
func TestB10ClusterIP(t *testing.T) {
	s := newStage(t).start()
	svc := web(10)
	svc.Ports = append(svc.Ports, lab.Port{Name: "alt", Port: 81, TargetPort: 8080})
	s.apply(svc, s.pods()...)
	s.ready(svc)
	each(t, func(t *testing.T, family int) {
		for _, port := range []uint16{80, 81} {
			to := at(svc, family, port)
			for _, c := range append(s.clients(), client{"pod of another node", s.w.Pod("pod-c").Host}, client{"another node", s.w.Node(2).Host}) {
				answers(t, c.Host, to)
				byPod, lost := c.Spread(to, 12)
				if len(lost) > 0 || byPod["pod-a"] != 4 || byPod["pod-b"] != 4 || byPod["pod-c"] != 4 {
					t.Errorf("%s asks %s 12 times: %v, lost %v; want 4 each of three pods", c.name, to, byPod, lost)
				}
			}
		}
		for _, n := range s.w.Nodes {
			if vip := at(svc, family, 80).Addr(); !bound(t, n, vip) {
				t.Errorf("%s: %s is not on kube-ipvs0", n.Name, vip)
			}
		}
	})
	v4, v6 := s.w.SlicesFor(svc)
	s.cluster.Delete(svc, v4, v6)
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			lab.Eventually(t, soon, "the Service's address goes", func() error {
				if bound(t, n, at(svc, family, 80).Addr()) {
					return fmt.Errorf("still on kube-ipvs0 of %s", n.Name)
				}
				return nil
			})
			wantReals(t, n, at(svc, family, 80))
		}
	})
}

// bound asks again when the list changed while it was read.
func bound(t testing.TB, n *lab.Node, vip netip.Addr) bool {
	t.Helper()
	for {
		found, err := onInterface(n, vip)
		if err == nil {
			return found
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			t.Fatalf("addresses of kube-ipvs0 on %s: %v", n.Name, err)
		}
	}
}

// onInterface reports whether a virtual IP stands on a node's kube-ipvs0, as an address or as a local route.
func onInterface(n *lab.Node, vip netip.Addr) (found bool, err error) {
	err = n.Do(func() error {
		link, err := netlink.LinkByName("kube-ipvs0")
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range list {
			if ip, _ := netip.AddrFromSlice(a.IP); ip.Unmap() == vip {
				found = true
			}
		}
		if err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: link.Attrs().Index},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		for _, r := range routes {
			if ip, _ := netip.AddrFromSlice(r.Dst.IP); ip.Unmap() == vip {
				found = true
			}
		}
		return err
	})
	return found, err
}

// B17: a pod reaches itself through its own Service, on every kind of frontend, over TCP and UDP, also by way of
// another node.
func TestB17Hairpin(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	pod := s.w.Pod("pod-a")
	s.serveUDP(5353, pod)
	svc := everywhere(17)
	s.apply(svc, pod)
	s.ready(svc)
	each(t, func(t *testing.T, family int) {
		ways := s.ways(svc, family)
		other := s.w.Node(2).Addr(family)
		ways = append(ways, way{"NodePort of another node", netip.AddrPortFrom(other, svc.Ports[0].NodePort), netip.AddrPortFrom(other, svc.Ports[1].NodePort)})
		for _, fe := range ways {
			answers(t, pod.Host, fe.tcp)
			for range 3 {
				if r := pod.Ask(fe.tcp); r.Verdict != lab.Answered || r.Pod != "pod-a" {
					t.Errorf("pod-a asks the %s %s, behind which it stands alone: %s", fe.kind, fe.tcp, r)
				}
				if r := pod.AskUDP(fe.udp); r.Pod != "pod-a" {
					t.Errorf("pod-a asks the %s %s over UDP, behind which it stands alone: %s", fe.kind, fe.udp, r)
				}
			}
		}
	})
}

// B17 for endpoints made by hand, which nobody says the node of.
func TestB17HairpinByHand(t *testing.T) {
	s := newStage(t).start()
	pod, svc := s.w.Pod("pod-a"), web(18)
	v4, v6 := s.w.SlicesFor(svc, pod)
	for _, sl := range []lab.Slice{v4, v6} {
		sl.Endpoints[0].Node = ""
		s.cluster.Apply(sl)
	}
	s.cluster.Apply(svc)
	s.ready(svc)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		if r := pod.Ask(to); r.Verdict != lab.Answered || r.Pod != "pod-a" {
			t.Errorf("pod-a asks %s, behind which it stands alone: %s", to, r)
		}
		if r := s.w.Pod("pod-b").Ask(to); r.Verdict != lab.Answered || r.Source != s.w.Pod("pod-b").Addr(family) {
			t.Errorf("pod-b asks %s: %s; want it seen with its own address", to, r)
		}
	})
}
