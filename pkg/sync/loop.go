// Package sync decides what this node's kernel should hold for the cluster as it stands, and keeps it so.
// It is one goroutine: hear, decide, act, tell. See docs/architecture.md.
package sync

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Model is the cluster as this node sees it.
type Model interface {
	Changed() <-chan struct{}
	Take() (dirty []cluster.ID, nodeChanged, synced bool)
	Complete() bool
	Get(cluster.ID) (*cluster.Service, []cluster.Endpoint)
	Problems(cluster.ID) []cluster.Problem
	Endpoints(cluster.ID) []cluster.Endpoint
	APIServers() []netip.Addr
	Services() []cluster.ID
	Node() cluster.Node
	Changes() (services, slices uint64)
	TakeTriggers(cluster.ID) []cluster.Trigger
}

// Options of a Loop. Zero values mean the defaults.
type Options struct {
	Desk desk.Options
	// NodePods takes the Node's own pod ranges for the addresses of pods (detectLocalMode NodeCIDR).
	NodePods bool
	// DrainDeadline is how long a draining real server may keep its connections; 15 min by default.
	DrainDeadline time.Duration
	// DrainPoll is how often a draining real server is looked at; 5 s by default.
	DrainPoll time.Duration
	// AuditPeriod is the least time between two looks at what others may have changed; 10 s by default.
	AuditPeriod time.Duration
	// AuditCPU is the share of one processor that these looks may cost, 0 to 1; 0.01 by default. Where a
	// look costs more, they become rarer.
	AuditCPU float64
	// Health hears how the loop fares; nil: nobody does.
	Health *healthz.Health
	// Events takes what users should know of their objects; nil: there is only the log.
	Events Events
	// BasePeriod is how often interface, table and sysctls are looked at; 60 s by default.
	BasePeriod time.Duration
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if o.Desk.Scheduler == "" {
		o.Desk.Scheduler = "rr"
	}
	def(&o.DrainDeadline, 15*time.Minute)
	def(&o.DrainPoll, 5*time.Second)
	def(&o.AuditPeriod, 10*time.Second)
	if o.AuditCPU == 0 {
		o.AuditCPU = 0.01
	}
	def(&o.BasePeriod, time.Minute)
	return o
}

// cell is the mirror of one Key: what the kernel holds for it, as far as is known.
type cell struct {
	have *ipvs.Frontend // its shared facts do not count, see Loop.present
	// unknown: have may be wrong, the kernel must be asked first.
	unknown bool
	// wanted is what this process last wanted of the Key and got.
	wanted *ipvs.Frontend
	// drains are the real servers on their way out.
	drains map[netip.AddrPort]drain
	// reaped are those that the plan under way removes.
	reaped map[netip.AddrPort]bool
	tries  uint8
	seen   sighting
}

// Loop is the sync loop.
type Loop struct {
	kernel ipvs.Kernel
	model  Model
	log    *zap.Logger
	opt    Options
	now    func() time.Time // for tests

	desk  *desk.Desk
	dirty []cluster.ID // Services to decide anew, the first ones first
	cells map[ipvs.Key]*cell
	// present are the shared facts that the kernel holds, as far as is known.
	present map[ipvs.Fact]bool
	// unsure are the addresses of shared facts whose last write failed or got lost: present may be wrong.
	unsure  map[netip.Addr]bool
	queue   *queue
	told    map[cluster.ID]string            // the problems last logged of a Service
	counted map[cluster.ID]map[string]int    // them, by reason
	raised  map[cluster.ID]map[string]string // the last Event of each reason, while there is one
	local   localState
	pods    []netip.Prefix // that the kernel was last told of
	audits  audit
	heal    healing
	trash   trash
	forget  forgetting

	base     state
	warned   []string // the warnings of the set-up that were logged last
	adopted  bool     // the first start is over, and the kernel knows
	synced   bool     // the source has delivered what it has
	complete bool     // and nothing is missing: what nobody wants may go
	started  bool     // the kernel was read
	announce bool     // say when all is programmed

	standing standing
	awaited  map[ipvs.Key][]*programming
}

// state is how something that is tried again and again stands.
type state struct {
	ok     bool
	tries  uint8
	next   time.Time
	looked time.Time // when it was last in order
}

// New makes a Loop. Nothing is read or written before Run.
func New(kernel ipvs.Kernel, model Model, log *zap.Logger, opt Options) *Loop {
	opt = opt.withDefaults()
	return &Loop{
		kernel: kernel, model: model, log: log, opt: opt, now: time.Now,
		heal:     healing{apart: opt.AuditPeriod},
		desk:     desk.New(model, opt.Desk),
		cells:    map[ipvs.Key]*cell{},
		present:  map[ipvs.Fact]bool{},
		unsure:   map[netip.Addr]bool{},
		queue:    newQueue(),
		told:     map[cluster.ID]string{},
		counted:  map[cluster.ID]map[string]int{},
		raised:   map[cluster.ID]map[string]string{},
		standing: newStanding(),
		awaited:  map[ipvs.Key][]*programming{},
		local:    localState{news: true},
	}
}

// sliceKeys is how many Keys are worked on at a time, about 16 KB of commands: between two slices
// priorities are looked at again, so that an urgent change waits for one slice at most.
const sliceKeys = 64

