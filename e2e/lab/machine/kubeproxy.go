package machine

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// What kube-proxy asks of a machine, besides what the agent does: it starts these programs, and
// their rules need these modules. The kernel of the lab loads nothing by itself.
var (
	kubeProxyTools = []tool{
		{"xtables-nft-multi", "iptables"}, // all iptables-... programs in one
		{"xtables-legacy-multi", "iptables"},
		{"ipset", "ipset"},
	}
	kubeProxyModules = []string{
		"nft_compat", "x_tables", "ip_set", "ip_set_*", "xt_set", "xt_comment", "xt_mark", "xt_MASQUERADE", "xt_addrtype",
		"xt_conntrack", "xt_CT", "xt_tcpudp", "xt_statistic", "xt_nat", "xt_recent", "xt_multiport", "xt_physdev", "ipt_REJECT", "ip6t_REJECT",
		"nft_counter|nf_tables", // a module of its own up to 5.16
		// iptables-legacy
		"ip_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "ip6_tables", "ip6table_filter", "ip6table_nat", "ip6table_mangle",
	}
	kubeProxyLinks = []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"}
)

// addKubeProxy adds the names under which kube-proxy starts iptables, and its extensions.
func addKubeProxy(ctx context.Context, im image) error {
	for _, name := range kubeProxyLinks {
		im.link("/usr/sbin/"+name, "xtables-nft-multi")
		program, what, _ := strings.Cut(name, "-")
		for _, of := range []string{"nft", "legacy"} {
			im.link("/usr/sbin/"+strings.TrimSuffix(program+"-"+of+"-"+what, "-"), "xtables-"+of+"-multi")
		}
	}
	dirs, _ := filepath.Glob("/usr/lib/*/xtables")
	if len(dirs) == 0 {
		return fmt.Errorf("no extensions of iptables in /usr/lib/*/xtables")
	}
	if err := im.librariesOf(ctx, filepath.Join(dirs[0], "libxt_statistic.so")); err != nil { // the one that needs libm
		return err
	}
	return im.tree(dirs[0], dirs[0])
}
