package sync

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// A removed endpoint takes no new connection and keeps its old ones.
func TestDrain(t *testing.T) {
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	pod := netip.MustParseAddrPort("10.244.2.10:8080")
	begin := func(r *rig) (*corev1.Service, *discoveryv1.EndpointSlice) {
		web := service("web", "10.96.0.10", 80)
		both := slice(web, "10.244.2.10", "10.244.2.11")
		r.set(web, both)
		r.synced()
		r.start()
		r.tamper(func() { r.kernel.Conns[key] = map[netip.AddrPort]ipvs.Conns{pod: {Active: 1, Inactive: 1}} })
		wantLines(r.t, "removed", r.writes(func() { r.set(slice(web, "10.244.2.11")) }),
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.10:8080 -m -w 0")
		wantLines(r.t, "while connections live", r.writes(func() { time.Sleep(time.Minute) }))
		return web, both
	}
	t.Run("until its connections are gone", func(t *testing.T) {
		bubble(t, func(t *testing.T, r *rig) {
			begin(r)
			r.tamper(func() { r.kernel.Conns[key] = nil })
			wantLines(t, "connections gone", r.writes(func() { time.Sleep(6 * time.Second) }),
				"ipvsadm -d -t 10.96.0.10:80 -r 10.244.2.10:8080")
			wantLines(t, "afterwards", r.writes(func() { time.Sleep(time.Hour) }))
		})
	})
	t.Run("until patience ends", func(t *testing.T) {
		bubble(t, func(t *testing.T, r *rig) {
			begin(r)
			wantLines(t, "deadline", r.writes(func() { time.Sleep(15 * time.Minute) }),
				"ipvsadm -d -t 10.96.0.10:80 -r 10.244.2.10:8080")
		})
	})
	t.Run("until it was quiet, once it has left every slice", func(t *testing.T) {
		bubble(t, func(t *testing.T, r *rig) {
			begin(r)
			r.tamper(func() { r.kernel.Conns[key] = map[netip.AddrPort]ipvs.Conns{pod: {Inactive: 7}} })
			wantLines(t, "at first", r.writes(func() { time.Sleep(9 * time.Second) }))
			wantLines(t, "10 s without an active connection", r.writes(func() { time.Sleep(7 * time.Second) }),
				"ipvsadm -d -t 10.96.0.10:80 -r 10.244.2.10:8080")
		})
	})
	t.Run("not for being quiet while a slice names it", func(t *testing.T) {
		bubble(t, func(t *testing.T, r *rig) {
			web, both := begin(r)
			no := false
			both = both.DeepCopy()
			both.Endpoints[0].Conditions.Ready = &no
			r.set(web, both)
			r.tamper(func() { r.kernel.Conns[key] = map[netip.AddrPort]ipvs.Conns{pod: {Inactive: 7}} })
			wantLines(t, "quiet and named", r.writes(func() { time.Sleep(5 * time.Minute) }))
			r.tamper(func() { r.kernel.Conns[key] = nil })
			wantLines(t, "connections gone", r.writes(func() { time.Sleep(6 * time.Second) }),
				"ipvsadm -d -t 10.96.0.10:80 -r 10.244.2.10:8080")
		})
	})
	t.Run("or it comes back", func(t *testing.T) {
		bubble(t, func(t *testing.T, r *rig) {
			_, both := begin(r)
			wantLines(t, "back", r.writes(func() { r.set(both) }),
				"ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.10:8080 -m -w 1")
			wantLines(t, "and stays", r.writes(func() { time.Sleep(time.Hour) }))
		})
	})
	t.Run("across a restart", func(t *testing.T) {
		bubble(t, func(t *testing.T, r *rig) {
			web, _ := begin(r)
			wantLines(t, "restart", r.writes(func() { r.restart(web, slice(web, "10.244.2.11")) }))
			r.tamper(func() { r.kernel.Conns[key] = nil })
			wantLines(t, "connections gone", r.writes(func() { time.Sleep(6 * time.Second) }),
				"ipvsadm -d -t 10.96.0.10:80 -r 10.244.2.10:8080")
		})
	})
}

// UDP has no end to wait for: the new endpoint comes first, then the old one goes at once.
func TestUDPDoesNotDrain(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		dns := service("dns", "10.96.0.53", 53)
		dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
		r.set(dns, slice(dns, "10.244.2.10"))
		r.synced()
		r.start()
		wantLines(t, "replaced", r.writes(func() { r.set(slice(dns, "10.244.2.11")) }),
			"ipvsadm -a -u 10.96.0.53:53 -r 10.244.2.11:8080 -m -w 1",
			"ipvsadm -d -u 10.96.0.53:53 -r 10.244.2.10:8080")
	})
}

