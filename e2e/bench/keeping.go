package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// keeping is what keeping a node costs of the agent's processor time, in which the kernel's work for it is: while nothing
// happens, with the audit and without, and when endpoints are replaced.
type keeping struct {
	Idle     time.Duration // in idleTime
	Replaced time.Duration // in the time in which endpoints are replaced
	Drained  time.Duration // and in all, until those that left are gone
	Left     int           // that are there nevertheless
}

const (
	idleTime = 20 * time.Minute
	// replaceTime is in which two endpoints of each Service are replaced.
	replaceTime = time.Minute
	replacedOf  = 2
	// drainTime is what the kernel needs for 900 of them.
	drainTime = 140 * time.Second
)

// The limits, in processor time: at idle a second, and for all that are replaced.
const (
	maxIdle    = 100 * time.Microsecond
	maxAudited = 2 * time.Millisecond
	maxDrained = 5 * time.Second
)

// keeping measures both, and says which limits are broken. It takes 2 h 20 min of the machine's clock, most of it at rest, and
// is done when asked for alone: lab bench --timeout 3h -- --only keeping.
func (o options) keeping(w io.Writer) (err error) {
	var audited, alone keeping
	var program keptProgram
	if err := errors.Join(o.measure("kept", &audited), o.measure("kept-unaudited", &alone), o.measure("kept-program", &program)); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n(h) keeping %d Services with %d endpoints each\n", o.services, o.endpoints)
	row := func(what string, is, most time.Duration) {
		verdict := ""
		if most > 0 && counts() {
			verdict = fmt.Sprintf("   at most %.1f: ok", million(most))
			if is > most {
				verdict, err = fmt.Sprintf("   at most %.1f: BROKEN", million(most)), errors.New("a limit of what keeping a node costs is broken")
			}
		}
		fmt.Fprintf(w, "  %-58s %10.3f%s\n", what, million(is), verdict)
	}
	a := func(d, of time.Duration) time.Duration { return time.Duration(float64(d) / of.Seconds()) }
	if program.There {
		row("the agent with a directory of them, until all is programmed", program.Start, 0)
		row(fmt.Sprintf("then nothing happens, a second; %d MiB at the most", program.Most>>20), a(program.Idle, idleTime), maxIdle)
	}
	row("the loop by itself, nothing happens, a second", a(alone.Idle, idleTime), 0)
	row("the same with the audit", a(audited.Idle, idleTime), maxAudited)
	n := replacedOf * o.services
	row(fmt.Sprintf("%d endpoints replaced in %v, without the audit", n, replaceTime), alone.Replaced, 0)
	row(fmt.Sprintf("until all have drained that left; %d are there", alone.Left), alone.Drained, maxDrained)
	row("the same with the audit", audited.Drained, 0)
	return err
}

// runKept keeps a node, in this process.
func runKept(o options, audited bool) (is keeping, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	k, err := kernel.Open(ctx, kernel.Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")}, Binding: kernel.Binding(o.binding)})
	if err != nil {
		return is, err
	}
	defer k.Close()
	model := cluster.NewModel(cluster.Options{NodeName: nodeName(0)})
	fill(model, o.services, o.endpoints)
	watch := &openWatch{missing: o.services, done: make(chan time.Time, 1)}
	r := &recorder{Kernel: k, watch: watch}
	var opt sync.Options
	if !audited {
		opt.AuditPeriod = 1000 * time.Hour
	}
	loop, stopped := sync.New(r, model, quietLog(), opt), make(chan error, 1)
	go func() { stopped <- loop.Run(ctx) }()
	if _, err = wait(watch.done, r); err != nil {
		return is, err
	}
	r.set(idle{})
	time.Sleep(3 * time.Minute) // what is left to do after a start, and the collector's last look at it
	used := processTime()
	time.Sleep(idleTime)
	is.Idle = processTime() - used
	used = processTime()
	for i := range o.services {
		model.SetSlice(replacedSlice(i, o.endpoints))
		time.Sleep(replaceTime / time.Duration(o.services))
	}
	is.Replaced = processTime() - used
	time.Sleep(time.Duration(replacedOf*o.services/900+1) * drainTime)
	is.Drained = processTime() - used
	is.Left, err = countReals(-o.services * o.endpoints)
	cancel()
	return is, errors.Join(err, r.failed(), <-stopped)
}

// openWatch waits until all frontends are open.
type openWatch struct {
	missing int
	done    chan time.Time
}

func (*openWatch) began(time.Time) {}

func (w *openWatch) ended(now time.Time, plan ipvs.Plan, outcomes []ipvs.Outcome) {
	for i, step := range plan {
		if e, ok := step.Op.(ipvs.Element); !ok || e.Set != ipvs.SetOpen || e.Remove || outcomes[i].Err != nil {
			continue
		}
		if w.missing--; w.missing == 0 {
			w.done <- now
		}
	}
}

// replacedSlice is the slice of a web Service of which some endpoints are others than at first.
func replacedSlice(i, endpoints int) *discoveryv1.EndpointSlice {
	s := webSlice(i, endpoints, replacedOf)
	s.Endpoints = s.Endpoints[replacedOf:]
	return s
}

// processTime is the processor time that this process has had.
func processTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		panic(err) // every kernel has that clock
	}
	return time.Duration(t.Nano())
}
