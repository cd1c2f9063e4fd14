package sync

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// manySlices is a Service's endpoints in slices of 100, as the control plane makes them.
func manySlices(name string, from, to int) []any {
	return slicesOf(service(name, "", 80), 100, from, to, func(i int) string { return netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}).String() })
}

// plans notes how many operations the plans have that a loop gives its kernel, and how often it reads before.
type plans struct {
	Kernel
	most, all, n int
	reads        int
	saw          func(ipvs.Plan)
}

func (p *plans) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	if p.saw != nil {
		p.saw(plan)
	}
	p.most, p.all, p.n = max(p.most, len(plan)), p.all+len(plan), p.n+1
	return p.Kernel.Do(ctx, plan)
}

func (p *plans) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	p.reads++
	return p.Kernel.Observe(ctx, keys)
}

// watched starts a loop whose plans are counted.
func (s *stepper) watched(objs ...any) *plans {
	s.opt.AuditPeriod, s.opt.BasePeriod = time.Hour, time.Hour
	s.start(completeModel(objs...))
	p := &plans{Kernel: s.door}
	for _, t := range s.loop.rounds {
		if a, is := t.(*act); is {
			a.writer, a.reader = p, p
		}
	}
	return p
}

// sliceLimit is how many operations a slice of work may have: a few hundred.
const sliceLimit = 600

// TestB90SlicesOfWork: however many endpoints Services have, a plan has a few hundred operations. Each is done once, and
// none of them leaves a state in which the process must not die.
func TestB90SlicesOfWork(t *testing.T) {
	var many []any
	for i := range 64 {
		many = append(many, service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.0.%d", i+1), 80))
		many = append(many, manySlices(fmt.Sprintf("s%d", i), 0, 1000)...)
	}
	one := append([]any{service("s0", "10.96.0.1", 80)}, manySlices("s0", 0, 5000)...)
	for name, c := range map[string]struct {
		objs   []any
		writes int
	}{
		// owned, vips, virtual server, address, open; and the record of the adoption
		"64 Services of 1,000 endpoints": {many, 64*1005 + 1},
		"one Service of 5,000 endpoints": {one, 5005 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepper()
			p := s.watched(c.objs...)
			watch := len(c.objs) == len(one)
			before := map[hazard]bool{}
			s.door.after = func(op ipvs.Op) {
				if !watch {
					return // hazards looks at all there is
				}
				now := hazards(s.kernel, nil)
				for h := range now {
					if h.caused(op, before) {
						t.Errorf("after %s: %s", op, h)
					}
				}
				before = now
			}
			s.pass(2 * time.Second)
			t.Logf("%d operations in %d plans of %d at most", p.all, p.n, p.most)
			if p.most > sliceLimit || p.all != c.writes || p.reads > 0 {
				t.Errorf("%d operations, want %d, %d in one plan, want %d at most; %d reads, want none", p.all, c.writes, p.most, sliceLimit, p.reads)
			}
			if diffs := expect(s.model, s.kernel.Node, s.opt).compare(s.kernel, nobody); len(diffs) > 0 {
				t.Errorf("not as it should be: %d differences, %s", len(diffs), diffs[0])
			}
		})
	}
}

// TestB90SlicesOfAChange: a Service whose thousands of endpoints go drains them and removes them in slices.
func TestB90SlicesOfAChange(t *testing.T) {
	s := newStepper()
	p := s.watched(append([]any{service("s0", "10.96.0.1", 80)}, manySlices("s0", 0, 3000)...)...)
	s.pass(2 * time.Second)
	*p = plans{Kernel: p.Kernel}
	for _, o := range manySlices("s0", 100, 3000) {
		sl := o.(*discoveryv1.EndpointSlice)
		s.model.DeleteSlice(sl.Namespace, sl.Name)
	}
	s.pass(10 * time.Minute)
	t.Logf("%d operations in %d plans of %d at most", p.all, p.n, p.most)
	if p.most > sliceLimit || p.all != 2*2900 {
		t.Errorf("2,900 endpoints go by %d operations, want 5,800, %d in one plan, want %d at most", p.all, p.most, sliceLimit)
	}
	if diffs := expect(s.model, s.kernel.Node, s.opt).compare(s.kernel, nobody); len(diffs) > 0 {
		t.Errorf("not as it should be: %d differences, %s", len(diffs), diffs[0])
	}
}

