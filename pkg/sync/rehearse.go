package sync

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Looker is a kernel that is looked at only.
type Looker interface {
	// Node is the same as a Kernel's, but that Base only says what it would write.
	Node
	// Scan reads everything, see Reader.
	Scan(context.Context, func(ipvs.Key, ipvs.Observed)) error
	Schedulers
}

// Rehearsal is what a start on a kernel would do.
type Rehearsal struct {
	// Base is what it would set up first, and what it could not.
	Base ipvs.BaseReport
	// Steps are its writes, in their order. What serves several Keys is there once, for the first of them. Conntrack
	// entries that it would forget are left out: they come and go with the traffic.
	Steps ipvs.Plan
	// Found is what the kernel holds now.
	Found map[ipvs.Key]ipvs.Observed
	// Adopted: an agent had a whole start on this kernel before.
	Adopted bool
	// Left is what would be taken out of what another proxy left, once all is programmed, in its order; or, with
	// KeepLeftovers, what would stay of it.
	Left []string
	// Stays says what of it stays in any case, and why.
	Stays []string
	// Failing are the writes that the kernel would refuse, in the order in which they were tried.
	Failing []error

	desk *desk.Desk
	ours func(ipvs.Key) bool
	at   time.Time
}

// Want says what is wanted of a Key.
func (r *Rehearsal) Want(k ipvs.Key) desk.Wish { return r.desk.Want(k, r.at) }

// Ours reports whether a virtual server that was found may be changed.
func (r *Rehearsal) Ours(k ipvs.Key) bool { return r.ours(k) }

// Snapshot takes what decides what a Service becomes.
func (r *Rehearsal) Snapshot(id cluster.ID) desk.Snapshot { return r.desk.Snapshot(id) }

// Growing gives the real servers of a Key whose weight would grow.
func (r *Rehearsal) Growing(k ipvs.Key) []desk.Growing { return r.desk.Growing(k, r.at) }

// Closed says why a new connection to a Key would not be served, and whose address it is.
func (r *Rehearsal) Closed(k ipvs.Key) (cluster.ID, desk.Code) { return r.desk.Closed(k) }

// Passage takes what is wanted for packets to a Key.
func (r *Rehearsal) Passage(k ipvs.Key) desk.Passage { return r.desk.Passage(k, r.at) }

// Site is the node that Services are decided for.
func (r *Rehearsal) Site() desk.Site { return r.desk.Site() }

// ErrIncomplete: what the cluster wants is not all known, so nothing can be said of what would go.
var ErrIncomplete = errors.New("parts of the cluster could not be read")

// rehearsalTime is for how long a start is followed, on a clock of its own: until the end of the adoption, and short of
// what comes later, such as the removal of real servers that have drained.
const rehearsalTime = 3 * time.Second

