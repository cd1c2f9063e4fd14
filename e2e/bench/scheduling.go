package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// settings are what Services of a start ask for.
type settings string

// The settings, each of all Services of a start.
const (
	plainSettings     settings = "nothing"
	differentSettings settings = "each something else"
	mhSettings        settings = "mh"
	shSettings        settings = "sh"
)

// cheap are the schedulers that keep no table.
var cheap = []string{"rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "lblc", "lblcr"}

// of are the annotations of a Service.
func (s settings) of(i int) map[string]string {
	switch s {
	case differentSettings:
		return map[string]string{
			cluster.SchedulerAnnotation:      cheap[i%len(cheap)],
			cluster.WeightsAnnotation:        fmt.Sprintf("same-node=%d,same-zone=%d,other=%d", 1+i, 1+i/2, 1+i%7),
			cluster.DrainDeadlineAnnotation:  fmt.Sprintf("%ds", i),
			cluster.MaxConnectionsAnnotation: fmt.Sprint(1000 + i),
		}
	case mhSettings, shSettings:
		return map[string]string{cluster.SchedulerAnnotation: string(s)}
	}
	return nil
}

// startFigures are what a start with some settings showed.
type startFigures struct {
	Total time.Duration // from the start of the loop until all is programmed
	Loop  time.Duration // of that the agent's own processor time, in the kernel as well
	KB    int           // of memory that the kernel keeps more
}

// growFigures are what it costs that weights grow.
type growFigures struct {
	Over, Used time.Duration // the time looked at, and the processor's time of that
	Writes     int
	All        time.Duration // until the last endpoint has all of its weight
}

// maxDifferent is how much longer Services may take to start that ask each for something else, tables apart.
const maxDifferent = 1.1

// scheduling measures what it costs that Services ask for something.
func (o options) scheduling(w io.Writer) error {
	fmt.Fprintf(w, "\n(d) start of the loop: %d Services with %d endpoints each, by what they ask for\n", o.settings, o.endpoints)
	var plain, different startFigures
	for _, s := range []settings{plainSettings, differentSettings, shSettings, mhSettings} {
		var f startFigures
		o.asks = string(s)
		if err := o.measure("settings", &f); err != nil {
			return err
		}
		switch s {
		case plainSettings:
			plain = f
		case differentSettings:
			different = f
		}
		fmt.Fprintf(w, "  %-32s %10.1f   %5.2f of the first   kernel memory %7.1f MB\n", s, million(f.Total), float64(f.Total)/float64(plain.Total), float64(f.KB)/1000)
	}
	if ratio := float64(different.Total) / float64(plain.Total); counts() && ratio > maxDifferent {
		return fmt.Errorf("a start of Services that ask each for something else takes %.2f times what plain ones take, want at most %.1f", ratio, maxDifferent)
	}
	fmt.Fprintf(w, "\n(e) %d endpoints of %d Services start slowly at once\n", growServices*growEndpoints, growServices)
	var shares [2]float64
	for i, name := range []string{"grown", "growing"} {
		var f growFigures
		if err := o.measure(name, &f); err != nil {
			return err
		}
		shares[i] = 100 * float64(f.Used) / float64(f.Over)
		fmt.Fprintf(w, "  %-32s %10.3f %% of a processor over %.0f s, %d writes", []string{"none grows", "all grow"}[i], shares[i], f.Over.Seconds(), f.Writes)
		if f.All > 0 {
			fmt.Fprintf(w, ", the last one has all of its weight after %.0f s", f.All.Seconds())
		}
		fmt.Fprintln(w)
	}
	if more := shares[1] - shares[0]; counts() && more >= 1 {
		return fmt.Errorf("that weights grow costs %.2f %% of a processor, want less than 1", more)
	}
	return nil
}

// begin starts a loop on a model.
func begin(ctx context.Context, o options, model *cluster.Model, watch watcher) (*recorder, func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	k, err := kernel.Open(ctx, kernel.Config{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")}, Binding: kernel.Binding(o.binding)})
	if err != nil {
		cancel()
		return nil, nil, err
	}
	r := &recorder{Kernel: k, watch: watch}
	loop := sync.New(r, model, quietLog(), sync.Options{Schedulers: k, Processor: processor})
	stopped := make(chan error, 1)
	go func() { stopped <- loop.Run(ctx) }()
	return r, func() error {
		cancel()
		defer k.Close()
		return <-stopped
	}, nil
}

// runSettings is one start.
func runSettings(o options) (f startFigures, err error) {
	model := cluster.NewModel(cluster.Options{NodeName: nodeName(0)})
	for i := range o.settings {
		s := service(i, corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP})
		s.Annotations = settings(o.asks).of(i)
		model.SetService(s)
		model.SetSlice(webSlice(i, o.endpoints, 0))
	}
	ready(model)
	runtime.GC()
	before, used, began := kept(), processor(), time.Now()
	watch := &startWatch{model: model, services: o.settings, done: make(chan time.Time, 1)}
	r, stop, err := begin(context.Background(), o, model, watch)
	if err != nil {
		return f, err
	}
	ended, err := wait(watch.done, r)
	f = startFigures{Total: ended.Sub(began), Loop: processor() - used, KB: kept() - before}
	return f, errors.Join(err, stop())
}

func ready(model *cluster.Model) {
	model.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(0)}})
	model.SetSynced()
	model.SetComplete()
}

