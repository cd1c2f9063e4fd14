package sync

import (
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Events tells the users of the cluster what is wrong with their objects.
type Events interface {
	// Warn puts an Event of type Warning on a Service; the zero ID stands for the own Node. The reason is
	// CamelCase and from a bounded set, the note at most 1 KiB. It must not block: what cannot be sent in time is
	// dropped.
	Warn(about cluster.ID, reason, note string)
}

// teller says what is wrong and what was done: in the log, in metrics, and by Events.
type teller struct {
	log     *zap.Logger
	health  *healthz.Health
	events  Events
	told    map[cluster.ID]string            // the problems last logged of a Service
	counted map[cluster.ID]map[string]int    // them, by reason
	raised  map[cluster.ID]map[string]string // the last Event of each reason, while there is one
	noLocal map[cluster.ID]desk.NoLocal      // Services with a Local policy that finds no endpoint here
	away    string                           // what another proxy wrote, while we step back from it
	setup   map[string][]error               // what of the set-up is wrong, by who sets it up
	warned  map[string]string                // the warnings of the set-up that were logged last, by what they are about
}

func newTeller(log *zap.Logger, opt Options) *teller {
	return &teller{log: log, health: opt.Health, events: opt.Events, told: map[cluster.ID]string{}, counted: map[cluster.ID]map[string]int{},
		raised: map[cluster.ID]map[string]string{}, noLocal: map[cluster.ID]desk.NoLocal{}, setup: map[string][]error{}, warned: map[string]string{}}
}

// tell logs what is wrong with a Service when it changes, and when it is mended, counts it by reason, and puts
// Events on the Service for what is this node's to say.
func (t *teller) tell(id cluster.ID, problems []desk.Problem, d *desk.Desk) {
	t.raise(id, problems, d)
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.Text
	}
	text := strings.Join(lines, "; ")
	if text == t.told[id] {
		return
	}
	t.count(id, problems)
	what, subject := "Service", zap.Stringer("service", id)
	if id == desk.OwnNode {
		what, subject = "Node", zap.String("node", d.Site().Node.Name)
	}
	if text == "" {
		delete(t.told, id)
		t.log.Info(what+" is in order again", subject)
		return
	}
	t.told[id] = text
	t.log.Warn("parts of a "+what+" cannot be used", subject, zap.Strings("problems", lines))
}

// count keeps the metric of problems by reason.
func (t *teller) count(id cluster.ID, problems []desk.Problem) {
	for reason, n := range t.counted[id] {
		t.health.Problems(reason, -n)
	}
	delete(t.counted, id)
	if len(problems) == 0 {
		return
	}
	counts := map[string]int{}
	for _, p := range problems {
		counts[p.Reason] += max(p.Count, 1)
	}
	for reason, n := range counts {
		t.health.Problems(reason, n)
	}
	t.counted[id] = counts
}

// noteLimit is how long the note of an Event may be (events.k8s.io/v1).
const noteLimit = 1024

// shortened cuts a note off where it is too long.
func shortened(note string) string {
	if len(note) > noteLimit {
		note = strings.ToValidUTF8(note[:noteLimit-len("…")], "") + "…"
	}
	return note
}

// raise puts Events on a Service, one a reason, when what this node has to say of it is new. With 5,000 nodes each
// would otherwise say the same: of an endpoint only its own node speaks, of an address of a node that node, and of
// everything else the node that has the Service's first endpoint. Of a Service without endpoints there is the log
// of every node.
func (t *teller) raise(id cluster.ID, problems []desk.Problem, d *desk.Desk) {
	if t.events == nil || len(problems) == 0 && t.raised[id] == nil {
		return
	}
	if len(problems) == 0 {
		delete(t.raised, id)
		return
	}
	speaks := d.Speaks(id)
	notes := map[string]string{}
	lasting := map[string]bool{}
	var reasons []string
	for _, p := range problems {
		lasting[p.Reason] = true
		if !p.Here && !(p.Anywhere && speaks) {
			continue
		}
		if notes[p.Reason] == "" {
			reasons = append(reasons, p.Reason)
			notes[p.Reason] = p.Text
		} else {
			notes[p.Reason] += "; " + p.Text
		}
	}
	before := t.raised[id]
	after := map[string]string{}
	for reason, note := range before {
		if lasting[reason] { // also while another node speaks: it may be this one's turn again
			after[reason] = note
		}
	}
	for _, reason := range reasons {
		note := shortened(notes[reason])
		if before[reason] != note {
			t.events.Warn(id, reason, note)
		}
		after[reason] = note
	}
	if len(after) == 0 {
		delete(t.raised, id)
	} else {
		t.raised[id] = after
	}
}

