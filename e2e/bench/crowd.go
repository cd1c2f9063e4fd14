package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// crowdFigures are what changes waited for, with and without a crowd that asks.
type crowdFigures struct {
	Windows           int           // of each kind, in turn
	Window            time.Duration // each
	Alone, Asked      waits
	Asks, Unanswered  int
	Processors        int
	PerSecond, Change int // questions and changes a second
}

// waits is how long changes waited, from the event to the kernel's word, and what questions took of the loop meanwhile.
type waits struct {
	Changes            int
	P50, P90, P99, Max time.Duration
	Taken              time.Duration // processor time, p90
}

func waitsOf(list []arrival) (w waits) {
	if len(list) == 0 {
		return w
	}
	var took, taken []time.Duration
	for _, a := range list {
		took, taken = append(took, a.took), append(taken, a.taken)
	}
	s := sorted(took)
	return waits{len(s), quantile(s, .5), quantile(s, .9), quantile(s, .99), s[len(s)-1], quantile(sorted(taken), .9)}
}

// Of a run with a crowd.
const (
	crowdWindows = 6
	crowdWindow  = 10 * time.Second
	asksPerS     = 100
	changesPerS  = 50
)

// recordCrowd measures what changes wait for while a crowd asks, and prints it. It has no limit here: a machine whose clock counts has
// one processor for the agent and for all who ask.
func (o options) recordCrowd(w io.Writer) error {
	o.services = o.asked
	f := &crowdFigures{}
	if err := o.measure("crowd", f); err != nil {
		return err
	}
	f.print(w)
	return result{Crowd: f}.print(w)
}

func (f *crowdFigures) print(w io.Writer) {
	fmt.Fprintf(w, "\n(g) an endpoint's way from the event to the kernel's word, %d changes a second, %d processors: ms\n  %-32s %8s %8s %8s %8s %8s   %s\n",
		f.Change, f.Processors, "", "changes", "p50", "p90", "p99", "most", "p90 of what questions took of the loop meanwhile")
	row := func(what string, is waits) {
		fmt.Fprintf(w, "  %-32s %8d %8.3f %8.3f %8.3f %8.3f   %.3f\n", what, is.Changes, million(is.P50), million(is.P90), million(is.P99), million(is.Max), million(is.Taken))
	}
	row("alone", f.Alone)
	row(fmt.Sprintf("while %d ask each second", f.PerSecond), f.Asked)
	fmt.Fprintf(w, "  %d windows of %s each, in turn; %d questions were answered, %d not; p99 %.2f times\n", f.Windows, f.Window, f.Asks, f.Unanswered, f.ratio())
}

// ratio is how many times as long changes wait while a crowd asks, at p99.
func (f *crowdFigures) ratio() float64 { return float64(f.Asked.P99) / float64(max(f.Alone.P99, 1)) }

// arrivals follows endpoints on their way to the kernel.
type arrivals struct {
	meter *meter
	mu    sync.Mutex
	since map[netip.AddrPort]event
	list  map[int][]arrival // by kind of window
}

// event is when an endpoint was heard of, what questions had taken of the loop until then, and in which kind of window; below 0: in
// none.
type event struct {
	at    time.Time
	taken time.Duration
	kind  int
}

// arrival is how long it took, and what questions took of the loop meanwhile.
type arrival struct{ took, taken time.Duration }

func newArrivals() *arrivals {
	return &arrivals{meter: &meter{}, since: map[netip.AddrPort]event{}, list: map[int][]arrival{}}
}

func (*arrivals) began(time.Time) {}

func (a *arrivals) ended(now time.Time, plan ipvs.Plan, _ []ipvs.Outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, step := range plan {
		add, is := step.Op.(ipvs.AddReal)
		if !is {
			continue
		}
		if e, awaited := a.since[add.Real.Addr]; awaited {
			delete(a.since, add.Real.Addr)
			if e.kind >= 0 {
				a.list[e.kind] = append(a.list[e.kind], arrival{now.Sub(e.at), a.meter.sofar() - e.taken})
			}
		}
	}
}

// changer has endpoints come, one by one, so many a second, whatever becomes of them.
type changer struct {
	asked    *asked
	arrivals *arrivals
	o        options
	done     int
}

// during changes for as long as a window has, which is of some kind. What comes in the first tenth counts for none: there one kind
// goes over into the other.
func (c *changer) during(window time.Duration, perS, kind int) {
	tick := time.NewTicker(time.Second / time.Duration(perS))
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < window; <-tick.C {
		i, more := c.done*7919%c.o.services, 1+c.done/c.o.services
		c.done++
		slice := webSlice(i, c.o.endpoints, more)
		last, counts := slice.Endpoints[len(slice.Endpoints)-1], kind
		if time.Since(began) < window/10 {
			counts = -1
		}
		c.arrivals.mu.Lock()
		c.arrivals.since[netip.AddrPortFrom(netip.MustParseAddr(last.Addresses[0]), 8080)] = event{time.Now(), c.arrivals.meter.sofar(), counts}
		c.arrivals.mu.Unlock()
		c.asked.model.SetSlice(slice)
	}
}