// TestB90UrgentBetweenSlices: what is urgent waits for one slice, also when the one before it is a large Service's.
func TestB90UrgentBetweenSlices(t *testing.T) {
	dns := system("kube-dns", "10.95.0.1", 53)
	key := ipvs.Key{Addr: netip.MustParseAddr("10.95.0.1"), Port: 53, Proto: ipvs.TCP}
	s := newStepper()
	p := s.watched(dns, slice(dns, "10.244.2.10"))
	s.pass(2 * time.Second)
	give(s.model, append([]any{service("s0", "10.96.0.1", 80)}, manySlices("s0", 0, 5000)...)...)
	s.loop.turn(t.Context())
	s.loop.turn(t.Context())
	give(s.model, slice(dns, "10.244.2.10", "10.244.2.11"))
	before := p.all
	for len(s.kernel.Servers[key].Reals) < 2 && p.all-before < 5000 {
		s.loop.turn(t.Context())
	}
	t.Logf("%d operations of 5,005 went before, %d then", before, p.all-before)
	if waited := p.all - before; before < 100 || before > 4000 || waited > sliceLimit {
		t.Errorf("%d operations of a large Service, then an urgent change, which came after %d, want %d at most", before, waited, sliceLimit)
	}
}

// hanging is a kernel whose reads of some Keys hang until they are given up.
type hanging struct {
	Kernel
	hangs func(ipvs.Key) bool
	wait  func()
	reads int
}

func (h *hanging) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	h.reads++
	for _, k := range keys {
		if h.hangs(k) {
			h.wait()
			return nil, errTimeout
		}
	}
	return h.Kernel.Observe(ctx, keys)
}

// TestB90ReadsThatHang: a read that hangs takes its time once a turn, and when it is one Key's alone, the others are
// read before it.
func TestB90ReadsThatHang(t *testing.T) {
	const hang = 5 * time.Second
	bad := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.7"), Port: 80, Proto: ipvs.TCP}
	for name, c := range map[string]struct {
		hangs func(ipvs.Key) bool
		left  int // in doubt in the end
		turns int
	}{
		"all of them":  {func(ipvs.Key) bool { return true }, 64, 100},
		"one of them":  {func(k ipvs.Key) bool { return k == bad }, 1, 30},
		"none of them": {func(ipvs.Key) bool { return false }, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepper()
			s.watched(crowd(64)...)
			s.pass(2 * time.Second)
			h := &hanging{Kernel: s.door, hangs: c.hangs, wait: func() { s.now = s.now.Add(hang) }}
			for _, tender := range s.loop.rounds {
				if a, is := tender.(*act); is {
					a.reader = h
				}
			}
			for _, k := range sorted(s.kernel.Servers) {
				s.loop.doubt(k)
			}
			longest, doubted := time.Duration(0), 0
			for range c.turns {
				began := s.now
				s.loop.turn(t.Context())
				longest = max(longest, s.now.Sub(began))
			}
			for k := range s.kernel.Servers {
				if s.loop.mirror.Doubted(k) {
					doubted++
				}
			}
			t.Logf("%d turns of %v at most, %d reads, %d Keys in doubt", c.turns, longest, h.reads, doubted)
			if longest > hang || doubted != c.left {
				t.Errorf("a turn took %v, want %v at most; %d Keys are in doubt after %d turns, want %d", longest, hang, doubted, c.turns, c.left)
			}
			h.hangs = func(ipvs.Key) bool { return false }
			s.pass(10 * time.Second)
			if len(s.loop.fare.failing) > 0 || s.loop.queue.len() > 0 {
				t.Errorf("reads are answered again: %d Keys fail, %d wait", len(s.loop.fare.failing), s.loop.queue.len())
			}
		})
	}
}

// manyRanges are source ranges that do not follow upon each other.
func manyRanges(n, from int) (ranges []string) {
	for i := range n {
		ranges = append(ranges, fmt.Sprintf("198.18.%d.%d/32", (from+2*i)>>8&255, (from+2*i)&255))
	}
	return ranges
}

