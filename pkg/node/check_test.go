package node

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

func want(t *testing.T, what string, f Finding, level Level, parts ...string) {
	t.Helper()
	if f.Level != level {
		t.Errorf("%s: %s, want %s", what, f, level)
	}
	for _, p := range parts {
		if !strings.Contains(f.Text, p) {
			t.Errorf("%s: %q does not say %q", what, f.Text, p)
		}
	}
}

func TestJudgeRelease(t *testing.T) {
	for release, level := range map[string]Level{
		"5.10.0": OK, "5.10.223-amd64": OK, "5.15.0-105-generic": OK, "6.1.0-56-cloud-amd64": OK, "10.0": OK, "5.100.1": OK,
		"5.9.16": Problem, "4.18.0-553.el8_10.x86_64": Problem, "3.10.0": Problem, "4.19": Problem,
		"": Warning, "unknown": Warning,
	} {
		want(t, release, judgeRelease(release), level, "kernel "+map[bool]string{true: `"` + release + `"`, false: release}[level == Warning])
	}
	want(t, "old", judgeRelease("4.18.0"), Problem, "older than 5.10", "use a newer one")
}

func TestJudgeConntrack(t *testing.T) {
	for _, c := range []struct {
		count, limit int
		level        Level
	}{{0, 0, OK}, {1 << 20, 0, OK}, {800, 1000, OK}, {801, 1000, Warning}, {1000, 1000, Warning}, {209715, 262144, OK}, {209716, 262144, Warning}} {
		want(t, "conntrack", judgeConntrack(c.count, c.limit), c.level)
	}
	want(t, "full", judgeConntrack(900, 1000), Warning, "900 of 1000", "net.netfilter.nf_conntrack_max")
}

const procIPVS = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr ops persistent 600000 FFFFFFFF
  -> 0AF4010A:1F90      Masq    1      7          30
  -> 0AF4010B:1F90      Masq    0      1          0
TCP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0050 rr
  -> [fd10:0244:0001:0000:0000:0000:0000:000a]:1F90      Masq    1      200          4000