// late waits for what has not come yet.
func (a *arrivals) late(patience time.Duration) error {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		a.mu.Lock()
		left := len(a.since)
		a.mu.Unlock()
		if left == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d endpoints are not in the kernel after %s", left, patience)
		}
	}
}

// runCrowd has endpoints change, in turn alone and while a crowd asks, which is a process of its own.
func runCrowd(o options) (f crowdFigures, err error) {
	follows := newArrivals()
	at, r, done, err := realDoors(context.Background(), o, follows)
	if err != nil {
		return f, err
	}
	defer done()
	at.meter = follows.meter
	a, err := startAsked(o, at)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	c, err := startCrowd(a.url, o.services)
	if err != nil {
		return f, err
	}
	time.Sleep(10 * time.Second) // the end of the start
	changes := &changer{asked: a, arrivals: follows, o: o}
	for range crowdWindows {
		changes.during(crowdWindow, changesPerS, 0)
		if err := c.say("ask"); err != nil {
			return f, err
		}
		changes.during(crowdWindow, changesPerS, 1)
		if err := c.say("rest"); err != nil {
			return f, err
		}
	}
	said, err := c.end()
	if err = errors.Join(err, follows.late(time.Minute), r.failed()); err != nil {
		return f, err
	}
	return crowdFigures{Windows: crowdWindows, Window: crowdWindow, Alone: waitsOf(follows.list[0]), Asked: waitsOf(follows.list[1]),
		Asks: said.Answered, Unanswered: said.Failed, Processors: runtime.NumCPU(), PerSecond: asksPerS, Change: changesPerS}, nil
}

// crowdProcess is a crowd that is told when to ask.
type crowdProcess struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// crowdSaid is what became of its questions.
type crowdSaid struct {
	Answered, Failed int
	First            string // how the first one failed
}

func startCrowd(url string, services int) (*crowdProcess, error) {
	cmd := exec.Command("/proc/self/exe", "--child", "askers", "--asks", url, "--services", fmt.Sprint(services))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &crowdProcess{cmd, in, bufio.NewReader(out)}, cmd.Start()
}

func (c *crowdProcess) say(word string) error {
	_, err := fmt.Fprintln(c.in, word)
	return err
}

func (c *crowdProcess) end() (said crowdSaid, err error) {
	err = errors.Join(c.in.Close(), json.NewDecoder(c.out).Decode(&said), c.cmd.Wait())
	if said.First != "" {
		fmt.Fprintln(os.Stderr, "bench: not answered:", said.First)
	}
	return said, err
}

// runAskers is the crowd's process: it asks while it is told to.
func runAskers(o options) (said crowdSaid, err error) {
	ctx := context.Background()
	counts, err := kernel.OpenStatistics(ctx)
	if err != nil {
		return said, err
	}
	defer counts.Close()
	c := &crowd{by: newAsker(node.Dial, counts, o.asks), services: o.services}
	tick := time.NewTicker(time.Second / asksPerS)
	defer tick.Stop()
	words, asks := make(chan string), false
	go func() {
		defer close(words)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			words <- in.Text()
		}
	}()
	for {
		select {
		case word, more := <-words:
			if asks = word == "ask"; !more {
				return c.end(), nil
			}
		case <-tick.C:
			if asks {
				c.ask(ctx)
			}
		}
	}
}

// crowd asks one kind of question after the other, about one Service after the other.
type crowd struct {
	by       *asker
	services int

	asked            int
	answered, failed atomic.Int64
	first            sync.Once
	how              string
	all              sync.WaitGroup
}

// crowdAsks are the kinds.
var crowdAsks = map[string]bool{askShow: true, askExplain: true, askPage: true, askMetrics: true}

// ask asks the next question, and does not wait for the answer.
func (c *crowd) ask(ctx context.Context) {
	var kinds []question
	for _, q := range c.by.questions() {
		if crowdAsks[q.name] {
			kinds = append(kinds, q)
		}
	}
	q, i, looks := kinds[c.asked%len(kinds)], some(c.asked, c.services), c.asked%100 < len(kinds)
	c.asked++
	c.all.Go(func() {
		check, err := q.ask(ctx, i)
		if err == nil && looks { // at each of them would cost more than to ask
			err = check()
		}
		if err != nil {
			c.failed.Add(1)
			c.first.Do(func() { c.how = fmt.Sprintf("%s: %v", q.name, err) })
			return
		}
		c.answered.Add(1)
	})
}

// end waits for the answers.
func (c *crowd) end() crowdSaid {
	c.all.Wait()
	return crowdSaid{int(c.answered.Load()), int(c.failed.Load()), c.how}
}
