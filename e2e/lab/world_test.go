package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

func at(h *Host, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(h.Addr(family), port)
}

func families46(t *testing.T, f func(t *testing.T, family int)) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) { f(t, family) })
	}
}

// addRule puts one rule into a new table and chain of a host.
func addRule(t *testing.T, h *Host, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, rule ...expr.Any) {
	t.Helper()
	err := h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lab-test"})
		chain := c.AddChain(&nftables.Chain{Name: "test", Table: table, Type: typ, Hooknum: hook, Priority: prio})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
		return c.Flush()
	})
	if err != nil {
		t.Fatalf("nftables rule in %s: %v", h.Name, err)
	}
}

func TestWhoAnswers(t *testing.T) {
	w := NewWithoutIPVS(t)
	w.ServeHTTP(t, 8080, w.Pod("pod-a"), w.Pod("pod-b"), w.Pod("pod-c"))
	if _, err := w.Node(2).ServeHTTP("node2-daemon", 9000); err != nil {
		t.Fatal(err)
	}
	families46(t, func(t *testing.T, family int) {
		for _, from := range []*Host{w.Pod("pod-a").Host, w.Pod("pod-c").Host, w.Node(1).Host, w.Node(2).Host} {
			for _, pod := range []string{"pod-a", "pod-b", "pod-c"} {
				if r := from.Ask(at(w.Pod(pod).Host, family, 8080)); r.Pod != pod {
					t.Errorf("%s asked %s: %s", from.Name, pod, r)
				}
			}
		}
		if r := w.Client.Ask(at(w.Node(2).Host, family, 9000)); r.Pod != "node2-daemon" || r.Source != w.Client.Addr(family) {
			t.Errorf("client asked the daemon of node2: %s", r)
		}
	})
}

// A server bound to one address must not answer on the others: else a test
// could not tell a listener on a VIP from one on the wildcard.
func TestServeOnOneAddress(t *testing.T) {
	w := NewWithoutIPVS(t, Config{Nodes: 1, Pods: []PodSpec{}})
	n := w.Node(1)
	if _, err := n.ServeHTTP("bound", 9000, n.V4); err != nil {
		t.Fatal(err)
	}
	if r := w.Client.Ask(at(n.Host, 4, 9000)); r.Pod != "bound" {
		t.Errorf("on the bound address: %s", r)
	}
	if r := w.Client.Ask(at(n.Host, 6, 9000)); r.Verdict != Refused {
		t.Errorf("on another address: %s", r)
	}
	if _, err := n.ServeHTTP("second", 9000, n.V4); err == nil {
		t.Error("two servers on one address and port")
	}
}

func TestSource(t *testing.T) {
	w := NewWithoutIPVS(t)
	w.ServeHTTP(t, 8080, w.Pod("pod-c"))
	a, c := w.Pod("pod-a"), w.Pod("pod-c")
	check := func(what string, want *Host) {
		for _, family := range []int{4, 6} {
			if r := a.Ask(at(c.Host, family, 8080)); r.Source != want.Addr(family) {
				t.Errorf("%s: %s, want source %s", what, r, want.Addr(family))
			}
		}
	}
	check("without a masquerade rule", a.Host)
	addRule(t, w.Node(1).Host, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, &expr.Masq{})
	check("with one", w.Node(1).Host)
}

func TestPodsComeAndGo(t *testing.T) {
	w := NewWithoutIPVS(t)
	c := w.Pod("pod-c")
	d, err := w.AddPod(PodSpec{Name: "pod-d", Node: 1})
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddr("10.244.1.12"); d.V4 != want {
		t.Errorf("pod-d has %s, want %s", d.V4, want)
	}
	w.ServeHTTP(t, 8080, d)
	if r := c.Ask(at(d.Host, 6, 8080)); r.Pod != "pod-d" {
		t.Errorf("the new pod: %s", r)
	}
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	if r := c.Ask(at(d.Host, 4, 8080)); r.Verdict != Unreachable && r.Verdict != TimedOut {
		t.Errorf("the removed pod: %s", r)
	}
	// Another pod takes the address at once; neighbours must find it.
	e, err := w.AddPod(PodSpec{Name: "pod-e", Node: 1, Number: 12})
	if err != nil {
		t.Fatal(err)
	}
	w.ServeHTTP(t, 8080, e)
	if r := c.Ask(at(d.Host, 6, 8080)); r.Pod != "pod-e" {
		t.Errorf("the pod that took the address over: %s", r)
	}
	if err := d.Do(func() error { return nil }); err == nil {
		t.Error("a removed pod can be entered")
	}
	if _, err := w.AddPod(PodSpec{Name: "pod-e", Node: 2}); err == nil {
		t.Error("two pods of one name")
	}
}

