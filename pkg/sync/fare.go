package sync

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// fare is how the work goes, counted on the way, so that telling it costs the same however many Services there are.
type fare struct {
	health  *healthz.Health
	now     func() time.Time
	failing map[ipvs.Key]failure
	objects [2]map[cluster.ID]int // by family: the Services with such Keys, and how many
	counts  [2]int                // by family: such Keys
	gone    int                   // those of which nobody wants anything any more
	alone   [2]bool               // nothing but what fails could be tried
	awaited map[ipvs.Key][]*programming
	// was says whose a Key was of which nobody wants anything any more, until that is so.
	was map[ipvs.Key]cluster.ID
}

// failure is that of a Key's last try.
type failure struct {
	service cluster.ID // whose it was
	tries   uint8      // that failed, 255 at most
	gone    bool       // nobody wants anything of the Key any more
	text    string     // the last error, of the first of many
}

// toldMost is of how many failing Keys the error is kept, and toldLength how much of it.
const (
	toldMost   = 1000
	toldLength = 200
)

// told keeps a failing Key's last error, for whoever asks.
func (s *fare) told(k ipvs.Key, err error) {
	if is, known := s.failing[k]; known && (is.text != "" || len(s.failing) <= toldMost) {
		is.text = clip(oneLine(err), toldLength)
		s.failing[k] = is
	}
}

// clip cuts a text off where it is longer than so many bytes.
func clip(text string, most int) string {
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most-len("…")], "") + "…"
	}
	return strings.Clone(text)
}

// goneMost is how many Keys may be tried again and again of which nobody wants anything any more. While the kernel neither
// takes writes nor can be read, each Service that comes and goes would leave some. Beyond these one is given up when it
// fails: what it may have left in the kernel is recorded there as ours, so a later pass of the audit meets it.
const goneMost = 1000

func newFare(opt Options) *fare {
	return &fare{health: opt.Health, now: opt.Now, failing: map[ipvs.Key]failure{},
		objects: [2]map[cluster.ID]int{{}, {}}, awaited: map[ipvs.Key][]*programming{}, was: map[ipvs.Key]cluster.ID{}}
}

// fails notes that a Key's last try failed, and counts such tries. Gone: nobody wants anything of it any more.
func (s *fare) fails(k ipvs.Key, id cluster.ID, gone bool) (tries uint8) {
	is, known := s.failing[k]
	s.gone += one(gone) - one(is.gone)
	is.gone = gone
	if is.tries < 255 {
		is.tries++
	}
	if !known {
		is.service = id
		f := healthz.FamilyOf(k.Addr)
		s.objects[f][id]++
		s.counts[f]++
	}
	s.failing[k] = is
	return is.tries
}

// mended notes that it succeeded, and reports whether it had failed before.
func (s *fare) mended(k ipvs.Key) bool {
	is, known := s.failing[k]
	if !known {
		return false
	}
	f := healthz.FamilyOf(k.Addr)
	s.gone -= one(is.gone)
	delete(s.failing, k)
	if s.objects[f][is.service]--; s.objects[f][is.service] == 0 {
		delete(s.objects[f], is.service)
	}
	if s.counts[f]--; s.counts[f] == 0 {
		s.alone[f] = false
	}
	return true
}

func one(is bool) int {
	if is {
		return 1
	}
	return 0
}

// anew counts again after the mirror was made anew.
func (s *fare) anew(pending func(ipvs.Key) bool) {
	for _, k := range sorted(s.failing) {
		s.mended(k)
	}
	for _, k := range sorted(s.awaited) {
		if !pending(k) {
			s.confirmed(k) // it is gone, and so is what was to be written
		}
	}
	maps.DeleteFunc(s.was, func(k ipvs.Key, _ cluster.ID) bool { return !pending(k) })
}

// whose says whose a Key is, or was.
func (s *fare) whose(k ipvs.Key, is cluster.ID) cluster.ID {
	if is == (cluster.ID{}) {
		return s.was[k]
	}
	return is
}

// report is the turn in which it is told how the loop stands.
type report struct{ shared }

func (*report) due(time.Time) time.Time { return time.Time{} }

