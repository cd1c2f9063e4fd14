package sync

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// grow gives new endpoints more weight as their time comes. Nobody waits for that, and thousands may start at once, so it
// has a share of a processor of its own: where that is not enough, weights come later, and in larger steps.
type grow struct {
	shared
	act *act
	// left is how long it may work before it rests, as of a time: it grows back to growBurst. Less than 0: it rests.
	left time.Duration
	at   time.Time
}

const (
	// growRest is how many times as long as it works it rests in the long run: some 0.6 % of a processor. What it costs
	// beside, such as waking up, has room below 1 %.
	growRest = 160
	// growBurst is how long it may work at once: hundreds of weights.
	growBurst = 50 * time.Millisecond
	// growKeys and growWrites are how much it does at a time: a few ms.
	growKeys   = 64
	growWrites = 128
)

func (g *grow) due(now time.Time) time.Time {
	due := g.growing.next(now)
	if rested := g.at.Add(-g.left * growRest); !due.IsZero() && due.Before(rested) {
		return rested
	}
	return due
}

// tend gives those more weight whose time has come, as many as are a slice.
func (g *grow) tend(ctx context.Context) (more bool) {
	began := g.now()
	if due := g.due(began); due.IsZero() || began.Before(due) {
		return false
	}
	if g.at.IsZero() {
		g.left = growBurst
	} else {
		g.left = min(growBurst, g.left+began.Sub(g.at)/growRest)
	}
	g.at = began
	used := g.used()
	g.act.grow(ctx, g.growing.pop(began, growKeys))
	g.left -= min(g.now().Sub(began), g.used()-used)
	return false
}

// used is the processor's time that was had so far: where nobody says it, all that passes.
func (g *grow) used() time.Duration {
	if g.opt.Processor == nil {
		return time.Duration(g.now().UnixNano())
	}
	return g.opt.Processor()
}

// grow brings the weights of Keys up to date. A Key of which anything else is to be done has its turn for that, and one
// that waits for such a turn has its weights then.
func (a *act) grow(ctx context.Context, turns []turn) {
	var jobs []job
	var plan ipvs.Plan
	whose := map[ipvs.Key]cluster.ID{}
	for i, t := range turns {
		if len(plan) >= growWrites {
			a.growing.back(turns[i:])
			break
		}
		j := job{key: t.key, class: t.class, wish: a.want(t.key), grows: true}
		if j.wish.Frontend == nil || !a.queue.waits(j.key) {
			continue
		}
		ops, have := a.steps(j)
		if a.mirror.MustRead(j.key, j.wish.Frontend) || slices.ContainsFunc(ops, func(op ipvs.Op) bool { return !growth(op) }) {
			a.queue.add(j.key, classOf(j.wish))
			continue
		}
		if most := growWrites - len(plan); len(ops) > most {
			ops = a.inTurn(j.key, ops)[:most]
			a.lastGrown[j.key] = ops[most-1].Effect().Real
			j.partly = ipvs.After(have, ops)
		} else {
			delete(a.lastGrown, j.key)
		}
		j.service = j.wish.Service
		whose[j.key] = j.service
		for _, op := range ops {
			plan = append(plan, ipvs.Step{Key: j.key, Op: op})
		}
		jobs = append(jobs, j)
	}
	began := a.now()
	outcomes := a.writer.Do(ctx, plan)
	failed := a.learn(plan, outcomes)
	for _, j := range jobs {
		a.settle(j, failed[j.key])
	}
	if len(plan) == 0 {
		return
	}
	for i, s := range plan {
		a.diary.wrote(a.now(), s.Op, whose[s.Key], cause{why: WhySlowStart}, outcomes[i])
	}
	a.fare.wrote(plan, outcomes, failed, a.now().Sub(began))
	a.tell.log.Debug("weights of new endpoints grow", zap.Int("frontends", len(jobs)), zap.Int("writes", len(plan)), zap.Int("failed", len(failed)))
}

// growth reports whether an operation gives a real server a weight, and does nothing else.
func growth(op ipvs.Op) bool {
	is := op.Effect()
	return is.Kind == ipvs.KindSetReal && !is.Removes
}

// inTurn are the operations of a Key that has more of them than a slice, those first that come behind what was written last:
// else the first real servers would have all of their weight before the others have any more.
func (a *act) inTurn(k ipvs.Key, ops []ipvs.Op) []ipvs.Op {
	last := a.lastGrown[k]
	at := slices.IndexFunc(ops, func(op ipvs.Op) bool { return op.Effect().Real.Compare(last) > 0 })
	if at <= 0 || last == (netip.AddrPort{}) {
		return ops
	}
	return slices.Concat(ops[at:], ops[:at])
}