// Removals of drained real servers are paced: the kernel remembers each for 2 min and every add scans them.
func TestReaperIsPaced(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		var many []string
		for i := range 2000 {
			many = append(many, netip.AddrFrom4([4]byte{10, 244, byte(2 + i/250), byte(1 + i%250)}).String())
		}
		r.set(web, slice(web, append(many, "10.245.0.1")...))
		r.synced()
		r.start()
		r.set(web, slice(web, "10.245.0.1"))
		key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
		for _, want := range []int{2001 - 900, 2001 - 1800, 1} {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			r.tamper(func() {
				if got := len(r.kernel.Servers[key].Reals); got != want {
					t.Errorf("%d real servers, want %d", got, want)
				}
			})
			time.Sleep(20 * time.Second)
		}
	})
}

// A UDP frontend that begins to take packets has the entries deleted that bypass it; all of a burst in one
// go, and no more often than once a second (B31).
func TestUDPForgetsWhatBypasses(t *testing.T) {
	forgets := func(ops []ipvs.Op) (n int) {
		for _, op := range ops {
			if _, ok := op.(ipvs.Forget); ok {
				n++
			}
		}
		return n
	}
	bubble(t, func(t *testing.T, r *rig) {
		dns := service("dns", "10.96.0.53", 53)
		dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
		r.synced()
		r.start()
		r.writes(func() { r.set(dns); time.Sleep(2 * time.Second) })
		r.writes(func() { r.set(slice(dns, "10.244.2.10")); time.Sleep(2 * time.Second) })
		if n := forgets(r.kernel.Log); n != 1 {
			t.Errorf("from zero to some: %d", n)
		}
		r.writes(func() { r.set(slice(dns, "10.244.2.11")); time.Sleep(2 * time.Second) })
		if n := forgets(r.kernel.Log); n != 0 {
			t.Errorf("one replaced by another: %d; its flows are the kernel's to move", n)
		}
		r.writes(func() {
			for i := range 20 {
				if r.set(slice(dns)); i%2 == 1 {
					r.set(slice(dns, "10.244.2.10"))
				}
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(2 * time.Second)
		})
		if n := forgets(r.kernel.Log); n < 1 || n > 4 {
			t.Errorf("10 times in 2 s: %d, want about one a second", n)
		}
	})
}

// An address that is bound again, after another program took it off, concerns all of its UDP frontends: the one
// for whose sake it is bound, and those that have their turn later and find it there.
func TestUDPForgetsForAllOfAnAddress(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var ports []int32
		for p := range int32(2 * sliceKeys) {
			ports = append(ports, 1000+p)
		}
		media := service("media", "10.96.0.60", ports...)
		media.Spec.Ports[0].Name = "control" // over TCP: its turn comes first
		for i := range media.Spec.Ports[1:] {
			media.Spec.Ports[i+1].Protocol = corev1.ProtocolUDP
		}
		r.set(media, slice(media, "10.244.2.10"))
		r.synced()
		r.start()
		time.Sleep(2 * time.Second)
		addr := netip.MustParseAddr("10.96.0.60")
		r.tamper(func() {
			delete(r.kernel.Addrs, addr)
			r.kernel.Stale = map[ipvs.Key]int{}
			for _, p := range ports[1:] {
				r.kernel.Stale[ipvs.Key{Addr: addr, Port: uint16(p), Proto: ipvs.UDP}] = 1
			}
		})
		time.Sleep(30 * time.Second) // an audit, and what follows
		r.tamper(func() {
			if _, there := r.kernel.Addrs[addr]; !there {
				t.Errorf("%s is not bound again", addr)
			}
			if n := len(r.kernel.Stale); n > 0 {
				t.Errorf("the flows of %d of %d frontends still bypass them", n, len(ports)-1)
			}
		})
	})
}

