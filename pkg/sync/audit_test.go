package sync

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	corev1 "k8s.io/api/core/v1"
)

// What another program changes of ours is found within one pass of the audit and put right; what is foreign
// is left alone. Affinity, which the detector cannot see, is read properly.
func TestAudit(t *testing.T) {
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	edit := func(f func(*ipvs.Server)) func(*fake.Kernel) {
		return func(k *fake.Kernel) {
			s := k.Servers[key]
			s.Reals = slices.Clone(s.Reals)
			f(&s)
			k.Servers[key] = s
		}
	}
	for name, tamper := range map[string]func(*fake.Kernel){
		"virtual server gone":   func(k *fake.Kernel) { delete(k.Servers, key) },
		"all gone":              func(k *fake.Kernel) { clear(k.Servers) },
		"scheduler":             edit(func(s *ipvs.Server) { s.Scheduler = "wlc" }),
		"affinity switched off": edit(func(s *ipvs.Server) { s.Flags, s.Timeout = 0, 0 }),
		"affinity time-out":     edit(func(s *ipvs.Server) { s.Timeout = 1 }),
		"real server gone":      edit(func(s *ipvs.Server) { s.Reals = s.Reals[:1] }),
		"weight":                edit(func(s *ipvs.Server) { s.Reals[0].Weight = 7 }),
		"weight 0":              edit(func(s *ipvs.Server) { s.Reals[0].Weight = 0 }),
		"forwarding method":     edit(func(s *ipvs.Server) { s.Reals[0].Forward = ipvs.DirectRt }),
		"real server too many": edit(func(s *ipvs.Server) {
			s.Reals = ipvs.SortReals(append(s.Reals, ipvs.Real{Addr: netip.MustParseAddrPort("10.9.9.9:9"), Weight: 1}))
		}),
		"ownership":              func(k *fake.Kernel) { delete(k.Sets[ipvs.SetOwned], key) },
		"opening":                func(k *fake.Kernel) { delete(k.Sets[ipvs.SetOpen], key) },
		"guard of the address":   func(k *fake.Kernel) { clear(k.Sets[ipvs.SetVIPs]) },
		"hairpin":                func(k *fake.Kernel) { clear(k.Sets[ipvs.SetHairpin]) },
		"an address too many":    func(k *fake.Kernel) { k.Addrs[netip.MustParseAddr("10.96.0.99")] = true },
		"address":                func(k *fake.Kernel) { dropAddrs(k) },
		"an element too many":    func(k *fake.Kernel) { k.Sets[ipvs.SetOpen][ipvs.Key{Addr: key.Addr, Port: 81, Proto: ipvs.TCP}] = true },
		"the table":              func(k *fake.Kernel) { k.DropTable() },
		"the interface":          func(k *fake.Kernel) { k.DropLink() },
		"everything but servers": func(k *fake.Kernel) { clear(k.Sets[ipvs.SetOwned]); clear(k.Sets[ipvs.SetOpen]); dropAddrs(k) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				web := service("web", "10.96.0.10", 80, 443)
				web.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				other := service("other", "10.96.0.11", 80)
				r.set(web, slice(web, "10.244.1.5@node1", "10.244.2.10"), other, slice(other, "10.244.2.11"))
				r.synced()
				r.start()
				foreign := ipvs.Key{Addr: netip.MustParseAddr("172.16.0.1"), Port: 80, Proto: ipvs.TCP}
				r.tamper(func() {
					r.kernel.Servers[foreign] = ipvs.Server{Scheduler: "wlc"}
				})
				wantLines(t, "nothing tampered with", r.writes(func() { time.Sleep(time.Minute) }))
				before := dumpOf(r.kernel)
				r.tamper(func() {
					tamper(r.kernel)
					r.kernel.Servers[foreign] = ipvs.Server{Scheduler: "sh"}
				})
				time.Sleep(17 * time.Second) // a pass, and a look at table and interface
				if name == "real server too many" {
					time.Sleep(12 * time.Second) // it drains first
				}
				synctest.Wait()
				r.tamper(func() { r.kernel.Servers[foreign] = ipvs.Server{Scheduler: "wlc"} })
				if after := dumpOf(r.kernel); after != before {
					t.Errorf("after a pass:\n%s\nwant:\n%s", after, before)
				}
				wantLines(t, "and then nothing", r.writes(func() { time.Sleep(time.Minute) }))
			})
		})
	}
}

