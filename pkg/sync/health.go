package sync

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// standing is what the loop counts as it goes, so that telling how it stands costs the same however many Services
// there are.
type standing struct {
	draining int
	began    time.Time                   // of the start that is under way
	failing  map[ipvs.Key]cluster.ID     // Keys whose last try failed, and whose they were
	objects  [2]map[cluster.ID]int       // by family: the Services with such Keys, and how many
	counts   [2]int                      // by family: such Keys
	alone    [2]bool                     // nothing but what fails could be tried
	probed   [2]time.Time                // the last probe
	noLocal  map[cluster.ID]desk.NoLocal // Services with a Local policy that finds no endpoint here
}

func newStanding() standing {
	return standing{
		failing: map[ipvs.Key]cluster.ID{},
		objects: [2]map[cluster.ID]int{{}, {}},
		noLocal: map[cluster.ID]desk.NoLocal{},
	}
}

// fails notes that a Key's last try failed.
func (s *standing) fails(k ipvs.Key, id cluster.ID) {
	if _, known := s.failing[k]; known {
		return
	}
	f := healthz.FamilyOf(k.Addr)
	s.failing[k] = id
	s.objects[f][id]++
	s.counts[f]++
}

// mended notes that it succeeded.
func (s *standing) mended(k ipvs.Key) {
	id, known := s.failing[k]
	if !known {
		return
	}
	f := healthz.FamilyOf(k.Addr)
	delete(s.failing, k)
	if s.objects[f][id]--; s.objects[f][id] == 0 {
		delete(s.objects[f], id)
	}
	if s.counts[f]--; s.counts[f] == 0 {
		s.alone[f] = false
	}
}

// standAnew counts again after the mirror was made anew.
func (l *Loop) standAnew() {
	l.standing.draining = 0
	for _, c := range l.cells {
		l.standing.draining += len(c.drains)
	}
	for _, k := range sorted(l.standing.failing) {
		l.standing.mended(k)
	}
	for _, k := range sorted(l.awaited) {
		if !l.pending(k) {
			l.confirmed(k) // it is gone, and so is what was to be written
		}
	}
}

// report tells how the loop stands.
func (l *Loop) report() {
	if l.opt.Health == nil {
		return
	}
	s := healthz.Standing{Queued: l.queue.len(), Draining: l.standing.draining, Frontends: l.desk.Sizes(), Failing: l.standing.counts}
	s.Absent[healthz.IPv6] = l.desk.Site().Local.NoIPv6
	undecided := len(l.dirty) > 0 || l.synced && !(l.started && l.base.ok)
	for _, f := range healthz.Families {
		// One object that fails is no reason to take the node out of service. It is not told apart from a kernel
		// that refuses everything where there is nothing else to try.
		failing := len(l.standing.objects[f])
		s.Waiting[f] = undecided || l.queue.due[f] > 0 || failing > 1 || failing == 1 && !l.standing.alone[f]
	}
	l.opt.Health.Stands(s)
}

// probe finds out whether the kernel takes any write at all, when something fails and nothing else was written for
// a while: it writes a virtual server as it is. Otherwise a quiet node could not tell one bad object from a kernel
// that refuses everything.
func (l *Loop) probe(ctx context.Context) {
	for _, f := range healthz.Families {
		now := l.now()
		if l.standing.counts[f] == 0 || !l.opt.Health.Doubtful(f) || now.Sub(l.standing.probed[f]) < probePeriod {
			continue
		}
		l.standing.probed[f] = now
		k, found := l.sound(f)
		if l.standing.alone[f] = !found; !found {
			continue
		}
		op := ipvs.SetServer{Key: k, Scheduler: l.cells[k].have.Server.Scheduler, Flags: l.cells[k].have.Server.Flags, Timeout: l.cells[k].have.Server.Timeout}
		out := l.kernel.Do(ctx, ipvs.Plan{{Key: k, Op: op}})[0]
		if out.Err == nil {
			l.opt.Health.Alive(f)
		} else if ctx.Err() == nil {
			l.log.Warn("frontends fail, and the kernel refuses to write one that is right, too", zap.Stringer("frontend", k), zap.Error(out.Err))
			l.doubt(k)
		}
	}
}

// probePeriod is the least time between two probes of a family.
const probePeriod = 5 * time.Second

// sound finds a Key of a family whose virtual server is as it should be.
func (l *Loop) sound(f healthz.Family) (ipvs.Key, bool) {
	for k, c := range l.cells {
		if _, fails := l.standing.failing[k]; healthz.FamilyOf(k.Addr) == f && k.HasServer() && !fails && !c.unknown && c.have != nil && c.have.Server.Exists() {
			return k, true
		}
	}
	return ipvs.Key{}, false
}

