package contract

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

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
