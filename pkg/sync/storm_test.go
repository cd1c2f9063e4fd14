package sync

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// longForm: make faults asks for it.
func longForm() bool { return os.Getenv("FAULTS") == "long" }

// figure has make faults keep a number for docs/reliability.md (lab.ParseFigure reads it).
func figure(t *testing.T, name string, value int) {
	t.Helper()
	t.Logf("figure: %s = %d", name, value)
}

// figureTimes keeps the median and the worst of some times, in µs.
func figureTimes(t *testing.T, what string, took []time.Duration) (worst time.Duration) {
	t.Helper()
	slices.Sort(took)
	figure(t, what+", p50, µs", int(took[len(took)/2].Microseconds()))
	figure(t, what+", worst, µs", int(took[len(took)-1].Microseconds()))
	return took[len(took)-1]
}

// costly is a kernel whose writes take time, of the order of what they take on a processor that is not emulated. The costs
// are chosen, so that the storm is three times what the kernel takes; they were not measured.
type costly struct {
	Kernel
	rig *rig // whose lock is that of the others
	// writes are counted, longest is how many Keys or Services waited at most when a plan was written.
	writes, longest int
}

// costs of a write.
const (
	costElement = 50 * time.Microsecond
	costServer  = 30 * time.Microsecond
	costAddress = 600 * time.Microsecond
)

func (c *costly) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	var cost time.Duration
	for _, s := range plan {
		switch s.Op.Effect().Table {
		case ipvs.TableSets:
			cost += costElement
		case ipvs.TableInterface:
			cost += costAddress
		default:
			cost += costServer
		}
	}
	c.rig.mu.Lock()
	c.writes, c.longest = c.writes+len(plan), max(c.longest, c.rig.loop.queue.len(), c.rig.loop.dirty.len())
	c.rig.mu.Unlock()
	time.Sleep(cost) // in a bubble, where nothing else takes time
	return c.Kernel.Do(ctx, plan)
}

// startCostly starts the rig's loop on such a kernel.
func (r *rig) startCostly() *costly {
	r.t.Helper()
	c := &costly{Kernel: &locked{&r.mu, r.kernel}, rig: r}
	r.startOn(c)
	return c
}

// serves reports whether the kernel has a real server for a Key.
func (r *rig) serves(k ipvs.Key, real string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.kernel.Servers[k].Reals, func(x ipvs.Real) bool { return x.Addr == netip.MustParseAddrPort(real) && x.Weight > 0 })
}

// stormTarget is a Service whose changes are timed: it goes from one endpoint to the other.
type stormTarget struct {
	svc  *corev1.Service
	key  ipvs.Key
	n    int
	took []time.Duration
}

func newStormTarget(ns, name, ip string) *stormTarget {
	t := &stormTarget{svc: service(name, ip, 80), key: ipvs.Key{Addr: netip.MustParseAddr(ip), Port: 80, Proto: ipvs.TCP}}
	t.svc.Namespace = ns
	return t
}

// change gives it an endpoint that it had never, and returns its address and port.
func (g *stormTarget) change(r *rig) (real string) {
	g.n++
	addr := fmt.Sprintf("10.244.%d.%d", 100+g.n/250, 1+g.n%250)
	r.model.SetSlice(slice(g.svc, addr))
	return addr + ":8080"
}

// stormGap is how many events there are at least between two changes that are timed.
const stormGap = 300