// Rehearse runs the loop's own start on a kernel and writes nothing: in place of writing, each write is noted and taken
// for done. The model must have all that there is and must not change meanwhile.
func Rehearse(ctx context.Context, kernel Looker, model Model, opt Options) (*Rehearsal, error) {
	if !model.Complete() {
		return nil, ErrIncomplete
	}
	stage := &rehearsalStage{look: kernel, schedulers: map[string]bool{}}
	opt.Health, opt.Events, opt.Ports, opt.Schedulers, opt.DrainPoll = nil, nil, nil, nil, time.Hour
	others := &rehearsedProxies{of: opt.Proxies}
	if opt.Proxies != nil {
		opt.Proxies = others
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	now := opt.Now()
	end := now.Add(rehearsalTime)
	opt.Now = func() time.Time { return now }
	loop := New(stage, model, zap.NewNop(), opt)
	loop.rounds = ofStart(loop.rounds)
	for now.Before(end) && stage.err == nil {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if loop.turn(ctx) {
			now = now.Add(max(loop.idleFor(now), time.Millisecond))
		}
	}
	if stage.err != nil {
		return nil, stage.err
	}
	if err := others.look(ctx, opt.KeepLeftovers); err != nil { // no more than a start would make of it
		stage.base.Warnings = append(slices.Clip(stage.base.Warnings), err)
	}
	if !loop.stage.stands() {
		return nil, errors.New("the start does not come to look at the kernel")
	}
	r := &Rehearsal{Base: stage.base, Steps: stage.steps, Found: stage.found, Failing: stage.failing, Left: others.left, Stays: others.stays, desk: loop.desk, ours: loop.mirror.Knows, at: now}
	record := r.Found[ipvs.Adopted].Have
	r.Adopted = record != nil && record.Guard.Owned
	return r, nil
}

// ofStart are those of the rounds that are a start's. What looks for later changes has nothing to find.
func ofStart(rounds agenda) agenda {
	return slices.DeleteFunc(slices.Clone(rounds), func(t tender) bool {
		switch t.(type) {
		case *act, *drain, *takeover:
			return false
		}
		return true
	})
}

// rehearsedProxies is what other proxies left, in a rehearsal: it is read once, and each thing is taken for taken out.
type rehearsedProxies struct {
	of          Proxies
	read        bool
	found       []ipvs.Leaving
	left, stays []string
	err         error
}

// Left lists what is left, but for what was taken for taken out.
func (p *rehearsedProxies) Left(ctx context.Context) (list []ipvs.Leaving, stays []string, err error) {
	if !p.read {
		p.read = true
		if p.found, p.stays, p.err = p.of.Left(ctx); p.err != nil {
			p.err = fmt.Errorf("look for what another proxy left: %w", p.err)
		}
	}
	for _, l := range p.found {
		if slices.Contains(p.left, l.Text) {
			continue
		}
		l.Take = func(context.Context) error {
			p.left = append(p.left, l.Text)
			return nil
		}
		list = append(list, l)
	}
	return list, p.stays, p.err
}

// Trace is always the same: that another proxy is at work is no reason to say nothing.
func (*rehearsedProxies) Trace(context.Context) (uint64, error) { return 0, nil }

// Before is nothing: what stands there is among what is left.
func (*rehearsedProxies) Before(context.Context) ([]string, error) { return nil, nil }

// look reads what would stay where all is kept, which the start then does not read. Its error is that of the reading.
func (p *rehearsedProxies) look(ctx context.Context, kept bool) error {
	if p.of == nil || !kept {
		return p.err
	}
	list, _, err := p.Left(ctx)
	for _, l := range list {
		p.left = append(p.left, l.Text)
	}
	return err
}

// rehearsalStage is the Kernel of a rehearsal. What is read is the kernel as it would be after what was noted.
type rehearsalStage struct {
	look    Looker
	base    ipvs.BaseReport
	steps   ipvs.Plan
	found   map[ipvs.Key]ipvs.Observed
	failing []error
	err     error // the first of a read

	keys  map[ipvs.Key]*ipvs.Frontend // without shared facts
	facts map[ipvs.Fact]bool
	// schedulers are those that were asked for.
	schedulers map[string]bool
}

// fail keeps the first error of a read: the loop would try again, and whoever asks wants to know.
func (s *rehearsalStage) fail(what string, err error) error {
	if err != nil && s.err == nil {
		s.err = fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// Base is what would be written; a second time, nothing of it.
func (s *rehearsalStage) Base(ctx context.Context) (r ipvs.BaseReport, err error) {
	now, err := s.look.Base(ctx)
	if err = s.fail("look at what all stands on", err); err != nil {
		return r, err
	}
	if s.base.LinkCreated || s.base.TableCreated {
		now.LinkCreated, now.TableCreated = false, false
	}
	r = now
	now.LinkCreated, now.TableCreated = now.LinkCreated || s.base.LinkCreated, now.TableCreated || s.base.TableCreated
	s.base = now
	return r, nil
}

func (s *rehearsalStage) Local(ctx context.Context) (ipvs.Local, error) {
	l, err := s.look.Local(ctx)
	return l, s.fail("read the node's addresses", err)
}

// Shield is nothing that a person would miss.
func (*rehearsalStage) Shield(context.Context, bool) error { return nil }

func (s *rehearsalStage) SetPods(pods []netip.Prefix) error { return s.look.SetPods(pods) }

// Scan reads the kernel as it is. What was noted before is void: the loop begins anew from what it reads.
func (s *rehearsalStage) Scan(ctx context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	s.steps, s.failing = nil, nil
	s.found, s.keys, s.facts = map[ipvs.Key]ipvs.Observed{}, map[ipvs.Key]*ipvs.Frontend{}, map[ipvs.Fact]bool{}
	return s.fail("read the kernel", s.look.Scan(ctx, func(k ipvs.Key, o ipvs.Observed) {
		s.found[k] = o
		if k.HasServer() || k == ipvs.Adopted {
			s.keys[k] = o.Have
		} else {
			ipvs.FactsOf(k, o.Have, func(fact ipvs.Fact) { s.facts[fact] = true })
		}
		f(k, o)
	}))
}

// Connections counts those that the kernel has.
func (s *rehearsalStage) Connections(_ context.Context, keys []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error) {
	conns := map[ipvs.Key]map[netip.AddrPort]ipvs.Conns{}
	for _, k := range keys {
		conns[k] = s.found[k].Conns
	}
	return conns, nil
}

// Observe gives what the kernel would hold.
func (s *rehearsalStage) Observe(_ context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	out := map[ipvs.Key]ipvs.Observed{}
	for _, k := range keys {
		have := s.keys[k]
		if !k.HasServer() && k != ipvs.Adopted {
			has := func(kind ipvs.FactKind) bool { return s.facts[ipvs.Fact{Kind: kind, Addr: k.Addr}] }
			have = &ipvs.Frontend{Bind: has(ipvs.FactBind), Misbound: has(ipvs.FactMisbound), Guard: ipvs.Guard{VIP: has(ipvs.FactVIP)}}
			if has(ipvs.FactHairpin) {
				have.Guard.Hairpin = []netip.Addr{k.Addr}
			}
		}
		if have != nil {
			out[k] = ipvs.Observed{Have: have, Conns: s.found[k].Conns}
		}
	}
	return out, nil
}

// Do notes a Plan, phase by phase, as a kernel writes it.
func (s *rehearsalStage) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	return ipvs.Execute(ctx, plan, func(ctx context.Context, steps []ipvs.Step) []ipvs.Outcome {
		out := make([]ipvs.Outcome, len(steps))
		for i, step := range steps {
			if out[i].Err = s.refuses(ctx, step.Op); out[i].Err == nil {
				s.note(step)
			}
		}
		return out
	})
}

// refuses is the kernel's answer to what it would not do: a virtual server with a scheduler that it lacks, and real
// servers of one that is not there.
func (s *rehearsalStage) refuses(ctx context.Context, op ipvs.Op) error {
	is := op.Effect()
	if have := s.keys[is.Key]; is.Real.IsValid() && (have == nil || !have.Server.Exists()) {
		return fmt.Errorf("%s: %w", op, syscall.ESRCH)
	}
	scheduler := is.Scheduler
	if scheduler == "" {
		return nil
	}
	has, asked := s.schedulers[scheduler]
	if !asked {
		var err error
		if has, err = s.look.HasScheduler(ctx, scheduler); s.fail("ask for the scheduler "+scheduler, err) != nil {
			return err
		}
		s.schedulers[scheduler] = has
	}
	if has {
		return nil
	}
	err := fmt.Errorf("%s: %w", op, syscall.ENOENT)
	s.failing = append(s.failing, err)
	return err
}

// note takes a write for done.
func (s *rehearsalStage) note(step ipvs.Step) {
	is := step.Op.Effect()
	switch f := is.Fact; {
	case is.Table == ipvs.TableConntrack:
		return
	case f.Addr.IsValid():
		s.facts[f] = !is.Gone
		if f.Kind == ipvs.FactBind {
			delete(s.facts, ipvs.Fact{Kind: ipvs.FactMisbound, Addr: f.Addr})
		}
	default:
		s.keys[is.Key] = ipvs.After(s.keys[is.Key], []ipvs.Op{step.Op})
	}
	s.steps = append(s.steps, step)
}

// Nobody else changes anything during a rehearsal.

func (*rehearsalStage) Detect(context.Context, func(ipvs.Key, *ipvs.Frontend, uint32)) (bool, error) {
	return true, nil
}
func (*rehearsalStage) LocalChanged() <-chan struct{}               { return nil }
func (*rehearsalStage) Tampered() <-chan struct{}                   { return nil }
func (*rehearsalStage) Tampering() ipvs.Tampering                   { return ipvs.Tampering{} }
func (*rehearsalStage) Canary(context.Context) (ipvs.Census, error) { return ipvs.AsBefore, nil }
