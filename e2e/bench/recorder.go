package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	agent "github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// watcher is told of each Plan. What it does is counted too, so it does little.
type watcher interface {
	began(now time.Time)
	ended(now time.Time, plan ipvs.Plan, outcomes []ipvs.Outcome)
}

// recorder stands between the loop and the real kernel.
type recorder struct {
	agent.Kernel
	mu    sync.Mutex
	watch watcher
	err   error // the first write that failed
}

func (r *recorder) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch.began(time.Now())
	out := r.Kernel.Do(ctx, plan)
	now := time.Now()
	for i, o := range out {
		if o.Err != nil && r.err == nil {
			r.err = fmt.Errorf("%s: %w", plan[i].Op, o.Err)
		}
	}
	r.watch.ended(now, plan, out)
	return out
}

func (r *recorder) set(w watcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch = w
}

func (r *recorder) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// urgentEvery is after how many frontends another urgent Service turns up.
const urgentEvery = 1000

// startWatch follows a start, and lets urgent Services turn up in the middle of it.
type startWatch struct {
	model    *cluster.Model
	services int

	opened, extra int       // frontends open; those of urgent Services
	last          time.Time // when the Plan before ended; zero: there was none
	first         time.Time // when the first Plan began
	longest       time.Duration
	pending       time.Time // when the urgent Service that is awaited turned up
	missing       int       // its frontends that are not open yet
	urgent        []time.Duration
	done          chan time.Time
}

// began lets an urgent Service turn up at the worst of times: when the loop has just begun a slice.
func (s *startWatch) began(now time.Time) {
	if s.first.IsZero() {
		s.first = now
	}
	n := len(s.urgent) + 1
	if s.missing > 0 || s.opened < n*urgentEvery || s.services <= n*urgentEvery {
		return
	}
	svc, slice := dns(s.services + n)
	s.pending, s.missing = time.Now(), len(svc.Spec.Ports)
	s.model.SetService(svc)
	s.model.SetSlice(slice)
}

func (s *startWatch) ended(now time.Time, plan ipvs.Plan, outcomes []ipvs.Outcome) {
	if !s.last.IsZero() {
		s.longest = max(s.longest, now.Sub(s.last))
	}
	s.last = now
	for i, step := range plan {
		e, ok := step.Op.(ipvs.Element)
		if !ok || e.Set != ipvs.SetOpen || e.Remove || outcomes[i].Err != nil {
			continue
		}
		if s.opened++; e.Key.Port != 53 {
			continue
		}
		s.extra++
		if s.missing--; s.missing == 0 {
			s.urgent = append(s.urgent, now.Sub(s.pending))
		}
	}
	if s.opened-s.extra == s.services && s.missing == 0 {
		select {
		case s.done <- now:
		default:
		}
	}
}

// changeWatch waits for single writes.
type changeWatch struct {
	writes int
	done   chan time.Time
}

func (c *changeWatch) began(time.Time) {}

func (c *changeWatch) ended(now time.Time, plan ipvs.Plan, _ []ipvs.Outcome) {
	if len(plan) == 0 {
		return
	}
	ops := map[ipvs.Op]bool{}
	for _, s := range plan {
		ops[s.Op] = true // equal ones are one write
	}
	c.writes += len(ops)
	c.done <- now
}
