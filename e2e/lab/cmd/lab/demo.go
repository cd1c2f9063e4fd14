package main

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

func demoCommand() *cobra.Command {
	job := machine.Job{Files: map[string]string{}}
	cmd := &cobra.Command{
		Use:   "demo [flags] [-- ARGS...]",
		Short: "Show the agent at work on the lab",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := os.MkdirTemp("", "ipvs-proxy-demo-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			ctx, out := cmd.Context(), filepath.Join(dir, "demo")
			if err := addAgent(ctx, &job, dir); err != nil {
				return err
			}
			if _, err := goRun(ctx, static, slices.Concat([]string{"build", "-o", out}, buildFlags, []string{"./e2e/demo"})...); err != nil {
				return err
			}
			job.Files["demo"] = out
			if exists("examples") {
				job.Files["examples"] = "examples"
			}
			job.Commands = []machine.Command{{
				Name: "demo", Args: append([]string{"demo"}, args...),
				Env: []string{"IPVS_PROXY_LAB=1", "LAB_AGENT=$LAB_DIR/" + agentFile},
			}}
			return runJob(ctx, job, os.Stderr)
		},
	}
	cmd.Flags().DurationVar(&job.Timeout, "timeout", 10*time.Minute, "end the machine after this time")
	cmd.Flags().StringVar(&job.Kernel, "kernel", "", "boot the kernel of this Debian suite, even where IPVS is at hand")
	return cmd
}
