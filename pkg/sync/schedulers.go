package sync

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// Schedulers are those that the kernel has.
type Schedulers interface {
	// HasScheduler reports whether the kernel has a scheduler. It loads it where it can.
	HasScheduler(ctx context.Context, name string) (bool, error)
}

// schedulers asks whether one that the kernel lacks has turned up: somebody installed or loaded its module.
type schedulers struct {
	shared
	of   Schedulers
	next time.Time
}

func (s *schedulers) due(now time.Time) time.Time {
	switch {
	case s.of == nil || s.stage.away || len(s.desk.Lacking()) == 0:
		return time.Time{}
	case s.next.IsZero():
		return now.Add(s.opt.BasePeriod)
	}
	return s.next
}

func (s *schedulers) tend(ctx context.Context) (more bool) {
	now := s.now()
	due := s.due(now)
	if due.IsZero() {
		s.next = time.Time{}
		return false
	}
	if s.next = due; now.Before(due) {
		return false
	}
	s.next = now.Add(s.opt.BasePeriod)
	for _, name := range s.desk.Lacking() {
		has, err := s.of.HasScheduler(ctx, name)
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			s.tell.log.Debug("whether a scheduler is there cannot be seen", zap.String("scheduler", name), zap.Error(err))
			continue
		}
		if has {
			s.tell.gains(name, name == s.opt.Desk.Scheduler)
			again := s.desk.Gain(name)
			s.dirty.add(again, WhyScheduler)
			more = more || len(again) > 0
		}
	}
	return more
}