// TestB90RangesAreInNobodysWay: changes of source ranges, for which the kernel copies those of all frontends, come by
// themselves and behind what others want, at a start and later; and they come.
func TestB90RangesAreInNobodysWay(t *testing.T) {
	s := newStepper()
	var objs []any
	limited := make([]*corev1.Service, 10)
	for i := range limited {
		limited[i] = balancer(fmt.Sprintf("limited%d", i), fmt.Sprintf("10.95.0.%d", i+1), fmt.Sprintf("203.0.113.%d", i+1), 1, 80)
		limited[i].Spec.LoadBalancerSourceRanges = manyRanges(1500, 0)
		objs = append(objs, limited[i], slice(limited[i], "10.244.2.10"))
	}
	p := s.watched(append(objs, crowd(200)...)...)
	servers := map[ipvs.Key]bool{} // that others have
	before, dear, mixed := -1, 0, 0
	p.saw = func(plan ipvs.Plan) {
		ranges, others := 0, 0
		for _, step := range plan {
			is := step.Op.Effect()
			if is.Set == ipvs.SetRanges {
				ranges++
			}
			if !netip.MustParsePrefix("203.0.113.0/24").Contains(step.Key.Addr) {
				others++
				if is.Kind == ipvs.KindAddServer {
					servers[step.Key] = true
				}
			}
		}
		if ranges > 0 {
			if dear++; before < 0 {
				before = len(servers)
			}
			if others > 0 {
				mixed++
			}
		}
	}
	s.pass(5 * time.Second)
	t.Logf("%d frontends of others came before the first ranges, which came in %d plans, %d of them with others", before, dear, mixed)
	if before != 210 || mixed > 0 || dear < 10 { // the ClusterIPs of the ten among them
		t.Errorf("%d frontends of others came before the first ranges, want 210; %d of %d plans of ranges hold something else, want none", before, mixed, dear)
	}
	for i := range limited {
		limited[i].Spec.LoadBalancerSourceRanges = manyRanges(1500, 1)
		give(s.model, limited[i])
	}
	s.loop.turn(t.Context())
	web := service("s0", "10.96.0.1", 80)
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: ipvs.TCP}
	give(s.model, slice(web, "10.244.2.77"))
	dear = 0
	changed := func() bool {
		return slices.ContainsFunc(s.kernel.Servers[key].Reals, func(r ipvs.Real) bool { return r.Addr.Addr() == netip.MustParseAddr("10.244.2.77") })
	}
	for range 100 {
		if changed() {
			break
		}
		s.loop.turn(t.Context())
	}
	if !changed() || dear > 1 {
		t.Errorf("a change of another Service came (%t) after %d plans of ranges, want 1 at most", changed(), dear)
	}
	s.pass(5 * time.Second)
	if diffs := expect(s.model, s.kernel.Node, s.opt).compare(s.kernel, nobody); len(diffs) > 0 {
		t.Errorf("not as it should be: %d differences, %s", len(diffs), diffs[0])
	}
}

// TestB93AwaitedIsBounded: while a Key fails, what waits for it is bounded, however often its Service changes; and what
// waits is told of in the end.
func TestB93AwaitedIsBounded(t *testing.T) {
	web, key := service("web", "10.96.0.1", 80), tcp("10.96.0.1")
	r := newHealthRig(t, web)
	r.pass(3 * time.Second)
	r.refuseIPVS(key)
	change := func(i int) {
		sl := slice(web, fmt.Sprintf("10.244.2.%d", 1+i%200))
		sl.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Add(time.Hour + time.Duration(i)*time.Second).Format(time.RFC3339Nano)}
		give(r.model, sl)
		r.settle()
		r.now = r.now.Add(time.Second)
	}
	for i := range 1000 {
		change(i)
	}
	n := len(r.loop.fare.awaited[key])
	t.Logf("1,000 changes of a Service whose frontend fails: %d wait", n)
	if n == 0 || n > 16 {
		t.Errorf("1,000 changes of a Service whose frontend fails: %d wait, want a few", n)
	}
	r.door.fault = nil
	r.pass(5 * time.Second)
	if len(r.loop.fare.awaited) > 0 {
		t.Errorf("it is in order, and %d frontends are waited for", len(r.loop.fare.awaited))
	}
	r.wantValue("in order again", float64(n), "kubeproxy_network_programming_duration_seconds")
	change(1001)
	r.wantValue("and one more change", float64(n+1), "kubeproxy_network_programming_duration_seconds")
}

