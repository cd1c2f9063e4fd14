package sync

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// probe finds out whether the kernel takes any write at all, when something fails and nothing else was written for
// a while: it writes a virtual server as it is. Otherwise a quiet node could not tell one bad object from a kernel
// that refuses everything.
type probe struct {
	shared
	writer Writer
	last   [2]time.Time // by family
}

// probePeriod is the least time between two probes of a family.
const probePeriod = 5 * time.Second

func (*probe) due(time.Time) time.Time { return time.Time{} } // what fails is tried again often enough

// tend probes where it has to be.
func (p *probe) tend(ctx context.Context) (more bool) {
	for _, f := range healthz.Families {
		now := p.now()
		if p.fare.counts[f] == 0 || !p.opt.Health.Doubtful(f) || now.Sub(p.last[f]) < probePeriod {
			continue
		}
		p.last[f] = now
		k, s, found := p.mirror.Sound(func(k ipvs.Key) bool { return healthz.FamilyOf(k.Addr) == f && p.fare.failing[k] == (failure{}) })
		if p.fare.alone[f] = !found; !found {
			continue
		}
		op := ipvs.SetServer{Key: k, Scheduler: s.Scheduler, Flags: s.Flags, Timeout: s.Timeout}
		out := p.writer.Do(ctx, ipvs.Plan{{Key: k, Op: op}})[0]
		if out.Err == nil {
			p.opt.Health.Alive(f)
		} else if ctx.Err() == nil {
			p.tell.log.Warn("frontends fail, and the kernel refuses to write one that is right, too", zap.Stringer("frontend", k), zap.Error(out.Err))
			p.doubt(k)
		}
	}
	return false
}
