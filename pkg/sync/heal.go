package sync

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// heal brings forward what the loop does now and then anyway, the look at the base and the audit, when there is a
// sign that another program changed what is ours. It plans and writes nothing itself, and nothing relies on it.
type heal struct {
	shared
	signs      Signs
	rival      *rival
	shield     *shield
	base, keys hurry
	canary     time.Time // when the virtual servers are counted next
	suspected  time.Time // when another proxy was last thought of
	mute       bool      // counting failed, and that was said
	deaf       time.Time // when notifications were last lost
	// apart is how far from each other looks at the Keys are in the long run: as far as two passes of the audit, whose cost
	// grows with the Services. A look at the base costs the same with any number of them, so those are as far apart as
	// passes of an audit that costs nothing.
	apart time.Duration
}

// hurry is what was asked for out of turn, and what of it may still be had: a few looks in a row, then one as often as
// an audit comes. Since a pass out of turn puts the next one off, somebody who fights with us without end costs what
// the audit costs anyway; who chooses the worst moments for it, twice that.
type hurry struct {
	asked time.Time // since when; zero: nobody asks
	last  time.Time // when somebody last was given way
	paid  time.Time // up to when looks were had in advance
}

const (
	// gather is how long signs are gathered: what one command removes is told in many words.
	gather = 50 * time.Millisecond
	// hurryAgain is the least time between two looks out of turn.
	hurryAgain = 500 * time.Millisecond
	// hurries is how many looks may be had before their time.
	hurries = 5
	// canaryPeriod is the time between two counts of the virtual servers: what is gone is back within a second.
	canaryPeriod = 900 * time.Millisecond
	// overrunAgain is how long none must have been lost until it is said again.
	overrunAgain = time.Minute
)

// ask asks for a look.
func (h *hurry) ask(now time.Time) {
	if h.asked.IsZero() {
		h.asked = now
	}
}

// due is when the look that was asked for may be; zero: none was.
func (h *hurry) due(apart time.Duration) (at time.Time) {
	if h.asked.IsZero() {
		return at
	}
	for _, t := range []time.Time{h.asked.Add(gather), h.last.Add(hurryAgain), h.paid.Add(-(hurries - 1) * apart)} {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// ripe reports whether a look that was asked for may be now.
func (h *hurry) ripe(now time.Time, apart time.Duration) bool {
	at := h.due(apart)
	return !at.IsZero() && !at.After(now)
}

// spent reports whether all looks were had that may be had before their time, and another one is asked for.
func (h *hurry) spent(now time.Time, apart time.Duration) bool {
	return !h.asked.IsZero() && h.paid.Add(-(hurries-1)*apart).After(now)
}

// took notes a look, and whether it was given way. One in its turn answers who asked, too, and costs nothing here.
func (h *hurry) took(now time.Time, apart time.Duration, givenWay bool) {
	if h.asked = (time.Time{}); !givenWay {
		return
	}
	h.last = now
	if h.paid.Before(now) {
		h.paid = now
	}
	h.paid = h.paid.Add(apart)
}

// due is when the virtual servers are counted next. The looks that were asked for are those of the base and the audit.
func (h *heal) due(time.Time) (at time.Time) {
	if h.stage.stands() {
		at = h.canary
	}
	return at
}

// tend takes the signs that another program changed what is ours.
func (h *heal) tend(ctx context.Context) (more bool) {
	now := h.now()
	signs := h.signs.Tampering()
	if signs.Keys && !signs.Base { // else the base is looked at before: the table may be gone
		h.shield.doubt()
	}
	if signs.Base {
		h.base.ask(now)
	}
	if signs.Keys {
		h.keys.ask(now)
	}
	if signs.Lost {
		h.overrun(now)
	}
	if signs.Proxy != "" {
		h.rival.hear(signs.Proxy)
	}
	if h.stage.stands() && !now.Before(h.canary) {
		switch h.counts(ctx) {
		case ipvs.AllGone:
			h.saidLost("all virtual servers")
			h.lostServers()
			h.mend()
		case ipvs.Changed:
			h.keys.ask(now)
		}
	}
	if h.stage.stands() && h.fight(now) {
		h.suspected = now
		h.rival.suspect(ctx)
	}
	return false
}

// overrun says that notifications were lost: once, and again when that was not so for a while.
func (h *heal) overrun(now time.Time) {
	h.opt.Health.Overrun()
	if h.deaf.IsZero() || now.Sub(h.deaf) >= overrunAgain {
		h.tell.log.Warn("the kernel had no room for its notifications: some are lost, and everything is looked at")
	}
	h.deaf = now
}

// fight reports whether somebody changes what is ours so often that looks are not given way at once any more. It does so
// once a pass of the audit.
func (h *heal) fight(now time.Time) bool {
	return (h.keys.spent(now, h.apart) || h.base.spent(now, h.opt.AuditPeriod)) && now.Sub(h.suspected) >= h.apart
}

// counts counts the virtual servers and says whether another program added or removed some.
func (h *heal) counts(ctx context.Context) ipvs.Census {
	h.canary = h.now().Add(canaryPeriod)
	is, err := h.signs.Canary(ctx)
	if err != nil && ctx.Err() == nil && !h.mute {
		h.tell.log.Warn("virtual servers cannot be counted: what others change of them is found by the audit alone", zap.Error(err))
	}
	h.mute = err != nil
	return is
}
