package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// keyless are the flags of kube-proxy's that no key stands for, and what they were for.
var keyless = map[string]string{
	"healthz-port": "healthzBindAddress", "metrics-port": "metricsBindAddress",
	"boot-id-file": idFile, "machine-id-file": idFile,
}

const idFile = "the agent does not ask which machine it is on"

// keyless takes the effect of a flag without a key, which is that of kube-proxy: a port of the old flags counts where
// the flag of the address gives none, and 0 means no server (setNoPorts). Beside a file it does not count.
func (c *Config) keyless(given *pflag.Flag, all *pflag.FlagSet, file bool) (warnings []string, err error) {
	name, what := given.Name, keyless[given.Name]
	if what == idFile {
		return []string{fmt.Sprintf("--%s: no effect: %s", name, what)}, nil
	}
	if file {
		return []string{fmt.Sprintf("--%s is ignored, as kube-proxy does it: --config is given, and %s in it counts", name, what)}, nil
	}
	port, err := strconv.ParseUint(given.Value.String(), 10, 16)
	if err != nil {
		return nil, fmt.Errorf("--%s=%s: want a port, or 0 for no server", name, given.Value)
	}
	addr := all.Lookup(flagOf(what)).Value.String()
	if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil && port != 0 {
		*c.bindAddress(what) = withPort(addr, given.Value.String())
		return nil, nil
	}
	if port != 0 {
		return []string{fmt.Sprintf("--%s: no effect, as with kube-proxy: it counts where --%s is given without a port", name, flagOf(what))}, nil
	}
	return nil, nil
}

func (c *Config) bindAddress(key string) *string {
	if key == "healthzBindAddress" {
		return &c.Proxy.HealthzBindAddress
	}
	return &c.Proxy.MetricsBindAddress
}

// setNoPorts takes port 0 of an old flag for what it says: no server.
func (c *Config) setNoPorts(given *pflag.FlagSet, file bool) {
	for _, name := range []string{"healthz-port", "metrics-port"} {
		if f := given.Lookup(name); f != nil && f.Changed && !file && strings.Trim(f.Value.String(), "0") == "" {
			*c.bindAddress(keyless[name]) = ""
		}
	}
}
