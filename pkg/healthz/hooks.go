package healthz

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Op is a kind of write to the kernel.
type Op uint8

// The kinds of writes.
const (
	AddElement Op = iota // of a set of our nftables table
	RemoveElement
	AddServer
	SetServer
	DeleteServer
	AddReal
	SetReal
	DeleteReal
	Bind
	Unbind
	Forget
	ops
)

// String gives the value of the label operation.
func (o Op) String() string {
	return [ops]string{"add_element", "remove_element", "add_virtual_server", "set_virtual_server", "delete_virtual_server",
		"add_real_server", "set_real_server", "delete_real_server", "bind_address", "unbind_address", "forget_connections"}[o]
}

// Wrote says how a write ended; err is nil when the kernel confirmed it.
func (h *Health) Wrote(f Family, op Op, err error) {
	if h == nil {
		return
	}
	if err == nil {
		h.metrics.writes[op].Inc()
		return
	}
	h.metrics.errors.WithLabelValues(errno(err)).Inc()
	switch op {
	case AddElement:
		h.metrics.nftFailures[f].Inc()
	case RemoveElement:
		h.metrics.nftCleanupFailures[f].Inc()
	}
}

// errno is the name of the kernel's error: a set as bounded as the kernel's.
func errno(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		if name := unix.ErrnoName(e); name != "" {
			return name
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return "timeout"
	}
	return "other"
}

// Round says how long the loop took over frontends of a family that needed writes.
func (h *Health) Round(f Family, took time.Duration) {
	if h == nil {
		return
	}
	h.metrics.rounds[f].Observe(took.Seconds())
	h.metrics.partial[f].Observe(took.Seconds())
}

// Started says how long it took from reading the kernel until it was as the cluster wants it: at the start, and
// whenever all was read anew.
func (h *Health) Started(f Family, took time.Duration) {
	if h == nil {
		return
	}
	h.metrics.full[f].Observe(took.Seconds())
}

// Programmed says how long after the change of an endpoint, as the control plane dated it, the kernel had confirmed
// all that follows from it.
func (h *Health) Programmed(f Family, took time.Duration) {
	if h == nil {
		return
	}
	h.metrics.programming[f].Observe(took.Seconds())
}

// NoLocal adds to how many Services have a policy Local and endpoints, but none here that may serve.
func (h *Health) NoLocal(external bool, f Family, by int) {
	if h == nil || by == 0 {
		return
	}
	policy := 0
	if external {
		policy = 1
	}
	h.metrics.noLocal[policy][f].Add(float64(by))
}

// Problems adds to how many things in objects cannot be used, by reason, which must be from a bounded set.
func (h *Health) Problems(reason string, by int) {
	if h == nil || by == 0 {
		return
	}
	h.metrics.problems.WithLabelValues(reason).Add(float64(by))
}

// SetUp says how many writes the node's set-up took.
func (h *Health) SetUp(writes int) {
	if h == nil {
		return
	}
	h.metrics.setups.Add(float64(writes))
}

// Audited says what one look for changes by others took and found.
func (h *Health) Audited(took time.Duration, differences int) {
	if h == nil {
		return
	}
	h.metrics.audits.Observe(took.Seconds())
	h.metrics.differences.Add(float64(differences))
}

// Lost says that so much of what is ours was taken away as a whole, and is put right without a look.
func (h *Health) Lost(differences int) {
	if h != nil {
		h.metrics.differences.Add(float64(differences))
	}
}

// Overrun says that the kernel had no room for its notifications.
func (h *Health) Overrun() {
	if h != nil {
		h.metrics.overruns.Inc()
	}
}

// Forgot says what a look through the conntrack table took, and how many entries it deleted.
func (h *Health) Forgot(f Family, took time.Duration, deleted int) {
	if h == nil {
		return
	}
	h.metrics.conntrack[f].Observe(took.Seconds())
	h.metrics.conntrackDeleted[f].Add(float64(deleted))
}

// Metrics describes the metrics that this package makes.
func (h *Health) Metrics() []Metric { return h.metrics.made }