// TestB93ForgetIsBounded: while conntrack entries cannot be deleted, what is collected is as much as there is, however
// often endpoints come back.
func TestB93ForgetIsBounded(t *testing.T) {
	s := newStepper()
	dns := service("dns", "10.96.0.53", 53)
	dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	s.start(completeModel(dns, slice(dns, "10.244.2.1")))
	s.pass(3 * time.Second)
	s.door.fault = func(op ipvs.Op) fault {
		if _, is := op.(ipvs.Forget); is {
			return fault{err: errTimeout, unknown: true}
		}
		return fault{}
	}
	for i := range 1000 {
		give(s.model, slice(dns, fmt.Sprintf("10.244.2.%d", 1+i%2)))
		s.pass(100 * time.Millisecond)
	}
	late := 0
	for _, tender := range s.loop.rounds {
		if f, is := tender.(*forget); is {
			for _, of := range f.late {
				late += len(of)
			}
		}
	}
	t.Logf("two endpoints that came and went 1,000 times: %d wait", late)
	if late != 2 {
		t.Errorf("two endpoints that came and went 1,000 times: %d wait, want 2", late)
	}
}

// decisions counts how often Services are decided: of each its triggers are taken then.
type decisions struct {
	Triggers
	of map[cluster.ID]int
}

func (d *decisions) TakeTriggers(id cluster.ID) []cluster.Trigger {
	d.of[id]++
	return d.Triggers.TakeTriggers(id)
}

// countDecisions has a stepper's decisions counted.
func (s *stepper) countDecisions() *decisions {
	for _, t := range s.loop.ground {
		if e, is := t.(*ear); is {
			d := &decisions{e.triggers, map[cluster.ID]int{}}
			e.triggers = d
			return d
		}
	}
	panic("no ear")
}

// TestB90EndpointsThatAreVirtualIPs: a Service with many endpoints that are virtual IPs of others is decided twice at a
// start, whichever comes first, and later once a turn for however many of those come and go in it.
func TestB90EndpointsThatAreVirtualIPs(t *testing.T) {
	const liar = "liar"
	for _, n := range []int{10, 1000, 10_000} {
		for _, first := range []bool{true, false} {
			objs := crowd(n)
			if first {
				objs = append(liars(n), objs...)
			} else {
				objs = append(objs, liars(n)...)
			}
			s := newStepper()
			s.opt.AuditPeriod, s.opt.BasePeriod = time.Hour, time.Hour
			s.start(completeModel(objs...))
			d := s.countDecisions()
			s.pass(3 * time.Second)
			is, all := d.of[cluster.ID{Namespace: "default", Name: liar}], 0
			for _, times := range d.of {
				all += times
			}
			key := tcp("10.95.1.1")
			t.Logf("%6d Services, the one with their addresses comes first: %5t: it is decided %d times, all are %d times; it has %d real servers", n, first, is, all, len(s.kernel.Servers[key].Reals))
			if is > 2 || all > n+4 {
				t.Fatalf("%d Services (%t): one with their addresses as its endpoints is decided %d times, all are %d times", n, first, is, all)
			}
			if reals := s.kernel.Servers[key].Reals; len(reals) > 0 {
				t.Fatalf("%d Services (%t): %d virtual IPs are real servers", n, first, len(reals))
			}
			if n > 1000 {
				continue // what comes later costs the kernel in memory more than the desk
			}
			for _, c := range []struct {
				what  string
				do    func(i int)
				reals int
			}{
				{"go", func(i int) { s.model.DeleteService("default", fmt.Sprintf("s%d", i)) }, n - 1},
				{"come back", func(i int) {
					give(s.model, service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), 80))
				}, 0},
			} {
				clear(d.of)
				for i := range n {
					c.do(i)
				}
				s.pass(10 * time.Second)
				if is, most := d.of[cluster.ID{Namespace: "default", Name: liar}], n/sliceServices+1; is == 0 || is > most {
					t.Fatalf("%d Services %s (%t): one with their addresses as its endpoints is decided %d times, want %d at most", n, c.what, first, is, most)
				}
				used := 0
				for _, r := range s.kernel.Servers[key].Reals {
					used += int(r.Weight) // those that drain have none
				}
				if used != c.reals {
					t.Fatalf("%d Services %s (%t): it leads to %d of their addresses, want %d", n, c.what, first, used, c.reals)
				}
			}
		}
	}
}

