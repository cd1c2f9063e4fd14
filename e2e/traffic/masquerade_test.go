package traffic

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B26, the part of ClusterIP: a pod keeps its address across nodes, outside clients are masqueraded with
// random ports, and what a node starts itself never leaves with a virtual IP as its source.
func TestB26Masquerade(t *testing.T) {
	s := newStage(t).start()
	near, far := web(26), web(27)
	s.apply(near, s.w.Pod("pod-b"))
	s.apply(far, s.w.Pod("pod-c"))
	s.ready(near)
	s.ready(far)
	node, pod := s.w.Node(1), s.w.Pod("pod-a")
	each(t, func(t *testing.T, family int) {
		gateway := map[int]netip.Addr{4: node.Gateway4, 6: node.Gateway6}[family]
		for _, c := range []struct {
			name string
			from *lab.Host
			to   lab.Service
			want netip.Addr
		}{
			{"pod to a pod of another node", pod.Host, far, pod.Addr(family)},
			{"pod to a pod of its node", pod.Host, near, pod.Addr(family)},
			{"node to a pod of another node", node.Host, far, node.Addr(family)},
			{"node to its own pod", node.Host, near, gateway},
			{"outside to a pod of another node", s.w.Client, far, node.Addr(family)},
			{"outside to a pod of the node", s.w.Client, near, gateway},
		} {
			answers(t, c.from, at(c.to, family, 80))
			if r := c.from.Ask(at(c.to, family, 80)); r.Verdict != lab.Answered || r.Source != c.want {
				t.Errorf("%s: %s; want it seen as %s", c.name, r, c.want)
			}
		}
	})
	each(t, func(t *testing.T, family int) { randomPorts(t, s, at(far, family, 80)) })
}

// B26 without knowledge of the pods' ranges: only what the node starts itself is masqueraded, because it
// would leave with the virtual IP as its source and no reply would come back.
func TestB26NodeOriginated(t *testing.T) {
	s := newStage(t)
	node := s.w.Node(1)
	s.w.StartAgent(t, node, s.cluster, "--cluster-cidr=")
	svc := web(28)
	s.apply(svc, s.w.Pod("pod-c"))
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		answers(t, node.Host, to)
		if r := node.Ask(to); r.Verdict != lab.Answered || r.Source != node.Addr(family) {
			t.Errorf("node asks %s: %s; want it seen as %s", to, r, node.Addr(family))
		}
		if r := s.w.Pod("pod-a").Ask(to); r.Verdict != lab.Answered || r.Source != s.w.Pod("pod-a").Addr(family) {
			t.Errorf("pod-a asks %s: %s; want it seen as %s", to, r, s.w.Pod("pod-a").Addr(family))
		}
	})
}

// randomPorts: of 8 connections from chosen ports, the translated ones keep hardly any. Without
// fully-random the kernel keeps every port that is free.
func randomPorts(t *testing.T, s *stage, to netip.AddrPort) {
	t.Helper()
	const first, n = 20000, 8
	for p := range uint16(n) {
		if r := s.w.Client.Ask(to, lab.FromPort(first+p)); r.Verdict != lab.Answered {
			t.Fatalf("outside client asks %s from port %d: %s", to, first+p, r)
		}
	}
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if to.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	kept, seen := 0, 0
	err := s.w.Node(1).Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		for _, f := range flows {
			if dst, _ := netip.AddrFromSlice(f.Forward.DstIP); dst.Unmap() != to.Addr() || f.Forward.SrcPort < first || f.Forward.SrcPort >= first+n {
				continue
			}
			seen++
			if f.Reverse.DstPort == f.Forward.SrcPort {
				kept++
			}
		}
		return err
	})
	if err != nil || seen != n {
		t.Fatalf("conntrack of node1 shows %d of %d connections to %s: %v", seen, n, to, err)
	}
	if kept > 1 {
		t.Errorf("%d of %d masqueraded connections to %s keep their source port, want random ones", kept, n, to)
	}
}
