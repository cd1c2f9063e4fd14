package sync

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/mirror"
)

// audit finds what another program changed of ours. It plans and writes nothing: whatever looks different
// is doubted and queued, and the Key's own turn reads the kernel properly before it decides.
type audit struct {
	shared
	reader Reader
	base   *base
	heal   *heal
	next   time.Time
	after  time.Time // the start after which next was set
	cost   time.Duration
	found  int
	first  string // of what was found
}

func (a *audit) due(time.Time) time.Time { return sooner(a.planned(), a.heal.keys.due(a.heal.apart)) }

// planned is when the next pass is due: some time after a start, which has read everything.
func (a *audit) planned() time.Time {
	if a.after != a.stage.began {
		a.after, a.next = a.stage.began, a.stage.began.Add(a.opt.AuditPeriod)
	}
	return a.next
}

// tend does a part of a pass when it is time for one.
func (a *audit) tend(ctx context.Context) (more bool) {
	began := a.now()
	if !a.mirror.InPass() {
		tampered := a.heal.keys.ripe(began, a.heal.apart)
		if began.Before(a.planned()) && !tampered {
			return false
		}
		a.heal.keys.took(began, a.heal.apart, tampered)
		a.mirror.BeginPass()
		a.cost, a.found, a.first = 0, 0, ""
	}
	done, err := a.reader.Detect(ctx, a.compare)
	if err == nil && done && !a.mirror.Void() {
		a.conclude(ctx)
	}
	a.cost += a.now().Sub(began)
	if err == nil && !done {
		return true
	}
	if err != nil && ctx.Err() == nil {
		a.tell.log.Warn("looking for changes by others failed", zap.Error(err))
		a.base.doubt()
	}
	if a.found > 0 {
		a.tell.log.Info("another program changed what is ours: putting it right", zap.Int("differences", a.found), zap.String("first", a.first))
	}
	a.opt.Health.Audited(a.cost, a.found)
	a.mirror.EndPass()
	a.heal.apart = max(a.opt.AuditPeriod, time.Duration(float64(a.cost)/a.opt.AuditCPU))
	a.next, a.after = a.now().Add(a.heal.apart), a.stage.began
	return false
}

// compare holds a piece of what the kernel has against the mirror.
func (a *audit) compare(k ipvs.Key, piece *ipvs.Frontend) {
	verdict := a.mirror.Meet(k, piece, func(f ipvs.Fact) {
		if k := ipvs.AddrKey(f.Addr); !a.want(k).Needs(f.Kind) {
			a.found++
			a.queue.add(k, classBulk)
		}
	})
	switch {
	case verdict == mirror.Unread:
		a.doubt(k)
	case verdict == mirror.Other, verdict == mirror.Stranger && a.want(k).Frontend != nil:
		a.tampered(k)
	}
}

// conclude ends a pass: what should have been met and was not, is gone.
func (a *audit) conclude(ctx context.Context) {
	missed, doubted := a.mirror.Missed(a.queue.pending)
	for _, k := range doubted {
		a.doubt(k)
	}
	for _, k := range a.confirm(ctx, missed) {
		a.tampered(k)
	}
	if a.mirror.Conclude() {
		a.found++
		a.queue.add(ipvs.Adopted, classBulk)
	}
	a.found += a.queueNeeding(func(f ipvs.Fact) bool { return !a.mirror.Met(f) })
}

// askAtMost is how many missed Keys are asked for at once: about what one slice of work reads.
const askAtMost = 64

// confirm leaves out of missed Keys those that the kernel holds all the same. Up to Linux 7.0 its list of virtual servers
// (ip_vs_info_seq_next in net/netfilter/ipvs/ip_vs_ctl.c) leaves some out where another network namespace has IPVS, too:
// read on after a page, it counts those of all namespaces and skips as many of ours. Of many missed ones some are gone
// for certain, and each is read at its turn anyway.
func (a *audit) confirm(ctx context.Context, missed []ipvs.Key) []ipvs.Key {
	if len(missed) == 0 || len(missed) > askAtMost {
		return missed
	}
	found, err := a.reader.Observe(ctx, missed)
	if err != nil {
		return missed // their turn will say why
	}
	return slices.DeleteFunc(missed, func(k ipvs.Key) bool { return a.mirror.Agrees(k, found[k].Have) })
}

// tampered queues a Key of which the kernel does not hold what it should. Where the mirror may be wrong itself, as about
// what is withheld while parts of the cluster are missing, a difference is nobody's work.
func (a *audit) tampered(k ipvs.Key) {
	if a.mirror.Doubted(k) {
		if !a.queue.pending(k) { // else it has its turn anyway
			a.doubt(k)
		}
		return
	}
	if a.found++; a.first == "" {
		a.first = k.String()
	}
	a.doubt(k)
}
