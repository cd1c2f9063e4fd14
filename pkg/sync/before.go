package sync

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
)

// before says what of another proxy's takes packets before IPVS sees them, for as long as that is so: what is programmed then
// serves nobody whom those rules serve, or refuse. It looks when the kernel was read and when what was left was taken out;
// while something stands there also from time to time, for whoever takes it out by hand.
type before struct {
	shared
	proxies Proxies
	stands  []string  // what stood there when it was last looked
	at      time.Time // the start for which it was looked
	next    time.Time // when it is looked again; zero: not before the next start
	mute    bool      // looking failed, and that was said
}

// beforePeriod is the time between two looks while something stands there: it takes a millisecond or a few.
const beforePeriod = 10 * time.Second

func (b *before) due(time.Time) time.Time {
	switch {
	case b.proxies == nil || b.stage.away:
		return time.Time{}
	case b.at != b.stage.began:
		return b.stage.began
	}
	return b.next
}

// again has it looked at once.
func (b *before) again() { b.at = time.Time{} }

func (b *before) tend(ctx context.Context) (more bool) {
	now := b.now()
	if due := b.due(now); due.IsZero() || now.Before(due) {
		return false
	}
	is, err := b.proxies.Before(ctx)
	if ctx.Err() != nil {
		return false
	}
	b.at, b.next = b.stage.began, time.Time{}
	if err != nil {
		b.next = now.Add(beforePeriod)
		if !b.mute {
			b.tell.log.Warn("cannot look for rules of another proxy that stand before IPVS, trying again", zap.Error(err))
		}
		b.mute = true
		return false
	}
	b.mute = false
	if len(is) > 0 {
		b.next = now.Add(beforePeriod)
	}
	if !slices.Equal(is, b.stands) {
		b.tell.standsBefore(b.stands, is, b.opt.KeepLeftovers)
		b.stands = is
	}
	return false
}
