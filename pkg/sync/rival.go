package sync

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// rival looks out for another Service proxy at work on this node, as one that an upgrade brought back by mistake. While it
// writes, the agent steps back: it lets the other's rules come first, and then writes nothing, so that neither undoes what
// the other does, and goes on hearing of the cluster. When nothing was heard of it for a while, it is taken for gone, and everything is read anew. A proxy that is only
// silent says so when what it left is taken out, and is then left alone for twice as long.
type rival struct {
	shared
	proxies Proxies
	base    *base
	heard   string        // what it wrote, to begin with
	until   time.Time     // when it is gone if no more is heard; zero: nothing was heard
	quiet   time.Duration // how long nothing may be heard of it
	back    time.Time     // when the agent last came back
	look    time.Time     // when the trace is looked at next
	traced  bool
	trace   uint64
	mute    bool // that failed, and it was said
}

const (
	// quietFirst is longer than the time between two rounds of kube-proxy (30 s by default), in each of which it writes its
	// rules in mode ipvs.
	quietFirst = 40 * time.Second
	quietMost  = time.Hour
	// calm is how long the agent must have been back that the next time is not taken for the same rival's.
	calm = 10 * time.Minute
	// tracePeriod is the time between two looks for what no notification tells.
	tracePeriod = 2 * time.Second
)

func (r *rival) due(time.Time) (at time.Time) {
	if r.proxies != nil {
		at = r.look
	}
	return sooner(at, r.until)
}

// tend looks for traces of it, and comes back when it is gone.
func (r *rival) tend(ctx context.Context) (more bool) {
	now := r.now()
	if r.proxies != nil && !now.Before(r.look) {
		r.look = now.Add(tracePeriod)
		trace, err := r.proxies.Trace(ctx)
		if err != nil && ctx.Err() == nil && !r.mute {
			r.tell.log.Warn("iptables-legacy and ipsets cannot be looked at: another proxy that uses them is not noticed", zap.Error(err))
		}
		if r.mute = err != nil; err == nil {
			if r.traced && trace != r.trace {
				r.hear("kube-proxy changed its rules of iptables-legacy or its ipsets")
			}
			r.traced, r.trace = true, trace
		}
	}
	if r.stage.away && !now.Before(r.until) {
		r.comeBack(now)
	}
	return false
}

// retrace takes what is there for what has always been there: what changed was our doing.
func (r *rival) retrace() { r.traced, r.look = false, time.Time{} }

// hear takes a sign of a rival.
func (r *rival) hear(what string) {
	if r.proxies == nil { // it is meant to be there
		return
	}
	now := r.now()
	if !r.stage.away {
		if r.quiet = min(2*r.quiet, quietMost); r.quiet == 0 || now.Sub(r.back) > max(calm, r.quiet) {
			r.quiet = quietFirst
		}
		r.stage.away, r.heard = true, what
		r.tell.steppedBack(what, r.quiet)
	}
	r.until = now.Add(r.quiet)
}

// suspect is told that another program changes what is ours again and again. Where what a proxy leaves was taken out and is
// there again, it is one.
func (r *rival) suspect(ctx context.Context) {
	if r.proxies == nil || r.opt.KeepLeftovers || r.stage.away {
		return
	}
	if list, _, err := r.proxies.Left(ctx); err == nil && len(list) > 0 {
		r.hear("another program changes what is ours again and again, and there is something of kube-proxy's: " + list[0].Text)
	}
}

// comeBack reads everything anew: nobody knows what the other has left.
func (r *rival) comeBack(now time.Time) {
	r.stage.away, r.stage.started, r.stage.based, r.stage.alone = false, false, false, false
	r.base.next, r.until, r.back = now, time.Time{}, now
	r.retrace()
	r.tell.cameBack(r.heard)
}
