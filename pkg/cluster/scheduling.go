package cluster

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The annotations of a Service that say how its connections are shared out, but for WeightAnnotation, which is an
// EndpointSlice's.
const (
	SchedulerAnnotation      = annotations + "scheduler"
	SchedulerFlagsAnnotation = annotations + "scheduler-flags"
	WeightsAnnotation        = annotations + "weights"
	WeightAnnotation         = annotations + "weight"
	SlowStartAnnotation      = annotations + "slow-start"
	DrainDeadlineAnnotation  = annotations + "drain-deadline"
	MaxConnectionsAnnotation = annotations + "max-connections"
	OnePacketAnnotation      = annotations + "one-packet"
)

// annotations is what the names of ours begin with.
const annotations = "ipvs-proxy.io/"

// kube-router's names for the first two, which a cluster that comes from there has.
const (
	kubeRouterScheduler = "kube-router.io/service.scheduler"
	kubeRouterFlags     = "kube-router.io/service.schedflags"
)

// Schedulers are the kernel's names of those that a Service may ask for (net/netfilter/ipvs/ip_vs_*.c).
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"}

// Scheduling is how a Service wants its connections shared out among its endpoints. The zero value asks for nothing: the
// node's configuration counts. It is comparable.
type Scheduling struct {
	// Scheduler is one of Schedulers; "": the node's.
	Scheduler string
	// Ports: the clients' ports count as well for the schedulers that go by the client (sh-port, mh-port).
	Ports bool
	// Weights are by where an endpoint is.
	Weights Weights
	// SlowStart is over how long the weight of a new endpoint grows from a tenth to all of it, 1 s to 1 h; 0: it has all of
	// it at once.
	SlowStart time.Duration
	// DrainDeadline is how long an endpoint on its way out may keep its connections, 0 to 24 h.
	DrainDeadline Deadline
	// MaxConnections of one endpoint; with so many it gets no new one. 0: no limit.
	MaxConnections uint32
	// OnePacket: each datagram is scheduled by itself.
	OnePacket bool
}

// Weights are an endpoint's by where it is, 0 to 65535. They are relative to each other.
type Weights struct {
	Given                     bool // without it the others mean nothing
	SameNode, SameZone, Other uint16
}

// Deadline is a time limit, where there is one.
type Deadline struct {
	Given bool
	After time.Duration
}

// Weight is that of all endpoints of a slice, where it has one: 0 to 65535.
type Weight struct {
	Given bool
	Is    uint16
}

// The longest drain deadline that can be asked for.
const maxDrainDeadline = 24 * time.Hour

// The shortest and the longest slow start that can be asked for.
const (
	minSlowStart = time.Second
	maxSlowStart = time.Hour
)

// scheduling reads the annotations. What cannot be used costs only itself.
func (r *serviceReader) scheduling() {
	given := r.obj.Annotations
	if len(given) == 0 {
		return
	}
	s := &r.s.Scheduling
	r.strays(given, serviceAnnotations)
	if name, text, ok := either(given, SchedulerAnnotation, kubeRouterScheduler); ok {
		if i := slices.Index(Schedulers, text); i >= 0 {
			s.Scheduler = Schedulers[i]
		} else {
			r.annotation(name, "%s is not a scheduler, one of %s; the node's serves", quote(text), strings.Join(Schedulers, ", "))
		}
	}
	if name, text, ok := either(given, SchedulerFlagsAnnotation, kubeRouterFlags); ok {
		r.schedulerFlags(name, text)
	}
	if text, ok := given[WeightsAnnotation]; ok {
		if w, fault := parseWeights(text); fault != "" {
			r.annotation(WeightsAnnotation, "%s; want same-node=100,same-zone=10,other=1, each 0 to 65535; all endpoints weigh the same", fault)
		} else {
			s.Weights = w
		}
	}
	r.durations(given)
	if text, ok := given[MaxConnectionsAnnotation]; ok {
		if n, err := strconv.ParseUint(text, 10, 32); err != nil || n == 0 {
			r.annotation(MaxConnectionsAnnotation, "%s is not between 1 and %d; there is no limit", quote(text), uint32(math.MaxUint32))
		} else {
			s.MaxConnections = uint32(n)
		}
	}
	if text, ok := given[OnePacketAnnotation]; ok {
		r.onePacket(text)
	}
}

// durations reads how long things take.
func (r *serviceReader) durations(given map[string]string) {
	s := &r.s.Scheduling
	if text, ok := given[SlowStartAnnotation]; ok {
		if d, err := time.ParseDuration(text); err != nil || d < minSlowStart || d > maxSlowStart {
			r.annotation(SlowStartAnnotation, "%s is not a duration of %s to %s; new endpoints have all of their weight at once", quote(text), minSlowStart, hours(maxSlowStart))
		} else {
			s.SlowStart = d
		}
	}
	if text, ok := given[DrainDeadlineAnnotation]; ok {
		if d, err := time.ParseDuration(text); err != nil || d < 0 || d > maxDrainDeadline {
			r.annotation(DrainDeadlineAnnotation, "%s is not a duration of 0s to %s; the node's counts", quote(text), hours(maxDrainDeadline))
		} else {
			s.DrainDeadline = Deadline{true, d}
		}
	}
}

