package ipvs_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

// frontendOf makes a frontend of bytes, nil of some, and gives the bytes left. A frontend that is wanted is
// ours and open only with a real server.
func frontendOf(data []byte, wanted bool) (*ipvs.Frontend, []byte) {
	next := func() (b byte) {
		if len(data) > 0 {
			b, data = data[0], data[1:]
		}
		return b
	}
	flags := next()
	if flags&1 == 0 {
		return nil, data
	}
	fe := &ipvs.Frontend{Bind: flags&2 != 0, Guard: ipvs.Guard{Owned: flags&4 != 0, Open: flags&8 != 0, VIP: flags&16 != 0}}
	if flags&32 != 0 || wanted {
		fe.Server.Scheduler = []string{"rr", "wrr", "wlc", "mh"}[next()%4]
	}
	if b := next(); b > 127 && fe.Server.Exists() {
		fe.Server.Flags, fe.Server.Timeout = ipvs.Persistent, uint32(b)
	}
	sources := ipvs.Sources(next() % 4)
	if wanted && sources == ipvs.SourcesMasqueraded|ipvs.SourcesKept {
		sources = 0
	}
	fe.Guard.Sources = sources
	policy := next()
	if fe.Guard.Barred = ipvs.Barred(policy & 3); wanted && fe.Guard.Barred == ipvs.BarredOutside|ipvs.BarredAll {
		fe.Guard.Barred = 0
	}
	if to := policy >> 2 & 3; to > 0 {
		fe.Guard.Redirect = netip.AddrPortFrom(key.Addr.Next(), uint16(to))
	}
	fe.Guard.Limited = policy&16 != 0
	for i, bits := range []int{32, 24, 16} {
		if policy&(32<<i) != 0 {
			fe.Guard.Ranges = append(fe.Guard.Ranges, ipvs.RangeOf(netip.PrefixFrom(pod(policy).Addr(), bits)))
		}
	}
	fe.Guard.Ranges = ipvs.SortRanges(fe.Guard.Ranges)
	for range next() % 8 {
		b := next()
		if b&64 != 0 {
			fe.Guard.Hairpin = append(fe.Guard.Hairpin, pod(b).Addr())
		}
		r := ipvs.Real{Addr: pod(b), Weight: uint16(b >> 3 & 3)}
		if wanted && r.Weight == 0 {
			r.Weight = 1
		}
		if fe.Server.Exists() {
			fe.Server.Reals = append(fe.Server.Reals, r)
		}
	}
	fe.Server.Reals = ipvs.SortReals(fe.Server.Reals)
	fe.Guard.Hairpin = ipvs.SortAddrs(fe.Guard.Hairpin)
	if wanted {
		fe.Guard.Owned, fe.Guard.Open = true, len(fe.Server.Reals) > 0
	}
	return fe, data
}

func pod(b byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, b % 8}), 8080+uint16(b>>7))
}

