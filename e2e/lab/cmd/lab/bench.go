package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

func benchCommand() *cobra.Command {
	var results string
	var byTime bool
	job := machine.Job{Files: map[string]string{}}
	cmd := &cobra.Command{
		Use:   "bench [flags] [-- ARGS...]",
		Short: "Count the instructions that the agent's work costs",
		Long: `Count the instructions that the agent's work costs, on a virtual machine whose
clock counts them: the host's speed and load do not show. The exit status is 1
when a limit is broken. "lab bench -- --help" lists the sizes.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := os.MkdirTemp("", "ipvs-proxy-bench-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			ctx, out := cmd.Context(), filepath.Join(dir, "bench")
			if _, err := goRun(ctx, static, slices.Concat([]string{"build", "-o", out}, buildFlags, []string{"./e2e/bench"})...); err != nil {
				return err
			}
			job.Files["bench"] = out
			if err := addAgent(ctx, &job, dir); err != nil {
				return err
			}
			file, err := programs.Cached(ctx, ".", programs.Default, programs.KubeProxy)
			if err != nil {
				return err
			}
			if file != "" { // it is counted beside the agent by whoever has compiled it
				job.Files[programs.KubeProxy], job.KubeProxy = file, true
			}
			bench := machine.Command{Name: "bench", Args: append([]string{"bench"}, args...)}
			if job.Icount = !byTime; job.Icount {
				bench.Env = []string{"LAB_ICOUNT=1"}
			}
			job.Commands = []machine.Command{bench}
			var said bytes.Buffer
			job.Output = io.MultiWriter(os.Stdout, &said)
			err = runJob(ctx, job, os.Stderr)
			if results == "" {
				return err
			}
			keep := exec.CommandContext(ctx, out, "--keep", results)
			keep.Stdin, keep.Stderr = &said, os.Stderr
			return errors.Join(err, keep.Run())
		},
	}
	cmd.Flags().StringVar(&results, "results", "", "put what it came to into this file, for docs/performance.md")
	cmd.Flags().BoolVar(&byTime, "time", false, "measure time, on as many processors as there are, and count nothing: for what happens at once")
	cmd.Flags().DurationVar(&job.Timeout, "timeout", 30*time.Minute, "end the machine after this time")
	cmd.Flags().StringVar(&job.Kernel, "kernel", "", "boot the kernel of this Debian suite")
	return cmd
}
