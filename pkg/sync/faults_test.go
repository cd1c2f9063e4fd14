package sync

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

func idOf(name string) cluster.ID { return cluster.ID{Namespace: "default", Name: name} }

// allFaults are the ways in which a write goes wrong (F27).
func allFaults() map[string]fault {
	all := map[string]fault{"time-out": {err: errTimeout, unknown: true}, "lost acknowledgement": {err: errLost, unknown: true, written: true}}
	for _, errno := range errnos {
		all[unix.ErrnoName(errno)] = fault{err: errno}
	}
	return all
}

// operations names every kind of operation.
var operations = map[string]func(ipvs.Op) bool{
	"add owned":      element(ipvs.SetOwned, false),
	"remove owned":   element(ipvs.SetOwned, true),
	"add open":       element(ipvs.SetOpen, false),
	"remove open":    element(ipvs.SetOpen, true),
	"add vips":       element(ipvs.SetVIPs, false),
	"remove vips":    element(ipvs.SetVIPs, true),
	"add hairpin":    element(ipvs.SetHairpin, false),
	"remove hairpin": element(ipvs.SetHairpin, true),
	"AddServer":      kind[ipvs.AddServer],
	"SetServer":      kind[ipvs.SetServer],
	"DelServer":      kind[ipvs.DelServer],
	"AddReal":        kind[ipvs.AddReal],
	"SetReal":        func(op ipvs.Op) bool { o, ok := op.(ipvs.SetReal); return ok && o.Real.Weight > 0 },
	"drain":          func(op ipvs.Op) bool { o, ok := op.(ipvs.SetReal); return ok && o.Real.Weight == 0 },
	"DelReal":        kind[ipvs.DelReal],
	"Bind":           kind[ipvs.Bind],
	"Unbind":         kind[ipvs.Unbind],
	"Forget":         kind[ipvs.Forget],
}

func kind[T ipvs.Op](op ipvs.Op) bool { _, ok := op.(T); return ok }

func element(s ipvs.Set, remove bool) func(ipvs.Op) bool {
	return func(op ipvs.Op) bool {
		e, ok := op.(ipvs.Element)
		return ok && e.Set == s && e.Remove == remove
	}
}

// TestEveryFault lets every kind of operation fail in every way while a Service is changed in such a way
// that the operation is needed. Other frontends are programmed, nothing wanted is taken away, no state is
// unsafe, and within 2 s of the fault's end the kernel is right.
func TestEveryFault(t *testing.T) {
	web, dns := service("web", "10.96.0.10", 80), service("dns", "10.96.0.53", 53)
	dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	sticky := web.DeepCopy()
	sticky.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	other := service("other", "10.96.0.20", 80)
	before := []any{web, slice(web, "10.244.1.5@node1", "10.244.2.10"), dns, slice(dns, "10.244.2.53")}
	// Each change brings some of the operations; together they bring all.
	changes := map[string][]any{
		"all new":           nil, // from nothing to before
		"all gone":          {},
		"endpoint replaced": {web, slice(web, "10.244.2.10", "10.244.2.11"), dns, slice(dns, "10.244.2.54")},
		"endpoints gone":    {web, slice(web), dns, slice(dns)},
		"affinity":          {sticky, slice(web, "10.244.1.5@node1", "10.244.2.10"), dns, slice(dns, "10.244.2.53")},
		"comes back":        before, // while it drains
	}
	tried := map[string]bool{}
	for opName, hit := range operations {
		for faultName, f := range allFaults() {
			for change, after := range changes {
				t.Run(fmt.Sprintf("%s %s %s", opName, faultName, change), func(t *testing.T) {
					if faultOnce(t, change, before, after, other, hit, f) {
						tried[opName+faultName] = true
					}
				})
			}
			if !tried[opName+faultName] {
				t.Errorf("%s never met %s", opName, faultName)
			}
		}
	}
	t.Logf("%d operations met %d faults", len(operations), len(allFaults()))
}

// faultOnce makes one change under one fault and reports whether the fault was met.
func faultOnce(t *testing.T, change string, before, after []any, other *corev1.Service, hit func(ipvs.Op) bool, f fault) (met bool) {
	s := newStepper()
	w := newWorld(before...)
	switch change {
	case "all new":
		w, after = newWorld(), before
		s.start(completeModel())
	case "comes back":
		s.start(completeModel(before...))
		s.settle()
		give(s.model, slice(before[0].(*corev1.Service)))
	default:
		s.start(completeModel(before...))
	}
	s.pass(2 * time.Second)

	s.door.fault = func(op ipvs.Op) fault {
		if !hit(op) || addrOf(op) == otherKey.Addr {
			return fault{}
		}
		met = true
		return f
	}
	after = append(slices.Clone(after), other, slice(other, "10.244.2.20"))
	want := expect(newModel(after...), s.kernel.Node, s.opt)
	known := hazards(s.kernel, nil)
	s.door.after = func(op ipvs.Op) {
		if want.wantsBack(op) {
			t.Errorf("%s: takes away what is wanted", op)
		}
		now := hazards(s.kernel, nil)
		for h := range now {
			if h.caused(op, known) && h.what != notBound { // see walker.wrote
				t.Errorf("after %s: %s", op, h)
			}
		}
		known = now
	}
	w.become(s.model, newWorld(after...))
	s.pass(30 * time.Second)
	if !s.kernel.Sets[ipvs.SetOpen][otherKey] {
		t.Error("another frontend was held up")
	}
	s.door.fault = nil
	s.pass(2 * time.Second)
	want.draining = true
	if diffs := want.compare(s.kernel, nobody); len(diffs) > 0 && met {
		t.Errorf("2 s after the fault's end: %s", strings.Join(diffs, "; "))
	}
	s.pass(restTime)
	want.draining = false
	if diffs := want.compare(s.kernel, nobody); len(diffs) > 0 {
		t.Errorf("long after: %s", strings.Join(diffs, "; "))
	}
	return met
}