// warnings tells what of the node could not be set up, by one of those who set it up: once, and when it is over.
func (t *teller) warnings(by string, warnings []error) {
	t.setup[by] = warnings
	var lines []string
	now := map[string]bool{}
	for _, by := range slices.Sorted(maps.Keys(t.setup)) {
		for _, w := range t.setup[by] {
			about, line := ipvs.AboutOf(w), oneLine(w)
			lines, now[about] = append(lines, line), true
			if t.warned[about] != line {
				t.warned[about] = line
				t.log.Warn("node set-up is incomplete", zap.Error(w))
			}
		}
	}
	t.health.SetSetup(lines)
	for _, about := range slices.Sorted(maps.Keys(t.warned)) {
		if !now[about] {
			t.log.Info("this part of the node's set-up is right now", zap.String("was", t.warned[about]))
			delete(t.warned, about)
		}
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// countNoLocal keeps count of the Services whose Local policies find no endpoint here.
func (t *teller) countNoLocal(id cluster.ID, now desk.NoLocal) {
	before := t.noLocal[id]
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
				t.health.NoLocal(policy == 1, f, by)
			}
		}
	}
	if now == (desk.NoLocal{}) {
		delete(t.noLocal, id)
	} else {
		t.noLocal[id] = now
	}
}

// started tells that a start is over.
func (t *teller) started(took time.Duration, noIPv6 bool) {
	for _, f := range healthz.Families {
		if f == healthz.IPv4 || !noIPv6 {
			t.health.Started(f, took)
		}
	}
}

// lacks tells that the kernel does not have a scheduler. One that some Services ask for is told of by these.
func (t *teller) lacks(scheduler string, nodes bool, err error) {
	if !nodes {
		t.log.Warn("the kernel lacks a scheduler that Services ask for: the node's own serves in its place until it is there", zap.String("scheduler", scheduler), zap.Error(err))
		return
	}
	t.log.Error("the kernel lacks a scheduler: rr serves in its place until it is there", zap.String("scheduler", scheduler), zap.Error(err))
	if t.events != nil {
		t.events.Warn(desk.OwnNode, desk.ReasonSchedulerMissing, "the kernel of this node lacks the scheduler "+scheduler+": rr serves in its place")
	}
	t.health.Problems(desk.ReasonSchedulerMissing, 1)
}

// gains tells that the kernel has a scheduler that it lacked.
func (t *teller) gains(scheduler string, nodes bool) {
	t.log.Info("the kernel has a scheduler that it lacked", zap.String("scheduler", scheduler))
	if nodes {
		t.health.Problems(desk.ReasonSchedulerMissing, -1)
	}
}

// steppedBack tells that another proxy is at work, and that nothing is written until it is gone.
func (t *teller) steppedBack(what string, quiet time.Duration) {
	t.away = what
	t.log.Warn("another proxy is at work on this node: nothing is written until it is gone", zap.String("heard", what), zap.Duration("quiet", quiet))
	if t.events != nil {
		t.events.Warn(desk.OwnNode, desk.ReasonOtherProxy, "another proxy is at work on this node ("+what+"): ipvs-proxy writes nothing until it is gone: one proxy a node")
	}
	t.health.Problems(desk.ReasonOtherProxy, 1)
}

// cameBack tells that it is gone, as far as one can hear.
func (t *teller) cameBack(heard string) {
	t.away = ""
	t.log.Info("nothing more is heard of the other proxy: reading the kernel anew", zap.String("heard", heard))
	t.health.Problems(desk.ReasonOtherProxy, -1)
}

// standsBefore tells what of another proxy's takes packets before IPVS sees them, and when that is over.
func (t *teller) standsBefore(was, is []string, kept bool) {
	t.health.SetBefore(is)
	if len(is) == 0 {
		t.health.Problems(desk.ReasonRulesBefore, -1)
		t.log.Info("no rules of another proxy stand before IPVS any more")
		return
	}
	do := "they are taken out once all Services are programmed"
	if kept {
		do = "takeover.leftovers is Keep: take them out by hand"
	}
	t.log.Warn("rules of kube-proxy stand before IPVS: they serve Services in its place, by endpoints that they know", zap.Strings("rules", is), zap.String("do", do))
	if len(was) > 0 {
		return
	}
	t.health.Problems(desk.ReasonRulesBefore, 1)
	if t.events != nil {
		t.events.Warn(desk.OwnNode, desk.ReasonRulesBefore, shortened("rules of kube-proxy stand before IPVS on this node and serve Services in its place, by endpoints that they know ("+
			strings.Join(is, "; ")+"): "+do))
	}
}

// programmed tells of a plan that was carried out for some Keys.
func (t *teller) programmed(plan ipvs.Plan, jobs []job, failed map[ipvs.Key]error, took time.Duration, queued int) {
	level := zap.InfoLevel
	if len(failed) == len(jobs) {
		level = zap.DebugLevel // each has said so, and will be tried again and again
	}
	if ce := t.log.Check(level, "programmed"); ce != nil {
		lines, services := summary(plan, jobs, failed)
		what := zap.Strings("what", lines)
		if lines == nil {
			what = zap.Int("services", services)
		}
		ce.Write(what, zap.Int("frontends", len(jobs)), zap.Int("writes", len(plan)), zap.Int("failed", len(failed)),
			zap.Duration("took", took), zap.Int("queued", queued))
	}
	if ce := t.log.Check(zap.DebugLevel, "plan"); ce != nil {
		lines := make([]string, len(plan))
		slices.SortStableFunc(plan, func(a, b ipvs.Step) int { return int(a.Op.Phase()) - int(b.Op.Phase()) })
		for i, s := range plan {
			lines[i] = s.Op.String()
		}
		ce.Write(zap.Strings("ops", lines))
	}
}
