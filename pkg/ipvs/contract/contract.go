// Package contract is the one test that the fake kernel and the real kernel both pass: what every operation
// does, what is refused and how, and that what was written is what is read.
package contract

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Kernel is what both kernels have. What its methods promise is said where they are used, in package sync.
type Kernel interface {
	Tables
	Base(context.Context) (ipvs.BaseReport, error)
}

// Tables are what is read and written of a Kernel.
type Tables interface {
	Do(context.Context, ipvs.Plan) []ipvs.Outcome
	Observe(context.Context, []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error)
	Scan(context.Context, func(ipvs.Key, ipvs.Observed)) error
	Detect(context.Context, func(ipvs.Key, *ipvs.Frontend)) (done bool, err error)
}

// Run runs the contract. open gives an empty kernel each time.
func Run(t *testing.T, open func(t *testing.T) Kernel) {
	for _, c := range suites() {
		t.Run(c.family+" "+c.key.Proto.String(), func(t *testing.T) {
			t.Run("lifecycle", func(t *testing.T) { c.lifecycle(t, open(t)) })
			t.Run("single operations", func(t *testing.T) { c.single(t, open(t)) })
			t.Run("one bad frontend costs no other", func(t *testing.T) { c.isolation(t, open(t)) })
		})
	}
	t.Run("Base twice writes once", func(t *testing.T) { base(t, open(t)) })
	t.Run("Detect comes in parts", func(t *testing.T) { detectParts(t, open(t)) })
}

// suites are the contract's cases: both families, all protocols.
func suites() (cs []*suite) {
	for _, f := range []struct {
		name      string
		vip, vip2 string
		pods      []string
	}{
		{"IPv4", "10.96.0.10", "10.96.0.11", []string{"10.244.1.10", "10.244.1.11"}},
		{"IPv6", "fd00:96::10", "fd00:96::11", []string{"fd10:244:1::10", "fd10:244:1::11"}},
	} {
		for _, proto := range []ipvs.Proto{ipvs.TCP, ipvs.UDP, ipvs.SCTP} {
			c := &suite{family: f.name, key: ipvs.Key{Addr: netip.MustParseAddr(f.vip), Port: 80, Proto: proto},
				other: ipvs.Key{Addr: netip.MustParseAddr(f.vip2), Port: 80, Proto: proto}}
			for _, p := range f.pods {
				c.pods = append(c.pods, netip.AddrPortFrom(netip.MustParseAddr(p), 8080))
			}
			cs = append(cs, c)
		}
	}
	return cs
}

type suite struct {
	family     string
	key, other ipvs.Key
	pods       []netip.AddrPort
}

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (c *suite) real(i int, weight uint16) ipvs.Real {
	return ipvs.Real{Addr: c.pods[i], Weight: weight}
}

// must writes operations for one Key and wants every one confirmed.
func must(t *testing.T, k Kernel, key ipvs.Key, ops ...ipvs.Op) {
	t.Helper()
	done(t, k, planOf(key, ops))
}

func planOf(key ipvs.Key, ops []ipvs.Op) (plan ipvs.Plan) {
	for _, op := range ops {
		plan = append(plan, ipvs.Step{Key: key, Op: op})
	}
	return plan
}

// done writes a plan and wants every step confirmed.
func done(t *testing.T, k Kernel, plan ipvs.Plan) {
	t.Helper()
	for i, o := range k.Do(ctxOf(t), plan) {
		if o.Err != nil {
			t.Fatalf("%s: %v", plan[i].Op, o.Err)
		}
	}
}

// wants compares what all three ways of reading say of a Key with what it should be.
func wants(t *testing.T, k Kernel, key ipvs.Key, want *ipvs.Frontend) {
	t.Helper()
	observes(t, k, key, want)
	scanned := map[ipvs.Key]*ipvs.Frontend{}
	if err := k.Scan(ctxOf(t), func(k ipvs.Key, o ipvs.Observed) { scanned[k] = o.Have }); err != nil {
		t.Fatalf("scan: %v", err)
	}
	same(t, key, "scanned", want, scanned[key])
	detected, _ := detect(t, k)
	if len(detected) != len(scanned) {
		t.Errorf("detected %d Keys, scanned %d", len(detected), len(scanned))
	}
	for key, f := range scanned {
		same(t, key, "detected", mask(f), detected[key])
	}
}

// observes compares what Observe says of a Key with what it should be.
func observes(t *testing.T, k Kernel, key ipvs.Key, want *ipvs.Frontend) {
	t.Helper()
	got, err := k.Observe(ctxOf(t), []ipvs.Key{key})
	if err != nil {
		t.Fatalf("observe: %v", err)
	}
	same(t, key, "observed", want, got[key].Have)
}

