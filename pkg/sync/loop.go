// Package sync keeps this node's kernel as the desk wants it. It is one goroutine: hear, ask the desk, compare with the
// mirror, act, tell. See docs/architecture.md.
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
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/mirror"
)

// Options of a Loop. Zero values mean the defaults.
type Options struct {
	// Desk decides what Services become.
	Desk desk.Options
	// NodePods takes the Node's own pod ranges for the addresses of pods (detectLocalMode NodeCIDR).
	NodePods bool
	// DrainDeadline is how long a draining real server may keep its connections; 15 min by default.
	DrainDeadline time.Duration
	// DrainPoll is how often the connections of a draining real server are counted at most; 5 s by default.
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
	// Proxies is what other proxies have in the kernel; nil: one may be at work beside this loop, for other Services.
	Proxies Proxies
	// Ports keeps node ports from processes of the node; nil: nobody does.
	Ports Ports
	// Schedulers are those of the kernel; nil: nobody asks whether one that was missing turns up.
	Schedulers Schedulers
	// KeepLeftovers leaves what another proxy left where it is.
	KeepLeftovers bool
	// BasePeriod is how often interface, table and sysctls are looked at; 60 s by default.
	BasePeriod time.Duration

	// Processor says how much of the processor's time this process has had, in the kernel as well; nil: all that passes
	// while it works counts as that.
	Processor func() time.Duration
	// Now is the clock; nil: the system's.
	Now func() time.Time
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
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Loop is the sync loop.
type Loop struct {
	shared
	feed  Feed
	signs Signs
	site  *site
	// ground is what comes first: where we are, what is new, what every Key stands on.
	ground agenda
	// rounds are the work on Keys, once the ground stands and the kernel was read.
	rounds agenda
	askers *askers
}

// New makes a Loop. Nothing is read or written before Run.
func New(kernel Kernel, model Model, log *zap.Logger, opt Options) *Loop {
	opt = opt.withDefaults()
	s := shared{desk: desk.New(model, opt.Desk), mirror: mirror.New(), queue: newQueue(), growing: newQueue(), draining: newQueue(), dirty: &dirty{}, stage: &stage{},
		tell: newTeller(log, opt), fare: newFare(opt), diary: newDiary(), opt: opt}
	s.dirty.now = opt.Now
	s.want, s.dirty.urgent = s.ask, s.desk.Urgent
	return newLoop(s, kernel, model)
}

// newLoop puts the parts together.
func newLoop(s shared, kernel Kernel, model Model) *Loop {
	shield := &shield{shared: s, node: kernel}
	heal := &heal{shared: s, signs: kernel, shield: shield, apart: s.opt.AuditPeriod}
	base := &base{shared: s, node: kernel, heal: heal}
	rival := &rival{shared: s, proxies: s.opt.Proxies, base: base}
	heal.rival = rival
	site := &site{shared: s, node: kernel, signs: kernel, where: model, base: base, news: true}
	base.site = site
	ear := &ear{shared: s, feed: model, triggers: model, site: site, late: map[cluster.ID]struct{}{}}
	forget := &forget{shared: s, writer: kernel}
	act := &act{shared: s, writer: kernel, reader: kernel, base: base, forget: forget, together: sliceKeys, lastGrown: map[ipvs.Key]netip.AddrPort{}}
	before := &before{shared: s, proxies: s.opt.Proxies}
	return &Loop{shared: s, feed: model, signs: kernel, site: site, askers: newAskers(),
		ground: agenda{site, ear, &report{shared: s}, &schedulers{shared: s, of: s.opt.Schedulers}, heal, rival, base, &start{shared: s, reader: kernel, base: base, heal: heal, forget: forget, site: site, proxies: s.opt.Proxies}, shield},
		rounds: agenda{&reserve{shared: s, ports: s.opt.Ports}, act, &grow{shared: s, act: act}, &drain{shared: s, reader: kernel}, &probe{shared: s, writer: kernel},
			forget, &audit{shared: s, reader: kernel, base: base, heal: heal, pass: s.mirror.Pass()},
			&takeover{shared: s, proxies: s.opt.Proxies, forget: forget, rival: rival, before: before}, before}}
}

// Run keeps the kernel as the cluster wants it until ctx ends. It then returns at once and leaves the
// kernel as it is: connections go on while no agent runs.
func (l *Loop) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer l.askers.end()
	for ctx.Err() == nil {
		next := l.opt.Health.Turn()
		if !l.turn(ctx) {
			continue
		}
		timer.Reset(min(l.idleFor(l.now()), next))
		select {
		case <-ctx.Done():
		case <-l.feed.Changed():
		case <-l.signs.LocalChanged():
			l.site.news = true
		case <-l.signs.Tampered():
		case <-l.opt.Health.CheckNews():
		case q := <-l.askers.questions:
			q.answer(l.view())
		case <-timer.C:
		}
	}
	return nil
}

// turn does the next slice of work and reports whether nothing is left to do now. The audit gets its turn
// after each slice, so that constant change does not keep it from looking.
func (l *Loop) turn(ctx context.Context) (idle bool) {
	more := l.ground.tend(ctx)
	defer l.report()
	defer l.answerOne()
	if !l.stage.stands() {
		return !more
	}
	if l.rounds.tend(ctx) || more {
		return false
	}
	l.announceDone()
	return true
}

// idleFor is how long nothing needs doing, unless something is heard.
func (l *Loop) idleFor(now time.Time) time.Duration {
	next := l.ground.next(now)
	if l.stage.stands() {
		next = sooner(next, l.rounds.next(now))
	}
	return max(next.Sub(now), 0)
}

// announceDone says once that a start is over, when nothing is left to do.
func (l *Loop) announceDone() {
	if !l.stage.announce || len(l.fare.failing) > 0 {
		return
	}
	l.stage.announce, l.stage.replacing = false, false
	l.tell.started(l.now().Sub(l.stage.began), l.desk.Site().Local.NoIPv6)
	if !l.stage.complete {
		l.tell.log.Warn("parts of the cluster could not be read: until they can, nothing is taken out of service")
	}
	sizes := l.desk.Sizes()
	l.tell.log.Info("all Services are programmed", zap.Int("frontends", sizes[healthz.IPv4]+sizes[healthz.IPv6]))
}
