package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

func newRun() *cobra.Command {
	var only once
	var flags *config.Flags
	var from *sourceFlags
	var f *pflag.FlagSet
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Program this node's kernel for the Services of the cluster, and keep it so",
		Long: `Program this node's kernel for the Services of the cluster, and keep it so.

Stopping it leaves the kernel as it is: connections go on, and the next start takes over.`,
		Args: func(_ *cobra.Command, args []string) error {
			// As with kube-proxy, an empty one is none: it is what a DaemonSet's variable without a value leaves.
			for _, arg := range args {
				if arg != "" {
					return fmt.Errorf("%q: want flags alone", arg)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if done, err := only.printVersion(cmd); done {
				return err
			}
			c, warnings, err := flags.Load(cmd.Flags())
			if err != nil {
				return err
			}
			if done, err := only.do(cmd, c, warnings); done {
				return err
			}
			return run(cmd.Context(), c, from, warnings, flagValues(f))
		},
	}
	f = cmd.Flags()
	only.add(cmd)
	flags, from = config.RunFlags(f), addSourceFlags(cmd)
	return cmd
}

// run joins the parts: source, loop, kernel.
func run(ctx context.Context, c *config.Config, from *sourceFlags, warnings []string, flags map[string]string) error {
	sopt, w, err := syncOptions(c)
	if err != nil {
		return err
	}
	warnings = slices.Concat(warnings, w, limitMemory(os.Getenv))
	name, err := c.NodeName()
	if err != nil {
		return fmt.Errorf("no --hostname-override and no hostnameOverride, and the host name cannot be read: %w", err)
	}
	log, dropped := settle(c, warnings)
	defer func() { _ = log.Sync() }()

	model := cluster.NewModel(cluster.Options{NodeName: name, ServiceProxyName: c.Own.ServiceProxyName})
	src, err := from.open(c, model, log)
	if err != nil {
		return err
	}
	if src.api != nil {
		sopt.Events = src.api.Events()
	}
	counted := newTraffic()
	defer counted.close()
	sopt.Health = newHealth(c, src, dropped, counted, log)
	list, err := servers(c, sopt.Health, flags, log)
	if err != nil {
		return err
	}
	place, err := node.Take(c.Own.ServiceProxyName)
	if err != nil {
		return err
	}
	k, err := openKernel(ctx, c, log)
	if k == nil {
		return err
	}
	defer k.Close()
	sayNeighbours(ctx, log)

	if c.Own.ServiceProxyName == "" { // else the Services without the label are another proxy's
		sopt.Proxies = k
	}
	sopt.Ports, sopt.Schedulers, sopt.Processor = k, k, processorTime
	loop := sync.New(k, model, log, sopt)
	counted.open(ctx, c, model, loop, log)
	is := inspected(c, loop, model, log)
	defer addPage(ctx, c, list, pageOptions(c, name, src, sopt.Health, is, log))()
	log.Info("starting", zap.String("version", version), zap.String("node", name), zap.String("source", src.name),
		zap.String("clusterCIDR", c.Proxy.ClusterCIDR))
	parts := []func(context.Context) error{src.run, loop.Run, holding(place, log),
		func(ctx context.Context) error { return sopt.Health.ServeChecks(ctx, log) }, new(collector).run}
	for _, s := range append(list, questions(place, withCopy(is.Handler(), c, name, model, log), log)) {
		parts = append(parts, s.Run)
	}
	err = together(ctx, parts...)
	log.Info("stopped, the kernel stays as it is")
	return err
}

// sayNeighbours has the log say who on this node is in the way of Services.
func sayNeighbours(ctx context.Context, log *zap.Logger) {
	for _, f := range node.Neighbours(ctx) {
		if f.Level != node.OK {
			log.Warn("something on this node is in the way of Services", zap.String("what", f.Text))
		}
	}
}

// holding keeps the place of this node's agent, and says when another one has it.
func holding(place *node.Place, log *zap.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		return place.Hold(ctx, func(err error) { log.Warn("not alone on this node", zap.Error(err)) })
	}
}

// openKernel opens the door to the kernel. Both are nil where the agent was asked to stop: that the kernel was not waited for
// is no failure.
func openKernel(ctx context.Context, c *config.Config, log *zap.Logger) (*kernel.Kernel, error) {
	k, err := kernel.Open(ctx, kernelConfig(c))
	if err != nil && ctx.Err() != nil {
		log.Info("stopped before the kernel was looked at")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// settle makes the log and gives the process its place among those of the node. dropped counts the lines that were lost.
func settle(c *config.Config, warnings []string) (log *zap.Logger, dropped func() uint64) {
	log, dropped = newLogger(uint32(c.Proxy.Logging.Verbosity), c.Proxy.Logging.Format, os.Stderr)
	captureLogs(log)
	for _, w := range warnings {
		log.Warn(w)
	}
	if err := node.SetOOMScore(*c.Proxy.OOMScoreAdj); err != nil {
		log.Warn("when memory runs out, the kernel may end this process before others", zap.Error(err))
	}
	return log, dropped
}

// syncOptions is what decides what Services become.
func syncOptions(c *config.Config) (opt sync.Options, warnings []string, err error) {
	opt = sync.Options{
		Desk:          desk.Options{Scheduler: c.Proxy.IPVS.Scheduler},
		NodePods:      c.Proxy.DetectLocalMode == "NodeCIDR",
		DrainDeadline: c.Own.DrainDeadline.Duration,
		AuditPeriod:   c.Own.AuditPeriod.Duration,
		AuditCPU:      *c.Own.AuditCPU,
		KeepLeftovers: c.Own.Takeover.Leftovers == config.LeftoversKeep,
	}
	if opt.Desk.NodePorts, warnings, err = desk.ParseNodePortAddresses(c.Proxy.NodePortAddresses); err != nil {
		return opt, nil, c.Invalid("nodePortAddresses", strings.Join(c.Proxy.NodePortAddresses, ","), "address ranges like 192.0.2.0/24, and the words primary, all and localhost")
	}
	opt.Desk.ExternalIPs, opt.Desk.Pods = c.ExternalIPs(), c.PodRanges()
	if opt.Desk.Spared, err = config.ParseRanges(c.Proxy.IPVS.ExcludeCIDRs); err != nil {
		return opt, nil, err
	}
	opt.Desk.Protected, err = config.ParseRanges(c.Own.ProtectedCIDRs)
	return opt, warnings, err
}

// together runs functions until ctx ends or one of them fails, and waits for all.
func together(ctx context.Context, fs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, len(fs))
	for _, f := range fs {
		go func() {
			err := f(ctx)
			cancel()
			done <- err
		}()
	}
	var errs error
	for range fs {
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}
