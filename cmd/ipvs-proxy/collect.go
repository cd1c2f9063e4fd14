package main

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// quietTime is how long Go's collector must have had nothing to do for the agent to count as idle. Go collects every 2 min
// where it does not have to before.
const quietTime = 110 * time.Second

// collector has Go's collector rest while the agent does. For the little garbage of an idle agent it would go through all
// that is held every 2 min, the larger part of what an agent without an audit costs. It is on again as soon as it would have had
// to work without its clock: as much garbage may come while it rests as may at any time.
type collector struct {
	last    time.Time // when it last collected
	rests   bool
	percent int // its settings, while it rests
	limit   int64
}

// run follows the collector until ctx ends.
func (c *collector) run(ctx context.Context) error {
	collected := make(chan struct{}, 1)
	eachCollection(ctx, func() {
		select {
		case collected <- struct{}{}:
		default:
		}
	})
	defer c.wake()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			c.collected(time.Now())
		}
	}
}

// eachCollection calls f after each collection, until ctx ends.
func eachCollection(ctx context.Context, f func()) {
	type sign struct{ _ *sign } // of a pointer: what has none is collected together with others
	var next func(*sign)
	next = func(*sign) {
		if ctx.Err() != nil {
			return
		}
		f()
		runtime.SetFinalizer(&sign{}, next)
	}
	runtime.SetFinalizer(&sign{}, next)
}

// collected takes that the collector has done its work.
func (c *collector) collected(now time.Time) {
	quiet := !c.last.IsZero() && now.Sub(c.last) >= quietTime
	c.last = now
	switch {
	case c.rests:
		c.wake()
	case quiet:
		c.rest()
	}
}

// rest has it rest until the memory in use has grown as far as it would have without its clock.
func (c *collector) rest() {
	most, ok := restLimit()
	if !ok {
		return
	}
	c.limit = debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(most, c.limit))
	c.percent, c.rests = debug.SetGCPercent(-1), true
}

// wake has it work as ever.
func (c *collector) wake() {
	if !c.rests {
		return
	}
	c.rests = false
	debug.SetGCPercent(c.percent)
	debug.SetMemoryLimit(c.limit)
}

// restLimit is how much memory Go may have, by the way in which it counts it, when the collector has to work.
func restLimit() (bytes int64, ok bool) {
	is := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/goal:bytes"},
	}
	metrics.Read(is)
	var n [5]uint64
	for i, s := range is {
		if s.Value.Kind() != metrics.KindUint64 {
			return 0, false
		}
		n[i] = s.Value.Uint64()
	}
	total, released, free, objects, goal := n[0], n[1], n[2], n[3], n[4]
	if goal <= objects || goal > math.MaxInt64/2 {
		return 0, false // there is garbage to collect, or nobody collects
	}
	return int64(total - released - free + goal - objects), true
}
