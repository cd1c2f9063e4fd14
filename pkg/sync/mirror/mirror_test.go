package mirror

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

var (
	key  = ipvs.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: ipvs.TCP}
	stay = ipvs.Real{Addr: netip.MustParseAddrPort("10.244.1.1:8080"), Weight: 1}
	goes = ipvs.Real{Addr: netip.MustParseAddrPort("10.244.1.2:8080"), Weight: 1}
	noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
)

func frontend(reals ...ipvs.Real) *ipvs.Frontend {
	return &ipvs.Frontend{Server: ipvs.Server{Scheduler: "rr", Reals: reals}, Guard: ipvs.Guard{Owned: true, Open: true}}
}

// drained is a mirror of a Key with a real server that drains.
func drained(t *testing.T) *Mirror {
	t.Helper()
	m := New()
	m.Settle(key, Settled{Want: frontend(stay, goes), Complete: true})
	if !m.Settle(key, Settled{Want: frontend(stay), Complete: true, Patience: noon.Add(time.Minute)}) || m.Draining() != 1 {
		t.Fatalf("%d real servers drain, want 1", m.Draining())
	}
	return m
}

// TestDrainsAreCounted: whatever becomes of a Key, its real servers drain no more.
func TestDrainsAreCounted(t *testing.T) {
	for name, end := range map[string]func(*Mirror){
		"it comes back":       func(m *Mirror) { m.Settle(key, Settled{Want: frontend(stay, goes), Complete: true}) },
		"the Service is gone": func(m *Mirror) { m.Settle(key, Settled{Complete: true}) },
		"and it is spared":    func(m *Mirror) { m.Settle(key, Settled{Complete: true, Spared: true}) },
		"it was removed": func(m *Mirror) {
			if ops := reap(m, ipvs.Conns{}, noon, true); len(ops) != 1 {
				t.Fatalf("without connections: %v", ops)
			}
			m.Settle(key, Settled{Want: frontend(stay), Complete: true})
		},
		"all is read anew": func(m *Mirror) { m.Begin(nil, nil) },
	} {
		m := drained(t)
		if end(m); m.Draining() != 0 {
			t.Errorf("%s: %d drain", name, m.Draining())
		}
	}
}

// reap gives what is removed of the Key by the connections of what drains.
func reap(m *Mirror, conns ipvs.Conns, now time.Time, left bool) []ipvs.Op {
	m.Count(key, map[netip.AddrPort]ipvs.Conns{goes.Addr: conns}, now, func(netip.AddrPort) bool { return left })
	return m.Reap(key, frontend(stay), now, 9)
}

// TestCountIsForATurn: what was counted before a Key's last turn is no reason to remove anything: a client may have come back.
func TestCountIsForATurn(t *testing.T) {
	m := drained(t)
	none := func(netip.AddrPort) bool { return false }
	if !m.Count(key, nil, noon, none) {
		t.Fatal("without connections: it may not go")
	}
	m.Settle(key, Settled{Want: frontend(stay), Complete: true, Patience: noon.Add(time.Minute)})
	if ops := m.Reap(key, frontend(stay), noon, 9); len(ops) > 0 {
		t.Errorf("by what was counted before its last turn: %v", ops)
	}
	if m.Count(key, nil, noon, none); len(m.Reap(key, frontend(stay), noon, 9)) != 1 {
		t.Error("counted again: it is not removed")
	}
}

// TestReap: a real server that drains is removed without connections, at its deadline, or when it has left the cluster
// and was quiet for long enough.
func TestReap(t *testing.T) {
	busy, quiet := ipvs.Conns{Active: 1}, ipvs.Conns{Inactive: 1}
	for _, c := range []struct {
		name  string
		conns ipvs.Conns
		after time.Duration
		left  bool
		gone  bool
	}{
		{"busy", busy, time.Second, true, false},
		{"busy at the deadline", busy, time.Minute, false, true},
		{"idle", ipvs.Conns{}, time.Second, false, true},
		{"quiet for a moment", quiet, time.Second, true, false},
		{"quiet, and left", quiet, quietTime, true, true},
		{"quiet, and still named", quiet, quietTime, false, false},
	} {
		m := drained(t)
		if c.conns != (ipvs.Conns{}) {
			reap(m, c.conns, noon, c.left)
		}
		if ops := reap(m, c.conns, noon.Add(c.after), c.left); (len(ops) == 1) != c.gone {
			t.Errorf("%s: %v, want it removed: %t", c.name, ops, c.gone)
		}
	}
}

