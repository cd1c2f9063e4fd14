package sync

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// base sees to what every Key stands on: the interface, the table, the sysctls.
type base struct {
	shared
	node   Node
	heal   *heal
	site   *site
	tries  uint8
	next   time.Time
	looked time.Time // when it was last in order
}

func (b *base) due(now time.Time) (at time.Time) {
	if b.stage.away {
		return at
	}
	at = b.next
	if b.stage.based {
		at = sooner(at, b.heal.base.due(b.opt.AuditPeriod))
	}
	return at
}

// tend looks at it, when it is time.
func (b *base) tend(ctx context.Context) (more bool) {
	now := b.now()
	tampered := b.stage.based && b.heal.base.ripe(now, b.opt.AuditPeriod)
	if b.stage.away || now.Before(b.next) && !tampered {
		return false
	}
	if b.stage.based {
		b.heal.base.took(now, b.opt.AuditPeriod, tampered)
		if tampered {
			b.heal.shield.doubt()
		}
	}
	r, err := b.node.Base(ctx)
	if ctx.Err() != nil {
		return false
	}
	b.site.news = b.site.news || err != nil || r.LinkCreated || r.Moved || b.site.old(now)
	b.lost(ctx, r)
	if err != nil {
		b.failed(b.tries)
		b.tries++
		b.tell.log.Error("node set-up failed, trying again", zap.Error(err), zap.Time("next", b.next))
		b.opt.Health.SetSetup([]string{oneLine(err)})
		return false
	}
	b.tell.warnings("base", r.Warnings)
	b.opt.Health.SetUp(len(r.Wrote))
	switch {
	case len(r.Wrote) > 0 && tampered:
		b.tell.log.Info("another program changed what all stands on: put right", zap.Strings("wrote", r.Wrote))
	case len(r.Wrote) > 0:
		b.tell.log.Info("node set up", zap.Strings("wrote", r.Wrote))
	}
	b.stage.based, b.tries, b.next, b.looked = true, 0, now.Add(b.opt.BasePeriod), now
	return false
}

// lost takes into account what was made anew: what was known of it is void, even where the rest failed.
func (b *base) lost(ctx context.Context, r ipvs.BaseReport) {
	if !b.stage.started || !r.LinkCreated && !r.TableCreated {
		return
	}
	if r.TableCreated {
		b.heal.shield.again()
		b.mirror.LoseTable()
	}
	if r.LinkCreated {
		b.mirror.LoseAddresses(r.Standing)
	}
	if b.heal.counts(ctx) == ipvs.AllGone { // who takes one away takes others
		b.lostServers()
	}
	b.mend()
	if r.TableCreated && b.stage.complete {
		b.queue.add(ipvs.Adopted, classBulk)
	}
}

// failed has it looked at again soon, by how often that failed, and nothing be done before it is in order.
func (b *base) failed(tries uint8) {
	b.stage.based, b.next = false, b.now().Add(backoff(tries))
}

// baseAgain is the least time between two looks at the base that nobody planned.
const baseAgain = 5 * time.Second

// doubt has it looked at soon: a write or a look for changes failed, and our table or our interface may be gone.
func (b *base) doubt() {
	if at := b.looked.Add(baseAgain); b.stage.based && at.Before(b.next) {
		b.next = at
	}
}