// processor is the processor's time that this process has had, in the kernel as well.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // of oneself it works
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// kept is the memory that the kernel has for its own tables, in KB.
func kept() (kb int) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, is := strings.CutPrefix(line, "SUnreclaim:"); is {
			fmt.Sscan(rest, &kb)
		}
	}
	return kb
}

// growServices and growEndpoints are how many endpoints start at once; growTime is for how long that is looked at, and
// growOver over how long each starts.
const (
	growServices, growEndpoints = 100, 100
	growTime, growOver          = 2 * time.Minute, "1m"
)

// growWatch counts weights that were written.
type growWatch struct {
	writes int
	last   time.Time
}

func (*growWatch) began(time.Time) {}

func (g *growWatch) ended(now time.Time, plan ipvs.Plan, _ []ipvs.Outcome) {
	for _, s := range plan {
		if s.Op.Effect().Kind == ipvs.KindSetReal {
			g.writes++
			g.last = now
		}
	}
}

// runGrowing has endpoints come to Services that serve, with or without a slow start, and looks at what the time after that costs.
func runGrowing(o options, slowly bool) (f growFigures, err error) {
	model := cluster.NewModel(cluster.Options{NodeName: nodeName(0)})
	for i := range growServices {
		model.SetService(growService(i, false))
		model.SetSlice(webSlice(i, growEndpoints, 0))
	}
	ready(model)
	start := &startWatch{model: model, services: growServices, done: make(chan time.Time, 1)}
	r, stop, err := begin(context.Background(), o, model, start)
	if err != nil {
		return f, err
	}
	if _, err = wait(start.done, r); err != nil {
		return f, errors.Join(err, stop())
	}
	time.Sleep(5 * time.Second) // the end of the start
	if slowly {
		for i := range growServices {
			model.SetService(growService(i, true))
		}
		time.Sleep(5 * time.Second)
	}
	for i := range growServices {
		model.SetSlice(secondSlice(i))
	}
	time.Sleep(5 * time.Second) // they come, in their first weight
	runtime.GC()
	watch := &growWatch{}
	r.set(watch)
	began, used := time.Now(), processor()
	time.Sleep(growTime)
	f = growFigures{Over: time.Since(began), Used: processor() - used}
	for last := -1; slowly && last != watch.counted(r); {
		last = watch.counted(r)
		time.Sleep(30 * time.Second)
	}
	f.Writes = watch.counted(r)
	if slowly {
		f.All = watch.last.Sub(began)
	}
	return f, errors.Join(r.failed(), stop())
}

func (g *growWatch) counted(r *recorder) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return g.writes
}

func growService(i int, slowly bool) *corev1.Service {
	s := service(i, corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP})
	if slowly {
		s.Annotations = map[string]string{cluster.SlowStartAnnotation: growOver}
	}
	return s
}

// secondSlice has as many endpoints again.
func secondSlice(i int) *discoveryv1.EndpointSlice {
	s := webSlice(i, 0, 0)
	s.Name += "-more"
	for j := range growEndpoints {
		s.Endpoints = append(s.Endpoints, endpoint(1<<21+i*growEndpoints+j, nodeName(1)))
	}
	return s
}
