package kernel

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// hears waits until something is heard and holds it against what should be. Notifications come in order: what was
// heard before and should not have been is among it.
func hears(t *testing.T, k *Kernel, what string, want ipvs.Tampering) {
	t.Helper()
	var got ipvs.Tampering
	deadline := time.After(30 * time.Second)
	for got.And(want) != got {
		select {
		case <-k.Tampered():
			got = got.And(k.Tampering())
		case <-deadline:
			t.Fatalf("%s: heard %+v, want %+v", what, got, want)
		}
	}
	if got != want {
		t.Errorf("%s: heard %+v, want %+v", what, got, want)
	}
}

var (
	baseAlone = ipvs.Tampering{Base: true}
	keysAlone = ipvs.Tampering{Keys: true}
	heardBoth = ipvs.Tampering{Base: true, Keys: true}
)

// elements are some of ours, of both families.
func elements(remove bool) (es []ipvs.Element) {
	for _, k := range []ipvs.Key{key("10.96.0.10", 80), key("fd00:96::10", 80)} {
		es = append(es, ipvs.Element{Set: ipvs.SetOwned, Key: k, Remove: remove}, ipvs.Element{Set: ipvs.SetOpen, Key: k, Remove: remove}, ipvs.Element{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(k.Addr), Remove: remove})
	}
	return es
}

func writes(t *testing.T, n *nftDoor, es []ipvs.Element) {
	t.Helper()
	for i, o := range n.write(context.Background(), es) {
		if o.Err != nil {
			t.Fatalf("%s: %v", es[i], o.Err)
		}
	}
}

// B74, F23: what others do to our table is heard; what we do ourselves, and what happens to other tables, is not.
func TestHearsTables(t *testing.T) {
	n := testNFT(t)
	k := &Kernel{nft: n}
	var err error
	k.link, err = openLink("")
	must(t, err)
	t.Cleanup(k.link.close)
	must(t, k.listen())
	t.Cleanup(k.watch.close)
	other, err := newNFT(n.cfg)
	must(t, err)
	t.Cleanup(other.close)
	lib, err := nftables.New()
	must(t, err)
	flush := func() { must(t, lib.Flush()) }
	repair := func() {
		t.Helper()
		_, _, err := n.ensure(context.Background())
		must(t, err)
	}
	foreign := lib.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}) // the name alone is not ours
	chain := lib.AddChain(&nftables.Chain{Name: chainPost, Table: foreign})
	flush()
	for _, c := range []struct {
		what string
		do   func()
		want ipvs.Tampering
	}{
		{"an element removed", func() { writes(t, other, elements(true)[:1]) }, keysAlone},
		{"an element added", func() { writes(t, other, []ipvs.Element{{Set: ipvs.SetOpen, Key: key("10.96.0.10", 81)}}) }, keysAlone},
		{"a set emptied", func() { lib.FlushSet(n.sets()[0]); flush() }, keysAlone},
		{"rules removed", func() { lib.FlushChain(chains(n.table)[0]); flush() }, baseAlone},
		{"a rule added", func() { lib.AddRule(&nftables.Rule{Table: n.table, Chain: chains(n.table)[0]}); flush() }, baseAlone},
		{"the table removed", func() { lib.DelTable(n.table); flush() }, heardBoth},
		{"the ruleset flushed", func() { lib.FlushRuleset(); flush() }, heardBoth},
	} {
		repair()
		writes(t, n, elements(false))
		writes(t, n, elements(true))
		writes(t, n, elements(false))
		lib.AddRule(&nftables.Rule{Table: foreign, Chain: chain})
		if c.what != "the ruleset flushed" {
			flush()
		}
		c.do()
		hears(t, k, c.what, c.want)
	}
}

// B74, F22: what others do to our interface and to what stands on it is heard; what we do ourselves, and what happens
// elsewhere, is not.
func TestHearsLinks(t *testing.T) {
	for _, binding := range []Binding{BindAddress, BindRoute} {
		t.Run(string(binding), func(t *testing.T) { testHearsLinks(t, binding) })
	}
}

func testHearsLinks(t *testing.T, binding Binding) {
	up := inNode(t)
	other, k := openNode(t, binding), openNode(t, binding) // k finds the interface, and later makes it anew
	addrs := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")}
	ours := func() netlink.Link {
		link, err := netlink.LinkByName(linkName)
		must(t, err)
		return link
	}
	unbind := func(i int) func() { return func() { try(t, other, ipvs.Unbind{Addr: addrs[i]}, nil) } }
	for _, c := range []struct {
		what string
		do   func()
		want ipvs.Tampering
	}{
		{"an IPv4 address removed", unbind(0), keysAlone},
		{"an IPv6 address removed", unbind(1), keysAlone},
		{"the interface set down with nothing on it", func() {
			for _, a := range addrs {
				try(t, k, ipvs.Unbind{Addr: a}, nil)
			}
			must(t, netlink.LinkSetDown(ours()))
		}, baseAlone}, // so that our own removals were not heard
		{"the interface set down", func() { must(t, netlink.LinkSetDown(ours())) }, heardBoth},
		{"the interface removed", func() { must(t, netlink.LinkDel(ours())) }, heardBoth},
		{"the new interface set down", func() { must(t, netlink.LinkSetDown(ours())) }, heardBoth},
	} {
		for _, k := range []*Kernel{k, other} {
			_, err := k.Base(context.Background())
			must(t, err)
		}
		k.Do(context.Background(), ipvs.Plan{{Op: ipvs.Bind{Addr: addrs[0]}}, {Op: ipvs.Bind{Addr: addrs[1]}}}) // one may stand
		for _, a := range addrs {
			try(t, k, ipvs.Unbind{Addr: a}, nil)
			try(t, k, ipvs.Bind{Addr: a}, nil)
		}
		addNodeAddr(t, up, "192.168.7.77/32")
		gone, err := netlink.ParseAddr("192.168.7.77/32")
		must(t, err)
		must(t, netlink.AddrDel(up, gone))
		c.do()
		hears(t, k, c.what, c.want)
	}
}

