package sync

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// shield keeps off Services what other programs do with packets to local addresses: host ports of a CNI, published ports
// of Docker (B80). The rules of another Service proxy are of that kind as well. While those stand, or while it is at work,
// they come first: they serve what is not programmed here yet, or not any more.
type shield struct {
	shared
	node  Node
	told  shielded
	at    time.Time // when the kernel was last told
	next  time.Time // when it is told again
	tries uint8
}

// shielded is what the kernel was told, and since which start that holds.
type shielded struct {
	on    bool
	began time.Time
}

// shieldPeriod is how often the kernel is told again: it forgets after a while.
const shieldPeriod = time.Minute

// wanted is what the kernel should have been told; unknown: nobody has looked yet whose rules there are.
func (s *shield) wanted() (want shielded, known bool) {
	return shielded{s.stage.alone && !s.stage.away, s.stage.began}, s.stage.started || s.stage.away
}

func (s *shield) due(now time.Time) time.Time {
	want, known := s.wanted()
	switch {
	case !known:
		return time.Time{}
	case want != s.told && s.tries == 0:
		return now
	case want != s.told || want.on:
		return s.next
	}
	return time.Time{}
}

// tend tells the kernel, when it is time.
func (s *shield) tend(ctx context.Context) (more bool) {
	now := s.now()
	if at := s.due(now); at.IsZero() || now.Before(at) {
		return false
	}
	want, _ := s.wanted()
	err := s.node.Shield(ctx, want.on)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		if s.tries == 0 {
			s.tell.log.Warn("what other programs do with local addresses cannot be told apart from Services, trying again", zap.Error(err))
		}
		s.next, s.told = now.Add(backoff(s.tries)), shielded{}
		s.tries = min(s.tries+1, patient)
	default:
		s.told, s.tries, s.at, s.next = want, 0, now, now.Add(shieldPeriod)
	}
	return false
}

// again has the kernel told as soon as may be: the table is a new one.
func (s *shield) again() { s.told, s.tries = shielded{}, 0 }

// doubt has the kernel told again soon: another program changed something of our table.
func (s *shield) doubt() {
	if at := s.at.Add(hurryAgain); at.Before(s.next) {
		s.next = at
	}
}
