package config

import (
	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
)

// FlagName is the name by which a flag is known that was given by another: as with kube-proxy, --proxy_mode is
// --proxy-mode. Command lines of years ago are written so.
func FlagName(f *pflag.FlagSet, given string) pflag.NormalizedName {
	return cliflag.WordSepNormalizeFunc(f, given)
}

// addSetup binds the flags that run, init and check share. Help texts speak of what the values do here.
func addSetup(f *pflag.FlagSet, c *Config) {
	v, t := &c.Proxy.IPVS, &c.Proxy.Conntrack
	f.StringVar(&v.Scheduler, "ipvs-scheduler", v.Scheduler, "scheduler of the virtual servers: rr, wrr, lc, wlc, lblc, lblcr, sed, nq, …")
	f.BoolVar(&v.StrictARP, "ipvs-strict-arp", v.StrictARP, "set arp_ignore=1 and arp_announce=2, so that the node neither answers nor asks for virtual IPs by ARP")
	f.Int32Var(t.MaxPerCore, "conntrack-max-per-core", *t.MaxPerCore, "room for so many tracked connections per processor (0 leaves the kernel's limit alone; it is only ever raised)")
	f.Int32Var(t.Min, "conntrack-min", *t.Min, "room for so many tracked connections at least, however few the processors; without meaning where conntrack-max-per-core is 0")
	f.DurationVar(&t.TCPEstablishedTimeout.Duration, "conntrack-tcp-timeout-established", t.TCPEstablishedTimeout.Duration, "how long an idle TCP connection is tracked (0 leaves it alone)")
	f.DurationVar(&t.TCPCloseWaitTimeout.Duration, "conntrack-tcp-timeout-close-wait", t.TCPCloseWaitTimeout.Duration, "how long a TCP connection in CLOSE_WAIT is tracked (0 leaves it alone)")
	f.BoolVar(&t.TCPBeLiberal, "conntrack-tcp-be-liberal", t.TCPBeLiberal, "track TCP packets outside the window as part of their connection")
	f.DurationVar(&t.UDPTimeout.Duration, "conntrack-udp-timeout", t.UDPTimeout.Duration, "how long a UDP flow without an answer is tracked (0 leaves it alone)")
	f.DurationVar(&t.UDPStreamTimeout.Duration, "conntrack-udp-timeout-stream", t.UDPStreamTimeout.Duration, "how long an idle UDP flow is tracked (0 leaves it alone)")
}

// addSpared binds the flags that run and cleanup share.
func addSpared(f *pflag.FlagSet, c *Config) {
	v := &c.Proxy.IPVS
	f.StringSliceVar(&v.ExcludeCIDRs, "ipvs-exclude-cidrs", v.ExcludeCIDRs, "address ranges whose virtual servers are never removed, whoever made them, nor their addresses; Services there are served all the same")
}

