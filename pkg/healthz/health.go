// Package healthz remembers how the loop fares and answers for it over HTTP: on kube-proxy's two ports, with
// kube-proxy's paths, bodies and metrics, so that what looked at kube-proxy goes on working.
//
// All methods of a [Health] are safe for concurrent use, and cost the same however many Services there are. The
// loop calls them of a nil one, too, where nobody wants to know.
package healthz

import (
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"k8s.io/component-base/metrics"
)

// Family is a family of IP addresses.
type Family uint8

// The families.
const (
	IPv4 Family = iota
	IPv6
	families
)

// Families are both.
var Families = [families]Family{IPv4, IPv6}

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String gives the name that Kubernetes has for it (core/v1 IPFamily), which is also the value of the label ip_family.
func (f Family) String() string { return [families]string{"IPv4", "IPv6"}[f] }

// Options of a Health. Zero values mean the defaults.
type Options struct {
	// Timeout is how long work may wait for the kernel's word, and the loop be without a turn, before the node is
	// unhealthy; 1 min by default, twice kube-proxy's usual sync period.
	Timeout time.Duration
	// Registry takes the metrics; the one of the process by default, which has those of the Go runtime, the process
	// and the API client as well.
	Registry metrics.KubeRegistry
	// Version and Revision are the agent's own, for its build metric.
	Version, Revision string
	// ClusterAge gives how old the last word from the source of the cluster's objects is; nil: no such metric.
	ClusterAge func() time.Duration
	// LogLinesDropped counts the lines of the log that nobody took in time; nil: no such metric.
	LogLinesDropped func() uint64
	// Traffic is read at each scrape; nil: there are no such metrics.
	Traffic Traffic
	// Log hears of a scrape that has no answer, or lacks what cannot be read; nil: nobody does.
	Log *zap.Logger
	// Now is the clock; time.Now by default.
	Now func() time.Time
}

// Health is how the loop fares. Nil is one that nobody looks at.
type Health struct {
	timeout  time.Duration
	now      func() time.Time
	metrics  *meters
	registry metrics.KubeRegistry
	checks   *checks
	log      *zap.Logger

	mu      sync.Mutex
	family  [families]familyHealth
	node    bool // the own Node exists and is to stay
	changes [2]changes
	setup   []string
	before  []string  // what of another proxy's takes packets before IPVS sees them
	away    string    // why nothing is written; empty: it is
	turned  time.Time // when the loop last began a turn; zero: never yet
}

// familyHealth is how the work for one family stands.
type familyHealth struct {
	updated time.Time // when the kernel last held what was wanted, as far as was known; zero: never yet
	// waiting is since when work waits without one confirmed write; zero: none waits.
	waiting time.Time
}

// changes counts what the source has told, and how much of it was told when the loop last was at rest.
type changes struct{ told, settled uint64 }

// New makes a Health and its metrics.
func New(o Options) *Health {
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	h := &Health{timeout: o.Timeout, now: o.Now, registry: o.Registry, checks: newChecks(), log: o.Log}
	h.metrics = newMeters(o)
	return h
}

// Heard is called when the source has something new: so many changes of Services and of EndpointSlices in all since
// the start. Work waits from now on, for whichever family.
func (h *Health) Heard(services, slices uint64) {
	if h == nil {
		return
	}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, told := range [2]uint64{services, slices} {
		c := &h.changes[i]
		h.metrics.changes[i].Add(float64(told - c.told))
		c.told = told
		h.metrics.pending[i].Set(float64(c.told - c.settled))
	}
	for f := range h.family {
		h.metrics.queued[f].Set(seconds(now))
		if h.family[f].waiting.IsZero() {
			h.family[f].waiting = now
		}
	}
}

// Turn is called when the loop begins a turn, and returns how soon the next one must begin, with work or without, that
// nobody takes the loop for stuck.
func (h *Health) Turn() (next time.Duration) {
	if h == nil {
		return time.Hour
	}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turned = now
	return h.timeout / 4
}

// stuck reports whether the loop has not turned for too long, whatever it waits for. The caller holds mu.
func (h *Health) stuck(now time.Time) bool {
	return !h.turned.IsZero() && now.Sub(h.turned) >= h.timeout
}

