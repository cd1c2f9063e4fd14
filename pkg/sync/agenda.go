package sync

import (
	"context"
	"time"
)

// tender is work that comes round.
type tender interface {
	// due is when there is something to do; zero: not before something is heard.
	due(now time.Time) time.Time
	// tend does what is due, a slice of work at most, and reports whether there is more to do at once.
	tend(ctx context.Context) (more bool)
}

// agenda is the work that comes round, in the order in which each has its turn.
type agenda []tender

// tend gives each its turn and reports whether one has more to do at once.
func (a agenda) tend(ctx context.Context) (more bool) {
	for _, t := range a {
		more = t.tend(ctx) || more
	}
	return more
}

// next is when the first of it is due; zero: nothing is.
func (a agenda) next(now time.Time) (at time.Time) {
	for _, t := range a {
		at = sooner(at, t.due(now))
	}
	return at
}

// sooner is the sooner of two times, where zero means never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