// noteWrites tells of the writes of a plan.
func (l *Loop) noteWrites(plan ipvs.Plan, outcomes []ipvs.Outcome, failed map[ipvs.Key]error, took time.Duration) {
	if l.opt.Health == nil {
		return
	}
	var worked, confirmed [2]bool
	for i, s := range plan {
		f := healthz.FamilyOf(s.Key.Addr)
		worked[f] = true
		// A Key counts as a whole: where the kernel takes the guard and refuses every virtual server, nothing works.
		confirmed[f] = confirmed[f] || failed[s.Key] == nil
		if !errors.Is(outcomes[i].Err, ipvs.ErrNotTried) {
			l.opt.Health.Wrote(f, kindOf(s.Op), outcomes[i].Err)
		}
	}
	for _, f := range healthz.Families {
		if worked[f] {
			l.opt.Health.Round(f, took)
		}
		if confirmed[f] {
			l.opt.Health.Confirmed(f)
		}
	}
}

func kindOf(op ipvs.Op) healthz.Op {
	switch o := op.(type) {
	case ipvs.Element:
		if o.Remove {
			return healthz.RemoveElement
		}
		return healthz.AddElement
	case ipvs.AddServer:
		return healthz.AddServer
	case ipvs.SetServer:
		return healthz.SetServer
	case ipvs.DelServer:
		return healthz.DeleteServer
	case ipvs.AddReal:
		return healthz.AddReal
	case ipvs.SetReal:
		return healthz.SetReal
	case ipvs.DelReal:
		return healthz.DeleteReal
	case ipvs.Bind:
		return healthz.Bind
	case ipvs.Unbind:
		return healthz.Unbind
	}
	return healthz.Forget
}

// noteForgotten tells of a look through the conntrack table, which reads each family by itself.
func (l *Loop) noteForgotten(plan ipvs.Plan, outcomes []ipvs.Outcome, took time.Duration) {
	var looked [2]bool
	var deleted [2]int
	for i, s := range plan {
		f := healthz.FamilyOf(s.Key.Addr)
		looked[f] = true
		deleted[f] += outcomes[i].Deleted
		l.opt.Health.Wrote(f, healthz.Forget, outcomes[i].Err)
	}
	for _, f := range healthz.Families {
		if looked[f] {
			l.opt.Health.Forgot(f, took, deleted[f])
		}
	}
}

// noteStarted tells that a start is over.
func (l *Loop) noteStarted() {
	for _, f := range healthz.Families {
		if f == healthz.IPv4 || !l.desk.Site().Local.NoIPv6 {
			l.opt.Health.Started(f, l.now().Sub(l.standing.began))
		}
	}
}

// noteWarnings tells what of the node could not be set up, when that changes.
func (l *Loop) noteWarnings(warnings []error) {
	lines := make([]string, len(warnings))
	for i, w := range warnings {
		lines[i] = oneLine(w)
	}
	l.opt.Health.SetSetup(lines)
	if slices.Equal(lines, l.warned) {
		return
	}
	l.warned = lines
	for _, w := range warnings {
		l.log.Warn("node set-up is incomplete", zap.Error(w))
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// countNoLocal keeps count of the Services whose Local policies find no endpoint here.
func (l *Loop) countNoLocal(id cluster.ID, now desk.NoLocal) {
	before := l.standing.noLocal[id]
	if now == before {
		return
	}
	for policy := range now {
		for _, f := range healthz.Families {
			if now[policy][f] != before[policy][f] {
				by := 1
				if before[policy][f] {
					by = -1
				}
				l.opt.Health.NoLocal(policy == 1, f, by)
			}
		}
	}
	if now == (desk.NoLocal{}) {
		delete(l.standing.noLocal, id)
	} else {
		l.standing.noLocal[id] = now
	}
}

// programming is a change of endpoints on its way into the kernel.
type programming struct {
	family healthz.Family
	times  []time.Time // when the control plane dates it
	left   int         // Keys whose confirmation is missing
}

// awaitKeys has the dated changes of a Service's endpoints wait for the Keys that follow from them.
func (l *Loop) awaitKeys(id cluster.ID, touched []ipvs.Key) {
	triggers := l.model.TakeTriggers(id)
	if l.opt.Health == nil {
		return
	}
	for _, f := range healthz.Families {
		p := &programming{family: f}
		for _, t := range triggers {
			if t.IPv4 == (f == healthz.IPv4) {
				p.times = append(p.times, t.At)
			}
		}
		if len(p.times) == 0 {
			continue
		}
		for _, k := range touched {
			if healthz.FamilyOf(k.Addr) == f {
				p.left++
				l.awaited[k] = append(l.awaited[k], p)
			}
		}
		if p.left == 0 {
			l.programmed(p) // it changes nothing here, which is true at once
		}
	}
}

// confirmed notes that the kernel holds what is wanted of a Key.
func (l *Loop) confirmed(k ipvs.Key) {
	ps := l.awaited[k]
	if ps == nil {
		return
	}
	delete(l.awaited, k)
	for _, p := range ps {
		if p.left--; p.left == 0 {
			l.programmed(p)
		}
	}
}

func (l *Loop) programmed(p *programming) {
	now := l.now()
	for _, t := range p.times {
		l.opt.Health.Programmed(p.family, now.Sub(t))
	}
}
