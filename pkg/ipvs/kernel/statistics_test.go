package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// openCounts opens the door for statistics in this thread's network namespace.
func openCounts(t *testing.T) *Statistics {
	t.Helper()
	s, err := OpenStatistics(context.Background())
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

// countAll reads all that is counted.
func countAll(t *testing.T, read func(context.Context, func(ipvs.Counted) error) error) map[ipvs.Key]ipvs.Counted {
	t.Helper()
	found := map[ipvs.Key]ipvs.Counted{}
	must(t, read(context.Background(), func(c ipvs.Counted) error {
		found[c.Key] = c
		return nil
	}))
	return found
}

// TestB73StatisticsAgreeWithMoby: what the door reads of any virtual server is what another reader of the same kernel
// does, in all three ways of asking.
func TestB73StatisticsAgreeWithMoby(t *testing.T) {
	needsIPVS(t)
	k := openHere(t, BindAddress)
	want := crossServers()
	var plan ipvs.Plan
	for _, key := range keysOf(want) {
		for _, op := range ipvs.Diff(key, nil, &ipvs.Frontend{Server: want[key]}) {
			plan = append(plan, ipvs.Step{Key: key, Op: op})
		}
	}
	for i, o := range k.Do(context.Background(), plan) {
		if o.Err != nil {
			t.Fatalf("%s: %v", plan[i].Op, o.Err)
		}
	}
	s := openCounts(t)
	all := countAll(t, s.All)
	servers := countAll(t, s.Servers)
	keys := append(keysOf(want), key("10.96.0.99", 80))
	some := countAll(t, func(ctx context.Context, visit func(ipvs.Counted) error) error { return s.Of(ctx, keys, visit) })
	brief := countAll(t, func(ctx context.Context, visit func(ipvs.Counted) error) error { return s.Brief(ctx, keys, visit) })
	for key, server := range want {
		c := all[key]
		reals := server.Reals
		server.Reals = nil
		if !same(c.Server, server) || !same(servers[key].Server, server) || len(servers[key].Reals) > 0 {
			t.Errorf("%s: %+v and %+v, want %+v", key, c.Server, servers[key], server)
		}
		var got []ipvs.Real
		for _, r := range c.Reals {
			got = append(got, r.Real)
		}
		if got = ipvs.SortReals(got); !slices.Equal(got, reals) {
			t.Errorf("%s: real servers %v, want %v", key, got, reals)
		}
		if a, b := fmt.Sprint(some[key]), fmt.Sprint(c); a != b {
			t.Errorf("%s: asked for alone %s, among all %s", key, a, b)
		}
		if a, b := fmt.Sprint(brief[key]), fmt.Sprint(c); a != b { // nothing has been counted yet
			t.Errorf("%s: asked for in brief %s, among all %s", key, a, b)
		}
	}
	if len(all) != len(want) || len(servers) != len(want) || len(some) != len(want) || len(brief) != len(want) {
		t.Errorf("%d, %d, %d and %d virtual servers, want %d", len(all), len(servers), len(some), len(brief), len(want))
	}
}

func same(a, b ipvs.Server) bool {
	return a.Scheduler == b.Scheduler && a.Flags == b.Flags && a.Timeout == b.Timeout && len(a.Reals) == len(b.Reals)
}

// TestB73StatisticsInBrief: a virtual server has as many real servers in brief as it has, however many fit at first, and none
// where it is not there.
func TestB73StatisticsInBrief(t *testing.T) {
	needsIPVS(t)
	k, s := openHere(t, BindAddress), openCounts(t)
	for _, n := range []int{0, 1, destsAtFirst - 1, destsAtFirst, destsAtFirst + 1, 4*destsAtFirst + 7, 3} {
		key := key(fmt.Sprintf("10.96.1.%d", n%250+1), 80)
		plan := ipvs.Plan{{Key: key, Op: ipvs.AddServer{Key: key, Scheduler: "rr"}}}
		var want []ipvs.Real
		for i := range n {
			want = append(want, ipvs.Real{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.244.1.1"), uint16(i+1)), Weight: uint16(i)})
			plan = append(plan, ipvs.Step{Key: key, Op: ipvs.AddReal{Key: key, Real: want[i]}})
		}
		for i, o := range k.Do(context.Background(), plan) {
			if o.Err != nil {
				t.Fatalf("%s: %v", plan[i].Op, o.Err)
			}
		}
		found := countAll(t, func(ctx context.Context, visit func(ipvs.Counted) error) error {
			return s.Brief(ctx, []ipvs.Key{key}, visit)
		})
		var got []ipvs.Real
		for _, r := range found[key].Reals {
			got = append(got, r.Real)
		}
		if got = ipvs.SortReals(got); len(found) != 1 || !slices.Equal(got, want) {
			t.Errorf("%d real servers: found %d, %v", n, len(got), got)
		}
	}
	nobody := ipvs.Key{Addr: netip.MustParseAddr("10.96.9.9"), Port: 80, Proto: ipvs.TCP}
	if got, err := s.dests.read(nobody, nil); err != nil || len(got) > 0 {
		t.Errorf("of a virtual server that is not there: %v, %v", got, err)
	}
}

// TestB73StatisticsCount: connections, packets and bytes are counted of the virtual and of the real server, the same as
// moby/ipvs has them, of both families.
func TestB73StatisticsCount(t *testing.T) {
	needsIPVS(t)
	for _, addr := range []string{"127.0.0.9", "fd00:96::9"} {
		t.Run(addr, func(t *testing.T) {
			k := openHere(t, BindAddress)
			vip, real := netip.MustParseAddr(addr), netip.MustParseAddr("127.0.0.1")
			if vip.Is6() {
				real = netip.IPv6Loopback()
				lo, err := netlink.LinkByName("lo")
				must(t, err)
				addNodeAddr(t, lo, addr+"/128")
			}
			l, err := net.Listen("tcp", netip.AddrPortFrom(real, 0).String())
			must(t, err)
			t.Cleanup(func() { _ = l.Close() })
			at := l.Addr().(*net.TCPAddr).AddrPort()
			key := ipvs.Key{Addr: vip, Port: 80, Proto: ipvs.TCP}
			for _, op := range []ipvs.Op{ipvs.AddServer{Key: key, Scheduler: "rr"}, ipvs.AddReal{Key: key, Real: ipvs.Real{Addr: at, Weight: 1}}} {
				if o := k.Do(context.Background(), ipvs.Plan{{Key: key, Op: op}})[0]; o.Err != nil {
					t.Fatalf("%s: %v", op, o.Err)
				}
			}
			const n = 3
			for range n {
				c, err := net.DialTimeout("tcp", netip.AddrPortFrom(vip, 80).String(), 10*time.Second)
				must(t, err)
				t.Cleanup(func() { _ = c.Close() })
			}
			s := openCounts(t)
			c := countAll(t, s.All)[key]
			if len(c.Reals) != 1 || c.Reals[0].Active != n {
				t.Fatalf("with %d connections: %+v", n, c)
			}
			// The kernel sums up what its processors have counted every 2 s (ip_vs_est.c), and gives the last sum.
			for end := time.Now().Add(time.Minute); c.Counters.Conns < n && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				c = countAll(t, s.All)[key]
			}
			if c.Counters.Conns != n || c.Counters.In.Packets < n || c.Counters.In.Bytes < n*40 || len(c.Reals) != 1 {
				t.Fatalf("after %d connections: %+v", n, c)
			}
			if r := c.Reals[0]; r.Counters.Conns != n || r.Active != n || r.Counters.In != c.Counters.In {
				t.Errorf("of its real server: %+v, want what the virtual server has: %+v", r, c.Counters)
			}
			agreesWithMoby(t, c)
			brief := countAll(t, func(ctx context.Context, visit func(ipvs.Counted) error) error {
				return s.Brief(ctx, []ipvs.Key{key}, visit)
			})[key]
			if len(brief.Reals) != 1 || brief.Reals[0].Real != c.Reals[0].Real || brief.Reals[0].Conns != c.Reals[0].Conns || brief.Counters.Conns != n {
				t.Errorf("in brief %+v, want %+v", brief, c)
			}
		})
	}
}

// agreesWithMoby compares the counters of a virtual server. Moby reads the older attributes, of 32 bits.
func agreesWithMoby(t *testing.T, c ipvs.Counted) {
	t.Helper()
	h := openMoby(t)
	services, err := h.GetServices()
	must(t, err)
	for _, s := range services {
		if addrOf(s.Address) != c.Key.Addr {
			continue
		}
		if uint64(s.Stats.Connections) != c.Counters.Conns || uint64(s.Stats.PacketsIn) != c.Counters.In.Packets || s.Stats.BytesIn != c.Counters.In.Bytes ||
			uint64(s.Stats.PacketsOut) != c.Counters.Out.Packets || s.Stats.BytesOut != c.Counters.Out.Bytes {
			t.Errorf("moby has %+v, the door %+v", s.Stats, c.Counters)
		}
		dests, err := h.GetDestinations(s)
		must(t, err)
		if len(dests) != 1 || dests[0].ActiveConnections != int(c.Reals[0].Active) || uint64(dests[0].Stats.Connections) != c.Reals[0].Counters.Conns {
			t.Errorf("moby has real servers %+v, the door %+v", dests, c.Reals)
		}
		return
	}
	t.Errorf("moby does not find %s", c.Key)
}

// TestB73StatisticsOfMany: many virtual servers come once each, while others come and go and many ask at once; an error
// of who is told ends it.
func TestB73StatisticsOfMany(t *testing.T) {
	needsIPVS(t)
	k := openHere(t, BindAddress)
	want := map[ipvs.Key]bool{}
	var plan ipvs.Plan
	for i := range 2000 {
		key := key(fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), 80)
		want[key] = true
		plan = append(plan, ipvs.Step{Key: key, Op: ipvs.AddServer{Key: key, Scheduler: "rr"}},
			ipvs.Step{Key: key, Op: ipvs.AddReal{Key: key, Real: ipvs.Real{Addr: netip.AddrPortFrom(netip.MustParseAddr("10.244.1.1"), uint16(i+1)), Weight: 1}}})
	}
	for i, o := range k.Do(context.Background(), plan) {
		if o.Err != nil {
			t.Fatalf("%s: %v", plan[i].Op, o.Err)
		}
	}
	s := openCounts(t)
	var page []ipvs.Key
	for k := range want {
		page = append(page, k)
	}
	for what, read := range map[string]func(context.Context, func(ipvs.Counted) error) error{"all servers": s.Servers, "with real servers": s.All,
		"100 of them": func(ctx context.Context, visit func(ipvs.Counted) error) error { return s.Of(ctx, page[:100], visit) }} {
		began := time.Now()
		n := len(countAll(t, read))
		t.Logf("%s: %d in %s", what, n, time.Since(began))
	}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			times := map[ipvs.Key]int{}
			err := s.All(context.Background(), func(c ipvs.Counted) error {
				if times[c.Key]++; len(c.Reals) != 1 {
					return fmt.Errorf("%s has %d real servers", c.Key, len(c.Reals))
				}
				return nil
			})
			if err != nil || len(times) != len(want) || slices.ContainsFunc(slices.Collect(maps.Values(times)), func(n int) bool { return n != 1 }) {
				t.Errorf("%d virtual servers of %d: %v", len(times), len(want), err)
			}
		})
	}
	group.Wait()
	stop := errors.New("enough")
	seen := 0
	if err := s.Servers(context.Background(), func(ipvs.Counted) error { seen++; return stop }); !errors.Is(err, stop) || seen != 1 {
		t.Errorf("ended by who is told: %v after %d", err, seen)
	}
	if got := countAll(t, s.Servers); len(got) != len(want) {
		t.Errorf("afterwards %d virtual servers, want %d", len(got), len(want))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Servers(ctx, func(ipvs.Counted) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("whose time is over: %v", err)
	}
}

