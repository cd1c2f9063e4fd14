package main

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestCollectorRests: an agent at rest has no garbage collected by the clock, and one that begins to work has as much of it
// collected as ever.
func TestCollectorRests(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(150))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(math.MaxInt64))
	held := make([]byte, 32<<20)
	runtime.GC()
	percent := func() int {
		p := debug.SetGCPercent(-1)
		debug.SetGCPercent(p)
		return p
	}
	var c collector
	now := time.Unix(0, 0)
	for _, is := range []struct {
		after time.Duration
		rests bool
	}{{0, false}, {time.Minute, false}, {2 * time.Minute, true}, {time.Hour, false}, {time.Minute, false}, {2 * time.Minute, true}} {
		now = now.Add(is.after)
		c.collected(now)
		if off := percent() < 0; off != is.rests || !off && (percent() != 150 || debug.SetMemoryLimit(-1) != math.MaxInt64) {
			t.Errorf("collected after %v: rests %t, want %t; %d %%, limit %d", is.after, off, is.rests, percent(), debug.SetMemoryLimit(-1))
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 64 << 4 { // 64 MiB, and 48 may come
		waste = make([]byte, 64<<10)
	}
	runtime.ReadMemStats(&after)
	if n := after.NumGC - before.NumGC; n < 1 || n > 4 {
		t.Errorf("a collector that rests: %d collections of 64 MiB of garbage, want 1 to 4", n)
	}
	c.wake()
	runtime.KeepAlive(held)
}

var waste []byte

// A limit that somebody else set stays below the collector's own.
func TestCollectorKeepsTheLimit(t *testing.T) {
	const limit = 20 << 20
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(limit))
	runtime.GC()
	var c collector
	c.rest()
	if is := debug.SetMemoryLimit(-1); c.rests && is > limit {
		t.Errorf("while it rests the limit is %d, want %d at most", is, limit)
	}
	if c.wake(); debug.SetMemoryLimit(-1) != limit {
		t.Errorf("afterwards the limit is %d, want %d", debug.SetMemoryLimit(-1), limit)
	}
}

// Each collection is heard of, until nobody listens.
func TestEachCollection(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan struct{}, 100)
	eachCollection(ctx, func() { heard <- struct{}{} })
	for range 3 {
		runtime.GC()
		select {
		case <-heard:
		case <-time.After(time.Minute):
			t.Fatal("a collection was not heard of")
		}
	}
	cancel()
}