// serviceAnnotations are those that a Service can have.
var serviceAnnotations = []string{SchedulerAnnotation, SchedulerFlagsAnnotation, WeightsAnnotation,
	SlowStartAnnotation, DrainDeadlineAnnotation, MaxConnectionsAnnotation, OnePacketAnnotation, MetricsAnnotation}

// sliceAnnotations are those of an EndpointSlice.
var sliceAnnotations = []string{WeightAnnotation}

func (p *problems) annotation(name, format string, args ...any) {
	p.add(ReasonScheduling, "metadata.annotations["+name+"]", format, args...)
}

// strays reports what looks like one of ours and is none: a misspelt one has no effect.
func (p *problems) strays(given map[string]string, known []string) {
	var strays []string
	for name := range given {
		if strings.HasPrefix(name, annotations) && !slices.Contains(known, name) {
			strays = append(strays, name)
		}
	}
	slices.Sort(strays)
	for _, name := range strays {
		p.add(ReasonScheduling, "metadata.annotations", "%s is not known; there are %s", quote(name), strings.Join(known, ", "))
	}
}

// either gives an annotation by our name for it, else by another one.
func either(given map[string]string, ours, other string) (name, text string, ok bool) {
	if text, ok = given[ours]; ok {
		return ours, text, true
	}
	text, ok = given[other]
	return other, text, ok
}

// kubeRouterFlagNames are kube-router's names of the kernel's three bits for a scheduler, which it heeds with mh only
// (pkg/controllers/proxy in its sources). No scheduler has a third one.
var kubeRouterFlagNames = map[string]string{"flag-1": "mh-fallback", "flag-2": "mh-port", "flag-3": "mh-fallback"}

// schedulerFlags reads a list of flags. A fallback is what sh and mh have in any case.
func (r *serviceReader) schedulerFlags(name, text string) {
	s := &r.s.Scheduling
	for _, flag := range strings.Split(text, ",") {
		flag = strings.TrimSpace(flag)
		if ours := kubeRouterFlagNames[flag]; name == kubeRouterFlags && ours != "" {
			flag = ours
		}
		of, what, _ := strings.Cut(flag, "-")
		switch {
		case (of != "sh" && of != "mh") || (what != "port" && what != "fallback"):
			r.annotation(name, "%s is not a flag, one of sh-port, sh-fallback, mh-port, mh-fallback; left out", quote(flag))
		case of != s.Scheduler:
			r.annotation(name, "%s is a flag of the scheduler %s, which is not asked for; left out", flag, of)
		case what == "port":
			s.Ports = true
		}
	}
}

// parseWeights reads weights by place.
func parseWeights(text string) (w Weights, fault string) {
	w = Weights{Given: true, SameNode: 1, SameZone: 1, Other: 1}
	places := map[string]*uint16{"same-node": &w.SameNode, "same-zone": &w.SameZone, "other": &w.Other}
	for _, part := range strings.Split(text, ",") {
		place, number, _ := strings.Cut(strings.TrimSpace(part), "=")
		at := places[place]
		if at == nil {
			return Weights{}, quote(part) + " names no place, or one twice"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return Weights{}, quote(part) + " has no weight"
		}
		*at = uint16(n)
		delete(places, place)
	}
	return w, ""
}

// onePacket is for datagrams that have nothing to do with each other.
func (r *serviceReader) onePacket(text string) {
	on, err := strconv.ParseBool(text)
	udp := slices.ContainsFunc(r.s.Ports, func(p Port) bool { return p.Protocol == UDP })
	switch {
	case err != nil:
		r.annotation(OnePacketAnnotation, "%s is neither true nor false; taken as false", quote(text))
	case on && r.s.AffinitySeconds > 0:
		r.annotation(OnePacketAnnotation, "the Service has session affinity, which needs connections; taken as false")
	case on && !udp:
		r.annotation(OnePacketAnnotation, "the Service has no UDP port; without effect")
	default:
		r.s.Scheduling.OnePacket = on
	}
}

func hours(d time.Duration) string { return fmt.Sprintf("%dh", int(d.Hours())) }

// weight reads the weight of all endpoints of a slice.
func (p *problems) weight(given map[string]string) (w Weight) {
	if len(given) == 0 {
		return w
	}
	p.strays(given, sliceAnnotations)
	text, ok := given[WeightAnnotation]
	if !ok {
		return w
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		p.annotation(WeightAnnotation, "%s is not between 0 and 65535; the endpoints weigh as those of other slices", quote(text))
		return w
	}
	return Weight{true, uint16(n)}
}
