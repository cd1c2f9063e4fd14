package sync

import (
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/mirror"
)

// shared is what all parts of the loop work with.
type shared struct {
	desk   *desk.Desk
	mirror *mirror.Mirror
	// want is how the desk is asked: the only passage from what Services want to what the kernel has.
	want  func(ipvs.Key) desk.Wish
	queue *queue
	dirty *dirty
	stage *stage
	tell  *teller
	fare  *fare
	opt   Options
}

func (s shared) now() time.Time { return s.opt.Now() }

// stage is how far this process has come.
type stage struct {
	synced   bool // the source has delivered what it has
	complete bool // and nothing is missing: what nobody wants may go
	based    bool // what every Key stands on is there
	started  bool // the kernel was read
	announce bool // say when all is programmed
	began    time.Time
}

// stands reports whether there is something to work on.
func (s *stage) stands() bool { return s.started && s.based }

// ask asks the desk, which knows nothing of the record of the adoption.
func (s shared) ask(k ipvs.Key) desk.Wish {
	if k == ipvs.Adopted {
		return desk.Wish{Frontend: adoption}
	}
	return s.desk.Want(k, s.now())
}

// adoption is what is wanted of its Key.
var adoption = &ipvs.Frontend{Guard: ipvs.Guard{Owned: true}}

// doubt has a Key read properly at its next turn.
func (s shared) doubt(k ipvs.Key) {
	s.mirror.Doubt(k)
	s.queue.add(k, classBulk)
}

// queueNeeding queues the Keys that need one of some shared facts, which the kernel does not hold, and counts them.
func (s shared) queueNeeding(gone func(ipvs.Fact) bool) int {
	var needing []ipvs.Key
	for k := range s.desk.Keys() {
		if s.queue.pending(k) {
			continue // has its turn anyway
		}
		needs := false
		ipvs.FactsOf(k, s.want(k).Frontend, func(f ipvs.Fact) { needs = needs || gone(f) })
		if needs {
			needing = append(needing, k)
		}
	}
	slices.SortFunc(needing, ipvs.Key.Compare)
	for _, k := range needing {
		s.queue.add(k, classBulk)
	}
	return len(needing)
}

// report tells how the loop stands.
func (s shared) report() {
	if s.opt.Health == nil {
		return
	}
	is := healthz.Standing{Queued: s.queue.len(), Draining: s.mirror.Draining(), Frontends: s.desk.Sizes(), Failing: s.fare.counts}
	is.Absent[healthz.IPv6] = s.desk.Site().Local.NoIPv6
	undecided := len(s.dirty.ids) > 0 || s.stage.synced && !s.stage.stands()
	for _, f := range healthz.Families {
		// One object that fails is no reason to take the node out of service. It is not told apart from a kernel
		// that refuses everything where there is nothing else to try.
		failing := len(s.fare.objects[f])
		is.Waiting[f] = undecided || s.queue.due[f] > 0 || failing > 1 || failing == 1 && !s.fare.alone[f]
	}
	s.opt.Health.Stands(is)
}

// dirty are the Services to decide anew, the first ones first.
type dirty struct{ ids []cluster.ID }

// add adds Services, whatever waits already.
func (d *dirty) add(ids []cluster.ID) { d.ids = append(d.ids, ids...) }

// again adds those that do not wait already.
func (d *dirty) again(ids []cluster.ID) {
	waiting := make(map[cluster.ID]bool, len(d.ids))
	for _, id := range d.ids {
		waiting[id] = true
	}
	for _, id := range ids {
		if !waiting[id] {
			d.ids = append(d.ids, id)
		}
	}
}

// take takes up to n of them.
func (d *dirty) take(n int) (ids []cluster.ID) {
	n = min(n, len(d.ids))
	ids = d.ids[:n]
	if d.ids = d.ids[n:]; len(d.ids) == 0 {
		d.ids = nil
	}
	return ids
}
