// Command run runs the tests of e2e/faults/faults.yaml that make test does not keep: their long forms, and those that need
// no kernel of the lab. What passed with the same inputs is kept, so that a run that was cut off goes on where it was.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	again := flag.Bool("again", false, "run what passed with the same inputs, too")
	flag.Parse()
	if err := run(ctx, flag.Args(), *again); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

// form is a test in one of its forms.
type form struct {
	faults.Test
	long bool
	host bool // it needs no kernel of the lab
}

// onHost reports whether a test needs no kernel of the lab. Those of pkg/sync that do are told by their names.
func onHost(t faults.Test) bool {
	switch {
	case strings.HasPrefix(t.Package(), "e2e/"), t.Package() == "pkg/ipvs/kernel":
		return false
	}
	return !strings.HasSuffix(t.Func(), "OnKernel")
}

// wanted are the forms that this command runs, of rows or tests whose names begin with one of only; all without.
func wanted(rows []faults.Row, only []string) (list []form) {
	seen := map[string]bool{}
	for _, r := range rows {
		for _, t := range r.Tests {
			for _, long := range []bool{false, true} {
				f := form{t, long, onHost(t)}
				if long && t.Long == "" || !long && !f.host || seen[t.Key(long)] || !chosen(r.ID, t.Func(), only) {
					continue
				}
				seen[t.Key(long)] = true
				list = append(list, f)
			}
		}
	}
	return list
}

func chosen(row, test string, only []string) bool {
	for _, o := range only {
		if row == o || strings.HasPrefix(test, o) {
			return true
		}
	}
	return len(only) == 0
}

func run(ctx context.Context, only []string, again bool) error {
	rows, err := faults.Rows()
	if err != nil {
		return err
	}
	sources, err := results.Sources(".")
	if err != nil {
		return err
	}
	failed := 0
	for _, f := range wanted(rows, only) {
		key := f.Key(f.long)
		inputs, err := inputsOf(".", f.Test, sources)
		if err != nil {
			return err
		}
		// Read anew each time: two of this command may be at work.
		all, err := faults.ReadResults(".")
		if err != nil {
			return err
		}
		if have := all[key]; !again && have.Verdict == results.Pass && have.Inputs == inputs {
			fmt.Printf("kept  %s (%s)\n", key, have.Day)
			continue
		}
		began := time.Now()
		fmt.Printf("== %s\n", key)
		r, err := f.run(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			fmt.Printf("FAIL  %s: %v\n", key, err)
		}
		if r.Verdict != results.Pass {
			failed++
		}
		r.Day, r.Seconds, r.Inputs = began.UTC().Format(time.DateOnly), int(time.Since(began).Seconds()), inputs
		if all, err = faults.ReadResults("."); err != nil {
			return err
		}
		all[key] = r
		if err := all.Write("."); err != nil {
			return err
		}
		fmt.Printf("%-5s %s (%d s)\n", r.Verdict, key, r.Seconds)
	}
	if failed > 0 {
		return fmt.Errorf("%d tests failed", failed)
	}
	return nil
}

// longest is how long a form may take.
const longest = 3 * time.Hour

// run runs a form. A test that did not run has failed.
func (f form) run(ctx context.Context) (faults.Result, error) {
	if f.host {
		return f.runHost(ctx)
	}
	dir, err := os.MkdirTemp("", "ipvs-proxy-faults-")
	if err != nil {
		return faults.Result{Verdict: results.Fail}, err
	}
	defer os.RemoveAll(dir)
	what := []string{"test", "--skip-host"}
	if f.Package() == plane.Package[2:] {
		what = []string{"e2e"}
	}
	args := append(what, "--verbose", "--run", "^"+f.Func()+"$", "--results", dir, "--timeout", longest.String())
	if f.long {
		args = append(args, "--env", faults.Variable+"="+faults.Long)
	}
	cmd := exec.CommandContext(ctx, "hack/lab.sh", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	runErr := cmd.Run()
	files, err := results.Read(dir)
	if err != nil || len(files) != 1 {
		return faults.Result{Verdict: results.Fail}, fmt.Errorf("results of %d kernels, %v, %v", len(files), err, runErr)
	}
	return ofKernel(files[0], f.Test), nil
}

// ofKernel is what a test came to on a kernel.
func ofKernel(k results.File, t faults.Test) faults.Result {
	r := faults.Result{Verdict: results.Skip, Kernel: k.Kernel, Figures: k.FiguresOf(t.Package(), t.Func())}
	for _, v := range k.Of(t.Package(), t.Func()) {
		switch {
		case v == results.Fail, r.Verdict == results.Fail:
			r.Verdict = results.Fail
		case v == results.Pass:
			r.Verdict = v
		}
	}
	return r
}
