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
	// growing are the Keys with endpoints whose weight grows.
	growing *queue
	// draining are the Keys with real servers that drain.
	draining *queue
	dirty    *dirty
	stage    *stage
	tell     *teller
	fare     *fare
	// diary has the last writes.
	diary *diary
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
	// replacing: rules of another proxy are there, and not all is programmed yet.
	replacing bool
	// alone: no rules of another proxy that would take packets are there, as far as is known.
	alone bool
	away  bool // another proxy is at work, and nothing is written
	// mending is since when what another program took away as a whole is being written anew; zero: nothing is.
	mending time.Time
}

// stands reports whether there is something to work on.
func (s *stage) stands() bool { return s.started && s.based && !s.away }

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
	s.again(k)
}

// again gives a Key a turn of which nothing else is wanted than before.
func (s shared) again(k ipvs.Key) { s.queue.add(k, classOf(s.want(k))) }

// classOf is the place of a Key that has another turn without a change: what is urgent is so then, too.
func classOf(w desk.Wish) class {
	if w.Urgent {
		return classUrgent
	}
	return classBulk
}

// needless are the Keys of addresses of which the kernel holds a shared fact that nobody needs.
func (s shared) needless() map[ipvs.Key]bool {
	keys := map[ipvs.Key]bool{}
	for f := range s.mirror.Facts() {
		if k := ipvs.AddrKey(f.Addr); !s.want(k).Needs(f.Kind) {
			keys[k] = true
		}
	}
	return keys
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
	slices.SortFunc(needing, s.mirror.ByUse)
	for _, k := range needing {
		s.diary.because(k, cause{WhyTampered, s.now()})
		s.again(k)
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
	if s.stage.away { // that work waits is no fault
		is.Away = s.tell.away
		s.opt.Health.Stands(is)
		return
	}
	undecided := s.dirty.len() > 0 || s.stage.synced && !s.stage.stands()
	for _, f := range healthz.Families {
		// One object that fails is no reason to take the node out of service. It is not told apart from a kernel
		// that refuses everything where there is nothing else to try.
		failing := len(s.fare.objects[f])
		is.Waiting[f] = undecided || s.queue.due[f] > 0 || failing > 1 || failing == 1 && !s.fare.alone[f]
	}
	s.opt.Health.Stands(is)
}

// dirty are the Services to decide anew. Each waits once, however often it changes: the urgent ones first, and then the
// first ones. The zero value has none.
type dirty struct {
	urgent func(cluster.ID) bool
	now    func() time.Time // nil: nobody wants to know when
	// lines are the urgent ones and the others.
	lines   [2][]cluster.ID
	waiting map[cluster.ID]cause
	// taken is why those are decided that were taken last.
	taken map[cluster.ID]cause
}

// add adds those that do not wait already, and why.
func (d *dirty) add(ids []cluster.ID, why Why) {
	for _, id := range ids {
		if _, waits := d.waiting[id]; waits {
			continue
		}
		if d.waiting == nil {
			d.waiting = map[cluster.ID]cause{}
		}
		d.waiting[id] = cause{why: why}
		if d.now != nil {
			d.waiting[id] = cause{why, d.now()}
		}
		l := &d.lines[1]
		if d.urgent(id) {
			l = &d.lines[0]
		}
		*l = append(*l, id)
	}
}

// len counts them.
func (d *dirty) len() int { return len(d.waiting) }

// take takes up to n of them.
func (d *dirty) take(n int) (ids []cluster.ID) {
	for i, l := range d.lines {
		some := l[:min(n-len(ids), len(l))]
		if d.lines[i] = l[len(some):]; len(d.lines[i]) == 0 {
			d.lines[i] = nil
		}
		if ids == nil {
			ids = some
		} else {
			ids = append(slices.Clip(ids), some...)
		}
	}
	clear(d.taken)
	for _, id := range ids {
		if d.taken == nil {
			d.taken = map[cluster.ID]cause{}
		}
		d.taken[id] = d.waiting[id]
		delete(d.waiting, id)
	}
	return ids
}