// storm has many events for so many seconds, and times changes of targets meanwhile.
func storm(r *rig, seconds int, blows bool, services int, targets ...*stormTarget) (events int) {
	flip := make([][2]*discoveryv1.EndpointSlice, services)
	for i := range flip {
		svc := service(fmt.Sprintf("s%d", i), "", 80)
		for j := range 2 {
			at := []string{fmt.Sprintf("10.%d.%d.1", 200+i/250, i%250)}
			for e := range 5 { // so many endpoints go with each event, and as many come
				at = append(at, fmt.Sprintf("10.%d.%d.%d", 200+i/250, i%250, 2+5*j+e))
			}
			flip[i][j] = slice(svc, at...)
		}
	}
	event := func() {
		if blows {
			r.model.SetSlice(flip[events%services][events/services%2])
			events++
		}
		time.Sleep(time.Second / 10_000)
		synctest.Wait()
	}
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); {
		for _, g := range targets {
			for range stormGap {
				event()
			}
			began, real := time.Now(), g.change(r)
			for !r.serves(g.key, real) {
				event()
			}
			g.took = append(g.took, time.Since(began))
		}
	}
	return events
}

// F6: 10,000 events a second for some seconds at 1,000 Services, on a kernel whose writes take time. What
// waits is never more than there is, a change of a Service that has nothing to do with it is in the kernel within a
// quarter of a second, an urgent one sooner, and memory stays. The control is the same without the storm; and the storm
// is one: written one by one, its events would take longer than there is time.
func TestF6Storm(t *testing.T) {
	const services = 1000
	seconds := 2
	if longForm() {
		seconds = 10
	}
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.AuditPeriod = time.Hour // of which the kernel in memory makes a multiple of the real one's work
		plain, urgent := newStormTarget("default", "plain", "10.96.250.1"), newStormTarget("default", "kubernetes", "10.96.250.2")
		for i := range services {
			svc := service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250), 80)
			give(r.model, svc, slice(svc, fmt.Sprintf("10.%d.%d.1", 200+i/250, i%250), fmt.Sprintf("10.%d.%d.2", 200+i/250, i%250)))
		}
		give(r.model, plain.svc, urgent.svc)
		r.synced()
		c := r.startCostly()
		time.Sleep(time.Minute)
		storm(r, 1, false, services, plain, urgent)
		calm := figureTimes(t, "a change without the storm", plain.took)
		plain.took, urgent.took = nil, nil
		rest := func() {
			time.Sleep(10 * time.Minute) // what drains is gone
			r.tamper(func() { r.kernel.Log = nil })
		}
		storm(r, 1, true, services, plain, urgent) // all Services have as many endpoints as they will
		plain.took, urgent.took = nil, nil
		rest()
		memory, goroutines := held(), runtime.NumGoroutine()
		r.tamper(func() { c.writes, c.longest = 0, 0 })
		events := storm(r, seconds, true, services, plain, urgent)
		var wrote, longest int
		r.tamper(func() { wrote, longest = c.writes, c.longest })
		figure(t, "events", events)
		figure(t, "seconds", seconds)
		figure(t, "writes", wrote)
		figure(t, "longest queue", longest)
		worst, first := figureTimes(t, "an unrelated change", plain.took), figureTimes(t, "an urgent change", urgent.took)
		if worst > 250*time.Millisecond || first > worst || first > 50*time.Millisecond {
			t.Errorf("an unrelated change took %s, an urgent one %s; without the storm %s", worst, first, calm)
		}
		if longest > services+3 {
			t.Errorf("%d wait, of %d Services", longest, services)
		}
		if naive := time.Duration(10*events) * costServer; naive < 2*time.Duration(seconds)*time.Second {
			t.Errorf("the control: one by one %d events would take %s, which is no storm", events, naive)
		}
		rest()
		after := held()
		figure(t, "memory before, kB", memory/1024)
		figure(t, "memory after, kB", after/1024)
		if after > memory+memory/4+1<<20 || runtime.NumGoroutine() > goroutines {
			t.Errorf("memory %d, was %d; %d goroutines, were %d", after, memory, runtime.NumGoroutine(), goroutines)
		}
		if err := r.loop.Ask(t.Context(), func(v *View) {
			if q := v.loop.queue; q.len() > 0 && q.due != [2]int{} {
				t.Errorf("%d wait at rest", q.len())
			}
		}); err != nil {
			t.Error(err)
		}
	})
}

// held is what the heap holds.
func held() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