var otherKey = ipvs.Key{Addr: netip.MustParseAddr("10.96.0.20"), Port: 80, Proto: ipvs.TCP}

// What somebody else takes away is put back while parts of the cluster cannot be read, too.
func TestTamperingWhilePartsAreMissing(t *testing.T) {
	web := service("web", "10.96.0.10", 80)
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	for name, tamper := range map[string]func(*stepper){
		"virtual server": func(s *stepper) { delete(s.kernel.Servers, key) },
		"open":           func(s *stepper) { delete(s.kernel.Sets[ipvs.SetOpen], key) },
		"owned":          func(s *stepper) { delete(s.kernel.Sets[ipvs.SetOwned], key) },
		"guard":          func(s *stepper) { clear(s.kernel.Sets[ipvs.SetVIPs]) },
		"address":        func(s *stepper) { clear(s.kernel.Addrs) },
		"hairpin":        func(s *stepper) { clear(s.kernel.Sets[ipvs.SetHairpin]) },
		"interface":      func(s *stepper) { s.kernel.DropLink() },
		"table":          func(s *stepper) { s.kernel.DropTable() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepper()
			m := newModel(web, slice(web, "10.244.1.5@node1", "10.244.2.10"))
			m.SetSynced()
			s.start(m)
			s.pass(2 * time.Second)
			tamper(s)
			s.pass(70 * time.Second)
			want := expect(m, s.kernel.Node, s.opt)
			delete(want.sets[ipvs.SetOwned], ipvs.Adopted) // not before all is known
			if diffs := want.compare(s.kernel, nobody); len(diffs) > 0 {
				t.Errorf("not put back: %s", strings.Join(diffs, "; "))
			}
			s.kernel.Log = nil
			s.pass(time.Minute)
			for _, op := range s.kernel.Log {
				t.Errorf("wrote %s for nothing", op)
			}
		})
	}
}

// Nobody knows whether a shared fact is gone: another Key of the address must not rely on it, neither way.
func TestWhatIsUnsureIsNotBuiltUpon(t *testing.T) {
	web, next := service("web", "10.96.0.10", 80, 443), service("next", "10.96.0.10", 8080)
	for opName, hit := range map[string]func(ipvs.Op) bool{"remove vips": operations["remove vips"], "Unbind": operations["Unbind"]} {
		for _, faultName := range []string{"time-out", "lost acknowledgement"} {
			t.Run(opName+" "+faultName, func(t *testing.T) {
				s := newStepper()
				s.start(completeModel(web, slice(web, "10.244.2.10")))
				s.pass(2 * time.Second)
				known := hazards(s.kernel, nil)
				s.door.after = func(op ipvs.Op) {
					now := hazards(s.kernel, nil)
					for h := range now {
						if h.caused(op, known) {
							t.Errorf("after %s: %s", op, h)
						}
					}
					known = now
				}
				s.door.fault = func(op ipvs.Op) fault {
					if hit(op) {
						return allFaults()[faultName]
					}
					return fault{}
				}
				s.model.DeleteService("default", "web")
				s.settle()
				give(s.model, next, slice(next, "10.244.2.11"))
				s.settle()
				s.door.fault = nil
				s.pass(2 * time.Second)
				if diffs := expect(s.model, s.kernel.Node, s.opt).compare(s.kernel, nobody); len(diffs) > 0 {
					t.Errorf("2 s after the fault's end: %s", strings.Join(diffs, "; "))
				}
			})
		}
	}
}

// A claim that loses its Key later is told of as one that lost from the start, and no more when it wins.
func TestWhoLosesAKeyIsTold(t *testing.T) {
	older, newer := service("older", "10.96.0.10", 80), service("newer", "10.96.0.10", 80)
	older.CreationTimestamp.Time, newer.CreationTimestamp.Time = time.Unix(1000, 0), time.Unix(2000, 0)
	s := newStepper()
	s.start(completeModel(newer))
	s.settle()
	give(s.model, older)
	s.settle()
	if got := s.loop.tell.told[idOf("newer")]; !strings.Contains(got, "belongs to Service default/older") {
		t.Errorf("told %q of the loser", got)
	}
	s.model.DeleteService("default", "older")
	s.settle()
	if got := s.loop.tell.told[idOf("newer")]; got != "" {
		t.Errorf("told %q of the winner", got)
	}
}

// Of a write that opened a UDP frontend only the acknowledgement was lost: what bypasses it goes all the same.
func TestForgetsAfterALostAcknowledgement(t *testing.T) {
	dns := service("dns", "10.96.0.53", 53)
	dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.53"), Port: 53, Proto: ipvs.UDP}
	s := newStepper()
	s.start(completeModel(dns))
	s.pass(2 * time.Second)
	s.kernel.Stale = map[ipvs.Key]int{key: 1}
	s.door.fault = func(op ipvs.Op) fault {
		if operations["add open"](op) {
			return fault{err: errLost, unknown: true, written: true}
		}
		return fault{}
	}
	give(s.model, slice(dns, "10.244.2.53"))
	s.settle()
	s.door.fault = nil
	s.pass(3 * time.Second)
	if s.kernel.Stale[key] > 0 {
		t.Error("conntrack entries still bypass the virtual server")
	}
}
