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
func trouble(err error) error { return exitStatus{couldNotLook, err} }

// troubled has a command with the wrong arguments end as one that cannot look.
func troubled(args cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := args(cmd, given); err != nil {
			return trouble(err)
		}
		return nil
	}
}

// lookFlags are the flags of a command that looks at cluster and kernel as run does, and writes nothing.
type lookFlags struct {
	flags   *config.Flags
	from    *sourceFlags
	output  string
	timeout time.Duration
}

// add adds them to a command. A flag that is wrong means that it cannot look.
func (l *lookFlags) add(cmd *cobra.Command, output string) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return trouble(err) })
	f := cmd.Flags()
	l.flags, l.from = config.RunFlags(f), addSourceFlags(cmd)
	f.StringVarP(&l.output, "output", "o", "table", output)
	f.DurationVar(&l.timeout, "timeout", 20*time.Second, "how long to wait for the cluster's objects")
}

// check says what is wrong with how it is to be printed.
func (l *lookFlags) check() error {
	switch l.output {
	case "table", "json", "yaml":
		return nil
	}
	return fmt.Errorf("--output=%s: want table, json or yaml", l.output)
}

// look reads cluster and kernel.
func (l *lookFlags) look(cmd *cobra.Command) (in preview.Input, err error) {
	if err := l.check(); err != nil {
		return in, err
	}
	c, warnings, err := l.flags.Load(cmd.Flags())
	if err != nil {
		return in, err
	}
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	return rehearse(cmd.Context(), c, l.from, l.timeout)
}

// print prints what was found as it was asked for.
func (l *lookFlags) print(out io.Writer, found any, table func() string) error {
	text := []byte(nil)
	if l.output == "table" {
		text = []byte(table())
	} else {
		b, err := json.MarshalIndent(found, "", "  ")
		if err == nil && l.output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return fmt.Errorf("print as %s: %w", l.output, err)
		}
		text = append(b, '\n')
	}
	_, err := out.Write(text)
	return err
}

// rehearse reads cluster and kernel and goes through a start.
func rehearse(ctx context.Context, c *config.Config, from *sourceFlags, timeout time.Duration) (in preview.Input, err error) {
	name, err := c.NodeName()
	if err != nil {
		return in, fmt.Errorf("no --hostname-override and no hostnameOverride, and the host name cannot be read: %w", err)
	}
	return theseSources.rehearse(ctx, c, name, func(ctx context.Context) (*cluster.Model, error) {
		model := cluster.NewModel(cluster.Options{NodeName: name, ServiceProxyName: c.Own.ServiceProxyName})
		return model, fill(ctx, c, from, model, timeout)
	})
}

// rehearsed is a kernel that a start may be gone through on.
type rehearsed interface {
	sync.Looker
	sync.Proxies
	Close()
}

// lookOnly opens this node's kernel to look at it.
func lookOnly(ctx context.Context, c *config.Config) (rehearsed, error) {
	if err := kernel.MayAdminister(); err != nil {
		return nil, err
	}
	cfg := kernelConfig(c)
	cfg.ReadOnly = true
	return kernel.Open(ctx, cfg)
}

// rehearse goes through a start by a configuration and some objects, of a node with a name.
func (s sources) rehearse(ctx context.Context, c *config.Config, name string, objects func(context.Context) (*cluster.Model, error)) (in preview.Input, err error) {
	opt, _, err := syncOptions(c)
	if err != nil {
		return in, err
	}
	k, err := s.lookOnly(ctx, c)
	if err != nil {
		return in, err
	}
	defer k.Close()
	model, err := objects(ctx)
	if err != nil {
		return in, err
	}
	opt.Proxies = k
	start, err := sync.Rehearse(ctx, k, model, opt)
	if err != nil {
		return in, err
	}
	return preview.Input{Node: name, Start: start, Services: model.Services(), Kept: opt.KeepLeftovers,
		Clients: clients(c), Asking: model.Asking}.With(lookAround()), nil
}

// clients is how the node tells clients apart.
func clients(c *config.Config) preview.Clients {
	k := kernelConfig(c)
	return preview.Clients{Pods: k.ClusterCIDRs, NodePods: k.PodsFollow, Interface: k.PodInterface, MasqueradeAll: k.MasqueradeAll,
		Routes: k.Binding == kernel.BindRoute}
}

// lookAround looks who else is on this node. Where that cannot be seen, nobody is known.
func lookAround() (agent bool, mode string, problems []error) {
	agent, err := node.Present()
	if err != nil {
		problems = append(problems, fmt.Errorf("see whether an agent is at work: %w", err))
	}
	mode, err = node.KubeProxyMode()
	if err != nil {
		problems = append(problems, fmt.Errorf("look for kube-proxy's chains: %w", err))
	}
	return agent, mode, problems
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
