package main

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// meter counts what questions take of the loop: processor time of its thread, whatever else the machine does.
type meter struct{ taken atomic.Int64 }

// sofar is what they have taken; of no meter nothing.
func (m *meter) sofar() time.Duration {
	if m == nil {
		return 0
	}
	return time.Duration(m.taken.Load())
}

// over is a loop whose questions are counted; without a meter it is the loop.
func (m *meter) over(loop inspect.Asker) inspect.Asker {
	if m == nil {
		return loop
	}
	return metered{loop, m}
}

// metered is a loop whose questions are counted.
type metered struct {
	loop inspect.Asker
	by   *meter
}

// Ask is that of the loop.
func (m metered) Ask(ctx context.Context, ask func(*sync.View)) error {
	return m.loop.Ask(ctx, func(v *sync.View) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		began := threadTime()
		ask(v)
		m.by.taken.Add(int64(threadTime() - began))
	})
}

// threadTime is the processor time that this thread has had.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // every kernel has that clock
	}
	return time.Duration(t.Nano())
}

// idle takes no notice of Plans.
type idle struct{}

func (idle) began(time.Time) {}

func (idle) ended(time.Time, ipvs.Plan, []ipvs.Outcome) {}
