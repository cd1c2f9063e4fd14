// Package sync decides what this node's kernel should hold for the cluster as it stands, and keeps it so.
// It is one goroutine: hear, decide, act, tell. See docs/architecture.md.
package sync

import (
	"context"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Model is the cluster as this node sees it.
type Model interface {
	Changed() <-chan struct{}
	Take() (dirty []cluster.ID, nodeChanged, synced bool)
	Complete() bool
	Get(cluster.ID) (*cluster.Service, []cluster.Endpoint)
	Problems(cluster.ID) []cluster.Problem
	Node() cluster.Node
}

// Options of a Loop. Zero values mean the defaults.
type Options struct {
	Compile CompileOptions
	// DrainDeadline is how long a draining real server may keep its connections; 15 min by default.
	DrainDeadline time.Duration
	// DrainPoll is how often a draining real server is looked at; 5 s by default.
	DrainPoll time.Duration
	// BasePeriod is how often interface, table and sysctls are looked at; 60 s by default.
	BasePeriod time.Duration
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if o.Compile.Scheduler == "" {
		o.Compile.Scheduler = "rr"
	}
	def(&o.DrainDeadline, 15*time.Minute)
	def(&o.DrainPoll, 5*time.Second)
	def(&o.BasePeriod, time.Minute)
	return o
}

// cell is the mirror of one Key: what the kernel holds for it, as far as is known.
type cell struct {
	have *ipvs.Frontend // its shared facts do not count, see Loop.present
	// unknown: have may be wrong, the kernel must be asked first.
	unknown bool
	// facts are the shared facts that the last wanted state needed and the next may not.
	facts []fact
	// drains are the real servers on their way out, with the time when patience ends.
	drains map[netip.AddrPort]time.Time
	// reaped are those that the plan under way removes.
	reaped map[netip.AddrPort]bool
	tries  uint8
}

// Loop is the sync loop.
type Loop struct {
	kernel ipvs.Kernel
	model  Model
	log    *zap.Logger
	opt    Options

	ledger *ledger
	cells  map[ipvs.Key]*cell
	// present are the shared facts that the kernel holds, as far as is known.
	present map[fact]bool
	queue   *queue
	told    map[cluster.ID]string                  // the problems last logged of a Service
	refused map[netip.Addr]map[cluster.ID]struct{} // Services with an endpoint that is a virtual IP

	base     state
	adopted  bool // the first start is over, and the kernel knows
	synced   bool // the source has delivered what it has
	complete bool // and nothing is missing: what nobody wants may go
	started  bool // the kernel was read
	announce bool // say when all is programmed
}

// state is how something that is tried again and again stands.
type state struct {
	ok    bool
	tries uint8
	next  time.Time
}

// New makes a Loop. Nothing is read or written before Run.
func New(kernel ipvs.Kernel, model Model, log *zap.Logger, opt Options) *Loop {
	return &Loop{
		kernel: kernel, model: model, log: log, opt: opt.withDefaults(),
		ledger:  newLedger(),
		cells:   map[ipvs.Key]*cell{},
		present: map[fact]bool{},
		queue:   newQueue(),
		told:    map[cluster.ID]string{},
		refused: map[netip.Addr]map[cluster.ID]struct{}{},
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
		l.hear()
		l.ensureBase(ctx)
		l.start(ctx)
		if l.started && l.base.ok {
			if keys := l.queue.pop(time.Now(), sliceKeys); len(keys) > 0 {
				l.act(ctx, keys)
				continue
			}
			l.announceDone()
		}
		timer.Reset(l.idleFor(time.Now()))
		select {
		case <-ctx.Done():
		case <-l.model.Changed():
		case <-timer.C:
		}
	}
	return nil
}

// idleFor is how long nothing needs doing, unless the cluster changes.
func (l *Loop) idleFor(now time.Time) time.Duration {
	next := l.base.next
	if l.started && l.base.ok {
		if t := l.queue.next(now); !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	return max(next.Sub(now), 0)
}

// ensureBase sees to what every Key stands on, when it is time.
func (l *Loop) ensureBase(ctx context.Context) {
	now := time.Now()
	if now.Before(l.base.next) {
		return
	}
	r, err := l.kernel.Base(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		l.base = state{tries: l.base.tries + 1, next: now.Add(backoff(l.base.tries))}
		l.log.Error("node set-up failed, trying again", zap.Error(err), zap.Time("next", l.base.next))
		return
	}
	for _, w := range r.Warnings {
		l.log.Warn("node set-up is incomplete", zap.Error(w))
	}
	if len(r.Wrote) > 0 {
		l.log.Info("node set up", zap.Strings("wrote", r.Wrote))
	}
	l.base = state{ok: true, next: now.Add(l.opt.BasePeriod)}
	if r.LinkCreated || r.TableCreated {
		l.started = false // what was known of addresses and elements is void
	}
}

// start reads the kernel, once the base stands and the cluster is known.
func (l *Loop) start(ctx context.Context) {
	if l.started || !l.base.ok || !l.synced {
		return
	}
	if err := l.scan(ctx); err != nil {
		if ctx.Err() != nil {
			return
		}
		l.base.ok = false
		l.base.tries++
		l.base.next = time.Now().Add(backoff(l.base.tries))
		l.log.Error("reading the kernel failed, trying again", zap.Error(err))
		return
	}
	l.started, l.announce = true, true
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
	if !l.complete {
		l.log.Warn("parts of the cluster could not be read: until they can, nothing is taken out of service")
	}
	l.log.Info("all Services are programmed", zap.Int("frontends", len(l.ledger.claims)))
}