// FuzzDiff: from whatever the kernel holds, Diff leads to what is wanted, in one go, and then has nothing
// left to do. On the way nothing wanted is taken away, and no new connection finds an open frontend without
// a real server.
func FuzzDiff(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add([]byte{1, 0, 0, 2, 8, 9, 0}, false)
	f.Add([]byte{63, 1, 0, 3, 8, 73, 10, 1, 2, 200, 3, 74, 11, 12}, false)
	f.Add([]byte{63, 1, 255, 3, 0, 1, 2, 31, 2, 0, 3, 66, 139, 76}, true)
	f.Add([]byte{63, 0, 0, 2, 8, 9, 0}, true)
	f.Fuzz(func(t *testing.T, data []byte, udp bool) {
		k := key
		if udp {
			k.Proto = ipvs.UDP
		}
		have, rest := frontendOf(data, false)
		want, _ := frontendOf(rest, true)
		node := fake.New()
		if _, err := node.Base(context.Background()); err != nil {
			t.Fatal(err)
		}
		put(node, k, have)
		ops := ipvs.Diff(k, have, want)
		last := ipvs.Phase(0)
		for _, op := range ops {
			if op.Phase() < last {
				t.Errorf("%s comes too late", op)
			}
			last = op.Phase()
			if takesWanted(op, want) {
				t.Errorf("%s takes away what is wanted", op)
			}
			if o := node.Do(context.Background(), ipvs.Plan{{Key: k, Op: op}})[0]; o.Err != nil {
				t.Errorf("%s: %v", op, o.Err)
			}
		}
		got := read(t, node, k)
		if left := ipvs.Diff(k, got, want); len(left) > 0 {
			t.Errorf("left to do: %v", left)
		}
		if want == nil {
			if !got.Equal(&ipvs.Frontend{}) {
				t.Errorf("left behind: %+v", got)
			}
			return
		}
		for i := 0; i < len(got.Server.Reals); {
			r := got.Server.Reals[i]
			if r.Weight == 0 && !udp { // drains
				got.Server.Reals = append(got.Server.Reals[:i], got.Server.Reals[i+1:]...)
			} else {
				i++
			}
		}
		if !got.Equal(want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

// put makes the kernel hold a frontend.
func put(node *fake.Kernel, k ipvs.Key, fe *ipvs.Frontend) {
	if fe == nil {
		return
	}
	if fe.Server.Exists() {
		node.Servers[k] = fe.Server
	}
	set := func(s ipvs.Set, k ipvs.Key, there bool) {
		if there {
			node.Sets[s][k] = true
		}
	}
	for _, s := range ipvs.KeySets {
		if fe.Guard.Has(s) {
			node.Tamper(ipvs.Element{Set: s, Key: k, To: fe.Guard.Redirect})
		}
	}
	for _, r := range fe.Guard.Ranges {
		node.Tamper(ipvs.Element{Set: ipvs.SetRanges, Key: k, From: r})
	}
	set(ipvs.SetVIPs, ipvs.AddrKey(k.Addr), fe.Guard.VIP)
	for _, a := range fe.Guard.Hairpin {
		set(ipvs.SetHairpin, ipvs.AddrKey(a), true)
	}
	if fe.Bind {
		node.Addrs[k.Addr] = true
	}
}

// read puts together all that the kernel holds.
func read(t *testing.T, node *fake.Kernel, k ipvs.Key) *ipvs.Frontend {
	t.Helper()
	fe := &ipvs.Frontend{}
	err := node.Scan(context.Background(), func(at ipvs.Key, o ipvs.Observed) {
		if at == k {
			vip, hairpin := fe.Guard.VIP, fe.Guard.Hairpin
			fe.Server, fe.Guard = o.Have.Server, o.Have.Guard
			fe.Guard.VIP, fe.Guard.Hairpin = vip, hairpin
			return
		}
		fe.Bind = fe.Bind || o.Have.Bind
		fe.Guard.VIP = fe.Guard.VIP || o.Have.Guard.VIP
		fe.Guard.Hairpin = append(fe.Guard.Hairpin, o.Have.Guard.Hairpin...)
	})
	if err != nil {
		t.Fatal(err)
	}
	fe.Guard.Hairpin = ipvs.SortAddrs(fe.Guard.Hairpin)
	return fe
}

// takesWanted reports whether an operation takes away something that is wanted.
func takesWanted(op ipvs.Op, want *ipvs.Frontend) bool {
	if want == nil {
		return false
	}
	wants := func(a netip.AddrPort) bool {
		for _, r := range want.Server.Reals {
			if r.Addr == a {
				return true
			}
		}
		return false
	}
	switch o := op.(type) {
	case ipvs.DelServer:
		return true
	case ipvs.DelReal:
		return wants(o.Addr)
	case ipvs.SetReal:
		return o.Real.Weight == 0 && wants(o.Real.Addr)
	case ipvs.Unbind:
		return want.Bind
	case ipvs.Element:
		if !o.Remove {
			return false
		}
		for _, a := range want.Guard.Hairpin {
			if o.Set == ipvs.SetHairpin && a == o.Key.Addr {
				return true
			}
		}
		return o.Set == ipvs.SetOwned && want.Guard.Owned || o.Set == ipvs.SetOpen && want.Guard.Open || o.Set == ipvs.SetVIPs && want.Guard.VIP
	}
	return false
}
