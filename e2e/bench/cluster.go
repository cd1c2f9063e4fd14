package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// figures are what one cluster showed.
type figures struct {
	Services      int
	Before, Total time.Duration // from the start of the loop to its first Plan, and until all is programmed
	Longest       time.Duration // from the end of one Plan to the end of the next
	Urgent        []time.Duration
	Changes       []time.Duration
	Writes        int // of all changes together
}

// clusters starts the loop on clusters of several sizes, and then changes them. It returns the longest wait
// of an urgent change.
func (o options) clusters(w io.Writer) (worst float64, err error) {
	var all []figures
	for _, n := range sizes(o.services) {
		c, f := o, figures{}
		c.services = n
		if err := c.measure("cluster", &f); err != nil {
			return 0, err
		}
		all = append(all, f)
	}
	f := all[len(all)-1]
	fmt.Fprintf(w, "\n(b) start of the loop: %d Services with %d endpoints each, virtual IPs bound by %s\n", f.Services, o.endpoints, o.binding)
	row := func(what string, n float64) { fmt.Fprintf(w, "  %-58s %10.1f\n", what, n) }
	row("from the start until all is programmed", million(f.Total))
	row("of that before the first plan: deciding, set-up, reading", million(f.Before))
	row("the longest slice, from the end of a plan to that of the next", million(f.Longest))
	for i, u := range f.Urgent {
		row(fmt.Sprintf("an urgent Service turns up after %d frontends, and waits", (i+1)*urgentEvery), million(u))
		worst = max(worst, million(u))
	}
	fmt.Fprintf(w, "\n(c) one endpoint added, from the event to the kernel's word: %d times\n", o.changes)
	fmt.Fprintf(w, "  %10s %10s %10s %10s   %s\n", "Services", "p50", "least", "most", "writes a change")
	for _, f := range all {
		sorted := slices.Sorted(slices.Values(f.Changes))
		fmt.Fprintf(w, "  %10d %10.3f %10.3f %10.3f   %.2f\n", f.Services, million(median(sorted)), million(sorted[0]),
			million(sorted[len(sorted)-1]), float64(f.Writes)/float64(len(sorted)))
	}
	return worst, nil
}

func sizes(largest int) (ns []int) {
	for _, n := range []int{10, 1000} {
		if n < largest {
			ns = append(ns, n)
		}
	}
	return append(ns, largest)
}

// runCluster is one start and some changes, in this process.
func runCluster(o options) (f figures, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	k, err := kernel.Open(ctx, kernel.Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")},
		Binding: kernel.Binding(o.binding)})
	if err != nil {
		return f, err
	}
	defer k.Close()
	model := cluster.NewModel(cluster.Options{NodeName: nodeName(0)})
	fill(model, o.services, o.endpoints)
	runtime.GC() // of the objects, which a source would have dropped one by one
	watch := &startWatch{model: model, services: o.services, done: make(chan time.Time, 1)}
	r := &recorder{Kernel: k, watch: watch}
	loop := sync.New(r, model, quietLog(), sync.Options{})
	began := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- loop.Run(ctx) }()
	ended, err := wait(watch.done, r)
	if err != nil {
		return f, err
	}
	f = figures{Services: o.services, Before: watch.first.Sub(began), Total: ended.Sub(began), Longest: watch.longest, Urgent: watch.urgent}
	time.Sleep(3 * time.Second) // what is left to do after a start: the record of it, connections to forget
	err = f.change(model, r, o)
	cancel()
	return f, errors.Join(err, <-stopped)
}

// change adds endpoints, one after the other, to Services all over the cluster.
func (f *figures) change(model *cluster.Model, r *recorder, o options) error {
	watch := &changeWatch{done: make(chan time.Time, o.changes)}
	r.set(watch)
	more := map[int]int{}
	for s := range o.changes {
		i := s * 7919 % o.services
		more[i]++
		obj := webSlice(i, o.endpoints, more[i])
		began := time.Now()
		model.SetSlice(obj)
		ended, err := wait(watch.done, r)
		if err != nil {
			return fmt.Errorf("change %d: %w", s, err)
		}
		f.Changes = append(f.Changes, ended.Sub(began))
		time.Sleep(100 * time.Millisecond) // writes too many would come now
	}
	r.set(&changeWatch{done: make(chan time.Time, 1)}) // nothing more is counted
	f.Writes = watch.writes
	return nil
}

// wait waits for a watcher's word, and is impatient with a kernel that refuses.
func wait(done <-chan time.Time, r *recorder) (time.Time, error) {
	select {
	case t := <-done:
		return t, r.failed()
	case <-time.After(10 * time.Minute):
		return time.Time{}, errors.Join(errors.New("not programmed after 10 min"), r.failed())
	}
}

// quietLog costs what the agent's log costs, and goes nowhere.
func quietLog() *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zap.InfoLevel))
}
