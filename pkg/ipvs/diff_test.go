package ipvs_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

var key = ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}

func real(addr string, weight uint16) ipvs.Real {
	return ipvs.Real{Addr: netip.MustParseAddrPort(addr), Weight: weight}
}

func frontend(open bool, reals ...ipvs.Real) *ipvs.Frontend {
	return &ipvs.Frontend{Server: ipvs.Server{Scheduler: "rr", Reals: reals}, Guard: ipvs.Guard{Owned: true, Open: open, VIP: true}, Bind: true}
}

func limited(r ipvs.Real, prefixes ...string) *ipvs.Frontend {
	fe := frontend(true, r)
	fe.Guard.Limited = true
	for _, p := range prefixes {
		fe.Guard.Ranges = append(fe.Guard.Ranges, ipvs.RangeOf(netip.MustParsePrefix(p)))
	}
	fe.Guard.Ranges = ipvs.SortRanges(fe.Guard.Ranges)
	return fe
}

// local is a frontend that keeps clients' addresses, and takes those from outside or not.
func local(barred bool, r ipvs.Real) *ipvs.Frontend {
	fe := frontend(true, r)
	if fe.Guard.Sources = ipvs.SourcesKept; barred {
		fe.Guard.Barred = ipvs.BarredOutside
	}
	return fe
}

func redirected(to string) *ipvs.Frontend {
	fe := frontend(true)
	fe.Guard.Redirect = netip.MustParseAddrPort(to)
	return fe
}

