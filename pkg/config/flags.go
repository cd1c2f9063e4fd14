package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// Flags are the command line's way to configure: --config, and a flag for most keys, under kube-proxy's name
// where it has one.
type Flags struct {
	file string
	add  func(*pflag.FlagSet, *Config)
}

// keys says which key a flag stands for.
var keys = map[string]string{
	"ipvs-scheduler": "ipvs.scheduler", "ipvs-strict-arp": "ipvs.strictARP",
	"conntrack-max-per-core": "conntrack.maxPerCore", "conntrack-min": "conntrack.min",
	"conntrack-tcp-timeout-established": "conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-close-wait": "conntrack.tcpCloseWaitTimeout",
	"conntrack-tcp-be-liberal": "conntrack.tcpBeLiberal",
	"conntrack-udp-timeout":    "conntrack.udpTimeout", "conntrack-udp-timeout-stream": "conntrack.udpStreamTimeout",

	"hostname-override": "hostnameOverride", "proxy-mode": "mode", "cluster-cidr": "clusterCIDR", "detect-local-mode": "detectLocalMode",
	"pod-bridge-interface": "detectLocal.bridgeInterface", "pod-interface-name-prefix": "detectLocal.interfaceNamePrefix",
	"masquerade-all": "iptables.masqueradeAll", "nodeport-addresses": "nodePortAddresses", "ipvs-exclude-cidrs": "ipvs.excludeCIDRs",
	"v": "logging.verbosity", "feature-gates": "featureGates",

	"vip-binding": "vipBinding", "external-ip-cidrs": "externalIPCIDRs", "protected-cidrs": "protectedCIDRs", "service-proxy-name": "serviceProxyName",

	"kubeconfig": "clientConnection.kubeconfig", "kube-api-content-type": "clientConnection.contentType",
	"kube-api-burst": "clientConnection.burst", "kube-api-qps": "clientConnection.qps", "bind-address": "bindAddress",
	"healthz-bind-address": "healthzBindAddress", "metrics-bind-address": "metricsBindAddress", "bind-address-hard-fail": "bindAddressHardFail",
	"profiling": "enableProfiling", "iptables-masquerade-bit": "iptables.masqueradeBit", "oom-score-adj": "oomScoreAdj",
	"config-sync-period": "configSyncPeriod", "ipvs-sync-period": "ipvs.syncPeriod", "ipvs-min-sync-period": "ipvs.minSyncPeriod",
	"iptables-localhost-nodeports": "iptables.localhostNodePorts", "iptables-sync-period": "iptables.syncPeriod",
	"iptables-min-sync-period": "iptables.minSyncPeriod", "show-hidden-metrics-for-version": "showHiddenMetricsForVersion",
	"logging-format": "logging.format", "vmodule": "logging.vmodule", "log-flush-frequency": "logging.flushFrequency",
	"log-text-split-stream": "logging.options.text.splitStream", "log-text-info-buffer-size": "logging.options.text.infoBufferSize",
	"log-json-split-stream": "logging.options.json.splitStream", "log-json-info-buffer-size": "logging.options.json.infoBufferSize",
	"ipvs-tcp-timeout": "ipvs.tcpTimeout", "ipvs-tcpfin-timeout": "ipvs.tcpFinTimeout", "ipvs-udp-timeout": "ipvs.udpTimeout",
}

// over are the flags that count beside --config, too: those that do so with kube-proxy, and those that it does
// not have.
var over = map[string]bool{"hostname-override": true, "v": true,
	"logging-format": true, "vmodule": true, "log-flush-frequency": true, "log-text-split-stream": true, "log-text-info-buffer-size": true,
	"log-json-split-stream": true, "log-json-info-buffer-size": true,
	"vip-binding": true, "external-ip-cidrs": true, "protected-cidrs": true, "service-proxy-name": true}

func flagOf(key string) string {
	for flag, k := range keys {
		if k == key {
			return flag
		}
	}
	return ""
}

// SetupFlags adds --config and the flags about how a node is set up, which run, init and check share.
func SetupFlags(fs *pflag.FlagSet) *Flags { return newFlags(fs, addSetup) }

// RunFlags adds --config and the flags of all keys.
func RunFlags(fs *pflag.FlagSet) *Flags {
	return newFlags(fs, func(fs *pflag.FlagSet, c *Config) {
		addSetup(fs, c)
		addSpared(fs, c)
		addRun(fs, c)
		addUnused(fs, c)
	})
}

// CleanupFlags adds --config and the flags that say what cleanup is to leave alone.
func CleanupFlags(fs *pflag.FlagSet) *Flags { return newFlags(fs, addSpared) }

func newFlags(fs *pflag.FlagSet, add func(*pflag.FlagSet, *Config)) *Flags {
	f := &Flags{add: add}
	fs.StringVar(&f.file, "config", "", "kube-proxy's configuration file, with our own document beside kube-proxy's where needed; as with kube-proxy, flags of kube-proxy's names are ignored beside it, but for --hostname-override and those of logging")
	add(fs, Default())
	return f
}

// Load is the configuration that the file, or the command line, or both give. The warnings name what has no
// effect.
func (f *Flags) Load(fs *pflag.FlagSet) (c *Config, warnings []string, err error) {
	c = Default()
	if f.file != "" {
		if c, warnings, err = read(f.file); err != nil {
			return nil, nil, err
		}
	}
	c.flags = map[string]string{}
	bound := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.add(bound, c)
	fs.Visit(func(given *pflag.Flag) {
		if target := bound.Lookup(given.Name); target != nil { // else it is not about the configuration
			w, flagErr := f.take(c, given, target, fs)
			warnings, err = append(warnings, w...), errors.Join(err, flagErr)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	c.setDefaults() // an empty flag means the default
	c.setNoPorts(fs, f.file != "")
	warnings = append(warnings, c.lowerMode()...)
	if err := c.Validate(); err != nil {
		return nil, nil, err
	}
	if f.file != "" || bound.Lookup("cluster-cidr") != nil { // who cannot be told of pods need not be warned
		warnings = append(warnings, c.noPods()...)
	}
	return c, slices.Concat(warnings, c.strangeScheduler(), c.effectless()), nil
}

// take gives a configuration the value of a flag, by the flag of its own that is bound to the key. Beside a file it may not
// count; that is worth a warning where the file says something else.
func (f *Flags) take(c *Config, given, target *pflag.Flag, all *pflag.FlagSet) (warnings []string, err error) {
	name := given.Name
	if _, is := keyless[name]; is {
		return c.keyless(given, all, f.file != "")
	}
	if f.file != "" && !over[name] {
		if given.Value.String() == target.Value.String() {
			return nil, nil
		}
		return []string{fmt.Sprintf("--%s is ignored, as kube-proxy does it: --config is given, and %s in it counts", name, keys[name])}, nil
	}
	if warnings, yes := c.isUnset(given); yes {
		return warnings, nil
	}
	c.flags[keys[name]] = name
	if err := copyValue(target.Value, given.Value); err != nil {
		return nil, fmt.Errorf("--%s: %w", name, err)
	}
	return nil, nil
}

func copyValue(to, from pflag.Value) error {
	if list, ok := from.(pflag.SliceValue); ok {
		return to.(pflag.SliceValue).Replace(list.GetSlice())
	}
	return to.Set(from.String())
}

// Write writes the configuration with all defaults to a file that --config reads.
func (c *Config) Write(file string) error {
	proxy, err := yaml.Marshal(c.Proxy)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	own, err := yaml.Marshal(c.Own)
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if err := os.WriteFile(file, bytes.Join([][]byte{proxy, own}, []byte("---\n")), 0o644); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}
