package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// A key, or the beginning of a key, and why it does nothing here.
var without = []struct{ key, why string }{
	{"iptables.syncPeriod", "for another proxy"},
	{"iptables.minSyncPeriod", "for another proxy"},
	{"nftables.masqueradeAll", "for another proxy; iptables.masqueradeAll is the one that counts, as in kube-proxy's mode ipvs"},
	{"nftables.syncPeriod", "for another proxy"},
	{"nftables.minSyncPeriod", "for another proxy"},
	{"ipvs.minSyncPeriod", "every change is written at once, and those that come together are written together"},
	{"featureGates", "what kube-proxy's gates switch, the agent does always or not at all, but for " + liveGateText},
	{"logging.flushFrequency", "the log is not buffered"},
	{"logging.vmodule", "one level for all of the log"},
	{"logging.options", "the log is not buffered, and goes to standard error"},
	{"bindAddress", "the node's addresses are those that its Node object and its kernel have; it says only of which family healthzBindAddress and metricsBindAddress are where they are not given"},
	{"winkernel", "for Windows"},
	{"windowsRunAsService", "for Windows"},
	{"portRange", "kube-proxy does not use it, either"},
	{"showHiddenMetricsForVersion", "the agent hides no metrics"},
	{"configSyncPeriod", "changes are watched, and the agent looks at the kernel by itself: nothing is repeated"},
}

// effectless names what is configured and has no effect. A value that is the default is not worth a word: the
// file that kubeadm writes lists most keys.
func (c *Config) effectless() (warnings []string) {
	if m := c.Proxy.Mode; m != "" && m != "ipvs" {
		warnings = append(warnings, fmt.Sprintf("%s: %s is another proxy; this one serves by IPVS", c.origin("mode"), m))
	}
	for _, key := range changed(c) {
		if bit := c.Proxy.NFTables.MasqueradeBit; key == "nftables.masqueradeBit" && markOf(bit) == 0 {
			warnings = append(warnings, fmt.Sprintf("%s: no effect: a mark has the bits 0 to 31", c.origin(key)))
		}
		if why := whyNone(key); why != "" && !isLiveGate(key) {
			warnings = append(warnings, fmt.Sprintf("%s: no effect: %s", c.origin(key), why))
		}
	}
	return warnings
}

// whyNone says why a key has no effect; empty where it has one.
func whyNone(key string) string {
	for _, k := range without {
		if within(key, k.key) {
			return k.why
		}
	}
	return ""
}

// lowerMode takes a mode in capitals, which is what the interfaces of some clouds have, for the one that is meant, so that it
// starts the agent; kube-proxy refuses it.
func (c *Config) lowerMode() []string {
	given := c.Proxy.Mode
	c.Proxy.Mode = kubeproxy.ProxyMode(strings.ToLower(string(given)))
	if c.Proxy.Mode == given || !slices.Contains(modes, string(c.Proxy.Mode)) {
		c.Proxy.Mode = given
		return nil
	}
	return []string{fmt.Sprintf("%s: %s is taken for %s; kube-proxy takes it in lower case alone", c.origin("mode"), given, c.Proxy.Mode)}
}

// noPods warns where nothing says which addresses pods have, and of what comes of it, which is kube-proxy's way, too.
func (c *Config) noPods() []string {
	if c.Proxy.DetectLocalMode != "ClusterCIDR" || len(c.ClusterCIDRs()) > 0 {
		return nil
	}
	masqueraded := "no client is masqueraded on its way to a ClusterIP, but for the node itself and a pod that reaches itself; to node ports and external addresses all are, as ever"
	if c.Proxy.IPTables.MasqueradeAll {
		masqueraded = "every client is masqueraded on its way to a ClusterIP, as iptables.masqueradeAll has it"
	}
	return []string{c.origin("clusterCIDR") + ": empty, and detectLocalMode is ClusterCIDR: nothing tells pods from clients outside the cluster: " + masqueraded +
		"; with externalTrafficPolicy Local pods get what clients outside get"}
}

func within(key, beginning string) bool {
	return key == beginning || strings.HasPrefix(key, beginning+".")
}

// origin is what the user knows a key by: the flag that gave it, or the key itself.
func (c *Config) origin(key string) string {
	if flag := c.flags[key]; flag != "" {
		return "--" + flag
	}
	return key
}

// changed lists the keys of kube-proxy's document that are neither empty nor the default.
func changed(c *Config) (keys []string) {
	usual := map[string]any{}
	for _, l := range leaves(asTree(Default().Proxy)) {
		usual[l.key()] = l.value
	}
	for _, l := range leaves(asTree(c.Proxy)) {
		if !empty(l.value) && !reflect.DeepEqual(l.value, usual[l.key()]) {
			keys = append(keys, l.key())
		}
	}
	return keys
}

// empty: nothing, or a list or map with nothing in it. A false or a 0 that is left after the defaults is meant.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// asTree is a document as JSON has it.
func asTree(v any) (tree any) {
	text, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(text, &tree)
	}
	if err != nil {
		panic(fmt.Sprintf("a configuration that is no JSON: %v", err)) // its types are plain
	}
	return tree
}
