package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

func demoCommand() *cobra.Command {
	job := machine.Job{Files: map[string]string{}}
	var shell bool
	cmd := &cobra.Command{
		Use:   "demo [flags]",
		Short: "Show the agent at work on the lab, or leave you there at a shell",
		Long: `Show the agent at work on the lab. With --shell, leave you in the demo's world at
a shell of a node; it reads our standard input, a terminal or not, and its exit
status is ours.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := os.MkdirTemp("", "ipvs-proxy-demo-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			ctx := cmd.Context()
			if err := addAgent(ctx, &job, dir); err != nil {
				return err
			}
			if err := addDemo(ctx, &job, dir); err != nil {
				return err
			}
			if !shell { // its last scene is beside kube-proxy itself, for whoever has compiled it
				if err := addKubeProxy(ctx, &job, programs.Default); err != nil {
					return err
				}
			}
			c := demo()
			if shell {
				fmt.Fprintln(os.Stderr, "lab: making a machine with three nodes")
				c = demoShell()
				c.Input = os.Stdin
				if !cmd.Flags().Changed("timeout") {
					job.Timeout = 24 * time.Hour // somebody may go for lunch
				}
			}
			job.Commands = []machine.Command{c}
			return runJob(ctx, job, os.Stderr)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&shell, "shell", false, "leave you at a shell of a node")
	f.DurationVar(&job.Timeout, "timeout", 20*time.Minute, "end the machine after this time; with --shell, a day where it is not given")
	f.StringVar(&job.Kernel, "kernel", "", "boot the kernel of this Debian suite, even where IPVS is at hand")
	return cmd
}

// addDemo builds the demo and puts it into a job that has the agent.
func addDemo(ctx context.Context, job *machine.Job, dir string) error {
	out := filepath.Join(dir, "demo")
	if _, err := goRun(ctx, static, slices.Concat([]string{"build", "-o", out}, buildFlags, []string{"./e2e/demo"})...); err != nil {
		return err
	}
	job.Files["demo"], job.Files["examples"] = out, "examples"
	return nil
}

// addKubeProxy puts a release's kube-proxy into a job, and what it needs, where it is in the cache.
func addKubeProxy(ctx context.Context, job *machine.Job, release string) error {
	file, err := programs.Cached(ctx, ".", release, programs.KubeProxy)
	if err != nil || file == "" {
		return err
	}
	job.KubeProxy, job.Files[programs.KubeProxy] = true, file
	return nil
}

func demo(args ...string) machine.Command {
	return machine.Command{
		Name: "demo", Args: append([]string{"demo"}, args...),
		Env: []string{"IPVS_PROXY_LAB=1", "LAB_AGENT=$LAB_DIR/" + agentFile},
	}
}

// demoShell is the demo's shell, which wants an input.
func demoShell() machine.Command {
	c := demo("shell")
	c.Name, c.Env = "demo shell", append(c.Env, "TERM="+os.Getenv("TERM"))
	return c
}