// A failed look for changes concludes nothing.
func TestAuditThatFails(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.1.5@node1", "10.244.2.10"))
		r.synced()
		r.start()
		r.tamper(func() { r.kernel.FailRead = func() error { return syscall.EIO } })
		wantLines(t, "unreadable", r.writes(func() { time.Sleep(10 * time.Minute) }))
		r.tamper(func() { r.kernel.FailRead = nil })
		wantLines(t, "readable", r.writes(func() { time.Sleep(10 * time.Minute) }))
	})
}

// What the kernel's list leaves out is no change by another program; when it is gone indeed, it is put back.
func TestAuditOverlooks(t *testing.T) {
	s := newStepper()
	s.start(completeModel(crowd(20)...))
	s.pass(2 * time.Minute)
	var key ipvs.Key
	for key = range s.kernel.Servers {
		break
	}
	s.kernel.Overlooks = func(k ipvs.Key) bool { return k == key }
	s.kernel.Log = nil
	began := s.loop.mirror.Pass().Number()
	s.pass(2 * time.Minute)
	if s.loop.mirror.Pass().Number() < began+2 || s.audit().found != 0 || len(s.kernel.Log) > 0 {
		t.Errorf("%s overlooked: %d passes found %d differences and wrote %s; want none", key, s.loop.mirror.Pass().Number()-began, s.audit().found, s.kernel.Log)
	}
	delete(s.kernel.Servers, key)
	s.pass(2 * time.Minute)
	if s.kernel.Servers[key].Scheduler == "" || len(s.kernel.Log) == 0 {
		t.Errorf("%s was deleted and is not back: wrote %s", key, s.kernel.Log)
	}
}

// dropAddrs removes our addresses, not the foreign one.
func dropAddrs(k *fake.Kernel) {
	for a := range k.Addrs {
		if a != netip.MustParseAddr("172.16.0.1") {
			delete(k.Addrs, a)
		}
	}
}

// An address whose guard somebody removed, and whose Service goes before that was mended, is still ours.
func TestUnguardedAddressIsStillOurs(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.start()
		r.tamper(func() {
			clear(r.kernel.Sets[ipvs.SetVIPs])
			clear(r.kernel.Servers)
		})
		r.model.DeleteService("default", "web")
		time.Sleep(time.Minute)
		r.tamper(func() {
			if len(r.kernel.Addrs) > 0 {
				t.Errorf("left behind:\n%s", dumpOf(r.kernel))
			}
		})
	})
}

// What this process writes while a pass of the audit is under way is not taken for another program's work:
// with many Services a start takes longer than the audit waits, and still writes everything once.
func TestAuditDuringAStart(t *testing.T) {
	s := newStepper()
	during := 0
	s.door.after = func(ipvs.Op) {
		s.now = s.now.Add(20 * time.Millisecond)
		if s.loop.mirror.Pass().Busy() {
			during++
		}
	}
	s.door.fault = func(op ipvs.Op) fault {
		if e, ok := op.(ipvs.Element); ok && e.Set == ipvs.SetVIPs && len(s.kernel.Log)%10 == 0 {
			return fault{err: errLost, written: true} // it is read whether it took place
		}
		return fault{}
	}
	s.start(completeModel(crowd(150)...))
	s.pass(2 * time.Minute)
	if during < 100 || s.loop.mirror.Pass().Busy() || s.loop.mirror.Pass().Number() < 2 {
		t.Errorf("%d writes during %d passes, the last under way: %t; want many, and the end of one", during, s.loop.mirror.Pass().Number(), s.loop.mirror.Pass().Busy())
	}
	times := map[string]int{}
	for _, op := range s.kernel.Log {
		if _, is := op.(ipvs.Forget); is { // a look for what may be there
			continue
		}
		if times[op.String()]++; times[op.String()] == 2 {
			t.Errorf("written again: %s", op)
		}
	}
	if diffs := expect(s.model, s.kernel.Node, s.opt).compare(s.kernel, nobody); len(diffs) > 0 {
		t.Errorf("not as it should be:\n%s", strings.Join(diffs, "\n"))
	}
}