// Run keeps the kernel as the cluster wants it until ctx ends. It then returns at once and leaves the
// kernel as it is: connections go on while no agent runs.
func (l *Loop) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if !l.step(ctx) {
			continue
		}
		timer.Reset(l.idleFor(l.now()))
		select {
		case <-ctx.Done():
		case <-l.model.Changed():
		case <-l.kernel.LocalChanged():
			l.local.news = true
		case <-l.kernel.Tampered():
		case <-l.opt.Health.CheckNews():
		case <-timer.C:
		}
	}
	return nil
}

// step does the next slice of work and reports whether nothing is left to do now. The audit gets its turn
// after each slice, so that constant change does not keep it from looking.
func (l *Loop) step(ctx context.Context) (idle bool) {
	l.lookLocal(ctx)
	l.hear()
	l.report()
	defer l.report()
	l.heed(ctx)
	l.ensureBase(ctx)
	l.start(ctx)
	if !l.started || !l.base.ok {
		return len(l.dirty) == 0 || !l.local.known
	}
	keys := l.queue.pop(l.now(), sliceKeys)
	if len(keys) > 0 {
		l.act(ctx, keys)
	}
	l.probe(ctx)
	l.forgetFlows(ctx)
	busy := l.auditPart(ctx)
	if len(keys) > 0 || len(l.dirty) > 0 || busy {
		return false
	}
	l.announceDone()
	return true
}

// idleFor is how long nothing needs doing, unless the cluster changes.
func (l *Loop) idleFor(now time.Time) time.Duration {
	next := l.base.next
	if l.local.news && l.local.next.Before(next) {
		next = l.local.next
	}
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	sooner(l.healDue())
	if l.started && l.base.ok {
		sooner(l.queue.next(now))
		sooner(l.audits.next)
		sooner(l.forget.due())
	}
	return max(next.Sub(now), 0)
}

// ensureBase sees to what every Key stands on, when it is time.
func (l *Loop) ensureBase(ctx context.Context) {
	now := l.now()
	tampered := l.base.ok && l.heal.base.ripe(now, l.heal.apart)
	if now.Before(l.base.next) && !tampered {
		return
	}
	if l.base.ok {
		l.heal.base.took(now, l.heal.apart, tampered)
	}
	l.local.news = true // IPv6 may have been switched without a word
	r, err := l.kernel.Base(ctx)
	if ctx.Err() != nil {
		return
	}
	if r.LinkCreated || r.TableCreated {
		l.started = false // what was known of addresses and elements is void, even where the rest failed
	}
	if err != nil {
		l.base = state{tries: l.base.tries + 1, next: now.Add(backoff(l.base.tries))}
		l.log.Error("node set-up failed, trying again", zap.Error(err), zap.Time("next", l.base.next))
		l.opt.Health.SetSetup([]string{oneLine(err)})
		return
	}
	l.noteWarnings(r.Warnings)
	l.opt.Health.SetUp(len(r.Wrote))
	switch {
	case len(r.Wrote) > 0 && tampered:
		l.log.Info("another program changed what all stands on: put right", zap.Strings("wrote", r.Wrote))
	case len(r.Wrote) > 0:
		l.log.Info("node set up", zap.Strings("wrote", r.Wrote))
	}
	l.base = state{ok: true, next: now.Add(l.opt.BasePeriod), looked: now}
}

// baseAgain is the least time between two looks at the base that nobody planned.
const baseAgain = 5 * time.Second

// doubtBase has the base looked at soon: a write or a look for changes failed, and our table or our interface may be
// gone.
func (l *Loop) doubtBase() {
	if at := l.base.looked.Add(baseAgain); l.base.ok && at.Before(l.base.next) {
		l.base.next = at
	}
}

// start reads the kernel, once the base stands and the cluster is known.
func (l *Loop) start(ctx context.Context) {
	if l.started || !l.base.ok || !l.synced || !l.local.known || len(l.dirty) > 0 {
		return
	}
	l.heal.keys.asked = time.Time{} // everything is read now
	l.counts(ctx)                   // and counted before, so that nothing falls between
	if err := l.scan(ctx); err != nil {
		if ctx.Err() != nil {
			return
		}
		l.base.ok = false
		l.base.tries++
		l.base.next = l.now().Add(backoff(l.base.tries))
		l.log.Error("reading the kernel failed, trying again", zap.Error(err))
		return
	}
	l.started, l.announce, l.standing.began = true, true, l.now()
	l.audits.next, l.audits.void = l.now().Add(l.opt.AuditPeriod), l.audits.busy
}

// announceDone says once that a start is over, when nothing is left to do.
func (l *Loop) announceDone() {
	if !l.announce {
		return
	}
	for _, c := range l.cells {
		if c.tries > 0 {
			return
		}
	}
	l.announce = false
	l.noteStarted()
	if !l.complete {
		l.log.Warn("parts of the cluster could not be read: until they can, nothing is taken out of service")
	}
	sizes := l.desk.Sizes()
	l.log.Info("all Services are programmed", zap.Int("frontends", sizes[healthz.IPv4]+sizes[healthz.IPv6]))
}
