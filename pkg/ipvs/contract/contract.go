// Package contract is the one test that the fake kernel and the real kernel both pass: what every operation
// does, what is refused and how, and that what was written is what is read.
package contract

import (
	"context"
	"net/netip"
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
	Connections(context.Context, []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error)
	Scan(context.Context, func(ipvs.Key, ipvs.Observed)) error
	Detect(context.Context, func(ipvs.Key, *ipvs.Frontend, uint32)) (done bool, err error)
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
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // of an emulated machine among others
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
	conns, err := k.Connections(ctxOf(t), []ipvs.Key{key})
	if err != nil {
		t.Fatalf("count connections: %v", err)
	}
	if len(conns) > 0 {
		t.Errorf("connections of what has none: %v", conns)
	}
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
		done, err = k.Detect(ctxOf(t), func(k ipvs.Key, piece *ipvs.Frontend, _ uint32) {
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

// Flags beside persistence (include/uapi/linux/ip_vs.h): UDP without connections, and what the scheduler sh
// does when the real server of its choice takes none.
const (
	onePacket  ipvs.Flags = 0x4
	shFallback ipvs.Flags = 0x8
)
