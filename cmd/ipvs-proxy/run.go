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
	binding     string
	setup       setupFlags
	verbosity   int

	localMode        string
	podBridge        string
	podInterfaces    string
	masqueradeAll    bool
	nodePorts        []string
	externalIPs      []string
	protected        []string
	serviceProxyName string
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
	f.StringVar(&o.binding, "vip-binding", string(kernel.BindAddress), "how virtual IPs stand on kube-ipvs0: address, or route (a local route, which costs the kernel the same for 10,000 as for 10)")
	f.StringVar(&o.localMode, "detect-local-mode", "ClusterCIDR", "how pods are told from other clients: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	f.StringVar(&o.podBridge, "pod-bridge-interface", "", "with BridgeInterface: the bridge through which this node's pods send")
	f.StringVar(&o.podInterfaces, "pod-interface-name-prefix", "", "with InterfaceNamePrefix: how the names of the interfaces begin through which this node's pods send")
	f.BoolVar(&o.masqueradeAll, "masquerade-all", false, "masquerade every client on its way to a ClusterIP, pods as well")
	f.StringSliceVar(&o.nodePorts, "nodeport-addresses", nil, "the node's addresses on which node ports are served: address ranges, or one of primary, all and localhost; all of them where it is not given")
	f.StringSliceVar(&o.externalIPs, "external-ip-cidrs", nil, "address ranges from which spec.externalIPs of Services are served; none where it is not given: whoever may write a Service could take any address")
	f.StringSliceVar(&o.protected, "protected-cidrs", nil, "address ranges that no Service may have as an external address: other nodes', the API server's")
	f.StringVar(&o.serviceProxyName, "service-proxy-name", "", "serve exactly the Services whose label service.kubernetes.io/service-proxy-name has this value; where it is not given, those without the label")
	o.setup.add(cmd)
	f.IntVarP(&o.verbosity, "v", "v", 0, "log level: 0 for what matters, 4 and more for every write to the kernel")
	return cmd
}

// run joins the parts: source, loop, kernel.
func (o *runOptions) run(ctx context.Context) error {
	kcfg, err := o.kernelConfig()
	if err != nil {
		return err
	}
	sopt, warnings, err := o.syncOptions()
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
	if kcfg, err = o.setup.config(kcfg); err != nil {
		return err
	}
	log, err := newLogger(o.verbosity)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()

	for _, w := range warnings {
		log.Warn(w)
	}
	k, err := kernel.Open(ctx, kcfg)
	if err != nil {
		return err
	}
	defer k.Close()

	model := cluster.NewModel(cluster.Options{NodeName: o.nodeName, ServiceProxyName: o.serviceProxyName})
	source := cluster.NewDirectory(o.sourceDir, model, func(err error) { log.Warn("source", zap.Error(err)) })
	loop := sync.New(k, model, log, sopt)
	log.Info("starting", zap.String("version", version), zap.String("node", o.nodeName), zap.String("source", o.sourceDir),
		zap.String("clusterCIDR", o.clusterCIDR))
	err = together(ctx, source.Run, loop.Run)
	log.Info("stopped, the kernel stays as it is")
	return err
}

// kernelConfig is what the constant part of the kernel's state depends on.
func (o *runOptions) kernelConfig() (cfg kernel.Config, err error) {
	cfg = kernel.Config{Binding: kernel.Binding(o.binding), MasqueradeAll: o.masqueradeAll}
	switch cfg.Binding {
	case kernel.BindAddress, kernel.BindRoute:
	default:
		return cfg, fmt.Errorf("--vip-binding %q: want %s or %s", o.binding, kernel.BindAddress, kernel.BindRoute)
	}
	cidrs, err := parseCIDRs(o.clusterCIDR)
	if err != nil {
		return cfg, err
	}
	switch o.localMode {
	case "ClusterCIDR":
		cfg.ClusterCIDRs = cidrs
	case "NodeCIDR":
		cfg.PodsFollow = true
	case "BridgeInterface":
		if cfg.PodInterface = o.podBridge; cfg.PodInterface == "" {
			return cfg, errors.New("--detect-local-mode BridgeInterface needs --pod-bridge-interface")
		}
	case "InterfaceNamePrefix":
		if o.podInterfaces == "" {
			return cfg, errors.New("--detect-local-mode InterfaceNamePrefix needs --pod-interface-name-prefix")
		}
		cfg.PodInterface = o.podInterfaces + "*"
	default:
		return cfg, fmt.Errorf("--detect-local-mode %q: want ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", o.localMode)
	}
	return cfg, nil
}

// syncOptions is what decides what Services become.
func (o *runOptions) syncOptions() (opt sync.Options, warnings []string, err error) {
	opt = sync.Options{Compile: sync.CompileOptions{Scheduler: o.setup.scheduler}, NodePods: o.localMode == "NodeCIDR"}
	if opt.Compile.NodePorts, warnings, err = sync.ParseNodePortAddresses(o.nodePorts); err != nil {
		return opt, nil, fmt.Errorf("--nodeport-addresses: %w", err)
	}
	if opt.Compile.ExternalIPs, err = parseRanges("--external-ip-cidrs", o.externalIPs); err != nil {
		return opt, nil, err
	}
	opt.Compile.Protected, err = parseRanges("--protected-cidrs", o.protected)
	return opt, warnings, err
}

// parseRanges reads a list of address ranges.
func parseRanges(flag string, list []string) (out []netip.Prefix, err error) {
	for _, t := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(t))
		if err != nil {
			return nil, fmt.Errorf("%s %q is not an address range like 192.0.2.0/24: %w", flag, t, err)
		}
		out = append(out, p.Masked())
	}
	return out, nil
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