// Counters are read by their numbers, and what is cut short is an error or left out, never a panic.
func TestParseCounters(t *testing.T) {
	var b batch
	b.begin(30, 0, []byte{cmdNewService, 1, 0, 0})
	b.nest(attrService, func() {
		putKey(&b, key("10.96.0.10", 80))
		b.attrString(svcSched, "rr")
		b.nest(svcStats64, func() {
			for i := range uint16(10) {
				b.attr(i+1, []byte{byte(i + 1), 0, 0, 0, 0, 0, 0, byte(i + 1)})
			}
			b.attr(11, nil) // padding
		})
	})
	b.finish()
	body := b.data[unix.SizeofNlMsghdr:]
	c, err := parseCounted(body)
	must(t, err)
	n := func(i uint64) uint64 { return i<<56 | i }
	want := ipvs.Counters{Conns: n(1), In: ipvs.Volume{Packets: n(2), Bytes: n(4)}, Out: ipvs.Volume{Packets: n(3), Bytes: n(5)},
		Rates: ipvs.Rates{Conns: n(6), In: ipvs.Volume{Packets: n(7), Bytes: n(9)}, Out: ipvs.Volume{Packets: n(8), Bytes: n(10)}}}
	if c.Counters != want {
		t.Errorf("got %+v, want %+v", c.Counters, want)
	}
	for i := range body {
		_, _ = parseCounted(body[:i])
	}
}