// TestB93GoneIsBounded: while the kernel neither says what becomes of a write nor can be read, Services that come and go
// leave no more than a thousand Keys to be tried again, and to be looked at for redirected clients. Once it answers, all
// that they left in it goes: what is not known any more is met by a pass of the audit.
func TestB93GoneIsBounded(t *testing.T) {
	const churn = 1500 // Services, of two UDP frontends each that redirect or are redirected to
	all := func(written bool) func(ipvs.Op) fault {
		return func(ipvs.Op) fault { return fault{err: errTimeout, unknown: true, written: written} }
	}
	for name, c := range map[string]struct {
		fault  func(ipvs.Op) fault
		unread bool
	}{
		"writes get lost":           {all(false), true},
		"acknowledgements get lost": {all(true), true},
		"conntrack entries cannot be deleted": {func(op ipvs.Op) fault {
			if _, is := op.(ipvs.Forget); is {
				return fault{err: errTimeout, unknown: true}
			}
			return fault{}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepper()
			s.opt.BasePeriod = time.Hour
			s.start(completeModel(crowd(2)...))
			s.pass(3 * time.Second)
			h := &hanging{Kernel: s.door, hangs: func(ipvs.Key) bool { return c.unread }, wait: func() {}}
			var forgets *forget
			for _, tender := range s.loop.rounds {
				switch tender := tender.(type) {
				case *act:
					tender.reader = h
				case *forget:
					forgets = tender
				}
			}
			s.door.fault = c.fault
			most, redirected, known := 0, 0, 0
			for i := range churn {
				svc := balancer("gone", fmt.Sprintf("10.97.%d.%d", i/250, i%250+1), fmt.Sprintf("203.0.%d.%d", i/250, i%250+1), 1, 53)
				svc.Name = fmt.Sprintf("gone%d", i)
				svc.Spec.Ports[0].Protocol, svc.Spec.ExternalTrafficPolicy = corev1.ProtocolUDP, corev1.ServiceExternalTrafficPolicyLocal
				eps := slice(svc, "10.244.1.5@node1", "10.244.2.5")
				give(s.model, svc, eps)
				s.pass(100 * time.Millisecond)
				s.model.DeleteService("default", svc.Name)
				s.model.DeleteSlice("default", eps.Name)
				s.pass(100 * time.Millisecond)
				n := 0
				for range s.loop.mirror.Keys() {
					n++
				}
				most, redirected, known = max(most, len(s.loop.fare.failing)), max(redirected, len(forgets.redirected), len(forgets.keys)), max(known, n, s.loop.queue.len(), len(s.loop.fare.was))
			}
			t.Logf("%d frontends came and went: %d fail, %d may redirect, %d are known or wait, all at most", 2*churn, most, redirected, known)
			const bound = goneMost + 100
			if max(most, redirected) < goneMost || most > bound || redirected > bound || known > 2*bound {
				t.Errorf("%d frontends came and went: %d fail, %d may redirect, %d are known or wait; want %d and %d", 2*churn, most, redirected, known, bound, 2*bound)
			}
			h.hangs, s.door.fault = func(ipvs.Key) bool { return false }, nil
			s.pass(2 * time.Minute)
			if diffs := expect(s.model, s.kernel.Node, s.opt).compare(s.kernel, nobody); len(diffs) > 0 {
				t.Errorf("not as it should be: %d differences, %s", len(diffs), diffs[0])
			}
			if f, r, q := s.loop.fare, forgets, s.loop.queue.len(); len(f.failing)+f.gone+len(f.was)+len(r.redirected)+len(r.keys)+q > 0 {
				t.Errorf("in order again: %d fail, %d of them gone, %d were somebody's, %d may redirect, %d are to be looked at, %d wait", len(f.failing), f.gone, len(f.was), len(r.redirected), len(r.keys), q)
			}
		})
	}
}