// TestMeet: what an audit makes of a piece of the kernel.
func TestMeet(t *testing.T) {
	flagged := frontend(stay)
	flagged.Server.Flags, flagged.Server.Timeout = ipvs.Persistent, 60
	for _, c := range []struct {
		name  string
		known *ipvs.Frontend // nil: nothing
		piece ipvs.Frontend
		want  Verdict
	}{
		{"as it is known", frontend(stay), ipvs.Frontend{Server: frontend(stay).Server}, Same},
		{"another real server", frontend(stay), ipvs.Frontend{Server: frontend(goes).Server}, Other},
		{"a virtual server of nobody", nil, ipvs.Frontend{Server: frontend(stay).Server}, Stranger},
		{"a record of nobody", nil, ipvs.Frontend{Guard: ipvs.Guard{Owned: true}}, Other},
		{"a record", frontend(stay), ipvs.Frontend{Guard: ipvs.Guard{Owned: true}}, Same},
		{"another record", frontend(stay), ipvs.Frontend{Guard: ipvs.Guard{Limited: true}}, Other},
		{"time-outs do not show", flagged, ipvs.Frontend{Server: ipvs.Server{Scheduler: "rr", Flags: ipvs.Persistent, Reals: []ipvs.Real{stay}}}, Unread},
	} {
		m := New()
		if c.known != nil {
			m.Settle(key, Settled{Want: c.known, Complete: true})
		}
		m.Pass().Begin()
		if got := m.Pass().Meet(key, &c.piece, func(ipvs.Fact) {}); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestMissed: what a pass did not meet is missed, what is doubted is so anyway, and what was written meanwhile is not.
func TestMissed(t *testing.T) {
	m := New()
	var keys []ipvs.Key
	for port := range uint16(4) {
		k := ipvs.Key{Addr: key.Addr, Port: port + 1, Proto: ipvs.TCP}
		m.Settle(k, Settled{Want: frontend(stay), Complete: true})
		keys = append(keys, k)
	}
	m.Pass().Begin()
	for _, piece := range []ipvs.Frontend{{Server: frontend(stay).Server}, {Guard: ipvs.Guard{Owned: true}}, {Guard: ipvs.Guard{Open: true}}} {
		m.Pass().Meet(keys[0], &piece, func(ipvs.Fact) {})
	}
	m.Settle(keys[1], Settled{Want: frontend(goes), Complete: true})
	m.Doubt(keys[2])
	missed, doubted := m.Pass().Missed(func(ipvs.Key) bool { return false })
	if !slices.Equal(missed, keys[3:]) || !slices.Equal(doubted, keys[2:3]) {
		t.Errorf("missed %v, doubted %v; want %v and %v", missed, doubted, keys[3:], keys[2:3])
	}
}

// TestGiveUp: of a Key that is given up nothing is known any more. A pass meets as new what the kernel has of it, but for
// the facts of its address that others need.
func TestGiveUp(t *testing.T) {
	for _, needed := range []bool{false, true} {
		m := New()
		m.Settle(key, Settled{Want: frontend(stay), Complete: true})
		m.LearnDone(ipvs.Bind{Addr: key.Addr}, time.Time{})
		m.LearnLost(ipvs.Bind{Addr: key.Addr})
		m.Failed(key, nil)
		m.GiveUp(key, func(ipvs.FactKind) bool { return needed })
		if m.Knows(key) || m.MustRead(key, nil) != needed {
			t.Errorf("others need its address: %t; the Key is known: %t, and must be read: %t", needed, m.Knows(key), m.MustRead(key, nil))
		}
		m.Pass().Begin()
		fresh := 0
		m.Pass().Meet(ipvs.AddrKey(key.Addr), &ipvs.Frontend{Bind: true}, func(ipvs.Fact) { fresh++ })
		if (fresh == 0) != needed {
			t.Errorf("others need its address: %t; %d facts are new", needed, fresh)
		}
		if got := m.Pass().Meet(key, &ipvs.Frontend{Guard: ipvs.Guard{Owned: true}}, func(ipvs.Fact) {}); got != Other && !needed {
			t.Errorf("its record is %d, want %d", got, Other)
		}
	}
}

// What a plan that failed may have made is this process's own: it may go while parts of the cluster are missing. What
// nobody here ever wanted may not.
func TestKnewWhatFailed(t *testing.T) {
	m := New()
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.UDP}
	own, other := netip.MustParseAddrPort("10.244.1.1:80"), netip.MustParseAddrPort("10.244.1.2:80")
	m.Failed(key, &ipvs.Frontend{Server: ipvs.Server{Scheduler: "rr", Reals: []ipvs.Real{{Addr: own, Weight: 1}}}})
	m.Learn(key, &ipvs.Frontend{Server: ipvs.Server{Scheduler: "rr", Reals: []ipvs.Real{{Addr: own, Weight: 1}, {Addr: other, Weight: 1}}}}, nil)
	want := &ipvs.Frontend{Server: ipvs.Server{Scheduler: "rr"}}
	for real, knew := range map[netip.AddrPort]bool{own: true, other: false} {
		if got := m.Knew(key, want, ipvs.DelReal{Key: key, Addr: real}); got != knew {
			t.Errorf("%s: %t, want %t", real, got, knew)
		}
	}
}
