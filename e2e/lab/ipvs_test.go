package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

// virtualServer makes a weighted round robin by hand on a node: its addresses
// on lo, TCP port 80 to port 8080 of the pods.
func virtualServer(t *testing.T, n *Node, family int, weights map[*Pod]int) netip.AddrPort {
	t.Helper()
	vip := localVIP(t, n, family)
	addServer(t, n, unix.IPPROTO_TCP, vip, weights)
	return vip
}

// localVIP has a node take an address for its own.
func localVIP(t *testing.T, n *Node, family int) netip.AddrPort {
	t.Helper()
	t.Helper()
	vip := netip.MustParseAddr(map[int]string{4: "10.96.0.99", 6: "fd00:96::99"}[family])
	takeAddr(t, n, vip)
	return netip.AddrPortFrom(vip, 80)
}

func addServer(t *testing.T, n *Node, proto uint16, vip netip.AddrPort, weights map[*Pod]int) {
	t.Helper()
	family, af, mask := 4, uint16(unix.AF_INET), uint32(0xffffffff)
	if vip.Addr().Is6() {
		family, af, mask = 6, unix.AF_INET6, 128
	}
	err := n.Do(func() error {
		h, err := ipvs.New("")
		if err != nil {
			return err
		}
		defer h.Close()
		s := &ipvs.Service{Address: vip.Addr().AsSlice(), AddressFamily: af, Netmask: mask,
			Protocol: proto, Port: vip.Port(), SchedName: ipvs.WeightedRoundRobin}
		if err := h.NewService(s); err != nil {
			return err
		}
		for p, weight := range weights {
			d := &ipvs.Destination{Address: p.Addr(family).AsSlice(), AddressFamily: af, Port: 8080,
				Weight: weight, ConnectionFlags: ipvs.ConnFwdMasq}
			if err := h.NewDestination(s, d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("virtual server %s on %s: %v", vip, n.Name, err)
	}
}

// An uneven weight must show as an uneven spread.
func TestSpreadUneven(t *testing.T) {
	w := New(t)
	a, c := w.Pod("pod-a"), w.Pod("pod-c")
	w.ServeHTTP(t, 8080, a, c)
	families46(t, func(t *testing.T, family int) {
		to := virtualServer(t, w.Node(1), family, map[*Pod]int{a: 3, c: 1})
		byPod, lost := w.Pod("pod-b").Spread(to, 8)
		// a answers b on the same bridge: counted only if br_netfilter is on.
		if diff := cmp.Diff(map[string]int{"pod-a": 6, "pod-c": 2}, byPod); diff != "" || len(lost) > 0 {
			t.Errorf("weights 3 and 1, 8 questions: %s lost %v", diff, lost)
		}
	})
	if state := w.Node(1).State(); !containsAll(state, "-A tcp 10.96.0.99:80 -s wrr", "-r 10.244.1.10:8080 -w 3", "-A tcp [fd00:96::99]:80") {
		t.Errorf("the state of node1 lacks its virtual servers:\n%s", state)
	}
}

// What was put into the table by hand is read back, and a connection is counted while it stands.
func TestVirtualServers(t *testing.T) {
	w := New(t)
	n, a, c := w.Node(1), w.Pod("pod-a"), w.Pod("pod-c")
	w.ServeHTTP(t, 8080, c)
	to := virtualServer(t, n, 6, map[*Pod]int{c: 3})
	err := n.Do(func() error {
		h, err := ipvs.New("")
		if err != nil {
			return err
		}
		defer h.Close()
		udp := &ipvs.Service{Address: net.IPv4(10, 96, 0, 53).To4(), AddressFamily: unix.AF_INET, Netmask: 0xffffffff, Protocol: unix.IPPROTO_UDP,
			Port: 53, SchedName: ipvs.SourceHashing, Flags: 0x1 | 0x8, Timeout: 600} // persistent, sh-fallback
		return errors.Join(h.NewService(udp),
			h.NewDestination(udp, &ipvs.Destination{Address: a.V4.AsSlice(), AddressFamily: unix.AF_INET, Port: 5353, Weight: 0}),
			h.NewService(&ipvs.Service{FWMark: 7, AddressFamily: unix.AF_INET, Netmask: 0xffffffff, SchedName: ipvs.RoundRobin}))
	})
	if err != nil {
		t.Fatal(err)
	}
	real := RealServer{Addr: at(c.Host, 6, 8080), Weight: 3}
	tcp := VirtualServer{Addr: to, Protocol: "TCP", Scheduler: "wrr", Reals: []RealServer{real}}
	want := []VirtualServer{
		{Addr: netip.MustParseAddrPort("10.96.0.53:53"), Protocol: "UDP", Scheduler: "sh", Flags: 0x9, Timeout: 600,
			Reals: []RealServer{{Addr: netip.AddrPortFrom(a.V4, 5353)}}},
		tcp,
		{Mark: 7, Scheduler: "rr"},
	}
	read := func() []VirtualServer {
		got, err := n.VirtualServers()
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	compared := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(want, read(), compared); diff != "" {
		t.Error(diff)
	}
	held := make(chan Reply, 1)
	go func() { held <- w.Pod("pod-b").Ask(to, Wait(2*time.Second), Timeout(20*time.Second)) }()
	Eventually(t, 30*time.Second, "the connection counts", func() error {
		if s := read()[1]; s.Reals[0].Active != 1 {
			return fmt.Errorf("%s: %s", s, s.Reals)
		}
		return nil
	})
	if r := <-held; r.Verdict != Answered {
		t.Error(r)
	}
	Eventually(t, 30*time.Second, "the closed connection counts, and in all", func() error {
		s := read()[1]
		if r := s.Reals[0]; r.Active != 0 || r.Inactive != 1 || r.Connections != 1 || s.Connections != 1 {
			return fmt.Errorf("%s: %s", s, s.Reals)
		}
		return nil
	})
	if got, err := w.Node(2).VirtualServers(); err != nil || len(got) > 0 {
		t.Errorf("the other node: %v, %v", got, err)
	}
}

// B44: on one bridge, the reply of a same-node endpoint passes IPVS by unless
// bridged packets go through the hooks of IP.
func TestSameBridge(t *testing.T) {
	for _, test := range []struct {
		what string
		cfg  Config
		want Verdict
	}{
		{"with br_netfilter", Config{Nodes: 1}, Answered},
		{"control, without", Config{Nodes: 1, NoBridgeNetfilter: true}, TimedOut},
	} {
		t.Run(test.what, func(t *testing.T) {
			w := New(t, test.cfg)
			a, b := w.Pod("pod-a"), w.Pod("pod-b")
			w.ServeHTTP(t, 8080, b)
			for _, family := range []int{4, 6} {
				to := virtualServer(t, w.Node(1), family, map[*Pod]int{b: 1})
				if r := a.Ask(to); r.Verdict != test.want {
					t.Errorf("IPv%d: %s, want %s", family, r, test.want)
				}
				if r := w.Node(1).Ask(netip.AddrPortFrom(b.Addr(family), 8080)); r.Pod != "pod-b" {
					t.Errorf("IPv%d: node1 asked the pod itself: %s", family, r)
				}
			}
		})
	}
}