// TestDiffPrints: each change as the lines a person would type, in the order that traffic needs.
func TestDiffPrints(t *testing.T) {
	a, b := real("10.244.1.10:8080", 1), real("10.244.1.11:8080", 1)
	for _, c := range []struct {
		name       string
		have, want *ipvs.Frontend
		lines      []string
	}{
		{"nothing", nil, nil, nil},
		{"the same", frontend(true, a), frontend(true, a), nil},
		{"new", nil, frontend(true, a), []string{
			"nft add element inet ipvs-proxy owned4 { 10.96.0.10 . tcp . 80 }",
			"nft add element inet ipvs-proxy vips4 { 10.96.0.10 }",
			"ipvsadm -A -t 10.96.0.10:80 -s rr",
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 1",
			"ip addr add 10.96.0.10/32 dev kube-ipvs0",
			"nft add element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }"}},
		{"gone", frontend(true, a), nil, []string{
			"nft delete element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }",
			"ip addr del 10.96.0.10/32 dev kube-ipvs0",
			"ipvsadm -D -t 10.96.0.10:80",
			"nft delete element inet ipvs-proxy owned4 { 10.96.0.10 . tcp . 80 }",
			"nft delete element inet ipvs-proxy vips4 { 10.96.0.10 }"}},
		{"replaced: new capacity before old goes", frontend(true, a), frontend(true, b), []string{
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.11:8080 -m -w 1",
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 0"}},
		{"draining already", frontend(true, real("10.244.1.10:8080", 0), b), frontend(true, b), nil},
		{"comes back", frontend(true, real("10.244.1.10:8080", 0)), frontend(true, a), []string{
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 1"}},
		{"endpoints gone: closed first", frontend(true, a), frontend(false), []string{
			"nft delete element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }",
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 0"}},
		{"taken over: opened with its guard", &ipvs.Frontend{Server: frontend(true, a).Server, Bind: true}, frontend(true, a), []string{
			"nft add element inet ipvs-proxy owned4 { 10.96.0.10 . tcp . 80 }",
			"nft add element inet ipvs-proxy vips4 { 10.96.0.10 }",
			"nft add element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }"}},
		{"other sources: in one transaction, before all else", limited(a, "198.51.100.0/24", "192.0.2.0/24"), limited(b, "198.51.0.0/16", "192.0.2.0/24"), []string{
			"nft delete element inet ipvs-proxy ranges4 { 10.96.0.10 . tcp . 80 . 198.51.100.0-198.51.100.255 }",
			"nft add element inet ipvs-proxy ranges4 { 10.96.0.10 . tcp . 80 . 198.51.0.0-198.51.255.255 }",
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.11:8080 -m -w 1",
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 0"}},
		{"the last endpoint here leaves: outside clients are barred before another node's comes", local(false, a), local(true, b), []string{
			"nft add element inet ipvs-proxy inside4 { 10.96.0.10 . tcp . 80 }",
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.11:8080 -m -w 1",
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 0"}},
		{"one comes back here: let in after the other node's is gone", local(true, a), local(false, b), []string{
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.11:8080 -m -w 1",
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 0",
			"nft delete element inet ipvs-proxy inside4 { 10.96.0.10 . tcp . 80 }"}},
		{"redirected before it loses its endpoints", frontend(true, a), redirected("10.96.0.1:80"), []string{
			"nft add element inet ipvs-proxy redirect4 { 10.96.0.10 . tcp . 80 : 10.96.0.1 . 80 }",
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 0"}},
		{"redirected until it has endpoints", redirected("10.96.0.1:80"), frontend(true, a), []string{
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.10:8080 -m -w 1",
			"nft delete element inet ipvs-proxy redirect4 { 10.96.0.10 . tcp . 80 }"}},
		{"redirected elsewhere in one transaction", redirected("10.96.0.1:80"), redirected("10.96.0.1:81"), []string{
			"nft delete element inet ipvs-proxy redirect4 { 10.96.0.10 . tcp . 80 }",
			"nft add element inet ipvs-proxy redirect4 { 10.96.0.10 . tcp . 80 : 10.96.0.1 . 81 }"}},
		{"no virtual server any more: whoever listens answers", frontend(true, a), &ipvs.Frontend{Guard: frontend(true).Guard, Bind: true}, []string{
			"ipvsadm -D -t 10.96.0.10:80"}},
		{"affinity in place", frontend(true, a), &ipvs.Frontend{Server: ipvs.Server{Scheduler: "rr", Flags: ipvs.Persistent, Timeout: 600,
			Reals: []ipvs.Real{a}}, Guard: frontend(true).Guard, Bind: true}, []string{
			"ipvsadm -E -t 10.96.0.10:80 -s rr -p 600"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, op := range ipvs.Diff(key, c.have, c.want) {
				got = append(got, op.String())
			}
			if !slices.Equal(got, c.lines) {
				t.Errorf("got %q\nwant %q", got, c.lines)
			}
		})
	}
}

// TestDiffReachesWhatIsWanted: from any state to any other, on a kernel that refuses what a kernel refuses.
func TestDiffReachesWhatIsWanted(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	k := fake.New()
	if _, err := k.Base(context.Background()); err != nil {
		t.Fatal(err)
	}
	var have *ipvs.Frontend
	for range 5000 {
		want := anyFrontend(rng)
		for _, op := range ipvs.Diff(key, have, want) {
			if o := k.Do(context.Background(), ipvs.Plan{{Key: key, Op: op}})[0]; o.Err != nil {
				t.Fatalf("from %+v to %+v: %v", have, want, o.Err)
			}
		}
		got := k.Servers[key].Reals
		if want == nil {
			if len(k.Servers) > 0 || len(k.Addrs) > 0 || len(k.Sets[ipvs.SetOwned]) > 0 || len(k.Sets[ipvs.SetHairpin]) > 0 {
				t.Fatalf("something is left after %+v was removed", have)
			}
			have = nil
			continue
		}
		live := slices.DeleteFunc(slices.Clone(got), func(r ipvs.Real) bool { return r.Weight == 0 })
		if !slices.Equal(live, want.Server.Reals) {
			t.Fatalf("from %+v to %+v: real servers %v", have, want, got)
		}
		merged := *want
		merged.Server.Reals = slices.Clone(got)
		if again := ipvs.Diff(key, &merged, want); len(again) > 0 {
			t.Fatalf("a second time writes %v", again)
		}
		have = &merged
	}
}

func anyFrontend(rng *rand.Rand) *ipvs.Frontend {
	if rng.IntN(6) == 0 {
		return nil
	}
	f := frontend(false)
	f.Server.Scheduler = []string{"rr", "wlc", "sh"}[rng.IntN(3)]
	if rng.IntN(2) == 0 {
		f.Server.Flags, f.Server.Timeout = ipvs.Persistent, uint32(1+rng.IntN(600))
	}
	for i := range byte(5) {
		if rng.IntN(2) == 0 {
			a := netip.AddrFrom4([4]byte{10, 244, 1, 10 + i})
			f.Server.Reals = append(f.Server.Reals, ipvs.Real{Addr: netip.AddrPortFrom(a, 8080), Weight: uint16(1 + rng.IntN(3))})
			f.Guard.Hairpin = append(f.Guard.Hairpin, a)
		}
	}
	f.Guard.Open = len(f.Server.Reals) > 0
	return f
}

// Ranges that overlap or follow upon each other become one; what lies apart stays apart, and families do not mix.
func TestSortRanges(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []string
		want string
	}{
		{"none", nil, "[]"},
		{"one in another", []string{"10.0.0.0/8", "10.1.0.0/16"}, "[10.0.0.0-10.255.255.255]"},
		{"side by side", []string{"10.0.1.0/24", "10.0.0.0/24", "10.0.2.0/23"}, "[10.0.0.0-10.0.3.255]"},
		{"a gap of one address", []string{"10.0.0.0/32", "10.0.0.2/32"}, "[10.0.0.0 10.0.0.2]"},
		{"twice the same", []string{"10.0.0.0/24", "10.0.0.0/24"}, "[10.0.0.0-10.0.0.255]"},
		{"up to the last address", []string{"255.255.255.255/32", "::/128", "255.255.255.254/32"}, "[255.255.255.254-255.255.255.255 ::]"},
		{"all", []string{"128.0.0.0/1", "0.0.0.0/1"}, "[0.0.0.0-255.255.255.255]"},
		{"IPv6", []string{"2001:db8:1::/48", "2001:db8::/48", "2001:db8:3::/48"}, "[2001:db8::-2001:db8:1:ffff:ffff:ffff:ffff:ffff 2001:db8:3::-2001:db8:3:ffff:ffff:ffff:ffff:ffff]"},
	} {
		var rs []ipvs.Range
		for _, p := range c.in {
			rs = append(rs, ipvs.RangeOf(netip.MustParsePrefix(p)))
		}
		if got := fmt.Sprint(ipvs.SortRanges(rs)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	var rs []ipvs.Range
	for i := range 2048 {
		rs = append(rs, ipvs.RangeOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24)))
	}
	if n := len(ipvs.SortRanges(rs)); n != 1 {
		t.Errorf("2,048 networks side by side become %d ranges, want 1", n)
	}
}

// TestInsertRange: a range that comes to sorted ones gives what sorting all of them gives, and leaves them alone.
func TestInsertRange(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	one := func() ipvs.Range {
		return ipvs.RangeOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, 0, byte(r.IntN(256))}), 24+r.IntN(9)))
	}
	for range 10_000 {
		var all []ipvs.Range
		for range r.IntN(20) {
			all = append(all, one())
		}
		all = ipvs.SortRanges(all)
		before, more := slices.Clone(all), one()
		got := ipvs.InsertRange(all, more)
		if !slices.Equal(all, before) {
			t.Fatalf("%v became %v", before, all)
		}
		if want := ipvs.SortRanges(append(all, more)); !slices.Equal(got, want) {
			t.Fatalf("%v and %v: %v, want %v", before, more, got, want)
		}
	}
}

// Of a change of many ranges, each that goes does so right before the first that needs its place: where such a change is
// cut, few clients that may come before and after are turned away.
func TestRangesChangePlaces(t *testing.T) {
	a := real("10.244.1.10:8080", 1)
	have, want := limited(a, "20.0.0.0/24", "20.0.2.0/24", "20.0.4.0/24"), limited(a, "20.0.0.0/25", "20.0.2.0/25", "20.0.4.0/25")
	var got []string
	for _, op := range ipvs.Diff(key, have, want) {
		e := op.(ipvs.Element)
		line := e.From.String()
		if e.Remove {
			line = "-" + line
		}
		got = append(got, line)
	}
	lines := []string{"-20.0.0.0-20.0.0.255", "20.0.0.0-20.0.0.127", "-20.0.2.0-20.0.2.255", "20.0.2.0-20.0.2.127", "-20.0.4.0-20.0.4.255", "20.0.4.0-20.0.4.127"}
	if !slices.Equal(got, lines) {
		t.Errorf("got %v, want %v", got, lines)
	}
}

// Real servers are put in order from whichever order they are in, and repeats go.
func TestSortReals(t *testing.T) {
	at := func(ports ...uint16) (rs []ipvs.Real) {
		for _, p := range ports {
			rs = append(rs, ipvs.Real{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), p)})
		}
		return rs
	}
	want := at(1, 2, 3)
	for _, rs := range [][]ipvs.Real{at(1, 2, 3), at(3, 2, 1), at(2, 3, 1), at(3, 3, 2, 1), at(3, 2, 1, 1), at(1, 1, 2, 3), at(3, 1, 2, 3)} {
		was := slices.Clone(rs)
		if got := ipvs.SortReals(rs); !slices.Equal(got, want) {
			t.Errorf("%v: %v", was, got)
		}
	}
	first := []ipvs.Real{{Addr: want[1].Addr, Weight: 7}, {Addr: want[1].Addr, Weight: 9}, want[0]}
	if got := ipvs.SortReals(first); len(got) != 2 || got[1].Weight != 7 {
		t.Errorf("of a repeat the first stays: %v", got)
	}
	if got := ipvs.SortReals(nil); len(got) > 0 {
		t.Errorf("none: %v", got)
	}
}