// A deadline of no time at all counts for what leaves from then on: what drains already has its own, and is not looked at
// more often for it. Nor is what has to wait for room among what the kernel removes.
func TestDrainDeadlineBecomesShorter(t *testing.T) {
	const before, after = 100, 1000 // of which 900 may go at once
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.AuditPeriod = time.Hour
		key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
		web := service("web", "10.96.0.10", 80)
		give(r.model, web, slice(web, "10.244.1.1"))
		give(r.model, manySlices("web", 0, before+after)...)
		r.synced()
		c := &scans{Kernel: &locked{&r.mu, r.kernel}}
		r.startOn(c)
		r.tamper(func() {
			conns := map[netip.AddrPort]ipvs.Conns{}
			for _, real := range r.kernel.Servers[key].Reals {
				conns[real.Addr] = ipvs.Conns{Active: 1}
			}
			r.kernel.Conns[key] = conns
		})
		// leave takes endpoints away, and says what is left some time later, and how often it was looked at meanwhile.
		leave := func(from, to int, wait time.Duration) (left, looks int) {
			r.tamper(func() { c.some = 0 })
			for _, o := range manySlices("web", from, to) {
				r.model.DeleteSlice("default", o.(*discoveryv1.EndpointSlice).Name)
			}
			time.Sleep(wait)
			r.tamper(func() { left, looks = len(r.kernel.Servers[key].Reals)-1, c.some })
			return left, looks
		}
		if left, looks := leave(0, before, time.Minute); left != before+after || looks > 14 {
			t.Errorf("the control, with the usual deadline: %d are there, looked %d times in a minute", left, looks)
		}
		none := web.DeepCopy()
		none.Annotations = map[string]string{cluster.DrainDeadlineAnnotation: "0s"}
		r.model.SetService(none)
		if left, looks := leave(0, 0, time.Minute); left != before+after || looks > 14 {
			t.Errorf("what drained before the deadline was another: %d are there, looked %d times in a minute", left, looks)
		}
		if left, looks := leave(before, before+after, time.Second); left != before+after-900 || looks > 10 {
			t.Errorf("left with no time at all: a second later %d are there, looked %d times", left, looks)
		}
		if left, looks := leave(0, 0, time.Minute); left != before+after-900 || looks > 14 {
			t.Errorf("without room for them: %d are there, looked %d times in a minute", left, looks)
		}
	})
}

// asked counts the Keys that are asked for, by their connections and in full.
type asked struct {
	Kernel
	connections, all int
}

func (a *asked) Connections(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error) {
	a.connections += len(keys)
	return a.Kernel.Connections(ctx, keys)
}

func (a *asked) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	a.all += len(keys)
	return a.Kernel.Observe(ctx, keys)
}

// replaced is a node with so many Services, of each of which an endpoint is replaced within a minute. Those that go have so
// many connections.
func replaced(n int, conns ipvs.Conns) (s *stepper, a *asked) {
	s = crowded(n + 1)
	a = &asked{Kernel: s.door}
	for _, t := range s.loop.rounds {
		switch t := t.(type) {
		case *act:
			t.reader = a
		case *drain:
			t.reader = a
		}
	}
	for key := range s.kernel.Servers {
		of := map[netip.AddrPort]ipvs.Conns{}
		for _, r := range s.kernel.Servers[key].Reals {
			of[r.Addr] = conns
		}
		if (conns != ipvs.Conns{}) {
			s.kernel.Conns[key] = of
		}
	}
	for i := range n {
		svc := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), 80)
		give(s.model, slice(svc, fmt.Sprintf("10.244.%d.%d", 10+i/250, i%250+1), fmt.Sprintf("10.246.%d.%d", i/250, i%250+1)))
		if i%(n/60) == 0 {
			s.pass(time.Second)
		}
	}
	s.pass(time.Second)
	return s, a
}

// TestDrainAsksForWhatMayGo: how often real servers that drain are asked for goes by how many may go, not by how many drain
// and for how long. Those of which each has to wait for its place among what the kernel removes are asked for once or twice;
// of those whose connections live there are so many a second, however many there are; and nothing else is read for them.
func TestDrainAsksForWhatMayGo(t *testing.T) {
	const n, begun = 3000, 2 * time.Minute
	left := func(s *stepper) (n int) {
		for _, server := range s.kernel.Servers {
			n += len(server.Reals) - 2
		}
		return n
	}
	t.Run("without connections", func(t *testing.T) {
		s, a := replaced(n, ipvs.Conns{})
		waiting := left(s)
		s.pass(time.Duration(n/900) * 140 * time.Second)
		if is := left(s); waiting < n-900 || is > 0 || a.connections > 2*n || a.all > 0 {
			t.Errorf("of %d that waited %d are there; %d Keys asked for, want %d at most; %d read", waiting, is, a.connections, 2*n, a.all)
		}
	})
	t.Run("with connections", func(t *testing.T) {
		s, a := replaced(n, ipvs.Conns{Active: 1})
		s.pass(begun)
		a.connections = 0
		s.pass(5 * time.Minute)
		if is, most := left(s), 5*60*drainRate+n; is != n || a.connections < n || a.connections > most || a.all > 0 {
			t.Errorf("in 5 min %d Keys asked for, want %d at most; %d read; %d of %d drain", a.connections, most, a.all, is, n)
		}
		clear(s.kernel.Conns)
		s.pass(n*time.Second/drainRate + 10*time.Second)
		if is := left(s); is != n-900 {
			t.Errorf("all connections have ended: %d are there, want %d", is, n-900)
		}
	})
}
