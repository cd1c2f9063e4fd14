package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// Where the world of the lab has the control plane, see plane.Options. The lab's own package is for the other side.
var (
	planeAddress = netip.MustParseAddr("172.28.128.1")
	serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")}
)

// Tests of planePackage that do not belong to every run.
const (
	recordTest = "^TestRecordKubeProxy$"
	memoryTest = "^TestMemory$"
	oddTests   = recordTest + "|" + memoryTest
)

func e2eCommand() *cobra.Command {
	o := testOptions{skipHost: true, beside: true}
	var record string
	var memory, build bool
	cmd := &cobra.Command{
		Use:   "e2e",
		Short: "Run the tests that need a real control plane",
		Long: `Run the tests of e2e/controlplane: etcd, kube-apiserver and kube-controller-manager
run on this machine, on loopback, and the lab's nodes reach them over the lab's
wire. The programs are compiled once (a quarter of an hour on two processors)
and stay in the lab's cache.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case build:
				_, err := planePrograms(cmd.Context(), os.Stderr)
				return err
			case record != "":
				o.run = recordTest
			case memory:
				o.run = memoryTest
			case o.run == "":
				o.skip = oddTests
			}
			return runE2E(cmd.Context(), o, record, os.Stdout)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.run, "run", "", "only tests that match, as go test -run")
	f.BoolVar(&o.failOnSkip, "fail-on-skip", true, "count a skipped test as a failure")
	f.DurationVar(&o.timeout, "timeout", 45*time.Minute, "for the tests")
	f.StringArrayVar(&o.env, "env", nil, "KEY=VALUE for the tests")
	f.StringVar(&o.kernel, "kernel", "", "boot the kernel of this Debian suite, even where IPVS is at hand")
	f.StringVar(&o.results, "results", "", "keep the verdicts in this directory, beside those of the kernel's other tests")
	f.StringVar(&record, "record", "", "record what kube-proxy serves into this directory, and nothing else")
	f.BoolVar(&memory, "memory", false, "measure the agent's memory and kube-proxy's with 5,000 Services, and nothing else")
	f.BoolVar(&build, "build", false, "compile the programs, and nothing else")
	cmd.MarkFlagsMutuallyExclusive("run", "record", "memory", "build")
	return cmd
}

func planePrograms(ctx context.Context, log io.Writer) (map[string]string, error) {
	return programs.Build(ctx, ".", log, programs.Etcd, programs.APIServer, programs.ControllerManager,
		programs.KubeProxy, programs.CoreDNS)
}

// runE2E starts a control plane, runs the tests beside it and ends it. What they record goes to the directory out.
func runE2E(ctx context.Context, o testOptions, out string, w io.Writer) (err error) {
	start := time.Now()
	files, err := planePrograms(ctx, w)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ipvs-proxy-e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := startPlane(ctx, filepath.Join(dir, "plane"), out, files, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	r := newRecorder(w, "e2e")
	report := planeTests(ctx, o, r, p, files, dir)
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

func startPlane(ctx context.Context, dir, out string, files map[string]string, w io.Writer) (*plane.Plane, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	start := time.Now()
	p, err := plane.Start(ctx, plane.Options{Programs: files, Dir: dir, Out: out, Address: planeAddress, ServiceCIDRs: serviceCIDRs})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "== control plane %s ready after %s\n", programs.KubernetesVersion, time.Since(start).Round(100*time.Millisecond))
	return p, nil
}

// planeTests runs the tests in one boot of the lab.
func planeTests(ctx context.Context, o testOptions, r *recorder, p *plane.Plane, files map[string]string, dir string) machine.Report {
	info, err := p.Info()
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, plane.InfoFile), info, 0o600)
	}
	if err != nil {
		r.failed("description of the control plane", err.Error())
		return machine.Report{}
	}
	job := machine.Job{Kernel: o.kernel, Memory: 4096, KubeProxy: true, HostPorts: []uint16{p.Port, p.Control},
		Files: map[string]string{
			plane.InfoFile:     filepath.Join(dir, plane.InfoFile),
			programs.KubeProxy: files[programs.KubeProxy],
			programs.CoreDNS:   files[programs.CoreDNS],
		}}
	if err := addAgent(ctx, &job, dir); err != nil {
		r.failed("build of the agent", err.Error())
	}
	pkgs := kernelBinaries(ctx, o, r, &job, dir, planePackage)
	if len(pkgs) == 0 {
		r.failed("tests", "their package could not be built")
		return machine.Report{}
	}
	return runKernelTests(ctx, o, r, job, pkgs, nil, dir)
}