// mask takes out what Detect does not see.
func mask(f *ipvs.Frontend) *ipvs.Frontend {
	m := *f
	m.Server.Timeout = 0
	m.Server.Flags &= ipvs.Persistent
	return &m
}

// detect puts the pieces of one pass together.
func detect(t *testing.T, k Kernel) (all map[ipvs.Key]*ipvs.Frontend, parts int) {
	t.Helper()
	all = map[ipvs.Key]*ipvs.Frontend{}
	for done := false; !done; parts++ {
		var err error
		done, err = k.Detect(ctxOf(t), func(k ipvs.Key, piece *ipvs.Frontend) {
			f := all[k]
			if f == nil {
				f = &ipvs.Frontend{}
				all[k] = f
			}
			if piece.Server.Exists() {
				f.Server = piece.Server
			}
			for _, s := range ipvs.KeySets {
				if piece.Guard.Has(s) {
					f.Guard.Put(ipvs.Element{Set: s, Key: k, To: piece.Guard.Redirect})
				}
			}
			for _, r := range piece.Guard.Ranges {
				f.Guard.Put(ipvs.Element{Set: ipvs.SetRanges, Key: k, From: r})
			}
			f.Guard.VIP = f.Guard.VIP || piece.Guard.VIP
			f.Guard.Hairpin = append(f.Guard.Hairpin, piece.Guard.Hairpin...)
			f.Bind, f.Misbound = f.Bind || piece.Bind, f.Misbound || piece.Misbound
		})
		if err != nil {
			t.Fatalf("detect: %v", err)
		}
	}
	return all, parts
}

func same(t *testing.T, key ipvs.Key, how string, want, got *ipvs.Frontend) {
	t.Helper()
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	comparePort := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if d := cmp.Diff(want, got, compare, comparePort); d != "" {
		t.Errorf("%s %s (-want +got):\n%s", key, how, d)
	}
}

// detectParts: many virtual servers come in several parts, all of them, and the next pass begins anew.
func detectParts(t *testing.T, k Kernel) {
	if _, err := k.Base(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	const many = 300
	var plan ipvs.Plan
	for i := range many {
		key := ipvs.Key{Addr: netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}), Port: 80, Proto: ipvs.TCP}
		plan = append(plan, ipvs.Step{Key: key, Op: ipvs.AddServer{Key: key, Scheduler: "rr"}})
		for j := range 8 {
			r := ipvs.Real{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(j), byte(i)}), 8080), Weight: uint16(j)}
			plan = append(plan, ipvs.Step{Key: key, Op: ipvs.AddReal{Key: key, Real: r}})
		}
	}
	for i, o := range k.Do(ctxOf(t), plan) {
		if o.Err != nil {
			t.Fatalf("%s: %v", plan[i].Op, o.Err)
		}
	}
	for range 2 {
		all, parts := detect(t, k)
		if len(all) != many || parts < 3 {
			t.Errorf("%d Keys in %d parts, want %d in several", len(all), parts, many)
		}
		for key, f := range all {
			if len(f.Server.Reals) != 8 {
				t.Errorf("%s: %d real servers, want 8", key, len(f.Server.Reals))
			}
		}
	}
}

