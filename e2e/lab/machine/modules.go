package machine

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// wantModules are the modules that the guest loads at boot, as patterns:
// there is no modprobe in there that could answer the kernel's requests. A
// pattern that a kernel has neither as a module nor built in is an error. A
// bar stands between names that a module had in different kernels.
var wantModules = []string{
	"virtio_pci", "virtio_console", // the stream to the host
	"virtio_net", // and the way to its loopback
	"ip_vs", "ip_vs_*", "nf_conntrack", "nf_conntrack_netlink", "nf_nat",
	"nf_tables", "nft_chain_nat", "nft_ct", "nft_fib", "nft_fib_*", "nft_hash", "nft_limit", "nft_log",
	"nft_masq", "nft_nat", "nft_numgen", "nft_queue", "nft_quota", "nft_redir", "nft_reject", "nft_reject_*",
	"nft_counter|nf_tables" /* >= 5.18 */, "nft_objref|nf_tables", /* >= 6.2 */ // named counters
	"nf_log_syslog|nf_log_ipv[46]" /* < 5.13 */, "nfnetlink|netfilter" /* >= 7 */, "nfnetlink_log",
	"dummy", "veth", "bridge", "br_netfilter", "sctp", "ipip", "ip6_tunnel", "vxlan", "sch_netem", "tun", "inet_diag", "tcp_diag", "udp_diag",
	"nf_flow_table", "nf_flow_table_inet", "nft_flow_offload", // another firewall's short way
	"nlmon", // lets a test read what the agent writes
}

// skipModules match a pattern above, and would only cost time.
var skipModules = []string{"ip_vs_ftp", "ip_vs_pe_sip", "nft_fib_netdev", "nft_reject_netdev", "nft_reject_bridge"}

// module is a kernel module as its own .modinfo section describes it.
// modules.dep is of no use here: depmod writes it when a kernel is installed,
// and ours never is.
type module struct {
	name string
	path string
	deps []string
	soft []string // "pre" soft dependencies: wanted if there are any
}

// closure returns what the patterns match with everything it depends on, each
// module after those it needs.
func closure(mods map[string]module, builtin map[string]bool, patterns, skip []string) ([]module, error) {
	var order []module
	state := map[string]bool{} // false: on the way, true: placed
	var place func(name string, soft bool) error
	place = func(name string, soft bool) error {
		if done, seen := state[name]; seen {
			if !done && !soft {
				return fmt.Errorf("module %s depends on itself", name)
			}
			return nil
		}
		m, ok := mods[name]
		if !ok {
			if soft || builtin[name] {
				return nil
			}
			return fmt.Errorf("kernel has no module %s", name)
		}
		state[name] = false
		for _, d := range m.soft {
			if err := place(d, true); err != nil {
				return err
			}
		}
		for _, d := range m.deps {
			if err := place(d, false); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		state[name] = true
		order = append(order, m)
		return nil
	}
	for _, p := range patterns {
		var names []string
		found := false
		for alt := range strings.SplitSeq(p, "|") {
			here := match(mods, alt, skip)
			found = found || len(here)+len(matchNames(builtin, alt)) > 0
			names = append(names, here...)
		}
		if !found {
			return nil, fmt.Errorf("kernel has nothing called %s", p)
		}
		for _, n := range names {
			if err := place(n, false); err != nil {
				return nil, err
			}
		}
	}
	return order, nil
}

func match(mods map[string]module, pattern string, skip []string) []string {
	names := map[string]bool{}
	for n := range mods {
		names[n] = !slices.Contains(skip, n)
	}
	return matchNames(names, pattern)
}

func matchNames(names map[string]bool, pattern string) []string {
	var out []string
	for n, wanted := range names {
		if ok, _ := path.Match(pattern, n); ok && wanted {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// readModules reads all modules of a kernel below its module directory, and
// the names of what is built into it. Only candidates' sections are read: the
// names decide first.
func readModules(dir string) (map[string]module, map[string]bool, error) {
	mods := map[string]module{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, ok := moduleName(p); ok {
			m, err := readModule(name, p)
			if err != nil {
				return err
			}
			mods[name] = m
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read kernel modules: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, nil, err
	}
	builtin := map[string]bool{}
	for line := range strings.FieldsSeq(string(b)) {
		if name, ok := moduleName(line); ok {
			builtin[name] = true
		}
	}
	return mods, builtin, nil
}

// moduleName is a module's name as the kernel knows it: file names use
// dashes and underscores as their authors liked.
func moduleName(file string) (string, bool) {
	base := strings.TrimSuffix(path.Base(filepath.ToSlash(file)), ".xz")
	name, ok := strings.CutSuffix(base, ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

func readModule(name, file string) (module, error) {
	b, err := moduleBytes(file)
	if err != nil {
		return module{}, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return module{}, fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	sec := f.Section(".modinfo")
	if sec == nil {
		return module{}, fmt.Errorf("%s: no .modinfo section", file)
	}
	info, err := sec.Data()
	if err != nil {
		return module{}, fmt.Errorf("%s: %w", file, err)
	}
	m := parseModinfo(info)
	m.name, m.path = name, file
	return m, nil
}

// parseModinfo reads the dependencies out of zero-terminated key=value pairs.
func parseModinfo(info []byte) module {
	var m module
	for kv := range strings.SplitSeq(string(info), "\x00") {
		if v, ok := strings.CutPrefix(kv, "depends="); ok {
			for d := range strings.SplitSeq(v, ",") {
				if d != "" {
					m.deps = append(m.deps, strings.ReplaceAll(d, "-", "_"))
				}
			}
		}
		if v, ok := strings.CutPrefix(kv, "softdep="); ok {
			m.soft = append(m.soft, preDeps(v)...)
		}
	}
	return m
}

// preDeps reads "pre: a b post: c".
func preDeps(v string) []string {
	var out []string
	pre := false
	for w := range strings.FieldsSeq(v) {
		switch {
		case strings.HasSuffix(w, ":"):
			pre = w == "pre:"
		case pre:
			out = append(out, strings.ReplaceAll(w, "-", "_"))
		}
	}
	return out
}

// moduleBytes returns the module itself: newer Debian kernels compress it.
func moduleBytes(file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	out, err := exec.Command("xz", "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", file, err)
	}
	return out, nil
}
