// Package contract is the one test that the fake kernel and the real kernel both pass: what every operation
// does, what is refused and how, and that what was written is what is read.
package contract

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Run runs the contract. open gives an empty kernel each time.
func Run(t *testing.T, open func(t *testing.T) ipvs.Kernel) {
	for _, f := range []struct {
		name      string
		vip, vip2 string
		pods      []string
	}{
		{"IPv4", "10.96.0.10", "10.96.0.11", []string{"10.244.1.10", "10.244.1.11"}},
		{"IPv6", "fd00:96::10", "fd00:96::11", []string{"fd10:244:1::10", "fd10:244:1::11"}},
	} {
		for _, proto := range []ipvs.Proto{ipvs.TCP, ipvs.UDP, ipvs.SCTP} {
			c := &suite{key: ipvs.Key{Addr: netip.MustParseAddr(f.vip), Port: 80, Proto: proto},
				other: ipvs.Key{Addr: netip.MustParseAddr(f.vip2), Port: 80, Proto: proto}}
			for _, p := range f.pods {
				c.pods = append(c.pods, netip.AddrPortFrom(netip.MustParseAddr(p), 8080))
			}
			t.Run(f.name+" "+proto.String(), func(t *testing.T) {
				t.Run("lifecycle", func(t *testing.T) { c.lifecycle(t, open(t)) })
				t.Run("refusals", func(t *testing.T) { c.refusals(t, open(t)) })
				t.Run("one bad frontend costs no other", func(t *testing.T) { c.isolation(t, open(t)) })
			})
		}
	}
	t.Run("Base twice writes once", func(t *testing.T) { base(t, open(t)) })
}

type suite struct {
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
func must(t *testing.T, k ipvs.Kernel, key ipvs.Key, ops ...ipvs.Op) {
	t.Helper()
	var plan ipvs.Plan
	for _, op := range ops {
		plan = append(plan, ipvs.Step{Key: key, Op: op})
	}
	for i, o := range k.Do(ctxOf(t), plan) {
		if o.Err != nil {
			t.Fatalf("%s: %v", ops[i], o.Err)
		}
	}
}

// refuse writes one operation and wants one of the errnos.
func refuse(t *testing.T, k ipvs.Kernel, key ipvs.Key, op ipvs.Op, want ...syscall.Errno) {
	t.Helper()
	o := k.Do(ctxOf(t), ipvs.Plan{{Key: key, Op: op}})[0]
	for _, w := range want {
		if errors.Is(o.Err, w) && !o.Unknown {
			return
		}
	}
	t.Errorf("%s: got %v, want %v", op, o.Err, want)
}

// wants compares what both ways of reading say of a Key with what it should be.
func wants(t *testing.T, k ipvs.Kernel, key ipvs.Key, want *ipvs.Frontend) {
	t.Helper()
	got, err := k.Observe(ctxOf(t), []ipvs.Key{key})
	if err != nil {
		t.Fatalf("observe: %v", err)
	}
	scanned := map[ipvs.Key]ipvs.Observed{}
	if err := k.Scan(ctxOf(t), func(k ipvs.Key, o ipvs.Observed) { scanned[k] = o }); err != nil {
		t.Fatalf("scan: %v", err)
	}
	compare := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	comparePort := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if d := cmp.Diff(want, got[key].Have, compare, comparePort); d != "" {
		t.Errorf("%s observed (-want +got):\n%s", key, d)
	}
	if d := cmp.Diff(want, scanned[key].Have, compare, comparePort); d != "" {
		t.Errorf("%s scanned (-want +got):\n%s", key, d)
	}
}

func base(t *testing.T, k ipvs.Kernel) {
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
func (c *suite) lifecycle(t *testing.T, k ipvs.Kernel) {
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

// check compares the Key, its address and its hairpin fact, which the kernel keeps apart.
func (c *suite) check(t *testing.T, k ipvs.Kernel, name string, want *ipvs.Frontend) {
	t.Helper()
	t.Log(name)
	wants(t, k, c.key, &ipvs.Frontend{Server: want.Server, Guard: ipvs.Guard{Owned: true, Open: true}})
	wants(t, k, ipvs.AddrKey(c.key.Addr), &ipvs.Frontend{Guard: ipvs.Guard{VIP: true}, Bind: true})
	wants(t, k, ipvs.AddrKey(c.pods[0].Addr()), &ipvs.Frontend{Guard: ipvs.Guard{Hairpin: want.Guard.Hairpin}})
}

func (c *suite) refusals(t *testing.T, k ipvs.Kernel) {
	if _, err := k.Base(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	rr := ipvs.AddServer{Key: c.key, Scheduler: "rr"}
	real := ipvs.AddReal{Key: c.key, Real: c.real(0, 1)}
	refuse(t, k, c.key, ipvs.SetServer(rr), syscall.ESRCH)
	refuse(t, k, c.key, ipvs.DelServer{Key: c.key}, syscall.ESRCH)
	refuse(t, k, c.key, real, syscall.ESRCH)
	refuse(t, k, c.key, ipvs.SetReal(real), syscall.ESRCH)
	refuse(t, k, c.key, ipvs.DelReal{Key: c.key, Addr: c.pods[0]}, syscall.ESRCH)
	refuse(t, k, c.key, ipvs.AddServer{Key: c.key, Scheduler: "nonesuch"}, syscall.ENOENT)
	must(t, k, c.key, rr)
	refuse(t, k, c.key, rr, syscall.EEXIST)
	refuse(t, k, c.key, ipvs.SetServer{Key: c.key, Scheduler: "nonesuch"}, syscall.ENOENT)
	refuse(t, k, c.key, ipvs.SetReal(real), syscall.ENOENT)
	refuse(t, k, c.key, ipvs.DelReal{Key: c.key, Addr: c.pods[0]}, syscall.ENOENT)
	must(t, k, c.key, real)
	refuse(t, k, c.key, real, syscall.EEXIST)
	refuse(t, k, c.key, ipvs.Unbind{Addr: c.key.Addr}, syscall.EADDRNOTAVAIL)
	must(t, k, c.key, ipvs.Bind{Addr: c.key.Addr})
	refuse(t, k, c.key, ipvs.Bind{Addr: c.key.Addr}, syscall.EEXIST)
	elem := ipvs.Element{Set: ipvs.SetOwned, Key: c.key}
	gone := elem
	gone.Remove = true
	refuse(t, k, c.key, gone, syscall.ENOENT)
	must(t, k, c.key, elem)
	must(t, k, c.key, elem) // adding twice is no error
	must(t, k, c.key, gone)
}

// isolation: in one plan, a frontend that the kernel refuses leaves the others whole, and stops where it
// failed.
func (c *suite) isolation(t *testing.T, k ipvs.Kernel) {
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
