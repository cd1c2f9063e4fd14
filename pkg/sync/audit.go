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
	pass   *mirror.Pass
	next   time.Time
	after  time.Time // the start after which next was set
	cost   time.Duration
	found  int
	first  string // of what was found
	// unsure are the Keys that have to be read properly: what the pass met of them does not show all.
	unsure []ipvs.Key
	// met: all of the kernel was, and what was missed is among the unsure.
	met bool
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
	if !a.pass.Busy() {
		tampered := a.heal.keys.ripe(began, a.heal.apart)
		if began.Before(a.planned()) && !tampered || !a.mended() {
			return false
		}
		a.heal.keys.took(began, a.heal.apart, tampered)
		a.pass.Begin()
		a.cost, a.found, a.first, a.unsure, a.met = 0, 0, "", nil, false
	}
	done, err := a.part(ctx)
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
	a.pass.End()
	a.heal.apart = max(a.opt.AuditPeriod, time.Duration(float64(a.cost)/a.opt.AuditCPU))
	a.next, a.after = a.now().Add(a.heal.apart), a.stage.began
	return false
}

// part does a part of a pass, and says whether it was the last.
func (a *audit) part(ctx context.Context) (done bool, err error) {
	if len(a.unsure) >= askAtMost || a.met && len(a.unsure) > 0 {
		a.confirm(ctx)
		return a.met && len(a.unsure) == 0, nil
	}
	if a.met, err = a.reader.Detect(ctx, a.compare); err != nil || !a.met {
		return false, err
	}
	if !a.pass.Void() {
		a.conclude()
	}
	return len(a.unsure) == 0, nil
}

// compare holds a piece of what the kernel has against the mirror.
func (a *audit) compare(k ipvs.Key, piece *ipvs.Frontend, conns uint32) {
	if piece.Server.Exists() {
		a.mirror.Use(k, conns)
	}
	verdict := a.pass.Meet(k, piece, func(f ipvs.Fact) {
		if k := ipvs.AddrKey(f.Addr); !a.want(k).Needs(f.Kind) {
			a.found++
			a.diary.because(k, cause{WhyTampered, a.now()})
			a.queue.add(k, classBulk)
		}
	})
	switch {
	case verdict == mirror.Unread:
		a.unsure = append(a.unsure, k)
	case verdict == mirror.Other, verdict == mirror.Stranger && a.want(k).Frontend != nil:
		a.tampered(k)
	}
}

// conclude looks for what should have been met and was not. Up to Linux 7.0 the list of virtual servers
// (ip_vs_info_seq_next in net/netfilter/ipvs/ip_vs_ctl.c) leaves some out where another network namespace has IPVS, too:
// read on after a page, it counts those of all namespaces and skips as many of ours. Of many missed ones some are gone
// for certain, and each is read at its turn anyway; few are read first.
func (a *audit) conclude() {
	missed, doubted := a.pass.Missed(a.queue.pending)
	for _, k := range doubted {
		a.doubt(k)
	}
	if len(missed) <= askAtMost {
		a.unsure, missed = append(a.unsure, missed...), nil
	}
	for _, k := range missed {
		a.tampered(k)
	}
	if a.pass.Conclude() {
		a.found++
		a.queue.add(ipvs.Adopted, classBulk)
	}
	a.found += a.queueNeeding(func(f ipvs.Fact) bool { return !a.pass.Met(f) })
}

const (
	// askAtMost is how many Keys may wait to be read by the audit, and how many missed ones are.
	askAtMost = 64
	// confirmKeys and confirmReals are how many of them are read at a time, and how many real servers they may have,
	// unless a single Key has more: about 2 ms.
	confirmKeys  = 32
	confirmReals = 1000
)

// confirm reads some of the Keys of which the audit is not sure. It is the audit's own work, and counts as such. What is
// known of those that had their turn meanwhile, or will have it, is not the audit's affair.
func (a *audit) confirm(ctx context.Context) {
	n, reals := 0, 0
	for n < min(len(a.unsure), confirmKeys) && reals < confirmReals {
		reals += a.mirror.Reals(a.unsure[n])
		n++
	}
	ask := slices.DeleteFunc(a.unsure[:n:n], a.queue.pending)
	a.unsure = a.unsure[n:]
	if len(ask) == 0 {
		return
	}
	found, err := a.reader.Observe(ctx, ask)
	if ctx.Err() != nil {
		return
	}
	for _, k := range ask {
		if err != nil || !a.mirror.Agrees(k, found[k].Have) {
			a.tampered(k) // where it cannot be read, its turn will say why
		}
	}
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
	a.diary.because(k, cause{WhyTampered, a.now()})
	a.doubt(k)
}