// A pod reaches itself through its bridge port only with hairpin mode, which
// masqueraded hairpin traffic needs.
func TestHairpin(t *testing.T) {
	w := NewWithoutIPVS(t, Config{Nodes: 1})
	a := w.Pod("pod-a")
	w.ServeHTTP(t, 8080, a)
	vip := netip.MustParseAddr("10.96.0.98")
	addRule(t, w.Node(1).Host, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, &expr.Masq{})
	err := w.Node(1).Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lab-dnat"})
		chain := c.AddChain(&nftables.Chain{Name: "dnat", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: dnat(vip, a.V4)})
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(vip, 8080)
	if r := a.Ask(to); r.Pod != "pod-a" || r.Source != w.Node(1).Gateway4 {
		t.Errorf("hairpin: %s, want it masqueraded as %s", r, w.Node(1).Gateway4)
	}
	port, err := w.Node(1).nl.LinkByName(a.port)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Node(1).nl.LinkSetHairpin(port, false); err != nil {
		t.Fatal(err)
	}
	if r := a.Ask(to, Timeout(timeoutOfControls)); r.Verdict != TimedOut {
		t.Errorf("control, hairpin mode off: %s", r)
	}
}

// dnat is "ip daddr FROM dnat ip to TO".
func dnat(from, to netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: 2, RegAddrMin: 1},
	}
}

func TestConfigRefused(t *testing.T) {
	for _, cfg := range []Config{{Nodes: 9}, {Nodes: -1}, {ClientVia: 3}, {ClientVia: -2}} {
		if w, err := Build(cfg); err == nil {
			w.Close()
			t.Errorf("built %+v", cfg)
		}
	}
}

func TestClientVia(t *testing.T) {
	w := NewWithoutIPVS(t, Config{Nodes: 3, ClientVia: 2, Pods: []PodSpec{}})
	var vips []netip.Addr
	for _, a := range []string{"10.96.0.7", "fd00:96::7", "203.0.113.7", "fd20:113::7", "198.51.100.7", "fd20:51::7"} {
		vips = append(vips, netip.MustParseAddr(a))
	}
	for _, n := range w.Nodes {
		// A node that takes everything sent to the VIPs for itself.
		for _, vip := range vips {
			takeAddr(t, n, vip)
		}
		if _, err := n.ServeHTTP(n.Name, 80); err != nil {
			t.Fatal(err)
		}
	}
	want := func(node string) {
		t.Helper()
		for _, vip := range vips {
			if r := w.Client.Ask(netip.AddrPortFrom(vip, 80)); r.Pod != node {
				t.Errorf("the client's way to %s: %s, want %s", vip, r, node)
			}
		}
	}
	want("node2")
	for _, i := range []int{3, 1} {
		if err := w.ClientViaNode(i); err != nil {
			t.Fatal(err)
		}
		want(w.Node(i).Name)
	}
	for _, i := range []int{-1, 0, 4} {
		if err := w.ClientViaNode(i); err == nil {
			t.Errorf("the client goes via node %d", i)
		}
	}
	want("node1")
}

// takeAddr puts an address on a node's lo and waits until packets to it are the node's own.
func takeAddr(t *testing.T, n *Node, a netip.Addr) {
	t.Helper()
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.addAddr(lo, netip.PrefixFrom(a, a.BitLen())); err != nil {
		t.Fatal(err)
	}
	if err := n.local(a); err != nil {
		t.Fatal(err)
	}
}

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
