package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
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

// mostMachines is for two processors: with six of them these had nothing left, and tests waited for each other.
const mostMachines = 4

// machines says how many run the tests at a time. An emulated processor is idle for two thirds of the time, while tests wait
// for what takes its time, so there are more than this machine has processors, as long as these have something left for another
// one (room) and there is memory for it. A kernel that is at hand is one.
func machines(ctx context.Context, o testOptions) (int, error) {
	if o.run != "" || runtime.NumCPU() < 2 {
		return 1, nil
	}
	if o.kernel == "" {
		way, err := machine.Choose(ctx)
		if err != nil || way.Mode != machine.VM {
			return 1, err
		}
	}
	return max(2, min(mostMachines, fitting())), nil
}

// load is what one boot runs.
type load struct {
	programs []program
	others   []*commandTest
}

// share deals the programs to loads, those first that cannot be dealt, which may be long. The tests of the others are
// dealt singly.
func share(ctx context.Context, programs []program, others []*commandTest) (loads []load, err error) {
	small := load{others: others}
	for _, p := range programs {
		if p.pieces == 0 {
			small.programs = append(small.programs, p)
			continue
		}
		names, err := testNames(ctx, p)
		if err != nil {
			return nil, err
		}
		for _, list := range deal(names, p.pieces) {
			part := p
			part.run = anyOf(list)
			loads = append(loads, load{programs: []program{part}})
		}
	}
	return append(split(small), loads...), nil
}

// split makes a load of each program; the other commands go with the last.
func split(l load) (loads []load) {
	for _, p := range l.programs {
		loads = append(loads, load{programs: []program{p}})
	}
	if len(loads) == 0 {
		return []load{l}
	}
	loads[len(loads)-1].others = l.others
	slices.Reverse(loads)
	return loads
}

// deal deals names to n lists in turn.
func deal(names []string, n int) [][]string {
	dealt := make([][]string, min(n, len(names)))
	for i, name := range names {
		dealt[i%len(dealt)] = append(dealt[i%len(dealt)], name)
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

// side runs loads on so many machines at a time and records them as one. A machine for which there is no processor waits
// for room. What the machines are is told by the first load that had one.
func side(ctx context.Context, r *recorder, at int, loads []load, run func(*recorder, load) machine.Report) machine.Report {
	var wg sync.WaitGroup
	parts, reports := make([]*recorder, len(loads)), make([]machine.Report, len(loads))
	var turn sync.Mutex // one at a time: what is left for another machine is left for one
	next := make(chan int, len(loads))
	for i := range loads {
		parts[i] = newRecorder(r.w, r.where)
		parts[i].verbose = r.verbose
		next <- i
	}
	close(next)
	for m := range min(at, len(loads)) {
		wg.Go(func() {
			for {
				i, more := take(ctx, next, m >= max(2, runtime.NumCPU()), &turn)
				if !more {
					return
				}
				reports[i] = run(parts[i], loads[i])
			}
		})
	}
	wg.Wait()
	for _, p := range parts {
		r.absorb(p)
	}
	had := slices.IndexFunc(reports, func(rep machine.Report) bool { return rep.Kernel != "" })
	return reports[max(had, 0)]
}

// take takes a load; a machine beyond the processors waits for room.
func take(ctx context.Context, next <-chan int, beyond bool, turn *sync.Mutex) (i int, more bool) {
	if beyond {
		turn.Lock()
		defer turn.Unlock()
		if !room(ctx, next) {
			return 0, false
		}
	}
	i, more = <-next
	return i, more
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