// Standing is how the loop stands after a step.
type Standing struct {
	// Waiting: work of the family waits for the kernel's word, other than that of one object that fails.
	Waiting [families]bool
	// Absent: the node has no such family.
	Absent [families]bool
	// Queued counts the frontends that will have their turn.
	Queued int
	// Frontends counts those that are wanted, Failing those of them whose last try failed.
	Frontends, Failing [families]int
	// Away says why nothing is written, where another proxy is at work; else it is empty.
	Away string
	// Draining counts the real servers on their way out.
	Draining int
}

// Stands is called after each step of the loop.
func (h *Health) Stands(s Standing) {
	if h == nil {
		return
	}
	now := h.now()
	m := h.metrics
	m.queue.Set(float64(s.Queued))
	m.draining.Set(float64(s.Draining))
	m.away.Set(float64(min(len(s.Away), 1)))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = s.Away
	for f := range h.family {
		fh := &h.family[f]
		m.frontends[f].Set(float64(s.Frontends[f]))
		m.failing[f].Set(float64(s.Failing[f]))
		switch {
		case s.Away != "": // what waits is served by the other one
			fh.waiting = time.Time{}
		case s.Waiting[f] && fh.waiting.IsZero():
			fh.waiting = now
		case !s.Waiting[f] && !fh.waiting.IsZero():
			fh.waiting = time.Time{}
			if s.Failing[f] == 0 && !s.Absent[f] {
				h.updated(Family(f), now)
			}
		}
	}
	if s.Waiting == [families]bool{} && s.Away == "" {
		for i := range h.changes {
			h.changes[i].settled = h.changes[i].told
			m.pending[i].Set(0)
		}
	}
}

// updated notes that the kernel holds what is wanted. The caller holds mu.
func (h *Health) updated(f Family, now time.Time) {
	h.family[f].updated = now
	h.metrics.synced[f].Set(seconds(now))
}

// Confirmed is called when the kernel has confirmed a write: it takes some, at least.
func (h *Health) Confirmed(f Family) {
	if h == nil {
		return
	}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.updated(f, now)
	if fh := &h.family[f]; !fh.waiting.IsZero() {
		fh.waiting = now
	}
}

// Alive is called when the kernel has taken a write that changed nothing: it does not refuse everything.
func (h *Health) Alive(f Family) {
	if h == nil {
		return
	}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if fh := &h.family[f]; !fh.waiting.IsZero() {
		fh.waiting = now
	}
}

// Doubtful reports whether work of a family has waited for half the time after which the node is unhealthy.
func (h *Health) Doubtful(f Family) bool {
	if h == nil {
		return false
	}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	since := h.family[f].waiting
	return !since.IsZero() && now.Sub(since) >= h.timeout/2
}

// TookOver is called when so many writes took out what another proxy had left.
func (h *Health) TookOver(writes int) {
	if h != nil {
		h.metrics.leavings.Add(float64(writes))
	}
}

// SetNode says whether the own Node exists and is neither being deleted nor about to be removed by the autoscaler.
func (h *Health) SetNode(eligible bool) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.node = eligible
}

// SetSetup says what of the node's set-up is wrong now, a line each.
func (h *Health) SetSetup(problems []string) {
	if h == nil {
		return
	}
	h.metrics.setup.Set(float64(len(problems)))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.setup = problems
}

// SetBefore says what of another proxy's takes packets before IPVS sees them, a line each.
func (h *Health) SetBefore(lines []string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before = lines
}

// Healthy reports whether the loop turns and no work has waited for too long, in any family. It says nothing of the Node.
func (h *Health) Healthy() bool { return h.status().Healthy }

// Trouble is what of another proxy's is in the way, and what of the node could not be set up, a line each, as /healthz?verbose
// has it. Away says why nothing is written, where another proxy is at work; else it is empty.
func (h *Health) Trouble() (lines []string, away string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range h.before {
		lines = append(lines, "before IPVS: "+line)
	}
	for _, line := range h.setup {
		lines = append(lines, "node "+line)
	}
	return lines, h.away
}

// seconds is a time as Prometheus has it.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
