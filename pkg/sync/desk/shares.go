package desk

import (
	"net/netip"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Shares is how a frontend's connections are shared out among its endpoints.
type Shares struct {
	Scheduler string
	// Why it is that one; "": nobody asks for any, and it is the node's.
	Why   string
	Flags ipvs.Flags
	// SlowStart is over how long the weights of new endpoints grow; 0: they do not.
	SlowStart time.Duration
	// Weights are those of the endpoints that are used, in the end; nil where nobody asks for any.
	Weights map[netip.AddrPort]uint16
}

// shares says it of a virtual server.
func (c *compiler) shares(b *backends, s ipvs.Server) Shares {
	is := Shares{Scheduler: s.Scheduler, Why: c.whyScheduler(s.Scheduler), Flags: s.Flags, SlowStart: c.f.SlowStart}
	if b.weighted {
		is.Weights = make(map[netip.AddrPort]uint16, len(b.reals))
		for _, r := range b.reals {
			is.Weights[r.Addr] = r.Weight
		}
	}
	return is
}

// whyScheduler says why a scheduler serves.
func (c *compiler) whyScheduler(is string) string {
	asked, node := c.svc.Scheduling.Scheduler, c.site.scheduler(c.opt.Scheduler)
	whose, why := asked, "the Service asks for it"
	if asked == "" || c.site.Lacking[asked] && asked != is && twins[asked] != is {
		whose, why = node, ""
	}
	if whose != "" && whose == twinOf(is) {
		why = "in place of " + whose + ", which heeds no weights"
	}
	if asked != "" && whose != asked {
		why = "the node's: its kernel lacks " + asked
	}
	return why
}

// twinOf is the scheduler that does the same without weights; "": there is none.
func twinOf(scheduler string) string {
	for plain, twin := range twins {
		if twin == scheduler {
			return plain
		}
	}
	return ""
}
