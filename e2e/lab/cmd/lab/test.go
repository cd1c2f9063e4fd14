package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// kernelPackage is a package whose tests need a kernel with IPVS. They skip
// themselves unless IPVS_PROXY_LAB=1.
type kernelPackage struct {
	dir  string
	host bool // has tests that run on any host, too
	// pieces is into how many loads its tests are dealt where there are several machines: enough that all of them are busy
	// to the end, and few enough that booting costs little. 0: it is one load.
	pieces int
	// only names the tests that need the kernel, where the others would take long in an emulated machine;
	// empty: all of them.
	only string
}

// trafficPackage needs the image, and kube-proxy where it is to be had.
const trafficPackage = "e2e/traffic"

var kernelPackages = []kernelPackage{
	{dir: "./e2e/lab", host: true},
	{dir: "./" + trafficPackage, pieces: 24},
	{dir: "./pkg/ipvs/kernel", host: true, pieces: 3},
	{dir: "./pkg/sync", host: true, only: "OnKernel$"},
	{dir: "./" + nativePackage},
}

// planePackage needs a control plane, too: lab e2e runs it.
var planePackage = kernelPackage{dir: plane.Package}

type testOptions struct {
	run        string
	skip       string
	skipHost   bool
	verbose    bool
	failOnSkip bool
	timeout    time.Duration
	env        []string
	kernel     string
	results    string
	beside     bool   // not the whole suite of a kernel
	kubernetes string // release of the control plane, where there is one
	kubeProxy  string // release of kube-proxy, for the tests that take a node over from it; empty: the default
}

func testCommand() *cobra.Command {
	var o testOptions
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Run all tests: on the host what needs no kernel, on the lab the rest",
		Long: `Run all tests from the root of the repository: gofmt, go vet, go test -race on
the host, and the tests that need IPVS on the lab: shared between up to four
virtual machines where this machine has two processors and more.

The last line counts tests. A test with subtests counts as its subtests, and
once more only if it failed although none of them did. A test that runs on the
host and on the lab counts twice; one that skipped itself on the host and ran
on the lab counts once. Each check that failed (gofmt, vet, a package that does
not build or runs no test, the lab itself) counts as one failed test.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := regexp.Compile(o.run); err != nil {
				return fmt.Errorf("--run: %w", err)
			}
			if o.kubeProxy != "" {
				if err := programs.CheckRelease(o.kubeProxy); err != nil {
					return fmt.Errorf("--kube-proxy: %w", err)
				}
			}
			return runTests(cmd.Context(), o, os.Stdout)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.run, "run", "", "only tests that match, as go test -run")
	f.BoolVar(&o.skipHost, "skip-host", false, "only the tests that need a kernel")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show what passing tests say: figures of loads, times")
	f.BoolVar(&o.failOnSkip, "fail-on-skip", os.Getenv("CI") == "true", "count a skipped test as a failure; the default where CI=true")
	f.DurationVar(&o.timeout, "timeout", 45*time.Minute, "for the tests of one package")
	f.StringArrayVar(&o.env, "env", nil, "KEY=VALUE for the tests on the lab")
	f.StringVar(&o.results, "results", "", "keep the verdicts of the kernel tests in this directory; with --run, those of the others stay")
	f.StringVar(&o.kubeProxy, "kube-proxy", "", "release of kube-proxy for the tests that want it, which lab e2e --build has compiled: "+strings.Join(programs.Releases, ", "))
	f.StringVar(&o.kernel, "kernel", "", "boot the kernel of this Debian suite, even where IPVS is at hand")
	return cmd
}

// runTests runs everything even after a failure: one run tells all.
func runTests(ctx context.Context, o testOptions, w io.Writer) error {
	w = &lineWriter{w: w}
	start, costs, beside := time.Now(), parts{}, parts{}
	host, later, kernel := newRecorder(w, "host"), newRecorder(w, "host"), newRecorder(w, "kernel")
	for _, r := range []*recorder{host, later, kernel} {
		r.verbose = o.verbose
	}
	if !o.skipHost {
		costs.time("gofmt, go vet", func() { checks(ctx, host) })
	}
	// What the host tests leave of the processors is enough to build the kernel tests, and what those leave is enough for
	// tests that may wait.
	var work *kernelWork
	built, others := make(chan struct{}), sync.WaitGroup{}
	others.Go(func() {
		beside.time("beside them: build of the kernel tests", func() { work = buildKernelTests(ctx, o, kernel) })
		close(built)
		if !o.skipHost && ctx.Err() == nil {
			beside.time("beside them: long, without -race", func() { unracedTests(ctx, o, later) })
			beside.time("beside them: nested modules", func() { nestedTests(ctx, o, later) })
		}
	})
	if !o.skipHost {
		costs.time("host tests with -race", func() { hostTests(ctx, o, host) })
	}
	costs.time("wait for the build of the kernel tests", func() { <-built })
	defer work.remove()
	report, begun := machine.Report{}, time.Now()
	if ctx.Err() == nil {
		costs.time("kernel tests", func() { report = work.run(ctx, o, kernel) })
	}
	took := time.Since(begun) // without the host's
	costs.time("wait for what ran beside them", others.Wait)
	costs = append(costs, beside...)
	host.absorb(later)
	host.forgetSkips(kernel)
	if host.count() == (counts{}) && kernel.count() == (counts{}) {
		kernel.failed("no test ran", "")
	}
	fmt.Fprintf(w, "\n== what took how long\n")
	costs.print(w)
	host.longest(w, 5, 5)
	kernel.longest(w, 4, 5)
	failed := summarize(w, o, host, kernel, report, time.Since(start))
	if err := keepResults(o, kernel, report, took); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if failed {
		return exitError(1)
	}
	return nil
}

func summarize(w io.Writer, o testOptions, host, kernel *recorder, r machine.Report, took time.Duration) (failed bool) {
	h, k := host.count(), kernel.count()
	fmt.Fprintf(w, "\n== summary, %s\n", took.Round(time.Second))
	host.listFailures()
	kernel.listFailures()
	host.listSkips()
	kernel.listSkips()
	if o.skipHost {
		fmt.Fprintln(w, "host tests:   not asked for")
	} else {
		fmt.Fprintf(w, "host tests:   %v\n", h)
	}
	fmt.Fprintf(w, "kernel tests: %v\n", k)
	if r.Kernel != "" {
		fmt.Fprintf(w, "kernel:       %s, %s (%s)\n", r.Kernel, r.Mode, r.Why)
	}
	sum := counts{h.passed + k.passed, h.failed + k.failed, h.skipped + k.skipped}
	if o.failOnSkip && sum.skipped > 0 {
		fmt.Fprintf(w, "skipped tests fail this run (--fail-on-skip)\n")
	}
	fmt.Fprintf(w, "tests: %v\n", sum)
	return sum.failed > 0 || o.failOnSkip && sum.skipped > 0
}
