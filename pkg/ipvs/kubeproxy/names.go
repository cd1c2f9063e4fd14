// Package kubeproxy knows what of a node's packet filter is kube-proxy's, by its names. It reads and writes nothing.
//
// The names are those of kube-proxy 1.20 to 1.37 (pkg/proxy of Kubernetes). What the kubelet makes and keeps
// (KUBE-FIREWALL, KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY, and up to 1.26 KUBE-MARK-DROP) is not kube-proxy's, and neither
// is what controllers of network policies call KUBE-…: so there is a list, and no pattern.
package kubeproxy

import (
	"slices"
	"strings"
)

// Table is the name of its tables in nftables mode, one of family ip and one of ip6.
const Table = "kube-proxy"

// Tables are those of iptables in which it has chains, in the order in which its chains may go. What filters goes first:
// KUBE-PROXY-FIREWALL drops whoever comes to a load balancer's address and was not sent on by a rule of the table nat.
var Tables = []string{"filter", "nat", "mangle"}

const (
	markMasq    = "KUBE-MARK-MASQ"
	postrouting = "KUBE-POSTROUTING"
	forward     = "KUBE-FORWARD"
)

var (
	chains = []string{
		"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY", forward, markMasq, postrouting,
		// of its mode ipvs
		"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	}
	// prefixes of chains of which there is one a Service, port or endpoint.
	prefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-", "KUBE-SEP-"}
	// sets without the beginning KUBE-, or KUBE-6- for IPv6.
	sets = []string{
		"LOOP-BACK", "CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-LOCAL", "LOAD-BALANCER-FW",
		"LOAD-BALANCER-SOURCE-IP", "LOAD-BALANCER-SOURCE-CIDR", "NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP", "NODE-PORT-LOCAL-UDP",
		"NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-SCTP-HASH", "NODE-PORT-SCTP", "NODE-PORT-LOCAL-SCTP", "HEALTH-CHECK-NODE-PORT", "IPVS-IPS",
	}
)

// IsChain reports whether a chain of iptables is kube-proxy's.
func IsChain(name string) bool {
	return slices.Contains(chains, name) || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// passive are its chains of a packet that IPVS has seen: they mark, masquerade or accept it, or do nothing.
var passive = []string{"KUBE-PROXY-CANARY", forward, markMasq, postrouting}

// StandsBefore reports whether a chain of iptables is kube-proxy's and may serve, refuse or drop a packet before IPVS sees it.
func StandsBefore(name string) bool { return IsChain(name) && !slices.Contains(passive, name) }

// IsSet reports whether an ipset is kube-proxy's.
func IsSet(name string) bool {
	rest, is := strings.CutPrefix(name, "KUBE-")
	return is && slices.Contains(sets, strings.TrimPrefix(rest, "6-"))
}

// Pattern is an extended regular expression for the names of its chains, as grep -E takes it.
func Pattern() string {
	names := slices.Clone(chains)
	for _, p := range prefixes {
		names = append(names, p+"[A-Z0-9]+")
	}
	for i, n := range names {
		names[i] = strings.TrimPrefix(n, "KUBE-")
	}
	return "KUBE-(" + strings.Join(names, "|") + ")"
}
