package node

import (
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// checkForeign looks for firewalls and other proxies in nftables, where iptables-nft keeps its chains, too.
func checkForeign() []Finding {
	tables, chains, err := kernel.ForeignTables()
	switch {
	case errors.Is(err, unix.EPERM):
		return []Finding{warning("nftables was not looked at: that needs CAP_NET_ADMIN")}
	case err != nil:
		return []Finding{warning("nftables could not be looked at: %v", err)}
	}
	return append(judgeFirewalls(chains), judgeProxies(tables, chains)...)
}

// judgeFirewalls finds what drops forwarded packets by default. A reply of an endpoint to a client behind
// another interface is one of those.
func judgeFirewalls(chains []kernel.Chain) (found []Finding) {
	for _, c := range chains {
		if c.Forward && c.Drop {
			found = append(found, warning("chain %s drops forwarded packets that no rule of it accepts, replies of Services' endpoints among them: it must accept the addresses of pods in both directions (nft list chain %s)", c, c))
		}
	}
	if len(found) == 0 {
		return []Finding{ok("no firewall in nftables drops forwarded packets by default")}
	}
	return found
}

// proxies are other Service proxies and what gives them away.
var proxies = []struct {
	name string
	has  func(table, chain string) bool
}{
	{"kube-proxy in nftables mode", func(table, _ string) bool { return table == "kube-proxy" }},
	{"kube-router", func(_, chain string) bool { return strings.HasPrefix(chain, "KUBE-ROUTER-") }},
	{"kube-proxy in iptables or ipvs mode", func(_, chain string) bool { return isKubeProxyChain(chain) }},
}

// notProxies are chains of the same manner that the kubelet makes, or a controller of network policies.
var notProxies = []string{"KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-MARK-", "KUBE-POSTROUTING", "KUBE-IPTABLES-HINT",
	"KUBE-ROUTER-", "KUBE-NWPLCY-", "KUBE-POD-FW-"}

// judgeProxies finds other proxies by the names that they give tables and chains.
func judgeProxies(tables []string, chains []kernel.Chain) (found []Finding) {
	for _, p := range proxies {
		seen := ""
		for _, t := range tables {
			if _, name, _ := strings.Cut(t, " "); p.has(name, "") {
				seen = "table " + t
			}
		}
		for _, c := range chains {
			if seen == "" && p.has(c.Table, c.Name) {
				seen = "chain " + c.String()
			}
		}
		if seen != "" {
			found = append(found, warning("%s is or was at work on this node (%s): one proxy a node; stop it before the agent starts; what kube-proxy left the agent takes out once all Services are programmed (takeover.leftovers)", p.name, seen))
		}
	}
	if len(found) == 0 {
		return []Finding{ok("no other proxy in nftables")}
	}
	return found
}

// checkLegacy looks whether iptables-legacy is in use. What it holds cannot be seen by nftables, and asking it
// would make the kernel create its tables.
func checkLegacy() Finding { return judgeLegacy("/proc/thread-self/net/") }

func judgeLegacy(dir string) Finding {
	var tables []string
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		// Without the file there is no iptables-legacy of that family.
		if b, err := os.ReadFile(dir + file); err == nil {
			tables = append(tables, strings.Fields(string(b))...)
		}
	}
	if len(tables) > 0 {
		slices.Sort(tables)
		return warning("iptables-legacy has tables (%s), into which this check cannot see: look for a FORWARD policy of DROP and for chains KUBE-* with iptables-legacy-save and ip6tables-legacy-save", strings.Join(slices.Compact(tables), ", "))
	}
	return ok("no tables of iptables-legacy")
}
