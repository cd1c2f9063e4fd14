package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"sigs.k8s.io/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// The exit statuses of commands that look.
const (
	foundSomething = 1
	couldNotLook   = 2
)

// trouble is what ends a command that could not look.
func trouble(err error) error {
	if err == nil {
		return nil
	}
	return exitStatus{couldNotLook, err}
}

// diffFlags are the flags of diff alone.
type diffFlags struct {
	output  string
	all     bool
	timeout time.Duration
}

func newDiff() *cobra.Command {
	var flags *config.Flags
	var from *sourceFlags
	var d diffFlags
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Say what run would change on this node, and change nothing",
		Long: `Say what run would change on this node, and change nothing.

It takes the flags and the configuration of run, reads the cluster and the kernel, and goes through a start of the agent
with the writes left out: what it prints is what run would write. Beside a kube-proxy that is at work, that is what would
stay, come, change and go, and which Services would behave otherwise, each with its reason (docs/reasons.md). Beside an
agent, it is what the agent has still to do. It needs CAP_NET_ADMIN, without which IPVS cannot be read. Asking for a part
of the kernel makes the kernel load the module that has it. Entries of connection tracking, which run deletes where they
bypass a UDP Service, are not listed: they come and go with the traffic.

The exit status is 0 where nothing is to do, 1 where something is, 2 where that cannot be said.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, warnings, err := flags.Load(cmd.Flags())
			if err != nil {
				return trouble(err)
			}
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			if err := d.check(); err != nil {
				return trouble(err)
			}
			report, err := diff(cmd.Context(), c, from, d.timeout)
			if err != nil {
				return trouble(err)
			}
			if err := d.print(cmd.OutOrStdout(), report); err != nil {
				return trouble(err)
			}
			if report.Differs() {
				return exitStatus{status: foundSomething}
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return trouble(err) })
	flags, from = config.RunFlags(cmd.Flags()), addSourceFlags(cmd)
	cmd.Flags().StringVarP(&d.output, "output", "o", "table", "how to print it: table, json or yaml; a table names the first 20 writes and Services and counts the others")
	cmd.Flags().BoolVar(&d.all, "all", false, "name every write and every Service in the table")
	cmd.Flags().DurationVar(&d.timeout, "timeout", 20*time.Second, "how long to wait for the cluster's objects")
	return cmd
}

func (d diffFlags) check() error {
	switch d.output {
	case "table", "json", "yaml":
		return nil
	}
	return fmt.Errorf("--output=%s: want table, json or yaml", d.output)
}

// print prints a report as it was asked for.
func (d diffFlags) print(out io.Writer, r *preview.Report) error {
	if d.output == "table" {
		return r.Table(out, d.all)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil && d.output == "yaml" {
		b, err = yaml.JSONToYAML(b)
	}
	if err != nil {
		return fmt.Errorf("print as %s: %w", d.output, err)
	}
	_, err = out.Write(append(b, '\n'))
	return err
}

// diff reads cluster and kernel and rehearses a start.
func diff(ctx context.Context, c *config.Config, from *sourceFlags, timeout time.Duration) (*preview.Report, error) {
	opt, _, err := syncOptions(c)
	if err != nil {
		return nil, err
	}
	if err := kernel.MayAdminister(); err != nil {
		return nil, err
	}
	name, err := c.NodeName()
	if err != nil {
		return nil, fmt.Errorf("no --hostname-override and no hostnameOverride, and the host name cannot be read: %w", err)
	}
	cfg := kernelConfig(c)
	cfg.ReadOnly = true
	k, err := kernel.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	model := cluster.NewModel(cluster.Options{NodeName: name, ServiceProxyName: c.Own.ServiceProxyName})
	if err := fill(ctx, c, from, model, timeout); err != nil {
		return nil, err
	}
	start, err := sync.Rehearse(ctx, k, model, opt)
	if err != nil {
		return nil, err
	}
	in := preview.Input{Node: name, Start: start, Services: model.Services()}
	return preview.Make(in.With(lookAround())), nil
}

// lookAround looks who else is on this node. Where that cannot be seen, nobody is known.
func lookAround() (agent bool, left *preview.Leftovers, problems []error) {
	agent, err := node.Present()
	if err != nil {
		problems = append(problems, fmt.Errorf("see whether an agent is at work: %w", err))
	}
	l, err := node.FindLeftovers()
	if err != nil {
		problems = append(problems, fmt.Errorf("look for kube-proxy's chains: %w", err))
	}
	if l.Mode != "" {
		left = &preview.Leftovers{Mode: l.Mode, Tables: append([]string{}, l.Tables...), Chains: l.Chains, Stay: true}
	}
	return agent, left, problems
}

// fill takes all that the source has into a model, which does not change afterwards.
func fill(ctx context.Context, c *config.Config, from *sourceFlags, model *cluster.Model, timeout time.Duration) error {
	captureLogs(zap.NewNop())
	var last atomic.Pointer[error]
	src, err := from.openTelling(c, model, zap.NewNop(), func(err error) {
		switch t := (cluster.Trouble{}); {
		case errors.As(err, &t) && t.Note():
		case t.Mended:
			last.Store(nil)
		default:
			last.Store(&err)
		}
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- src.run(ctx) }()
	for !model.Complete() {
		select {
		case <-model.Changed():
			continue
		case err = <-ended:
		}
		if why := last.Load(); err == nil && why != nil {
			err = *why
		}
		if err == nil {
			err = sync.ErrIncomplete
		}
		return fmt.Errorf("%s: not all of the cluster's objects came within %s: %w", src.name, timeout, err)
	}
	stop()
	return <-ended
}
