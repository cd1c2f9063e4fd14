package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// Tests of planePackage that do not belong to every run.
const (
	recordTest = "^TestRecordKubeProxy$"
	memoryTest = "^TestMemory$"
	oddTests   = recordTest + "|" + memoryTest
)

func e2eCommand() *cobra.Command {
	o := testOptions{skipHost: true, beside: true}
	var record, memory, build bool
	var only []string
	cmd := &cobra.Command{
		Use:   "e2e",
		Short: "Run the tests that need a real control plane",
		Long: `Run the tests of e2e/controlplane: etcd, kube-apiserver and kube-controller-manager
run on this machine, on loopback, and the lab's nodes reach them over the lab's
wire. The programs are compiled once (a quarter of an hour on two processors)
and stay in the lab's cache.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := programs.CheckRelease(o.kubernetes); err != nil {
				return err
			}
			out := ""
			switch {
			case build:
				if len(only) > 0 {
					_, err := programs.Build(cmd.Context(), ".", o.kubernetes, os.Stderr, only...)
					return err
				}
				_, err := plane.Programs(cmd.Context(), ".", o.kubernetes, os.Stderr)
				return err
			case len(only) > 0:
				return errors.New("--only: want --build as well")
			case record:
				o.run, out = recordTest, plane.Recording(o.kubernetes)
			case memory:
				o.run, o.verbose = memoryTest, true
			case o.run == "":
				o.skip = oddTests
			}
			return runE2E(cmd.Context(), o, out, os.Stdout)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.run, "run", "", "only tests that match, as go test -run")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show what passing tests say: figures of loads, times")
	f.BoolVar(&o.failOnSkip, "fail-on-skip", true, "count a skipped test as a failure")
	f.DurationVar(&o.timeout, "timeout", 45*time.Minute, "for the tests")
	f.StringArrayVar(&o.env, "env", nil, "KEY=VALUE for the tests")
	f.StringVar(&o.kernel, "kernel", "", "boot the kernel of this Debian suite, even where IPVS is at hand")
	f.StringVar(&o.results, "results", "", "keep the verdicts in this directory, beside those of the kernel's other tests")
	f.StringVar(&o.kubernetes, "kubernetes", programs.Default, "version of Kubernetes: "+strings.Join(programs.Releases, " or "))
	f.BoolVar(&record, "record", false, "record what kube-proxy serves into pkg/healthz/testdata, and nothing else")
	f.BoolVar(&memory, "memory", false, "measure the agent's memory and kube-proxy's with 5,000 Services, and nothing else")
	f.BoolVar(&build, "build", false, "compile the programs, and nothing else")
	f.StringSliceVar(&only, "only", nil, "with --build: compile only these of the programs, such as kube-proxy")
	cmd.MarkFlagsMutuallyExclusive("run", "record", "memory", "build")
	return cmd
}

// runE2E starts a control plane, runs the tests beside it in one boot of the lab, and ends it. What they record goes to
// the directory out.
func runE2E(ctx context.Context, o testOptions, out string, w io.Writer) (err error) {
	start := time.Now()
	dir, err := os.MkdirTemp("", "ipvs-proxy-e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := plane.ForLab(ctx, o.kubernetes, filepath.Join(dir, "plane"), out, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	r := newRecorder(w, "e2e")
	r.verbose = o.verbose
	report := planeTests(ctx, o, r, p, dir)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	failed := summarize(w, o, newRecorder(w, "host"), r, report, time.Since(start))
	if err := keepResults(o, r, report, 0); err != nil {
		return err
	}
	if failed {
		return exitError(1)
	}
	return nil
}

func planeTests(ctx context.Context, o testOptions, r *recorder, p *plane.Plane, dir string) machine.Report {
	job := machine.Job{Files: map[string]string{}, Kernel: o.kernel}
	if err := p.Equip(&job); err != nil {
		r.failed("way to the control plane", err.Error())
		return machine.Report{}
	}
	if err := addAgent(ctx, &job, dir); err != nil {
		r.failed("build of the agent", err.Error())
	}
	programs := kernelBinaries(ctx, o, r, &job, dir, planePackage)
	if len(programs) == 0 {
		r.failed("tests", "their package could not be built")
		return machine.Report{}
	}
	conv, err := buildConverter(ctx, dir)
	if err != nil {
		r.failed("build of test2json", err.Error())
		return machine.Report{}
	}
	fmt.Fprintln(r.w, "== tests: run")
	return runKernelTests(ctx, o, r, job, programs, nil, conv)
}
