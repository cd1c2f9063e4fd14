package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// keyless are the flags of kube-proxy's that no key stands for: the key that they have to do with, if any, and their default.
var keyless = map[string]struct{ key, usual string }{
	"healthz-port": {"healthzBindAddress", "10256"}, "metrics-port": {"metricsBindAddress", "10249"},
	"boot-id-file": {"", "/proc/sys/kernel/random/boot_id"}, "machine-id-file": {"", "/etc/machine-id,/var/lib/dbus/machine-id"},
}

// keyless takes the effect of a flag without a key, which is that of kube-proxy 1.33 to 1.37: a port of the old flags counts
// where the flag of the address gives none, and 0 means no server (setNoPorts). Where it does not count kube-proxy does not
// look whether it is a port, either: it is worth a warning, and no end in a loop. Beside a file it does not count.
func (c *Config) keyless(given *pflag.Flag, all *pflag.FlagSet, file bool) (warnings []string, err error) {
	name, value, of := given.Name, given.Value.String(), keyless[given.Name]
	if of.key == "" {
		if value == of.usual {
			return nil, nil
		}
		return []string{fmt.Sprintf("--%s: no effect: the agent does not ask which machine it is on", name)}, nil
	}
	port, isNumber := oldPort(value)
	if file {
		if _, counts, err := net.SplitHostPort(*c.bindAddress(of.key)); err == nil && counts == value {
			return nil, nil
		}
		return []string{fmt.Sprintf("--%s is ignored, as kube-proxy does it: --config is given, and %s in it counts", name, of.key)}, nil
	}
	flag := flagOf(of.key)
	addr := all.Lookup(flag).Value.String()
	_, alone := netip.ParseAddr(strings.Trim(addr, "[]"))
	switch {
	case !isNumber, alone == nil && (port < 0 || port > 65535): // kube-proxy refuses these as well
		return nil, fmt.Errorf("--%s=%s: want a port, or 0 for no server", name, value)
	case port == 0 || alone != nil && value == of.usual:
		return nil, nil
	case alone == nil:
		*c.bindAddress(of.key) = withPort(addr, strconv.FormatInt(port, 10))
		return nil, nil
	}
	return []string{fmt.Sprintf("--%s: no effect, as with kube-proxy: it counts where --%s is given without a port", name, flag)}, nil
}

// oldPort reads the number as kube-proxy's flags do, which take 0x2800 as well.
func oldPort(text string) (port int64, ok bool) {
	port, err := strconv.ParseInt(text, 0, 32)
	return port, err == nil
}

func (c *Config) bindAddress(key string) *string {
	if key == "healthzBindAddress" {
		return &c.Proxy.HealthzBindAddress
	}
	return &c.Proxy.MetricsBindAddress
}

// setNoPorts takes port 0 of an old flag for what it says: no server. (kube-proxy says so of --metrics-port, too, and then
// refuses to start, as it wants an address for the metrics.)
func (c *Config) setNoPorts(given *pflag.FlagSet, file bool) {
	for _, name := range []string{"healthz-port", "metrics-port"} {
		f := given.Lookup(name)
		if f == nil || !f.Changed || file {
			continue
		}
		if port, ok := oldPort(f.Value.String()); ok && port == 0 {
			*c.bindAddress(keyless[name].key) = ""
		}
	}
}

// unset are the flags that count as not given where they are empty, as with kube-proxy: its flags of addresses leave the
// default alone then, though the help of older releases said that an empty --metrics-bind-address switches the server off
// (kubernetes/kubernetes#123559), and its --hostname-override leaves the file's. Who believed that help is told.
var unset = map[string]string{
	"healthz-bind-address": "--healthz-port=0 switches the server off", "metrics-bind-address": "--metrics-port=0 switches the server off",
	"bind-address": "", "hostname-override": "",
}

// isUnset reports whether a flag counts as not given, and warns where more may have been meant.
func (c *Config) isUnset(given *pflag.Flag) (warnings []string, yes bool) {
	instead, may := unset[given.Name]
	if !may || given.Value.String() != "" {
		return nil, false
	}
	if instead != "" {
		warnings = []string{fmt.Sprintf("--%s: no effect, as with kube-proxy: empty means the default, %s; %s", given.Name, *c.bindAddress(keys[given.Name]), instead)}
	}
	return warnings, true
}
