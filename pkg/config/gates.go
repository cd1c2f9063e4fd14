package config

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// gateExternalIPs is the feature gate by which kube-proxy serves spec.externalIPs or does not.
const gateExternalIPs = "AllowServiceExternalIPs"

// liveGates are the gates that have an effect: the one above, and those of two pages beside the metrics.
var liveGates = []string{gateExternalIPs, "ComponentFlagz", "ComponentStatusz"}

var liveGateText = strings.Join(liveGates, ", ")

// isLiveGate reports whether a key is that of such a gate.
func isLiveGate(key string) bool {
	gate, ok := strings.CutPrefix(key, "featureGates.")
	return ok && slices.Contains(liveGates, gate)
}

// ExternalIPs are the ranges from which spec.externalIPs are served: externalIPCIDRs. The feature gate
// AllowServiceExternalIPs, where it is given, says otherwise: false allows none, and true all where there are no
// externalIPCIDRs. Its default does not count: kube-proxy's is true up to 1.36, and whoever may write a Service
// could take any address. Call it on what Validate accepts.
func (c *Config) ExternalIPs() []netip.Prefix {
	allow, given := c.Proxy.FeatureGates[gateExternalIPs]
	if given && !allow {
		return nil
	}
	ranges, _ := ParseRanges(c.Own.ExternalIPCIDRs)
	if given && len(ranges) == 0 {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	return ranges
}

// gateName is what the names of feature gates look like.
var gateName = regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`)

// checkGates refuses what can be no gate of any release. Which gates kube-proxy has differs from release to
// release, so one that nobody knows is not an error as it is there, but worth a warning.
func (c *Config) checkGates(bad func(string, any, string)) {
	for _, name := range slices.Sorted(maps.Keys(c.Proxy.FeatureGates)) {
		if !gateName.MatchString(name) {
			bad("featureGates", fmt.Sprintf("%s=%t", name, c.Proxy.FeatureGates[name]), "names of feature gates like "+gateExternalIPs)
		}
	}
}
