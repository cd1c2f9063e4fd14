package node

import (
	"os"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// KubeProxyMode says in which mode kube-proxy is or was at work on this node, by the names of its tables and chains in
// nftables, where iptables-nft keeps its chains, too. "": there is nothing of it.
func KubeProxyMode() (string, error) {
	tables, chains, err := kernel.ForeignTables()
	if err != nil {
		return "", err
	}
	return judgeMode(tables, chains), nil
}

func judgeMode(tables []string, chains []kernel.Chain) (mode string) {
	for _, t := range tables {
		if _, name, _ := strings.Cut(t, " "); name == "kube-proxy" {
			return "nftables"
		}
	}
	for _, c := range chains {
		switch {
		case slices.Contains(ipvsChains, c.Name):
			return "ipvs"
		case isKubeProxyChain(c.Name):
			mode = "iptables"
		}
	}
	return mode
}

// ipvsChains are those that kube-proxy makes in mode ipvs alone.
var ipvsChains = []string{"KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL"}

// isKubeProxyChain reports whether a chain has a name of kube-proxy's own.
func isKubeProxyChain(name string) bool {
	return strings.HasPrefix(name, "KUBE-") && !slices.ContainsFunc(notProxies, func(p string) bool { return strings.HasPrefix(name, p) })
}

// Present reports whether an agent is at work in this network namespace. Unlike Claim it takes nobody's place.
func Present() (bool, error) {
	b, err := os.ReadFile("/proc/thread-self/net/unix")
	return hasSocket(string(b), presenceName), err
}

// hasSocket reads the kernel's list of unix sockets, a line each, the name last.
func hasSocket(list, name string) bool {
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}
