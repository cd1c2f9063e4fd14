package lab

import (
	"net/netip"
	"testing"
	"time"
)

// An address of the wire that moves from node to node is found at once.
func TestAddrMoves(t *testing.T) {
	w := NewWithoutIPVS(t)
	for _, n := range w.Nodes {
		if _, err := n.ServeHTTP(n.Name, 80); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []netip.Prefix{netip.MustParsePrefix("172.28.128.50/24"), netip.MustParsePrefix("fd28:128::50/64")} {
		to := netip.AddrPortFrom(p.Addr(), 80)
		for _, i := range []int{1, 2, 1} {
			if err := w.Node(i).AddAddr(p); err != nil {
				t.Fatal(err)
			}
			for _, from := range []*Host{w.Client, w.Pod("pod-a").Host, w.Pod("pod-c").Host} {
				// The control: once more, when every neighbour knows the way. Who asks a stale one asks again after 1 s.
				r, control := from.Ask(to), from.Ask(to)
				if r.Pod != w.Node(i).Name || r.Took > time.Second+control.Took {
					t.Errorf("%s asks %s on %s: %s; and once more: %s", from.Name, to, w.Node(i).Name, r, control)
				}
			}
			if err := w.Node(i).AddAddr(p); err == nil {
				t.Errorf("%s was added twice", p)
			}
			if err := w.Node(i).DelAddr(p); err != nil {
				t.Fatal(err)
			}
			if r := w.Client.Ask(to, Timeout(timeoutOfControls)); r.Verdict == Answered {
				t.Errorf("%s went and still answers: %s", to, r)
			}
			if err := w.Node(i).DelAddr(p); err == nil {
				t.Errorf("%s was removed twice", p)
			}
		}
		// The node's own address is what it was.
		family := 4
		if p.Addr().Is6() {
			family = 6
		}
		if r := w.Client.Ask(at(w.Node(2).Host, family, 80)); r.Pod != "node2" {
			t.Errorf("node2 by its own address: %s", r)
		}
	}
}

func TestDummy(t *testing.T) {
	w := New(t, Config{Nodes: 1})
	n := w.Node(1)
	if _, err := n.ServeHTTP("node1", 80); err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32"), netip.MustParsePrefix("fd20:113::9/128")}
	if err := n.AddDummy("vip0", addrs...); err != nil {
		t.Fatal(err)
	}
	if err := n.AddDummy("vip0"); err == nil {
		t.Error("two interfaces of one name")
	}
	ask := func(answered bool) {
		t.Helper()
		for _, p := range addrs {
			for _, from := range []*Host{w.Client, w.Pod("pod-a").Host} {
				if r := from.Ask(netip.AddrPortFrom(p.Addr(), 80), Timeout(timeoutOfControls)); (r.Verdict == Answered) != answered {
					t.Errorf("%s asks %s: %s, want it answered: %t", from.Name, p.Addr(), r, answered)
				}
			}
		}
	}
	ask(true)
	for range 2 {
		if err := n.DelLink("vip0"); err != nil {
			t.Fatal(err)
		}
	}
	ask(false)
}
