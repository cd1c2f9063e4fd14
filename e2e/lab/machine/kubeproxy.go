package machine

import (
	"fmt"
	"path/filepath"
)

// What kube-proxy in its ipvs mode asks of a machine, besides what the agent does: it starts these programs, and
// their rules need these modules. The kernel of the lab loads nothing by itself.
var (
	kubeProxyTools = []tool{
		{"xtables-nft-multi", "iptables"}, // all iptables-... programs in one
		{"ipset", "ipset"},
	}
	kubeProxyModules = []string{
		"nft_compat", "x_tables", "ip_set", "ip_set_*", "xt_set", "xt_comment", "xt_mark", "xt_MASQUERADE", "xt_addrtype",
		"xt_conntrack", "xt_tcpudp", "xt_statistic", "xt_nat", "xt_recent", "xt_multiport", "xt_physdev", "ipt_REJECT", "ip6t_REJECT",
	}
	kubeProxyLinks = []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"}
)

// addKubeProxy adds the names under which kube-proxy starts iptables, and its extensions.
func addKubeProxy(im image) error {
	for _, name := range kubeProxyLinks {
		im.link("/usr/sbin/"+name, "xtables-nft-multi")
	}
	dirs, _ := filepath.Glob("/usr/lib/*/xtables")
	if len(dirs) == 0 {
		return fmt.Errorf("no extensions of iptables in /usr/lib/*/xtables")
	}
	return im.tree(dirs[0], dirs[0])
}
