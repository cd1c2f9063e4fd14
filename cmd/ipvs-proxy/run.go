package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

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
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if done, err := only.printVersion(cmd); done {
				return err
			}
			c, warnings, err := flags.Load(cmd.Flags())
			if err != nil {
				return err
			}
			if done, err := only.do(cmd, c); done {
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
	warnings = append(warnings, w...)
	name, err := c.NodeName()
	if err != nil {
		return fmt.Errorf("no --hostname-override and no hostnameOverride, and the host name cannot be read: %w", err)
	}
	log, err := newLogger(uint32(c.Proxy.Logging.Verbosity), c.Proxy.Logging.Format)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()

	for _, w := range warnings {
		log.Warn(w)
	}
	if err := node.SetOOMScore(*c.Proxy.OOMScoreAdj); err != nil {
		log.Warn("when memory runs out, the kernel may end this process before others", zap.Error(err))
	}
	model := cluster.NewModel(cluster.Options{NodeName: name, ServiceProxyName: c.Own.ServiceProxyName})
	src, err := from.open(c, model, log)
	if err != nil {
		return err
	}
	var age func() time.Duration
	if src.api != nil {
		age, sopt.Events = src.api.Age, src.api.Events()
	}
	sopt.Health = newHealth(c, age)
	list, err := servers(c, sopt.Health, flags, log)
	if err != nil {
		return err
	}
	k, err := kernel.Open(ctx, kernelConfig(c))
	if err != nil {
		return err
	}
	defer k.Close()

	loop := sync.New(k, model, log, sopt)
	log.Info("starting", zap.String("version", version), zap.String("node", name), zap.String("source", src.name),
		zap.String("clusterCIDR", c.Proxy.ClusterCIDR))
	hold := func(ctx context.Context) error {
		return node.Hold(ctx, func(err error) { log.Warn("not alone on this node", zap.Error(err)) })
	}
	parts := []func(context.Context) error{src.run, loop.Run, hold}
	for _, s := range list {
		parts = append(parts, s.Run)
	}
	parts = append(parts, func(ctx context.Context) error { return sopt.Health.ServeChecks(ctx, log) })
	err = together(ctx, parts...)
	log.Info("stopped, the kernel stays as it is")
	return err
}

// syncOptions is what decides what Services become.
func syncOptions(c *config.Config) (opt sync.Options, warnings []string, err error) {
	opt = sync.Options{
		Desk:          desk.Options{Scheduler: c.Proxy.IPVS.Scheduler},
		NodePods:      c.Proxy.DetectLocalMode == "NodeCIDR",
		DrainDeadline: c.Own.DrainDeadline.Duration,
		AuditPeriod:   c.Own.AuditPeriod.Duration,
		AuditCPU:      *c.Own.AuditCPU,
	}
	if opt.Desk.NodePorts, warnings, err = desk.ParseNodePortAddresses(c.Proxy.NodePortAddresses); err != nil {
		return opt, nil, c.Invalid("nodePortAddresses", strings.Join(c.Proxy.NodePortAddresses, ","), "address ranges like 192.0.2.0/24, or one of primary, all and localhost")
	}
	opt.Desk.ExternalIPs = c.ExternalIPs()
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

// newLogger logs to standard error, a line an event.
func newLogger(verbosity uint32, format string) (*zap.Logger, error) {
	cfg := zap.NewProductionConfig()
	if format != "json" {
		cfg.Encoding = "console"
	}
	cfg.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	cfg.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	cfg.DisableCaller, cfg.DisableStacktrace = true, true
	cfg.Sampling = nil
	if verbosity >= 4 {
		cfg.Level = zap.NewAtomicLevelAt(zap.DebugLevel)
	}
	log, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("set up the log: %w", err)
	}
	return log, nil
}