// A pass in the middle of which the interface went, so that all was read anew, concludes nothing: only the
// addresses are written again.
func TestAuditWhenTheInterfaceGoes(t *testing.T) {
	s := newStepper()
	s.start(completeModel(crowd(20)...))
	s.pass(9 * time.Second)
	s.kernel.Log = nil
	reads := 0
	s.kernel.FailRead = func() error {
		if !s.loop.mirror.Pass().Busy() {
			return nil
		}
		if reads++; reads == 10 {
			s.kernel.DropLink()
			s.loop.site.base.next = s.now // it is noticed next
		}
		return nil
	}
	s.pass(3 * time.Minute)
	binds := 0
	for _, op := range s.kernel.Log {
		switch op.(type) {
		case ipvs.Bind:
			binds++
		case ipvs.Forget: // of what was sent meanwhile
		default:
			t.Errorf("written: %s", op)
		}
	}
	if binds != 20 || s.loop.mirror.Pass().Number() < 3 {
		t.Errorf("%d addresses bound, %d passes; want 20 and several", binds, s.loop.mirror.Pass().Number())
	}
}

// slowly is a kernel that takes time to read Keys.
type slowly struct {
	Kernel
	took        func(time.Duration)
	reads, most int
}

func (s *slowly) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	s.reads, s.most = s.reads+len(keys), max(s.most, len(keys))
	s.took(time.Duration(len(keys)) * time.Millisecond)
	return s.Kernel.Observe(ctx, keys)
}

// TestB93AuditCounts: what the audit costs is all that it costs, the reading of Keys with affinity included: they cost
// no more than auditCPU says, are read a few at a time, and are read.
func TestB93AuditCounts(t *testing.T) {
	s := newStepper()
	var objs []any
	for i := range 200 {
		svc := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.0.%d", i+1), 80)
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		objs = append(objs, svc, slice(svc, "10.244.2.1"))
	}
	s.start(completeModel(objs...))
	s.pass(5 * time.Second)
	k := &slowly{Kernel: s.door, took: func(d time.Duration) { s.now = s.now.Add(d) }}
	s.audit().reader = k
	for _, tender := range s.loop.rounds {
		if a, is := tender.(*act); is {
			a.reader = k
		}
	}
	passes := s.loop.mirror.Pass().Number()
	s.pass(10 * time.Minute)
	passes = s.loop.mirror.Pass().Number() - passes
	t.Logf("10 min: %d passes, %d reads of Keys, %d at a time", passes, k.reads, k.most)
	// At 1 ms each, 1 % of the time is 6,000 reads. The first pass comes before its cost is known.
	if k.reads > 7000 || passes < 3 || k.most > 32 {
		t.Errorf("%d passes, %d reads in 10 min, want 7,000 at most, and %d at a time, want 32 at most", passes, k.reads, k.most)
	}
	key := tcp("10.96.0.7")
	server := s.kernel.Servers[key]
	server.Timeout = 1
	s.kernel.Servers[key] = server
	s.pass(5 * time.Minute)
	if got := s.kernel.Servers[key].Timeout; got != 10800 {
		t.Errorf("another program changed the timeout of %s, and it is %d s", key, got)
	}
}