FWM  00000001 rr
`

func TestReadConnections(t *testing.T) {
	n, rows, err := readConnections(strings.NewReader(procIPVS))
	if n != 4238 || rows != 4096 || err != nil {
		t.Errorf("%d connections, %d rows, %v; want 4238 and 4096", n, rows, err)
	}
	if n, rows, err := readConnections(strings.NewReader("IP Virtual Server version 1.2.1 (size=0)\n")); n != 0 || rows != 0 || err != nil {
		t.Errorf("no table yet: %d connections, %d rows, %v", n, rows, err)
	}
	for _, bad := range []string{"", "TCP 0A60000A:0050 rr\n", "IP Virtual Server version 1.2.1 (size=many)\n",
		strings.Replace(procIPVS, "4000", "4OOO", 1)} {
		if _, _, err := readConnections(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestJudgeConnections(t *testing.T) {
	want(t, "no table yet", judgeConnections(0, 0), OK, "0 connections")
	want(t, "few", judgeConnections(4*4096, 4096), OK, "16384 connections", "4096 rows")
	want(t, "many", judgeConnections(100_000, 4096), Warning, "100000 connections", "4096 rows", "conn_tab_bits=17")
}

func TestJudgeFirewalls(t *testing.T) {
	forward := kernel.Chain{Family: "ip", Table: "filter", Name: "FORWARD", Forward: true}
	input := kernel.Chain{Family: "ip", Table: "filter", Name: "INPUT", Drop: true, Input: true, Show: "nft list chain ip filter INPUT"}
	quiet := judgeFirewalls([]kernel.Chain{forward, input})
	if len(quiet) != 1 {
		t.Errorf("%v", quiet)
	}
	want(t, "accepting", quiet[0], OK)
	closed := forward
	closed.Drop = true
	found := judgeFirewalls([]kernel.Chain{forward, closed, input, {Family: "inet", Table: "fw", Name: "fwd", Forward: true, Drop: true}})
	if len(found) != 2 {
		t.Fatalf("%v", found)
	}
	want(t, "ip", found[0], Warning, "ip filter FORWARD")
	want(t, "inet", found[1], Warning, "inet fw fwd")
}

// B87: a policy that drops what comes to the node drops Services, too.
func TestB87JudgeInput(t *testing.T) {
	input := kernel.Chain{Family: "ip", Table: "filter", Name: "INPUT", Input: true, Show: "nft list chain ip filter INPUT"}
	forward := kernel.Chain{Family: "ip", Table: "filter", Name: "FORWARD", Forward: true, Drop: true}
	late := kernel.Chain{Family: "inet", Table: "fw", Name: "late", Drop: true} // behind IPVS
	quiet := judgeInput([]kernel.Chain{input, forward, late})
	if len(quiet) != 1 {
		t.Errorf("%v", quiet)
	}
	want(t, "accepting", quiet[0], OK)
	input.Drop = true
	old := kernel.Chain{Family: "iptables-legacy", Table: "filter", Name: "INPUT", Input: true, Drop: true, Show: "iptables-legacy -t filter -S INPUT"}
	found := judgeInput([]kernel.Chain{input, forward, old})
	if len(found) != 2 {
		t.Fatalf("%v", found)
	}
	want(t, "nftables", found[0], Warning, "ip filter INPUT", "all packets to Services", "(nft list chain ip filter INPUT)")
	want(t, "legacy", found[1], Warning, "iptables-legacy filter INPUT", "(iptables-legacy -t filter -S INPUT)")
}

func TestJudgeProxies(t *testing.T) {
	chain := func(name string) kernel.Chain { return kernel.Chain{Family: "ip", Table: "nat", Name: name} }
	kubeProxys := []kernel.Chain{chain("PREROUTING"), chain("KUBE-SERVICES"), chain("KUBE-SVC-ABC")}
	for name, c := range map[string]struct {
		tables []string
		chains []kernel.Chain
		before []string
		level  Level
		says   []string
	}{
		"nothing":         {says: []string{"no other proxy"}},
		"the kubelet's":   {[]string{"ip mangle"}, []kernel.Chain{chain("KUBE-KUBELET-CANARY"), chain("KUBE-FIREWALL"), chain("KUBE-IPTABLES-HINT"), chain("KUBE-MARK-DROP"), chain("KUBE-POSTROUTING")}, nil, OK, []string{"no other proxy"}},
		"network policy":  {nil, []kernel.Chain{chain("KUBE-NWPLCY-DEFAULT"), chain("KUBE-POD-FW-ABC")}, nil, OK, []string{"no other proxy"}},
		"iptables":        {[]string{"ip nat"}, kubeProxys, []string{"nftables ip nat: PREROUTING leads to KUBE-SERVICES"}, Warning, []string{"kube-proxy is or was at work|before IPVS|PREROUTING leads to KUBE-SERVICES|one proxy a node"}},
		"harmless":        {[]string{"ip nat"}, kubeProxys, nil, OK, []string{"in mode iptables left|nothing leads there"}},
		"harmless, ipvs":  {nil, []kernel.Chain{chain("KUBE-NODE-PORT")}, nil, OK, []string{"in mode ipvs left|nothing leads there"}},
		"empty table":     {[]string{"ip6 kube-proxy"}, nil, nil, OK, []string{"in mode nftables left|nothing leads there"}},
		"kube-router":     {nil, []kernel.Chain{chain("KUBE-ROUTER-SERVICES")}, nil, Warning, []string{"kube-router|KUBE-ROUTER-SERVICES"}},
		"two of them":     {nil, []kernel.Chain{chain("KUBE-ROUTER-SERVICES")}, []string{"nftables table ip kube-proxy"}, Warning, []string{"table ip kube-proxy", "kube-router"}},
		"similarly named": {[]string{"inet my-kube-proxy"}, []kernel.Chain{chain("kube-services")}, nil, OK, []string{"no other proxy"}},
	} {
		found := judgeProxies(c.tables, c.chains, c.before)
		if len(found) != len(c.says) {
			t.Errorf("%s: %v, want %d", name, found, len(c.says))
			continue
		}
		for i, say := range c.says {
			want(t, name, found[i], c.level, strings.Split(say, "|")...)
		}
	}
}

// B43: a bridge that is still to come needs the module, which is a warning and no problem: pods may stand on none.
func TestB43JudgeBridgeNetfilter(t *testing.T) {
	want(t, "all right", judgeBridgeNetfilter(nil), OK, "br_netfilter")
	want(t, "missing", judgeBridgeNetfilter(fmt.Errorf("%w: modprobe it", kernel.ErrNoBridgeNetfilter)), Warning, "modprobe it", "init loads it", "no bridge do without")
	want(t, "off", judgeBridgeNetfilter(errors.New("a sysctl is 0")), Warning, "a sysctl is 0", "no bridge do without")
}

// B43: which schedulers are said to be loaded, without asking for any.
func TestB43JudgeSchedulers(t *testing.T) {
	want(t, "rr", checkSchedulers("rr"), OK, "beside rr were not asked for", "modprobe ip_vs_NAME")
}

// B81: node ports that may be given to a process that connects out are a warning where the agent cannot help it.
func TestB81JudgeNodePorts(t *testing.T) {
	want(t, "none", judgeNodePorts("", errors.New("read-only"), nil), OK, "30000-32767")
	want(t, "helped", judgeNodePorts("30000-30010", nil, nil), OK, "run keeps", "net.ipv4.ip_local_reserved_ports")
	want(t, "helpless", judgeNodePorts("30000-30010", errors.New("read-only"), nil), Warning, "the ports 30000-30010", "read-only", "sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767")
	want(t, "unseen", judgeNodePorts("", nil, errors.New("no such file")), Warning, "no such file")
}

// B87: NodeLocal DNSCache in the variant for other proxies, and rules that keep packets to a Service untracked.
func TestB87JudgeDNSCache(t *testing.T) {
	addr := netip.MustParseAddr
	quiet := judgeDNSCache(nil, nil)
	want(t, "none", quiet[0], OK)
	found := judgeDNSCache([]netip.Addr{addr("10.96.0.10"), addr("fd00:96::a")}, []kernel.Untracked{{Addr: addr("10.96.0.10"), Chain: "ip raw PREROUTING"}})
	if len(found) != 2 {
		t.Fatalf("%v", found)
	}
	want(t, "address", found[0], Warning, "nodelocaldns has the address 10.96.0.10, fd00:96::a", "variant of its manifest for IPVS", "169.254.20.10")
	want(t, "untracked", found[1], Warning, "chain ip raw PREROUTING", "virtual IP 10.96.0.10", "nft list chain ip raw PREROUTING")
}

func TestB87JudgeFlowTables(t *testing.T) {
	want(t, "none", judgeFlowTables(nil, nil), OK)
	want(t, "some", judgeFlowTables([]string{"inet fw fast", "ip gw fast"}, nil), Warning, "inet fw fast, ip gw fast", "past IPVS")
	want(t, "unseen", judgeFlowTables(nil, errors.New("no")), Warning, "no")
}

// B87: NetworkManager is a warning unless its configuration names our interface.
func TestB87NetworkManager(t *testing.T) {
	const head = "Num       RefCount Protocol Flags    Type St Inode Path\n0000: 00000002 00000000 00010000 0005 01 8 "
	for path, is := range map[string]bool{"/run/NetworkManager/private-dhcp": true, "/var/run/NetworkManager/private-dhcp": true, "/run/dbus": false, "@ipvs-proxy.io/agent": false} {
		if managed(head+path+"\n") != is {
			t.Errorf("%s: %t", path, !is)
		}
	}
	for _, c := range []struct {
		name, file, text string
		level            Level
		says             string
	}{
		{"nothing to be seen", "", "", Warning, "cannot be seen from here"},
		{"another interface", "etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:cali*;interface-name:docker0\n", Warning, "is not told to leave kube-ipvs0 alone"},
		{"by name", "etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:cali*;interface-name:kube-ipvs0\n", OK, "alone"},
		{"added", "run/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices+=interface-name:kube-ipvs0\n", OK, "alone"},
		{"by pattern", "usr/lib/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices = interface-name:kube-*\n", OK, "alone"},
		{"exactly", "etc/NetworkManager/NetworkManager.conf", "[keyfile]\nunmanaged-devices=interface-name:=kube-ipvs0\n", OK, "alone"},
		{"by kind", "etc/NetworkManager/NetworkManager.conf", "[keyfile]\nunmanaged-devices=type:dummy\n", OK, "alone"},
		{"a comment", "etc/NetworkManager/NetworkManager.conf", "# unmanaged-devices=interface-name:kube-ipvs0\n", Warning, "is not told"},
	} {
		root := t.TempDir()
		if c.file != "" {
			file := filepath.Join(root, c.file)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want(t, c.name, judgeManager(managerExempts(root)), c.level, c.says)
	}
}