func (r *report) tend(context.Context) (more bool) {
	r.report()
	return false
}

// wrote tells of the writes of a plan.
func (s *fare) wrote(plan ipvs.Plan, outcomes []ipvs.Outcome, failed map[ipvs.Key]error, took time.Duration) {
	if s.health == nil {
		return
	}
	var worked, confirmed [2]bool
	for i, step := range plan {
		f := healthz.FamilyOf(step.Key.Addr)
		worked[f] = true
		// A Key counts as a whole: where the kernel takes the guard and refuses every virtual server, nothing works.
		confirmed[f] = confirmed[f] || failed[step.Key] == nil
		if !errors.Is(outcomes[i].Err, ipvs.ErrNotTried) {
			s.health.Wrote(f, kinds[step.Op.Effect().Kind], outcomes[i].Err)
		}
	}
	for _, f := range healthz.Families {
		if worked[f] {
			s.health.Round(f, took)
		}
		if confirmed[f] {
			s.health.Confirmed(f)
		}
	}
}

// kinds are the operations as package healthz counts them.
var kinds = [...]healthz.Op{
	ipvs.KindAddServer: healthz.AddServer, ipvs.KindSetServer: healthz.SetServer, ipvs.KindDelServer: healthz.DeleteServer,
	ipvs.KindAddReal: healthz.AddReal, ipvs.KindSetReal: healthz.SetReal, ipvs.KindDelReal: healthz.DeleteReal,
	ipvs.KindBind: healthz.Bind, ipvs.KindUnbind: healthz.Unbind,
	ipvs.KindAddElement: healthz.AddElement, ipvs.KindDelElement: healthz.RemoveElement, ipvs.KindForget: healthz.Forget,
}

// forgot tells of a look through the conntrack table, which reads each family by itself.
func (s *fare) forgot(plan ipvs.Plan, outcomes []ipvs.Outcome, took time.Duration) {
	var looked [2]bool
	var deleted [2]int
	for i, step := range plan {
		f := healthz.FamilyOf(step.Key.Addr)
		looked[f] = true
		deleted[f] += outcomes[i].Deleted
		s.health.Wrote(f, healthz.Forget, outcomes[i].Err)
	}
	for _, f := range healthz.Families {
		if looked[f] {
			s.health.Forgot(f, took, deleted[f])
		}
	}
}

// programming is a change of endpoints on its way into the kernel.
type programming struct {
	family healthz.Family
	times  []time.Time // when the control plane dates it
	left   int         // Keys whose confirmation is missing
}

// awaitedMost is how many changes may wait for one Key. While it fails, what comes on top of them is not measured: the
// oldest ones say how long it takes.
const awaitedMost = 8

// await has dated changes of a Service's endpoints wait for the Keys that follow from them.
func (s *fare) await(triggers []cluster.Trigger, touched []ipvs.Key) {
	if s.health == nil {
		return
	}
	for _, f := range healthz.Families {
		p := &programming{family: f}
		for _, t := range triggers {
			if t.IPv4 == (f == healthz.IPv4) {
				p.times = append(p.times, t.At)
			}
		}
		if len(p.times) == 0 || slices.ContainsFunc(touched, func(k ipvs.Key) bool {
			return healthz.FamilyOf(k.Addr) == f && len(s.awaited[k]) >= awaitedMost
		}) {
			continue
		}
		for _, k := range touched {
			if healthz.FamilyOf(k.Addr) == f {
				p.left++
				s.awaited[k] = append(s.awaited[k], p)
			}
		}
		if p.left == 0 {
			s.programmed(p) // it changes nothing here, which is true at once
		}
	}
}

// confirmed notes that the kernel holds what is wanted of a Key.
func (s *fare) confirmed(k ipvs.Key) {
	ps := s.awaited[k]
	if ps == nil {
		return
	}
	delete(s.awaited, k)
	for _, p := range ps {
		if p.left--; p.left == 0 {
			s.programmed(p)
		}
	}
}

func (s *fare) programmed(p *programming) {
	now := s.now()
	for _, t := range p.times {
		s.health.Programmed(p.family, now.Sub(t))
	}
}