// addRun binds the flags that only run has.
func addRun(f *pflag.FlagSet, c *Config) {
	p, o := &c.Proxy, &c.Own
	f.StringVar(&p.HostnameOverride, "hostname-override", p.HostnameOverride, "this node's name in the cluster; the host name where it is not given")
	f.StringVar((*string)(&p.Mode), "proxy-mode", string(p.Mode), "ipvs, or nothing; another proxy of kube-proxy's is accepted with a warning")
	f.StringVar(&p.ClusterCIDR, "cluster-cidr", p.ClusterCIDR, "address ranges of the cluster's pods, one or one a family with a comma between; other sources are masqueraded on their way to a ClusterIP")
	f.StringVar((*string)(&p.DetectLocalMode), "detect-local-mode", string(p.DetectLocalMode), "how pods are told from other clients: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")
	f.StringVar(&p.DetectLocal.BridgeInterface, "pod-bridge-interface", p.DetectLocal.BridgeInterface, "with BridgeInterface: the bridge through which this node's pods send")
	f.StringVar(&p.DetectLocal.InterfaceNamePrefix, "pod-interface-name-prefix", p.DetectLocal.InterfaceNamePrefix, "with InterfaceNamePrefix: how the names of the interfaces begin through which this node's pods send")
	f.BoolVar(&p.IPTables.MasqueradeAll, "masquerade-all", p.IPTables.MasqueradeAll, "masquerade every client on its way to a ClusterIP, pods as well")
	f.Int32Var(p.IPTables.MasqueradeBit, "iptables-masquerade-bit", *p.IPTables.MasqueradeBit, "bit of a packet's mark by which kube-proxy has it masqueraded, 0 to 31; this agent sets no mark, and takes that one off where it masquerades")
	f.StringSliceVar(&p.NodePortAddresses, "nodeport-addresses", p.NodePortAddresses, "the node's addresses on which node ports are served: address ranges, and the words primary, all and localhost; all of them where it is not given")
	f.Uint32VarP((*uint32)(&p.Logging.Verbosity), "v", "v", uint32(p.Logging.Verbosity), "log level: 0 for what matters, 4 and more for every write to the kernel")
	f.StringVar(&p.Logging.Format, "logging-format", p.Logging.Format, "format of the log: text or json")
	f.DurationVar(&p.IPVS.TCPTimeout.Duration, "ipvs-tcp-timeout", p.IPVS.TCPTimeout.Duration, "how long IPVS keeps an idle TCP connection (0 leaves it alone)")
	f.DurationVar(&p.IPVS.TCPFinTimeout.Duration, "ipvs-tcpfin-timeout", p.IPVS.TCPFinTimeout.Duration, "how long IPVS keeps a TCP connection after a FIN (0 leaves it alone)")
	f.DurationVar(&p.IPVS.UDPTimeout.Duration, "ipvs-udp-timeout", p.IPVS.UDPTimeout.Duration, "how long IPVS keeps an idle UDP flow (0 leaves it alone)")
	f.Int32Var(p.OOMScoreAdj, "oom-score-adj", *p.OOMScoreAdj, "how readily the kernel ends the agent when memory runs out, -1000 (never) to 1000")
	f.Var(cliflag.NewMapStringBool(&p.FeatureGates), "feature-gates", "feature gates of kube-proxy's, NAME=true or false with commas between; those that have an effect are "+liveGateText)

	f.StringVar(&p.HealthzBindAddress, "healthz-bind-address", p.HealthzBindAddress, "address and port of /healthz and /livez; empty means the default, and --healthz-port=0 switches them off, as with kube-proxy")
	f.StringVar(&p.MetricsBindAddress, "metrics-bind-address", p.MetricsBindAddress, "address and port of /metrics and the pages beside it; empty means the default, as with kube-proxy, and --metrics-port=0 switches them off")
	f.BoolVar(&p.BindAddressHardFail, "bind-address-hard-fail", p.BindAddressHardFail, "end when one of these ports cannot be had, in place of a warning and another try")
	f.BoolVar(&p.EnableProfiling, "profiling", p.EnableProfiling, "serve /debug/pprof beside /metrics")
	f.DurationVar(&p.IPVS.SyncPeriod.Duration, "ipvs-sync-period", p.IPVS.SyncPeriod.Duration, "half the time for which work may wait for the kernel, or the agent stand still, before /healthz and /livez answer 503")

	k := &p.ClientConnection
	f.StringVar(&k.Kubeconfig, "kubeconfig", k.Kubeconfig, "file that says how the API server is reached; without it and --master a pod's own service account and environment do")
	f.StringVar(&k.ContentType, "kube-api-content-type", k.ContentType, "what is spoken with the API server: application/vnd.kubernetes.protobuf or application/json")
	f.Int32Var(&k.Burst, "kube-api-burst", k.Burst, "how many requests to the API server may follow each other at once")
	f.Float32Var(&k.QPS, "kube-api-qps", k.QPS, "how many requests to the API server a second there may be beyond that; below 0: any number")

	f.StringVar(&o.VIPBinding, "vip-binding", o.VIPBinding, "how virtual IPs stand on kube-ipvs0: address, or route (a local route, which costs the kernel the same for 10,000 as for 10)")
	f.StringSliceVar(&o.ExternalIPCIDRs, "external-ip-cidrs", o.ExternalIPCIDRs, "address ranges from which spec.externalIPs of Services are served; none where it is not given: whoever may write a Service could take any address")
	f.StringSliceVar(&o.ProtectedCIDRs, "protected-cidrs", o.ProtectedCIDRs, "address ranges that no Service may have as an external address: other nodes', the API server's")
	f.StringVar(&o.ServiceProxyName, "service-proxy-name", o.ServiceProxyName, "serve exactly the Services whose label service.kubernetes.io/service-proxy-name has this value; where it is not given, those without the label")
}

// addUnused binds flags of kube-proxy's that do nothing, so that a command line made for it starts the agent. They
// do not show in the help.
func addUnused(f *pflag.FlagSet, c *Config) {
	p := &c.Proxy
	f.StringVar(&p.BindAddress, "bind-address", p.BindAddress, "")
	f.DurationVar(&p.ConfigSyncPeriod.Duration, "config-sync-period", p.ConfigSyncPeriod.Duration, "")
	f.DurationVar(&p.IPVS.MinSyncPeriod.Duration, "ipvs-min-sync-period", p.IPVS.MinSyncPeriod.Duration, "")
	f.BoolVar(p.IPTables.LocalhostNodePorts, "iptables-localhost-nodeports", *p.IPTables.LocalhostNodePorts, "")
	f.DurationVar(&p.IPTables.SyncPeriod.Duration, "iptables-sync-period", p.IPTables.SyncPeriod.Duration, "")
	f.DurationVar(&p.IPTables.MinSyncPeriod.Duration, "iptables-min-sync-period", p.IPTables.MinSyncPeriod.Duration, "")
	f.StringVar(&p.ShowHiddenMetricsForVersion, "show-hidden-metrics-for-version", p.ShowHiddenMetricsForVersion, "")
	addLogging(f, &p.Logging)
	for name, of := range keyless {
		f.String(name, of.usual, "")
	}
	f.VisitAll(func(flag *pflag.Flag) {
		if flag.Usage == "" {
			flag.Hidden = true
		}
	})
}

// addLogging binds the flags of logging that do nothing here.
func addLogging(f *pflag.FlagSet, l *logsapi.LoggingConfiguration) {
	f.DurationVar(&l.FlushFrequency.Duration.Duration, "log-flush-frequency", l.FlushFrequency.Duration.Duration, "")
	f.Var(logsapi.VModuleConfigurationPflag(&l.VModule), "vmodule", "")
	text, json := &l.Options.Text.OutputRoutingOptions, &l.Options.JSON.OutputRoutingOptions
	f.BoolVar(&text.SplitStream, "log-text-split-stream", text.SplitStream, "")
	f.Var(&text.InfoBufferSize, "log-text-info-buffer-size", "")
	f.BoolVar(&json.SplitStream, "log-json-split-stream", json.SplitStream, "")
	f.Var(&json.InfoBufferSize, "log-json-info-buffer-size", "")
}
