package node

import (
	"os"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// Leftovers is what kube-proxy has, or has left, in nftables, where iptables-nft keeps its chains, too.
type Leftovers struct {
	Mode   string   // kube-proxy's, as far as names tell
	Tables []string // that are its own, "family name"
	Chains int      // in these, and its own in tables that it shares
}

// FindLeftovers looks for it. The zero value: there is nothing.
func FindLeftovers() (Leftovers, error) {
	tables, chains, err := kernel.ForeignTables()
	if err != nil {
		return Leftovers{}, err
	}
	return judgeLeftovers(tables, chains), nil
}

// judgeLeftovers knows kube-proxy's by their names.
func judgeLeftovers(tables []string, chains []kernel.Chain) (l Leftovers) {
	const own = "kube-proxy"
	for _, t := range tables {
		if _, name, _ := strings.Cut(t, " "); name == own {
			l.Mode = "nftables"
			l.Tables = append(l.Tables, t)
		}
	}
	for _, c := range chains {
		if c.Table != own && !isKubeProxyChain(c.Name) {
			continue
		}
		l.Chains++
		switch {
		case l.Mode == "nftables" || l.Mode == "ipvs":
		case slices.Contains(ipvsChains, c.Name):
			l.Mode = "ipvs"
		default:
			l.Mode = "iptables"
		}
	}
	return l
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
