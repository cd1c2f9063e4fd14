package node

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// checkForeign looks for firewalls and other proxies in nftables, where iptables-nft keeps its chains, too, and in
// iptables-legacy.
func checkForeign(ctx context.Context) []Finding {
	tables, chains, err := kernel.ForeignTables()
	switch {
	case errors.Is(err, unix.EPERM):
		return []Finding{warning("nftables was not looked at: that needs CAP_NET_ADMIN")}
	case err != nil:
		return []Finding{warning("nftables could not be looked at: %v", err)}
	}
	old, legacyErr := kernel.LegacyChains()
	before, err := kernel.StandsBefore(ctx)
	found := append(judgeFirewalls(append(chains, old...)), judgeProxies(tables, chains, before)...)
	if err := errors.Join(legacyErr, err); err != nil {
		found = append(found, warning("rules of other proxies and firewalls could not be looked for: %v; look for a policy of DROP and for rules that lead to chains KUBE-* with iptables-save and iptables-legacy-save", err))
	}
	return found
}

// judgeFirewalls finds what drops forwarded packets by default. A reply of an endpoint to a client behind
// another interface is one of those.
func judgeFirewalls(chains []kernel.Chain) []Finding {
	return judgeDrops(chains, func(c kernel.Chain) bool { return c.Forward }, "forwarded packets",
		"replies of Services' endpoints among them: it must accept the addresses of pods in both directions")
}

// judgeDrops finds the chains at a hook that drop what no rule of theirs accepts.
func judgeDrops(chains []kernel.Chain, at func(kernel.Chain) bool, packets, effect string) (found []Finding) {
	for _, c := range chains {
		if at(c) && c.Drop {
			found = append(found, warning("chain %s drops %s that no rule of it accepts, %s (%s)", c, packets, effect, c.Show))
		}
	}
	if len(found) == 0 {
		return []Finding{ok("no firewall drops %s by default", packets)}
	}
	return found
}

// proxies are other Service proxies whose rules this program does not know, and what gives them away.
var proxies = []struct {
	name string
	has  func(table, chain string) bool
}{
	{"kube-router", func(_, chain string) bool { return strings.HasPrefix(chain, "KUBE-ROUTER-") }},
}

// notProxies are chains of the same manner that the kubelet makes, or a controller of network policies.
var notProxies = []string{"KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-MARK-", "KUBE-POSTROUTING", "KUBE-IPTABLES-HINT",
	"KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-"}

// judgeProxies finds other proxies by the names that they give tables and chains. Of kube-proxy it is only told what
// packets meet before IPVS: chains to which nothing leads are harmless.
func judgeProxies(tables []string, chains []kernel.Chain, before []string) (found []Finding) {
	if len(before) > 0 {
		found = append(found, warning("kube-proxy is or was at work on this node, and its rules stand before IPVS: they serve Services in its place, by endpoints that they know (%s): one proxy a node; stop it before the agent starts, which takes out what it left once all Services are programmed (takeover.leftovers)", strings.Join(before, "; ")))
	}
	for _, p := range proxies {
		seen := ""
		for _, c := range chains {
			if seen == "" && p.has(c.Table, c.Name) {
				seen = "chain " + c.String()
			}
		}
		if seen != "" {
			found = append(found, warning("%s is or was at work on this node (%s): one proxy a node; stop it before the agent starts", p.name, seen))
		}
	}
	switch mode := judgeMode(tables, chains); {
	case len(found) > 0:
		return found
	case mode != "":
		return []Finding{ok("what kube-proxy in mode %s left does not stand before IPVS: nothing leads there", mode)}
	}
	return []Finding{ok("no other proxy")}
}
