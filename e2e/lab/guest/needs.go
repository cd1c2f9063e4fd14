package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// need is something that the lab wants of a kernel. A kernel loads most modules by itself when they are asked for;
// modules are those that it may have to be given, in this order.
type need struct {
	what    string
	modules []string
	try     func() error
}

// needs are tried in a container of fresh namespaces, in this order: what comes later rests on what came before.
var needs = []need{
	{"sysctls of a network namespace that can be written", nil, tryIP},
	{"IPVS", []string{"ip_vs"}, tryIPVS},
	{"IPVS's schedulers", []string{"ip_vs_rr", "ip_vs_wrr", "ip_vs_lc", "ip_vs_wlc", "ip_vs_sh", "ip_vs_mh"}, trySchedulers},
	{"nftables with connection tracking, masquerade and reject", []string{"nf_tables", "nft_chain_nat", "nft_ct", "nft_masq", "nft_reject_inet"}, tryNFT},
	{"connection tracking by netlink", []string{"nf_conntrack_netlink"}, tryConntrack},
	{"dummy links", []string{"dummy"}, tryLink("dummy")},
	{"veth links", []string{"veth"}, tryLink("veth")},
	{"bridges", []string{"bridge"}, tryLink("bridge")},
	{"nlmon links", []string{"nlmon"}, tryLink("nlmon")},
	{"netfilter hooks for bridged packets", []string{"br_netfilter"}, tryBridgeNetfilter},
	{"SCTP sockets", []string{"sctp"}, trySCTP},
}

// insideProbe tries everything in namespaces that end with us, loads modules where that helps, and tells all.
func insideProbe(out io.Writer) error {
	var found wire.Probe
	before := loadedModules()
	if err := errors.Join(furnish(), settle()); err != nil {
		found.Lacks = append(found.Lacks, err.Error())
	} else {
		for _, n := range needs {
			if err := n.met(); err != nil {
				text := strings.ReplaceAll(err.Error(), "\n", "; ") // a line each
				found.Lacks = append(found.Lacks, n.what+": "+text)
			}
		}
	}
	for _, m := range loadedModules() {
		if !slices.Contains(before, m) {
			found.Loaded = append(found.Loaded, m)
		}
	}
	return json.NewEncoder(out).Encode(found)
}

// met tries a need, and again with its modules.
func (n need) met() error {
	for _, m := range n.modules {
		if with := parameters[m]; with != "" && !slices.Contains(loadedModules(), m) {
			_ = loadByName(m, with) // whether it helped shows below
		}
	}
	first := n.try()
	if first == nil || len(n.modules) == 0 {
		return first
	}
	var errs []error
	for _, m := range n.modules {
		if err := loadByName(m); err != nil {
			errs = append(errs, err)
		}
	}
	err := n.try()
	if err == nil {
		return nil
	}
	return errors.Join(append([]error{err}, errs...)...)
}

// parameters keep a module from making a device that nobody asked for, as it does where the kernel loads it by itself.
var parameters = map[string]string{"dummy": "numdummies=0"}

// loadByName has modprobe load a module, which knows where this machine keeps them and which ones its
// administrator does not want.
func loadByName(module string, with ...string) error {
	prog, err := exec.LookPath("modprobe")
	if err != nil {
		if prog, err = exec.LookPath("/sbin/modprobe"); err != nil {
			return fmt.Errorf("no modprobe to load module %s", module)
		}
	}
	if said, err := exec.Command(prog, append([]string{module}, with...)...).CombinedOutput(); err != nil {
		text := strings.Join(strings.Fields(string(said)), " ")
		return fmt.Errorf("load module %s: %w: %s", module, err, strings.TrimPrefix(text, "modprobe: "))
	}
	return nil
}

func loadedModules() []string {
	var names []string
	b, _ := os.ReadFile("/proc/modules") // none where the kernel has no modules
	for line := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func tryIP() error {
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		f, err := os.OpenFile("/proc/sys/"+key, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("%w%s", err, why(err))
		}
		_, err = f.WriteString("1")
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func tryIPVS() error {
	_, err := netlink.GenlFamilyGet("IPVS")
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("kernel %s has none", release())
	}
	return err
}

// trySchedulers makes a virtual server of each.
func trySchedulers() error {
	path := os.Getenv("PATH")
	_ = os.Setenv("PATH", "") // the library would run modprobe, which is ours to do
	h, err := ipvs.New("")
	_ = os.Setenv("PATH", path)
	if err != nil {
		return err
	}
	defer h.Close()
	var errs []error
	for i, name := range []string{"rr", "wrr", "lc", "wlc", "sh", "mh"} {
		svc := &ipvs.Service{AddressFamily: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Address: []byte{10, 96, 0, 1}, Port: uint16(i + 1), SchedName: name}
		if err := h.NewService(svc); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func tryNFT() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "probe"})
	post := c.AddChain(&nftables.Chain{Name: "post", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	c.AddRule(&nftables.Rule{Table: t, Chain: post, Exprs: []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Masq{},
	}})
	in := c.AddChain(&nftables.Chain{Name: "in", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}})
	return c.Flush()
}

func tryConntrack() error {
	_, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	return err
}

func tryLink(kind string) func() error {
	return func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "probe-" + kind
		return netlink.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind})
	}
}

func tryBridgeNetfilter() error {
	for _, key := range []string{"iptables", "ip6tables"} {
		if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-" + key); err != nil {
			return err
		}
	}
	return nil
}

func trySCTP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
