package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// LoadConfig says how hard to ask.
type LoadConfig struct {
	// Rate is the number of questions started per second; 0 means as many as
	// Concurrency allows.
	Rate float64
	// Concurrency bounds the questions under way at once; 0 means 8, or with a rate as many as it takes when an answer
	// is there 100 ms after the server may give it. When all of them wait, the rate falls behind: the report tells the
	// one achieved. A load that went on asking would bury a machine that is busy already, and then wait for itself.
	Concurrency int
	Timeout     time.Duration // of one question; 0 means 3 s
	Wait        time.Duration // how long the server holds each answer back
}

// Loss is a question without an answer.
type Loss struct {
	At    time.Duration // when it was asked, since the start
	Reply Reply
}

// maxLosses bounds what a report keeps; Lost counts all.
const maxLosses = 1000

// LoadReport tells what became of a load.
type LoadReport struct {
	Sent, Answered, Lost int
	// Again are questions without an answer whose SYN was sent again, which are not among the Lost: the kernel itself
	// forgets a connection whose SYN comes once more while its real server drains (TestSYNAgainWhileDraining). SYNs
	// are sent again where an answer takes more than a second, on a machine that is busy.
	Again    int
	Rate     float64 // achieved, per second
	Began    time.Time
	Duration time.Duration
	Slowest  time.Duration // of the answered
	ByPod    map[string]int
	Losses   []Loss // the first 1000
}

// String names rate and duration: a loss of 0 means nothing without them.
func (r LoadReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d sent in %s (%.0f/s), %d answered, %d lost, slowest answer %s",
		r.Sent, r.Duration.Round(time.Millisecond), r.Rate, r.Answered, r.Lost, r.Slowest.Round(time.Millisecond))
	for _, pod := range slices.Sorted(maps.Keys(r.ByPod)) {
		fmt.Fprintf(&b, ", %s %d", pod, r.ByPod[pod])
	}
	if r.Again > 0 {
		fmt.Fprintf(&b, ", %d not counted, whose SYN was sent again", r.Again)
	}
	for i, l := range r.Losses {
		if i == 5 {
			fmt.Fprintf(&b, "\n  and %d more", r.Lost-i)
			break
		}
		fmt.Fprintf(&b, "\n  lost at %s: %s", l.At.Round(time.Millisecond), l.Reply)
	}
	return b.String()
}

// Load is a load under way.
type Load struct {
	host  *Host
	to    netip.AddrPort
	cfg   LoadConfig
	opts  []AskOption
	start time.Time
	stop  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup

	forget func()

	mu     sync.Mutex
	pace   pace
	report LoadReport
}

// pace gives each question its time.
type pace struct {
	every time.Duration // 0: at once
	next  time.Duration // since the start
}

// catchUp bounds how much of a pause is made up for.
const catchUp = time.Second

// due is when the question is to be asked that is free to be asked now.
func (p *pace) due(now time.Duration) time.Duration {
	if p.every == 0 {
		return now
	}
	due := max(p.next, now-catchUp)
	p.next = due + p.every
	return due
}

func (c LoadConfig) withDefaults() LoadConfig {
	if c.Concurrency <= 0 {
		c.Concurrency = 8
		if c.Rate > 0 {
			c.Concurrency = 2 + int(c.Rate*(c.Wait+100*time.Millisecond).Seconds())
		}
	}
	return c
}

// StartLoad asks over and over, each time on a new connection, until Stop.
func (h *Host) StartLoad(to netip.AddrPort, cfg LoadConfig, opts ...AskOption) *Load {
	cfg = cfg.withDefaults()
	if cfg.Timeout > 0 {
		opts = append(opts, Timeout(cfg.Timeout))
	}
	if cfg.Wait > 0 {
		opts = append(opts, Wait(cfg.Wait))
	}
	l := &Load{host: h, to: to, cfg: cfg, opts: opts, start: time.Now(), stop: make(chan struct{}),
		report: LoadReport{ByPod: map[string]int{}}}
	l.report.Began = l.start
	if cfg.Rate > 0 {
		l.pace.every = time.Duration(float64(time.Second) / cfg.Rate)
	}
	// A world that closes must not leave questions running.
	l.forget = h.onClose(l.end)
	for range cfg.Concurrency {
		l.wg.Go(l.work)
	}
	return l
}

// work takes turns with the other workers.
func (l *Load) work() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		l.mu.Lock()
		due := l.pace.due(time.Since(l.start))
		l.mu.Unlock()
		t.Reset(time.Until(l.start.Add(due)))
		select {
		case <-l.stop:
			return
		case <-t.C:
		}
		select {
		case <-l.stop: // both may have been ready
			return
		default:
		}
		at := time.Since(l.start)
		l.record(at, l.host.Ask(l.to, l.opts...))
	}
}

func (l *Load) record(at time.Duration, r Reply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Sent++
	if r.Verdict == Answered {
		l.report.Answered++
		l.report.ByPod[r.Pod]++
		l.report.Slowest = max(l.report.Slowest, r.Took)
		return
	}
	if r.Again {
		l.report.Again++
		return
	}
	l.report.Lost++
	if len(l.report.Losses) < maxLosses {
		l.report.Losses = append(l.report.Losses, Loss{At: at, Reply: r})
	}
}

// Report tells how the load is doing, without the questions under way.
func (l *Load) Report() LoadReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.report
	r.ByPod = maps.Clone(r.ByPod)
	r.Losses = slices.Clone(r.Losses)
	if r.Duration == 0 {
		r.Duration = time.Since(l.start)
	}
	r.Rate = float64(r.Sent) / r.Duration.Seconds()
	return r
}

func (l *Load) end() {
	l.once.Do(func() {
		close(l.stop)
		stopped := time.Since(l.start)
		l.mu.Lock()
		l.report.Duration = stopped
		l.mu.Unlock()
	})
	l.wg.Wait()
}

// Stop ends the load, waits for the questions under way and reports. The
// duration ends with the call: nothing is asked after it.
func (l *Load) Stop() LoadReport {
	l.forget()
	l.end()
	return l.Report()
}
