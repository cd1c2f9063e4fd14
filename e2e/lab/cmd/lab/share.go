package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// program is a test program for the lab.
type program struct {
	goPackage
	kernelPackage
	rel  string // the package's directory
	file string // among the job's files
	host string // where it was built
	run  string // only tests that match; empty: all that were asked for
}

// machines says how many run the tests at a time. An emulated processor is idle half of the time, while tests wait for
// what takes its time, and so is the other processor of this machine. A kernel that is at hand is one.
func machines(ctx context.Context, o testOptions) (int, error) {
	if o.run != "" || runtime.NumCPU() < 2 {
		return 1, nil
	}
	if o.kernel != "" {
		return 2, nil
	}
	way, err := machine.Choose(ctx)
	if err != nil || way.Mode != machine.VM {
		return 1, err
	}
	return 2, nil
}

// share deals the programs to two machines. The tests of one that is big are dealt singly: the first machine gets five
// of eight and nothing else, which takes both about as long.
func share(ctx context.Context, programs []program) (first, second []program, err error) {
	for _, p := range programs {
		if !p.big {
			second = append(second, p)
			continue
		}
		names, err := testNames(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		dealt := deal(names)
		a, b := p, p
		a.run, b.run = anyOf(dealt[0]), anyOf(dealt[1])
		first, second = append(first, a), append(second, b)
	}
	return first, second, nil
}

func deal(names []string) (dealt [2][]string) {
	for i, name := range names {
		to := 0
		if i%8 >= 5 {
			to = 1
		}
		dealt[to] = append(dealt[to], name)
	}
	return dealt
}

func anyOf(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }

// testNames asks the program itself.
func testNames(ctx context.Context, p program) ([]string, error) {
	cmd := exec.CommandContext(ctx, p.host, "-test.list=.")
	cmd.Dir = p.Dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the tests of %s: %w", p.rel, err)
	}
	return strings.Fields(string(out)), nil
}

// both runs two jobs at a time and records them as one. What they are is told by the first.
func both(r *recorder, run [2]func(*recorder) machine.Report) machine.Report {
	w := &lineWriter{w: r.w}
	var wg sync.WaitGroup
	var parts [2]*recorder
	var reports [2]machine.Report
	for i := range run {
		parts[i] = newRecorder(w, r.where)
		parts[i].verbose = r.verbose
		wg.Go(func() { reports[i] = run[i](parts[i]) })
	}
	wg.Wait()
	for _, p := range parts {
		r.absorb(p)
	}
	return reports[0]
}

// lineWriter lets several write, each call whole.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
