package sync

import (
	"context"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Proxies is what other Service proxies have in the kernel.
type Proxies interface {
	// Left lists what they left, in an order in which it may be taken out while all of ours is in use: every prefix is
	// safe. Stays says what of it stays because others rely on it, a line each.
	Left(context.Context) (list []ipvs.Leaving, stays []string, err error)
	// Trace changes when somebody changes what Left would list and no sign tells of it.
	Trace(context.Context) (uint64, error)
	// Before says what of it serves, refuses or drops packets before IPVS sees them, a line each.
	Before(context.Context) ([]string, error)
}

// takeover takes out what another proxy left, once all Services are programmed: until then its rules serve those that
// are not. Every write is one slice of work. A process that dies in between leaves the rest to the next one.
type takeover struct {
	shared
	proxies Proxies
	forget  *forget
	rival   *rival
	before  *before
	plan    []ipvs.Leaving
	planned bool
	done    []string  // what was taken out
	failed  error     // of this plan
	next    time.Time // after a failure
	tries   uint8
	after   time.Time // the start that is done with
	told    string    // what was said of what stays, or of a failure
}

// patient is how many tries may fail before that is said: the kernel lets go of a set some time after its last rule.
const patient = 4

// wanted reports whether there may be something to take out.
func (t *takeover) wanted() bool {
	return t.proxies != nil && !t.opt.KeepLeftovers && t.stage.stands() && t.stage.complete && !t.stage.announce && t.after != t.stage.began
}

func (t *takeover) due(time.Time) (at time.Time) {
	if t.wanted() {
		at = t.stage.began
		if t.next.After(at) {
			at = t.next
		}
	}
	return at
}

// tend reads what is left, or takes out one thing of it.
func (t *takeover) tend(ctx context.Context) (more bool) {
	if !t.wanted() || t.now().Before(t.next) {
		return false
	}
	if !t.planned {
		var stays []string
		var err error
		if t.plan, stays, err = t.proxies.Left(ctx); err != nil {
			t.fails(ctx, err)
			return false
		}
		if len(t.plan) == 0 {
			t.finish(stays)
			return false
		}
		t.planned, t.failed = true, nil
		return true
	}
	next := t.plan[0]
	err := next.Take(ctx)
	switch {
	case err == nil:
		t.done = append(t.done, next.Text)
		t.diary.took(t.now(), next.Text)
		t.rival.retrace() // that was us
	case ctx.Err() != nil:
		return false
	case !next.Apart: // what comes after rests on it
		t.fails(ctx, err)
		return false
	default:
		t.failed = err
	}
	if t.plan = t.plan[1:]; len(t.plan) > 0 {
		return true
	}
	if t.failed != nil {
		t.fails(ctx, t.failed)
		return false
	}
	t.planned = false // and see that nothing is left
	return true
}

// fails has all of it read anew after a while.
func (t *takeover) fails(ctx context.Context, err error) {
	t.planned = false
	t.next = t.now().Add(backoff(t.tries))
	if t.tries++; t.tries < patient || ctx.Err() != nil {
		return
	}
	t.tries = patient
	t.next = t.now().Add(t.opt.BasePeriod)
	if line := oneLine(err); line != t.told {
		t.told = line
		t.tell.log.Warn("what kube-proxy left cannot be taken out, trying again: its rules may send packets to endpoints that are gone", zap.Error(err))
	}
}

// finish says what was done. UDP clients that kube-proxy's rules redirected go on by their conntrack entries, as far as
// their endpoints still serve: the others are forgotten, and these when their endpoint goes. So it is after every start,
// for the process before may have died just before it came to that.
func (t *takeover) finish(stays []string) {
	t.planned, t.after, t.tries, t.next = false, t.stage.began, 0, time.Time{}
	t.stage.alone = true
	t.rival.retrace()
	t.before.again()
	for k := range t.desk.Keys() {
		if k.Proto == ipvs.UDP {
			t.forget.redirects(k)
			t.forget.add(k)
		}
	}
	t.opt.Health.TookOver(len(t.done))
	if len(t.done) > 0 {
		t.tell.log.Info("took out what kube-proxy left", zap.Strings("wrote", t.done))
	}
	t.done = nil
	slices.Sort(stays)
	if line := strings.Join(slices.Compact(stays), "; "); line != t.told {
		if t.told = line; line != "" {
			t.tell.log.Warn("some of what kube-proxy left stays", zap.Strings("stays", stays))
		}
	}
}
