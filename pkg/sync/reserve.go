package sync

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// Ports are those that the kernel gives to processes of the node which did not ask for a certain one.
type Ports interface {
	// Reserve keeps some ports from being given away, beside those that others keep, and gives back what an earlier call
	// kept and is not among them; with keep it gives nothing back. It reads first and writes only what differs: wrote says
	// what. Its error says what does not work while it cannot be done.
	Reserve(ctx context.Context, ports []uint16, keep bool) (wrote []string, err error)
}

// reserve keeps the node ports that are served from processes of the node that connect out: IPVS takes packets by address and
// port, the answers to such a connection as well, and would send them to a pod. It has its turn before the ports are served.
type reserve struct {
	shared
	ports    Ports
	changes  uint64 // of the desk's node ports that were taken into account
	complete bool   // all of the cluster was known then
	next     time.Time
}

func (r *reserve) due(now time.Time) time.Time {
	switch {
	case r.ports == nil || r.stage.away:
		return time.Time{}
	case r.next.IsZero() || r.changes != r.desk.NodePortChanges() || r.complete != r.stage.complete:
		return now
	}
	return r.next
}

func (r *reserve) tend(ctx context.Context) (more bool) {
	now := r.now()
	if due := r.due(now); due.IsZero() || now.Before(due) {
		return false
	}
	r.changes, r.complete = r.desk.NodePortChanges(), r.stage.complete
	wrote, err := r.ports.Reserve(ctx, r.desk.NodePortNumbers(), !r.complete)
	if ctx.Err() != nil {
		return false
	}
	r.next = now.Add(r.opt.BasePeriod)
	var warnings []error
	if err != nil {
		warnings = []error{err}
	}
	r.tell.warnings("ports", warnings)
	if len(wrote) > 0 {
		r.tell.log.Info("node ports are kept from processes that connect out", zap.Strings("wrote", wrote))
	}
	return false
}
