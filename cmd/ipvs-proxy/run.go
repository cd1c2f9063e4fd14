package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// runOptions are the flags of run. Where kube-proxy has a flag of the same meaning, the name is its.
type runOptions struct {
	sourceDir   string
	nodeName    string
	clusterCIDR string
	scheduler   string
	binding     string
	verbosity   int
}

func newRun() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Program this node's kernel for the Services of the cluster, and keep it so",
		Long: `Program this node's kernel for the Services of the cluster, and keep it so.

Stopping it leaves the kernel as it is: connections go on, and the next start takes over.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.sourceDir, "source-dir", "", "directory of YAML or JSON files with the cluster's Services, EndpointSlices and Nodes, as kubectl prints them; changes are followed")
	f.StringVar(&o.nodeName, "hostname-override", "", "this node's name in the cluster; the host name where it is not given")
	f.StringVar(&o.clusterCIDR, "cluster-cidr", "", "address ranges of the cluster's pods, one or one a family with a comma between; other sources are masqueraded on their way to a ClusterIP")
	f.StringVar(&o.scheduler, "ipvs-scheduler", "rr", "scheduler of the virtual servers: rr, wrr, lc, wlc, lblc, lblcr, sed, nq, …")
	f.StringVar(&o.binding, "vip-binding", string(kernel.BindAddress), "how virtual IPs stand on kube-ipvs0: address, or route (a local route, which costs the kernel the same for 10,000 as for 10)")
	f.IntVarP(&o.verbosity, "v", "v", 0, "log level: 0 for what matters, 4 and more for every write to the kernel")
	return cmd
}

// run joins the parts: source, loop, kernel.
func (o *runOptions) run(ctx context.Context) error {
	cidrs, err := parseCIDRs(o.clusterCIDR)
	if err != nil {
		return err
	}
	if o.nodeName == "" {
		if o.nodeName, err = os.Hostname(); err != nil {
			return fmt.Errorf("no --hostname-override, and the host name cannot be read: %w", err)
		}
	}
	// As kube-proxy does it: a machine called Node1 is the Node node1.
	o.nodeName = strings.ToLower(strings.TrimSpace(o.nodeName))
	if o.sourceDir == "" {
		return errors.New("--source-dir is required: the directory with the cluster's objects")
	}
	switch kernel.Binding(o.binding) {
	case kernel.BindAddress, kernel.BindRoute:
	default:
		return fmt.Errorf("--vip-binding %q: want %s or %s", o.binding, kernel.BindAddress, kernel.BindRoute)
	}
	log, err := newLogger(o.verbosity)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()

	k, err := kernel.Open(ctx, kernel.Config{ClusterCIDRs: cidrs, Binding: kernel.Binding(o.binding)})
	if err != nil {
		return err
	}
	defer k.Close()

	model := cluster.NewModel(cluster.Options{NodeName: o.nodeName})
	source := cluster.NewDirectory(o.sourceDir, model, func(err error) { log.Warn("source", zap.Error(err)) })
	loop := sync.New(k, model, log, sync.Options{Compile: sync.CompileOptions{Scheduler: o.scheduler}})
	log.Info("starting", zap.String("version", version), zap.String("node", o.nodeName), zap.String("source", o.sourceDir),
		zap.String("clusterCIDR", o.clusterCIDR))
	err = together(ctx, source.Run, loop.Run)
	log.Info("stopped, the kernel stays as it is")
	return err
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

// parseCIDRs reads the ranges of the pods: none, one, or one of each family.
func parseCIDRs(text string) (out []netip.Prefix, err error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	seen := map[bool]string{}
	for t := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(t))
		if err != nil {
			return nil, fmt.Errorf("--cluster-cidr %q is not an address range like 10.244.0.0/16: %w", t, err)
		}
		if other, twice := seen[p.Addr().Is4()]; twice {
			return nil, fmt.Errorf("--cluster-cidr has two ranges of one family: %s and %s", other, t)
		}
		seen[p.Addr().Is4()] = t
		out = append(out, p.Masked())
	}
	return out, nil
}

// newLogger logs to standard error, a line an event.
func newLogger(verbosity int) (*zap.Logger, error) {
	cfg := zap.NewProductionConfig()
	cfg.Encoding = "console"
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
