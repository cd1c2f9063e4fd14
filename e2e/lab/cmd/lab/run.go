package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

func runCommand() *cobra.Command {
	var (
		job   machine.Job
		files []string
		env   []string
		input bool
	)
	cmd := &cobra.Command{
		Use:   "run [flags] -- NAME ARGS...",
		Short: "Run one program as root on a kernel with IPVS",
		Long: "Run one program as root on a kernel with IPVS. NAME is one of the files given,\n" +
			"a program on this machine by its path (it should be static), or a tool of the lab:\n" +
			"nft, ip, ipvsadm, conntrack, sh. The exit status is the program's.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if job.Files, err = parseFiles(files); err != nil {
				return err
			}
			if strings.ContainsRune(args[0], '/') { // a path of this machine
				name := filepath.Base(args[0])
				job.Files[name] = args[0]
				args[0] = name
			}
			job.Commands = []machine.Command{{Name: args[0], Args: args, Env: env}}
			if input {
				job.Commands[0].Input = os.Stdin
				job.Commands[0].Env = append(env, "TERM="+os.Getenv("TERM"))
			}
			return runJob(cmd.Context(), job, os.Stderr)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.DurationVar(&job.Timeout, "timeout", 30*time.Minute, "end the machine after this time")
	f.BoolVarP(&input, "interactive", "i", false, "the program reads our standard input; where that is a terminal it gets one, too")
	f.StringArrayVar(&files, "file", nil, "NAME=PATH: put a file or directory of this machine into LAB_DIR")
	f.StringArrayVar(&env, "env", nil, "KEY=VALUE for the program")
	f.StringVar(&job.Kernel, "kernel", "", "boot the kernel of this Debian suite, even where IPVS is at hand")
	f.BoolVar(&job.KubeProxy, "kube-proxy", false, "with what kube-proxy needs of a machine: iptables, ipset and their modules")
	f.IntVar(&job.Memory, "memory", 0, "MiB of the virtual machine (default 2048)")
	f.IntVar(&job.CPUs, "cpus", 0, "processors of the virtual machine")
	return cmd
}

// runJob runs a job of one command, whose exit status becomes ours.
func runJob(ctx context.Context, job machine.Job, log io.Writer) error {
	report, err := machine.Run(ctx, job)
	if err != nil {
		return err
	}
	r := report.Results[0]
	fmt.Fprintf(log, "lab: Linux %s, up after %.1f s; %s took %.1f s\n", report.Kernel, report.Boot.Seconds(), r.Command, r.Took.Seconds())
	if r.Err != "" {
		fmt.Fprintf(log, "lab: %s: %s\n", r.Command, r.Err)
	}
	if r.Exit != 0 {
		return exitError(r.Exit)
	}
	return nil
}

// parseFiles reads NAME=PATH.
func parseFiles(list []string) (map[string]string, error) {
	files := map[string]string{}
	for _, nv := range list {
		name, path, ok := strings.Cut(nv, "=")
		if !ok || name == "" || path == "" {
			return nil, fmt.Errorf("--file %s: want NAME=PATH", nv)
		}
		files[name] = path
	}
	return files, nil
}
