package sync

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
)

// TestOneChangeCostsTheSame: whether a node has 10 Services or 10,000, one event makes the same writes and
// the same number of allocations, and takes about as long. (TestOneChangeRunsTheSame counts how many map
// entries it looks at.)
func TestOneChangeCostsTheSame(t *testing.T) {
	there, changes := changesAtRest()
	small := make([]cost, len(changes))
	for _, n := range []int{10, 1000, 10_000} {
		s := crowded(n, there...)
		for i, c := range changes {
			got := s.measure(c.do, c.undo)
			t.Logf("%6d Services, %-25s %d writes, %4d allocations, %v", n, c.name+":", got.writes, got.allocs, got.took)
			if got.writes != c.writes {
				t.Errorf("%d Services, %s: %d writes, want %d", n, c.name, got.writes, c.writes)
			}
			if n == 10 {
				small[i] = got
				continue
			}
			// The maps and slices of loop and fake grow now and then, so that a few more or less mean nothing.
			if got.allocs > small[i].allocs+3 {
				t.Errorf("%d Services, %s: %d allocations, with 10 it is %d", n, c.name, got.allocs, small[i].allocs)
			}
			// Caches miss more often in large maps; a walk through 10,000 Services takes a hundred times as long.
			if limit := 8*small[i].took + 100*time.Microsecond; got.took > limit {
				t.Errorf("%d Services, %s: %v, with 10 it is %v", n, c.name, got.took, small[i].took)
			}
		}
	}
}

// change is an event on a node at rest, and what takes it back.
type change struct {
	name     string
	writes   int
	do, undo func(s *stepper)
}

// changesAtRest gives what the changes are about, which must be there at the start, and the changes.
func changesAtRest() (there []any, changes []change) {
	web, extra := service("web", "10.95.0.1", 80), service("extra", "10.95.0.2", 80)
	base := slice(web, "10.244.2.10", "10.244.2.11")
	return []any{web, base}, []change{
		{"a remote endpoint added", 1, // the real server
			func(s *stepper) { give(s.model, slice(web, "10.244.2.10", "10.244.2.11", "10.244.2.12@node2")) },
			func(s *stepper) { give(s.model, base) }},
		{"a local endpoint added", 2, // the real server, hairpin
			func(s *stepper) { give(s.model, slice(web, "10.244.2.10", "10.244.2.11", "10.244.1.5@node1")) },
			func(s *stepper) { give(s.model, base) }},
		{"an endpoint removed", 1, // weight 0
			func(s *stepper) { give(s.model, slice(web, "10.244.2.10")) },
			func(s *stepper) { give(s.model, base) }},
		{"a Service added", 8, // owned, vips, virtual server, two real servers, address, open, what bypasses it
			func(s *stepper) { give(s.model, slice(extra, "10.244.2.10", "10.244.2.11"), extra) },
			func(s *stepper) { s.model.DeleteService("default", "extra") }},
		{"a Service removed", 5, // open, address, virtual server, owned, vips
			func(s *stepper) { s.model.DeleteService("default", "web") },
			func(s *stepper) { give(s.model, web) }},
		{"a Service's port changed", 9, // old: open, virtual server, owned; new: owned, virtual server, two real servers, open, what bypasses it
			func(s *stepper) {
				other := service("web", "10.95.0.1", 81)
				other.Spec.Ports[0].Name = web.Spec.Ports[0].Name
				give(s.model, other)
			},
			func(s *stepper) { give(s.model, web) }},
		{"the same again", 0,
			func(s *stepper) { give(s.model, web, base) },
			func(*stepper) {}},
	}
}

// crowd is so many Services with two endpoints each, one of them on this node.
func crowd(n int) (objs []any) {
	for i := range n {
		svc := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), 80)
		objs = append(objs, svc, slice(svc, fmt.Sprintf("10.244.%d.%d", 10+i/250, i%250+1), fmt.Sprintf("10.245.%d.%d@node1", i/250, i%250+1)))
	}
	return objs
}

// crowded is a node with so many Services, at rest. One of them is given.
func crowded(n int, objs ...any) *stepper {
	objs = append(objs, crowd(n-1)...)
	s := newStepper()
	s.opt = Options{AuditPeriod: 1000 * time.Hour, BasePeriod: 1000 * time.Hour, // they look at everything
		Health: healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry()})}
	s.start(completeModel(objs...))
	s.pass(3 * time.Second)
	return s
}

// cost is what the loop spends on an event.
type cost struct {
	writes int
	allocs uint64
	took   time.Duration
}

// measure gives the least that an event costs in several tries.
func (s *stepper) measure(do, undo func(*stepper)) (least cost) {
	for try := range 15 {
		do(s)
		s.kernel.Log = slices.Grow(s.kernel.Log[:0], 100)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		s.settle()
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		c := cost{len(s.kernel.Log), after.Mallocs - before.Mallocs, took}
		if try == 0 {
			least = c
		}
		least = cost{max(least.writes, c.writes), min(least.allocs, c.allocs), min(least.took, c.took)}
		undo(s)
		s.pass(6 * time.Second) // what was taken back drains
	}
	return least
}
