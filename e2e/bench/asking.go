package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// asking is what a run recorded of what questions cost, for docs/performance.md.
type asking struct {
	Kernel    string // uname -r
	Services  int
	Endpoints int // of each
	Measured  int // Services with metrics of their own
	// Start is what the program costs that is started and does nothing, in instructions; 0: there was none.
	Start int64
	Costs []askedCost
}

// askedCost is what a question costs, in instructions, of agent and asker and the kernel for both.
type askedCost struct {
	Question string
	// Answer is the median; Mean has its part of the collector and of all else that the agent does meanwhile.
	Answer, Mean int64
	// Command is what the command costs that asks, from its start to its end; 0: none does.
	Command int64 `json:",omitempty"`
	Most    int64 // that Mean and Command may be
}

// How often each question is asked.
const (
	askRounds     = 21
	commandRounds = 5
)

// asking measures what questions cost, and what they cost others.
func (o options) asking(w io.Writer) (*asking, error) {
	o.services = o.asked
	var is asking
	if err := o.measure("asking", &is); err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "\n(f) what is asked of an agent with %d Services of %d endpoints: million instructions of agent, asker and kernel\n", is.Services, is.Endpoints)
	fmt.Fprintf(w, "  %-40s %10s %10s %12s\n", "", "median", "mean", "the command")
	for _, c := range is.Costs {
		fmt.Fprintf(w, "  %-40s %10.2f %10.2f", c.Question, perMillion(c.Answer), perMillion(c.Mean))
		if c.Command > 0 {
			fmt.Fprintf(w, " %12.1f", perMillion(c.Command))
		}
		fmt.Fprintln(w)
	}
	if is.Start > 0 {
		fmt.Fprintf(w, "  the start of the program is in each command: %.1f\n", perMillion(is.Start))
	}
	return &is, nil
}

// recordAsking measures it, prints it and says which limits are broken.
func (o options) recordAsking(w io.Writer) error {
	is, err := o.asking(w)
	if err == nil {
		err = result{Asking: is}.print(w)
	}
	return errors.Join(err, is.limits(w))
}

func perMillion(instructions int64) float64 { return float64(instructions) / 1e6 }

// limits says which questions cost more than they may, and whether they cost others something.
func (is *asking) limits(w io.Writer) (err error) {
	if is == nil || !counts() {
		return nil
	}
	fmt.Fprintln(w, "\nLimits of what is asked: million instructions, mean, or of the command")
	for _, c := range is.Costs {
		verdict := "ok"
		if max(c.Mean, c.Command) > c.Most {
			verdict, err = "BROKEN", errors.New("a limit of what is asked is broken")
		}
		fmt.Fprintf(w, "  %-40s %10.2f   at most %.0f: %s\n", c.Question, perMillion(max(c.Mean, c.Command)), perMillion(c.Most), verdict)
	}
	return err
}

// runAsking asks one question after the other, in this process.
func runAsking(o options) (is asking, err error) {
	ctx := context.Background()
	at, _, done, err := realDoors(ctx, o, idle{})
	if err != nil {
		return is, err
	}
	defer done()
	a, err := startAsked(o, at)
	if err != nil {
		return is, err
	}
	is = asking{Kernel: kernelRelease(), Services: o.services, Endpoints: o.endpoints, Measured: measured}
	time.Sleep(10 * time.Second) // the end of the start
	runtime.GC()
	err = is.measure(ctx, o, newAsker(node.Dial, at.counts, a.url))
	return is, errors.Join(err, a.stop())
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		panic(err) // there is no way for it to fail
	}
	return unix.ByteSliceToString(u.Release[:])
}

// measure asks.
func (is *asking) measure(ctx context.Context, o options, by *asker) error {
	program, there := agentProgram()
	for _, q := range by.questions() {
		c := askedCost{Question: q.name, Most: int64(q.most * 1e6)}
		took, err := timed(askRounds, func() error { return q.first(ctx) }, func(round int) (func() error, error) { return q.ask(ctx, some(round, o.services)) })
		if err != nil {
			return fmt.Errorf("%s: %w", q.name, err)
		}
		c.Answer, c.Mean = int64(median(took)), int64(mean(took))
		if there && q.args != nil {
			took, err := timed(commandRounds, nothing, func(round int) (func() error, error) {
				i := some(round, o.services)
				return command(program, vip(i).String(), q.args(i)...)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", q.name, err)
			}
			c.Command = int64(median(took))
		}
		is.Costs = append(is.Costs, c)
	}
	if !there {
		return nil
	}
	took, err := timed(commandRounds, nothing, func(int) (func() error, error) { return command(program, "ipvs-proxy", "version") })
	is.Start = int64(median(took))
	return err
}

func nothing() error { return nil }

// first asks what is to be asked before.
func (q question) first(ctx context.Context) error {
	if q.before == nil {
		return nil
	}
	return q.before(ctx)
}

// timed measures something several times: a little apart, for what is read at a scrape is good for a second. The first time, in
// which buffers and templates are made, does not count.
func timed(rounds int, before func() error, do func(round int) (check func() error, err error)) (took []time.Duration, err error) {
	for round := range rounds + 1 {
		time.Sleep(1100 * time.Millisecond)
		if err := before(); err != nil {
			return nil, err
		}
		began := time.Now()
		check, err := do(round)
		took = append(took, time.Since(began))
		if err == nil {
			err = check()
		}
		if err != nil {
			return nil, err
		}
	}
	return took[1:], nil
}

func mean(took []time.Duration) (sum time.Duration) {
	for _, d := range took {
		sum += d
	}
	return sum / time.Duration(len(took))
}

// some is a Service anywhere.
func some(round, services int) int { return round * 7919 % services }

// agentProgram is where the lab puts the agent.
func agentProgram() (path string, there bool) {
	path = filepath.Join(os.Getenv("LAB_DIR"), "ipvs-proxy")
	_, err := os.Stat(path)
	return path, err == nil
}

// command runs the program, whose output has something.
func command(program, want string, args ...string) (check func() error, err error) {
	var out, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%v: %w: %s", args, err, stderr.String())
	}
	return func() error { return has(out.String(), want) }, nil
}

// quantile is the value below which a part of all is.
func quantile(sorted []time.Duration, part float64) time.Duration {
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

func sorted(ds []time.Duration) []time.Duration { return slices.Sorted(slices.Values(ds)) }