func base(t *testing.T, k Kernel) {
	first, err := k.Base(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if !first.LinkCreated || !first.TableCreated || len(first.Wrote) == 0 {
		t.Errorf("first: %+v, want interface and table created", first)
	}
	second, err := k.Base(ctxOf(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(second.Wrote) > 0 || second.LinkCreated || second.TableCreated {
		t.Errorf("second: %+v, want nothing written", second)
	}
}

// lifecycle goes through what a frontend sees in its life.
func (c *suite) lifecycle(t *testing.T, k Kernel) {
	if _, err := k.Base(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	have := (*ipvs.Frontend)(nil)
	for _, step := range []struct {
		name string
		want *ipvs.Frontend
	}{
		{"new", c.frontend("rr", 0, 0, c.real(0, 1))},
		{"a real server more", c.frontend("rr", 0, 0, c.real(0, 1), c.real(1, 1))},
		{"another scheduler", c.frontend("wlc", 0, 0, c.real(0, 1), c.real(1, 1))},
		{"affinity", c.frontend("wlc", ipvs.Persistent, 600, c.real(0, 1), c.real(1, 1))},
		{"another time-out", c.frontend("wlc", ipvs.Persistent, 60, c.real(0, 1), c.real(1, 1))},
		{"no affinity", c.frontend("wlc", 0, 0, c.real(0, 1), c.real(1, 1))},
		{"weights", c.frontend("wlc", 0, 0, c.real(0, 65535), c.real(1, 7))},
		{"weight 0", c.frontend("wlc", 0, 0, c.real(0, 0), c.real(1, 7))},
		{"weight back", c.frontend("wlc", 0, 0, c.real(0, 3), c.real(1, 7))},
		{"policies", c.with(ipvs.Guard{Barred: ipvs.BarredOutside, Redirect: netip.AddrPortFrom(c.other.Addr, 80)})},
		{"another redirection, everybody barred", c.with(ipvs.Guard{Barred: ipvs.BarredAll, Redirect: netip.AddrPortFrom(c.other.Addr, 81)})},
		{"no source", c.with(ipvs.Guard{Limited: true})},
		{"sources", c.with(ipvs.Guard{Limited: true, Ranges: c.ranges(16, 24, 32)})},
		{"a wider one", c.with(ipvs.Guard{Limited: true, Ranges: c.ranges(8)})},
		{"narrower ones", c.with(ipvs.Guard{Limited: true, Ranges: c.ranges(24, 32)})},
		{"every source", c.frontend("wlc", 0, 0, c.real(0, 3), c.real(1, 7))},
	} {
		must(t, k, c.key, ipvs.Diff(c.key, have, step.want)...)
		c.check(t, k, step.name, step.want)
		have = step.want
	}
	must(t, k, c.key, ipvs.DelReal{Key: c.key, Addr: c.pods[0]})
	c.check(t, k, "a real server less", c.frontend("wlc", 0, 0, c.real(1, 7)))
	must(t, k, c.key, ipvs.Diff(c.key, have, nil)...)
	wants(t, k, c.key, nil)
	wants(t, k, ipvs.AddrKey(c.key.Addr), nil)
}

func (c *suite) frontend(sched string, flags ipvs.Flags, timeout uint32, reals ...ipvs.Real) *ipvs.Frontend {
	return &ipvs.Frontend{
		Server: ipvs.Server{Scheduler: sched, Flags: flags, Timeout: timeout, Reals: reals},
		Guard:  ipvs.Guard{Owned: true, Open: true, VIP: true, Hairpin: []netip.Addr{c.pods[0].Addr()}},
		Bind:   true,
	}
}

// with is a frontend with facts of its own in the guard.
func (c *suite) with(g ipvs.Guard) *ipvs.Frontend {
	fe := c.frontend("wlc", 0, 0, c.real(0, 3), c.real(1, 7))
	g.Owned, g.Open, g.VIP, g.Hairpin = true, true, true, fe.Guard.Hairpin
	fe.Guard = g
	return fe
}

// ranges are the real servers' networks of so many bits in IPv4, and three times as many in IPv6. The first ends
// where the next begins.
func (c *suite) ranges(bits ...int) (rs []ipvs.Range) {
	a := c.pods[0].Addr()
	for _, n := range bits {
		p := netip.PrefixFrom(a, n*a.BitLen()/32)
		rs = append(rs, ipvs.RangeOf(p))
		a = ipvs.RangeOf(p).Last.Next()
	}
	slices.SortFunc(rs, ipvs.Range.Compare)
	return rs
}

// check compares the Key, its address and its hairpin fact, which the kernel keeps apart.
func (c *suite) check(t *testing.T, k Kernel, name string, want *ipvs.Frontend) {
	t.Helper()
	t.Log(name)
	wants(t, k, c.key, &ipvs.Frontend{Server: want.Server, Guard: want.Guard.Own()})
	wants(t, k, ipvs.AddrKey(c.key.Addr), &ipvs.Frontend{Guard: ipvs.Guard{VIP: true}, Bind: true})
	wants(t, k, ipvs.AddrKey(c.pods[0].Addr()), &ipvs.Frontend{Guard: ipvs.Guard{Hairpin: want.Guard.Hairpin}})
}

// single goes through every operation, and through the extremes of its fields.
func (c *suite) single(t *testing.T, k Kernel) {
	if _, err := k.Base(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	server := ipvs.AddServer{Key: c.key, Scheduler: "sh", Flags: ipvs.Persistent | onePacket | shFallback, Timeout: 10800}
	want := &ipvs.Frontend{Server: ipvs.Server{Scheduler: server.Scheduler, Flags: server.Flags, Timeout: server.Timeout}}
	step := func(op ipvs.Op) {
		t.Helper()
		must(t, k, c.key, op)
		wants(t, k, c.key, want)
	}
	step(server)
	server.Flags, server.Timeout = shFallback, 0
	want.Server.Flags, want.Server.Timeout = server.Flags, 0
	step(ipvs.SetServer(server))
	real := c.real(0, 0)
	want.Server.Reals = []ipvs.Real{real}
	step(ipvs.AddReal{Key: c.key, Real: real})
	for _, w := range []uint16{1, 2, 255, 256, 32767, 32768, 65535, 0} {
		real.Weight, want.Server.Reals[0].Weight = w, w
		step(ipvs.SetReal{Key: c.key, Real: real})
	}
	for _, f := range []ipvs.Forward{ipvs.DirectRt, ipvs.Tunnel, ipvs.Masquerade} {
		real.Forward, want.Server.Reals[0].Forward = f, f
		step(ipvs.SetReal{Key: c.key, Real: real})
	}
	want.Guard.Owned = true
	step(ipvs.Element{Set: ipvs.SetOwned, Key: c.key})
	want.Guard.Open = true
	step(ipvs.Element{Set: ipvs.SetOpen, Key: c.key})
	for _, set := range ipvs.KeySets {
		if set == ipvs.SetOwned || set == ipvs.SetOpen {
			continue
		}
		before, e := want.Guard, ipvs.Element{Set: set, Key: c.key}
		if set == ipvs.SetRedirect {
			e.To = c.pods[1]
		}
		want.Guard.Put(e)
		step(e)
		step(e) // adding what is there is no error
		want.Guard, e.Remove = before, true
		step(e)
	}
	want.Guard.Owned = false
	step(ipvs.Element{Set: ipvs.SetOwned, Key: c.key, Remove: true})
	want.Server.Reals = nil
	step(ipvs.DelReal{Key: c.key, Addr: real.Addr})
	want.Server = ipvs.Server{}
	step(ipvs.DelServer{Key: c.key})
	want.Guard.Open = false
	must(t, k, c.key, ipvs.Element{Set: ipvs.SetOpen, Key: c.key, Remove: true})
	wants(t, k, c.key, nil)
	c.forget(t, k)
}

// Flags beside persistence (include/uapi/linux/ip_vs.h): UDP without connections, and what the scheduler sh
// does when the real server of its choice takes none.
const (
	onePacket  ipvs.Flags = 0x4
	shFallback ipvs.Flags = 0x8
)

// isolation: in one plan, a frontend that the kernel refuses leaves the others whole, and stops where it
// failed.
func (c *suite) isolation(t *testing.T, k Kernel) {
	if _, err := k.Base(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	good, bad := c.frontend("rr", 0, 0, c.real(0, 1)), c.frontend("nonesuch", 0, 0, c.real(1, 1))
	bad.Guard.Hairpin = nil
	var plan ipvs.Plan
	for _, op := range ipvs.Diff(c.other, nil, bad) {
		plan = append(plan, ipvs.Step{Key: c.other, Op: op})
	}
	for _, op := range ipvs.Diff(c.key, nil, good) {
		plan = append(plan, ipvs.Step{Key: c.key, Op: op})
	}
	// Not there, so the transaction with it must be split.
	gone := ipvs.Element{Set: ipvs.SetOpen, Key: c.other, Remove: true}
	plan = append(plan, ipvs.Step{Key: ipvs.AddrKey(c.other.Addr), Op: gone})
	for i, o := range k.Do(ctxOf(t), plan) {
		s := plan[i]
		_, adds := s.Op.(ipvs.AddServer)
		switch {
		case s.Key == c.key && o.Err != nil:
			t.Errorf("%s: %v", s.Op, o.Err)
		case s.Op == ipvs.Op(gone) && !errors.Is(o.Err, syscall.ENOENT):
			t.Errorf("%s: %v, want ENOENT", s.Op, o.Err)
		case s.Key == c.other && adds && !errors.Is(o.Err, syscall.ENOENT):
			t.Errorf("%s: %v, want ENOENT", s.Op, o.Err)
		case s.Key == c.other && s.Op.Phase() > ipvs.PhaseServe && !errors.Is(o.Err, ipvs.ErrNotTried):
			t.Errorf("%s: %v, want not tried", s.Op, o.Err)
		}
	}
	c.check(t, k, "the good one", good)
	wants(t, k, c.other, &ipvs.Frontend{Guard: ipvs.Guard{Owned: true}})
	wants(t, k, ipvs.AddrKey(c.other.Addr), &ipvs.Frontend{Guard: ipvs.Guard{VIP: true}})
}