// B74: the canary notices that others add and remove virtual servers of IPv4, and that all of IPv6 are gone; not what
// we write ourselves.
func TestCanary(t *testing.T) {
	inNode(t)
	k, other := openNode(t, BindAddress), openNode(t, BindAddress)
	wants := func(what string, want ipvs.Census) {
		t.Helper()
		began := time.Now()
		got, err := k.Canary(context.Background())
		if took := time.Since(began); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", what, got, err, want)
		} else {
			t.Logf("%s: %s", what, took)
		}
	}
	v4, v6 := key("10.96.0.10", 80), key("fd00:96::10", 80)
	wants("the first count", ipvs.AsBefore)
	for _, key := range []ipvs.Key{v4, v6} {
		try(t, k, ipvs.AddServer{Key: key, Scheduler: "rr"}, nil)
		wants("our own", ipvs.AsBefore)
		try(t, k, ipvs.DelServer{Key: key}, nil)
		wants("our own, gone", ipvs.AsBefore)
		try(t, k, ipvs.AddServer{Key: key, Scheduler: "rr"}, nil)
		try(t, other, ipvs.DelServer{Key: key}, nil)
		wants("removed by another", ipvs.AllGone)
		wants("and nothing more", ipvs.AsBefore)
	}
	try(t, other, ipvs.AddServer{Key: v4, Scheduler: "rr"}, nil)
	wants("added by another", ipvs.Changed)
	try(t, other, ipvs.AddServer{Key: v6, Scheduler: "rr"}, nil)
	must(t, k.Scan(context.Background(), func(ipvs.Key, ipvs.Observed) {}))
	try(t, other, ipvs.DelServer{Key: v6}, nil)
	wants("one of IPv6 that was found, removed by another", ipvs.Changed)
	try(t, other, ipvs.DelServer{Key: v4}, nil)
	wants("the last one, removed by another", ipvs.AllGone)
	// One of IPv6 that is not the one that is asked for is no less there.
	first, second := key("fd00:96::11", 80), key("fd00:96::12", 80)
	for _, key := range []ipvs.Key{v4, first, second} {
		try(t, k, ipvs.AddServer{Key: key, Scheduler: "rr"}, nil)
	}
	try(t, k, ipvs.DelServer{Key: first}, nil)
	try(t, other, ipvs.DelServer{Key: v4}, nil)
	wants("the last one of IPv4, removed by another, while there is one of IPv6", ipvs.Changed)
	try(t, other, ipvs.DelServer{Key: second}, nil)
	wants("that one, removed by another", ipvs.AllGone)
}

// F28: where there is no room for notifications, that is heard. The control: with the usual room it is not.
func TestF28Overrun(t *testing.T) {
	inNode(t)
	const many = 300
	for _, room := range []int{earBytes, 1} { // 1: as little as the kernel allows
		k, other := openNode(t, BindAddress), openNode(t, BindAddress)
		for _, node := range []*Kernel{k, other} {
			if _, err := node.Base(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := k.watch.links.f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) })
		}
		if err != nil {
			t.Fatal(err)
		}
		k.Tampering()
		var plan, back ipvs.Plan
		for i := range many {
			a := netip.AddrFrom4([4]byte{10, 96, byte(i / 250), byte(1 + i%250)})
			plan, back = append(plan, ipvs.Step{Op: ipvs.Bind{Addr: a}}), append(back, ipvs.Step{Op: ipvs.Unbind{Addr: a}})
		}
		var heard ipvs.Tampering
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && (!heard.Keys || heard.Lost != (room == 1)); {
			for _, p := range []ipvs.Plan{plan, back} { // what another program takes off is heard of
				for _, o := range other.Do(context.Background(), p) {
					if o.Err != nil {
						t.Fatal(o.Err)
					}
				}
			}
			select {
			case <-k.Tampered():
			case <-time.After(time.Second):
			}
			heard = heard.And(k.Tampering())
		}
		if !heard.Keys || heard.Lost != (room == 1) {
			t.Errorf("with room for %d bytes: heard %+v", room, heard)
		}
	}
}
