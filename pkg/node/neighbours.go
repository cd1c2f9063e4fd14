package node

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

// Neighbours are the findings about other programs that take packets away from IPVS, or its interface. The agent's start has
// them, too: who installs it need not have called check.
func Neighbours(ctx context.Context) []Finding {
	_, chains, err := kernel.ForeignTables()
	old, legacyErr := kernel.LegacyChains()
	if err := errors.Join(err, legacyErr); err != nil {
		if errors.Is(err, unix.EPERM) {
			return []Finding{warning("nftables was not looked at: that needs CAP_NET_ADMIN")}
		}
		return []Finding{warning("nftables and iptables could not be looked at: %v", err)}
	}
	found := judgeInput(append(chains, old...))
	found = append(found, checkDNSCache(ctx)...)
	found = append(found, checkFlowTables())
	return append(found, checkManager("/"))
}

// judgeInput finds what drops packets to the node by default, before IPVS sees them.
func judgeInput(chains []kernel.Chain) []Finding {
	return judgeDrops(chains, func(c kernel.Chain) bool { return c.Input }, "packets to this node",
		"and all packets to Services are such, those of pods as well: it must accept the Services' addresses and ports")
}

// dnsLink is the interface of NodeLocal DNSCache.
const dnsLink = "nodelocaldns"

// checkDNSCache looks for NodeLocal DNSCache in its variant for other proxies, and for what else keeps packets to Services
// out of connection tracking.
func checkDNSCache(ctx context.Context) []Finding {
	addrs, err := kernel.LinkAddrs(ctx, dnsLink)
	if err != nil {
		return []Finding{warning("interface %s could not be looked at: %v", dnsLink, err)}
	}
	untracked, err := kernel.UntrackedVIPs(ctx, addrs)
	if err != nil {
		return []Finding{warning("rules that keep packets out of connection tracking could not be looked for: %v", err)}
	}
	return judgeDNSCache(addrs, untracked)
}

func judgeDNSCache(addrs []netip.Addr, untracked []kernel.Untracked) (found []Finding) {
	if len(addrs) > 0 {
		var names []string
		for _, a := range addrs {
			names = append(names, a.String())
		}
		found = append(found, warning("interface %s has the address %s: NodeLocal DNSCache takes a Service's address, where IPVS answers in its place; use the variant of its manifest for IPVS, whose -localip has the link-local address alone, 169.254.20.10, and give kubelet's clusterDNS that address",
			dnsLink, strings.Join(names, ", ")))
	}
	for _, u := range untracked {
		found = append(found, warning("chain %s keeps packets to the virtual IP %s out of connection tracking: clients that have to be masqueraded get no answer from it; take the rule out, or with NodeLocal DNSCache use the variant of its manifest for IPVS (nft list chain %s)",
			u.Chain, u.Addr, u.Chain))
	}
	if len(found) == 0 {
		return []Finding{ok("nobody takes a Service's address, or keeps packets to one out of connection tracking")}
	}
	return found
}

// checkFlowTables looks for flow tables.
func checkFlowTables() Finding { return judgeFlowTables(kernel.FlowTables()) }

func judgeFlowTables(names []string, err error) Finding {
	switch {
	case err != nil:
		return warning("flow tables could not be looked for: %v", err)
	case len(names) == 0:
		return ok("no flow tables")
	}
	return warning("flow table %s takes connections past the chain forward, and so past IPVS: the replies of an endpoint on another node come to the client with the endpoint's address, and the connection hangs; let it leave out the connections of Services, as by ct original ip daddr", strings.Join(names, ", "))
}

// managerSocket is what NetworkManager listens on: the kernel lists it for the network namespace in which it works.
const managerSocket = "/NetworkManager/private-dhcp"

// managerDirs are where NetworkManager reads its configuration.
var managerDirs = []string{"etc/NetworkManager", "etc/NetworkManager/conf.d", "run/NetworkManager/conf.d", "usr/lib/NetworkManager/conf.d"}

// ipvsLink is the interface with the virtual IPs.
const ipvsLink = "kube-ipvs0"

// checkManager looks whether NetworkManager is at work in this network namespace, and told to leave our interface alone.
func checkManager(root string) Finding {
	sockets, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return warning("whether NetworkManager is at work cannot be seen: %v", err)
	}
	if !managed(string(sockets)) {
		return ok("NetworkManager is not at work")
	}
	return judgeManager(managerExempts(root))
}

// managed reads the kernel's list of unix sockets.
func managed(list string) bool {
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 0 && strings.HasSuffix(f[len(f)-1], managerSocket) {
			return true
		}
	}
	return false
}

// managerExempts reports whether the configuration names our interface among those that are left alone. Seen: there is a
// configuration; from within a container there is none.
func managerExempts(root string) (exempt, seen bool, err error) {
	for _, dir := range managerDirs {
		files, globErr := filepath.Glob(filepath.Join(root, dir, "*.conf"))
		if globErr != nil {
			return false, seen, globErr
		}
		for _, file := range files {
			b, readErr := os.ReadFile(file)
			if errors.Is(readErr, fs.ErrNotExist) {
				continue
			}
			if readErr != nil {
				return false, seen, readErr
			}
			seen = true
			for line := range strings.Lines(string(b)) {
				key, value, is := strings.Cut(line, "=")
				key = strings.TrimSpace(key)
				exempt = exempt || is && (key == "unmanaged-devices" || key == "unmanaged-devices+") && namesLink(value)
			}
		}
	}
	return exempt, seen, nil
}

// namesLink reads a list of devices as NetworkManager has it: kube-ipvs0 by its name, by a pattern, or by its kind.
func namesLink(list string) bool {
	for device := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ';' || r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		if device == "type:dummy" {
			return true
		}
		name := strings.TrimPrefix(strings.TrimPrefix(device, "interface-name:"), "=")
		if is, err := filepath.Match(name, ipvsLink); err == nil && is {
			return true
		}
	}
	return false
}

func judgeManager(exempt, seen bool, err error) Finding {
	const do = "a file in /etc/NetworkManager/conf.d with [keyfile] and unmanaged-devices+=interface-name:" + ipvsLink
	switch {
	case err != nil:
		return warning("NetworkManager is at work on this node, and its configuration cannot be read: %v; see that it leaves %s alone: %s", err, ipvsLink, do)
	case exempt:
		return ok("NetworkManager leaves %s alone", ipvsLink)
	case !seen:
		return warning("NetworkManager is at work on this node, and its configuration cannot be seen from here: see that it leaves %s alone, or it may set it down or take addresses off: %s", ipvsLink, do)
	}
	return warning("NetworkManager is at work on this node and is not told to leave %s alone: it may set it down or take addresses off; %s", ipvsLink, do)
}
