package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// findings are what `ipvs-proxy check` printed, and how it ended.
type findings struct {
	lines  []string
	stderr string
	exit   int
}

func check(t *testing.T, n *lab.Node, args ...string) findings {
	t.Helper()
	return checkAs(t, n, 0, args...)
}

func checkAs(t *testing.T, n *lab.Node, uid uint32, args ...string) findings {
	t.Helper()
	// Room for connections is the machine's, which a small one does not have enough of for kube-proxy's default.
	out, stderr, exit := n.Command(t, uid, slices.Concat([]string{"check"}, untuned, args)...)
	return findings{strings.Split(strings.TrimSpace(out), "\n"), stderr, exit}
}

// of lists the findings of a level that say something.
func (f findings) of(level string, parts ...string) (found []string) {
	for _, l := range f.lines {
		kind, text, _ := strings.Cut(l, " ")
		says := kind == level
		for _, p := range parts {
			says = says && strings.Contains(text, p)
		}
		if says {
			found = append(found, l)
		}
	}
	return found
}

// want: exactly one finding of the level says all parts, and the exit status follows from whether it is a problem.
func (f findings) want(t *testing.T, level string, parts ...string) {
	t.Helper()
	exit := map[string]int{"problem": 1}[level]
	if len(f.of(level, parts...)) != 1 || f.exit != exit {
		t.Errorf("want one %s that says %q and exit status %d; exit status %d:\n%s\n%s",
			level, parts, exit, f.exit, strings.Join(f.lines, "\n"), f.stderr)
	}
}

// able: all is well.
func (f findings) able(t *testing.T) {
	t.Helper()
	if len(f.of("ok")) != len(f.lines) || len(f.lines) < 8 || f.exit != 0 || f.stderr != "" {
		t.Errorf("want nothing but ok; exit status %d:\n%s\n%s", f.exit, strings.Join(f.lines, "\n"), f.stderr)
	}
}

// B44: pods of one node on one bridge reach each other through a Service only where the bridge hands its
// packets to netfilter; where it does not, the agent's log and check say so, and what to do. Done, it works.
func TestB44PodsOnOneBridge(t *testing.T) {
	s := newStage(t, lab.Config{NoBridgeNetfilter: true})
	n := s.w.Node(1)
	agent := s.w.StartAgent(t, n, s.cluster)
	svc := web(44)
	s.apply(svc, s.w.Pod("pod-b"))
	keys := map[int]string{4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}
	each(t, func(t *testing.T, family int) {
		answers(t, n.Host, at(svc, family, 80)) // it is programmed
		if r := s.w.Pod("pod-a").Ask(at(svc, family, 80), lab.Timeout(2*time.Second)); r.Verdict == lab.Answered {
			t.Errorf("the control answers, so nobody needs a warning: %s", r)
		}
		say := []string{keys[family] + " is 0", "bridge cni0", fmt.Sprintf("IPv%d", family), "sysctl -w " + keys[family] + "=1"}
		check(t, n).want(t, "problem", say...)
		for _, part := range say {
			if !strings.Contains(agent.Log(), part) {
				t.Errorf("the agent does not say %q:\n%s", part, agent.Log())
			}
		}
	})
	// What they say to do.
	each(t, func(t *testing.T, family int) {
		setSysctls(t, n, map[string]string{keys[family]: "1"})
		answers(t, s.w.Pod("pod-a").Host, at(svc, family, 80))
	})
	check(t, n).able(t)
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	again := s.w.StartAgent(t, n, s.cluster)
	lab.Eventually(t, soon, "the start is over", func() error {
		if !strings.Contains(again.Log(), "all Services are programmed") {
			return errors.New("not said in the log")
		}
		return nil
	})
	if strings.Contains(again.Log(), "bridge") {
		t.Errorf("still said:\n%s", again.Log())
	}
}

// nft runs the tool on a node.
func nft(t *testing.T, n *lab.Node, script string) {
	t.Helper()
	if err := n.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// kernelState is all that check may not change. nftables counts the transactions that went through.
func kernelState(t *testing.T, n *lab.Node) string {
	t.Helper()
	var b strings.Builder
	err := n.Do(func() error {
		servers, err := os.ReadFile("/proc/thread-self/net/ip_vs")
		if err != nil {
			return err
		}
		ask := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
		ask.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
		messages, err := ask.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil || len(messages) != 1 || len(messages[0]) < 12 {
			return fmt.Errorf("generation of nftables: %x, %w", messages, err)
		}
		generation := messages[0][4:12] // after the header: NFTA_GEN_ID; who wrote it and when is news of this question
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s\nnftables generation %x\n", servers, generation)
		for _, l := range links {
			fmt.Fprintf(&b, "%d %s %s\n", l.Attrs().Index, l.Attrs().Name, l.Attrs().Flags)
		}
		return nil
	})
	for _, values := range []map[string]string{wantedSysctls, foreignSysctls} {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			value, readErr := n.ReadSysctl(name)
			err = errors.Join(err, readErr)
			fmt.Fprintln(&b, name, value)
		}
	}
	if err != nil {
		t.Fatalf("state of %s: %v", n.Name, err)
	}
	return b.String()
}

// B45: a node on which the agent runs is able; what is in the way is named, each by itself, with what to do,
// and is not named any more when it is gone. check itself changes nothing.
func TestB45CheckNamesWhatIsInTheWay(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	agent := s.w.StartAgent(t, n, s.cluster)
	svc := web(45)
	s.apply(svc, s.w.Pod("pod-b"))
	answers(t, n.Host, at(svc, 4, 80))
	if err := agent.Stop(); err != nil { // it would put right what is made wrong here
		t.Fatal(err)
	}
	before := kernelState(t, n)
	check(t, n).able(t)
	if after := kernelState(t, n); after != before {
		t.Errorf("check changed the kernel; before:\n%s\nafter:\n%s", before, after)
	}
	for _, c := range []struct {
		name     string
		do, undo string // nftables
		level    string
		says     []string
	}{
		{"firewall of iptables-nft", "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }", "delete table ip filter",
			"warning", []string{"ip filter FORWARD", "drops forwarded packets", "must accept the addresses of pods"}},
		{"firewall of its own", "table inet fw { chain through { type filter hook forward priority 10; policy drop; }; }", "delete table inet fw",
			"warning", []string{"inet fw through"}},
		{"kube-proxy, iptables", "table ip nat { chain KUBE-SERVICES { }; chain PREROUTING { type nat hook prerouting priority -100; jump KUBE-SERVICES; }; }", "delete table ip nat",
			"warning", []string{"kube-proxy is or was at work", "ip nat: PREROUTING leads to KUBE-SERVICES", "one proxy a node"}},
		{"kube-proxy, iptables, where nothing leads to its chains", "table ip nat { chain KUBE-SERVICES { }; chain KUBE-POSTROUTING { }; chain POSTROUTING { type nat hook postrouting priority 100; jump KUBE-POSTROUTING; }; }", "delete table ip nat", "", nil},
		{"kube-proxy, nftables", "table ip6 kube-proxy { chain services { }; chain nat-output { type nat hook output priority -100; jump services; }; }", "delete table ip6 kube-proxy",
			"warning", []string{"kube-proxy is or was at work", "table ip6 kube-proxy"}},
		{"kube-proxy, nftables, a table that does nothing", "table ip6 kube-proxy { chain services { }; }", "delete table ip6 kube-proxy", "", nil},
		{"kube-router", "table ip filter { chain KUBE-ROUTER-FORWARD { }; }", "delete table ip filter",
			"warning", []string{"kube-router", "KUBE-ROUTER-FORWARD"}},
		{"nothing to do with it", `table ip filter {
			chain KUBE-FIREWALL { }
			chain INPUT { type filter hook input priority 0; policy accept; ct state established accept; iif lo accept; jump KUBE-FIREWALL; }
			chain FORWARD { type filter hook forward priority 0; policy accept; }
			chain late { type filter hook input priority 200; policy drop; ct state established accept; iif lo accept; }
			chain KUBE-KUBELET-CANARY { }
		}`, "delete table ip filter", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			nft(t, n, c.do)
			if c.level == "" {
				check(t, n).able(t)
			} else {
				check(t, n).want(t, c.level, c.says...)
			}
			nft(t, n, c.undo)
			check(t, n).able(t)
		})
	}
	t.Run("scheduler", func(t *testing.T) {
		check(t, n, "--ipvs-scheduler=nonesuch").want(t, "warning", "ip_vs_nonesuch", "modprobe ip_vs_nonesuch", "rr serves in its place")
	})
	t.Run("rights", func(t *testing.T) {
		f := checkAs(t, n, 65534)
		f.want(t, "problem", "CAP_NET_ADMIN", "run as root")
		if !strings.Contains(f.stderr, "not able") {
			t.Errorf("standard error: %s", f.stderr)
		}
	})
	t.Run("sysctls", func(t *testing.T) { checkSysctls(t, n) })
	t.Run("IPv6", func(t *testing.T) {
		setSysctls(t, n, map[string]string{"net/ipv6/conf/all/disable_ipv6": "1"})
		check(t, n).want(t, "warning", "IPv6 is switched off", "disable_ipv6=0")
		setSysctls(t, n, map[string]string{"net/ipv6/conf/all/disable_ipv6": "0"})
		check(t, n).able(t)
	})
}

// checkSysctls: one that is wrong is a warning where the agent will set it, and in a container, where /proc/sys is read-only
// and the install files' init sets it; a problem where neither may.
func checkSysctls(t *testing.T, n *lab.Node) {
	const name = "net/ipv4/vs/expire_nodest_conn"
	setSysctls(t, n, map[string]string{name: "0"})
	check(t, n).want(t, "warning", name+" is 0, should be 1", "init and run set it", "clients of a removed endpoint hang")
	n.ReadOnlySysctls = true
	defer func() { n.ReadOnlySysctls = false }()
	for what, f := range map[string]findings{
		name:                           check(t, n),
		"net/ipv4/conf/all/arp_ignore": check(t, n, "--ipvs-strict-arp"),
	} {
		f.want(t, "warning", what+" is 0, should be 1", "read-only here", "init", "sysctl -w "+what+"=1")
	}
	n.ReadOnlySysctls = false
	setSysctls(t, n, map[string]string{name: "1"})
	check(t, n).able(t)
}

// B45: connection tracking that is nearly full is named with its figures.
func TestB45ConntrackNearlyFull(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	limit := lowerConntrackMax(t, n)
	fill := func(from, to int) {
		t.Helper()
		if err := n.Do(func() error { return makeFlows(from, to) }); err != nil {
			t.Fatal(err)
		}
		if count := sysctlNumber(t, n, "net/netfilter/nf_conntrack_count"); count < to {
			t.Fatalf("%d entries, want at least %d", count, to)
		}
	}
	fill(0, limit*70/100)
	if f := check(t, n); len(f.of("ok", "connection tracking", fmt.Sprintf("of %d entries", limit))) != 1 {
		t.Errorf("70 %% full:\n%s", strings.Join(f.lines, "\n"))
	}
	fill(limit*70/100, limit*85/100)
	f := check(t, n)
	if len(f.of("warning", "connection tracking", fmt.Sprintf("of %d entries", limit), "net.netfilter.nf_conntrack_max")) != 1 {
		t.Errorf("85 %% full:\n%s", strings.Join(f.lines, "\n"))
	}
}

// lowerConntrackMax makes the table small, where the machine is the test's own: the limit is for all namespaces
// and can be written in the first one only.
func lowerConntrackMax(t *testing.T, n *lab.Node) int {
	t.Helper()
	const file = "/proc/sys/net/netfilter/nf_conntrack_max"
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1000"), 0); err == nil {
		t.Cleanup(func() {
			if err := os.WriteFile(file, old, 0); err != nil {
				t.Error(err)
			}
		})
	}
	return sysctlNumber(t, n, "net/netfilter/nf_conntrack_max")
}

func sysctlNumber(t *testing.T, n *lab.Node, name string) int {
	t.Helper()
	text, err := n.ReadSysctl(name)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("sysctl %s: %v", name, err)
	}
	return number
}

// makeFlows puts entries into this thread's connection table.
func makeFlows(from, to int) error {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	for i := from; i < to; i++ {
		client, server := net.IPv4(198, 18, byte(i>>16), byte(i>>8)).To4(), net.IPv4(198, 19, 0, byte(i)).To4()
		flow := &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 300,
			Forward: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: client, DstIP: server, SrcPort: 1000, DstPort: 53},
			Reverse: netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: server, DstIP: client, SrcPort: 53, DstPort: 1000}}
		if err := h.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, flow); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return nil
}

// B45: an IPVS table with more connections than its rows are for is named with its figures. Since 7.x the table is small
// at first and grows to that many rows.
func TestB45ManyConnections(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	s.w.StartAgent(t, n, s.cluster)
	svc := web(46)
	svc.Ports = append(svc.Ports, lab.Port{Name: "udp", Port: 53, TargetPort: 5353, Protocol: "UDP"})
	a, b := s.w.Pod("pod-a"), s.w.Pod("pod-b") // each gets half, which would not be many
	s.apply(svc, a, b)
	answers(t, n.Host, at(svc, 4, 80))
	wantReals(t, n, at(svc, 4, 53), netip.AddrPortFrom(a.V4, 5353).String()+" 1", netip.AddrPortFrom(b.V4, 5353).String()+" 1")
	const rows, each = 4096, 4
	want := fmt.Sprintf("table of %d rows", rows)
	if _, err := n.ReadSysctl("net/ipv4/vs/conn_lfactor"); err == nil {
		want = " connections in a table of "
	}
	if f := check(t, n); len(f.of("ok", "IPVS", want)) != 1 {
		t.Fatalf("hardly any connections:\n%s", strings.Join(f.lines, "\n"))
	}
	// One datagram is a connection, from each of many ports.
	to := at(svc, 4, 53)
	if err := n.Do(func() error { return sendDatagrams(to, n.V4, 1024, rows*each+200) }); err != nil {
		t.Fatal(err)
	}
	check(t, n).want(t, "warning", "IPVS has ", fmt.Sprintf("in a table of %d rows", rows), "conn_tab_bits=15")
}

// sendDatagrams sends empty UDP datagrams from consecutive ports.
func sendDatagrams(to netip.AddrPort, from netip.Addr, first, n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := make([]byte, 28)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP // the kernel fills in length and checksum of the IP header
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], 8) // and UDP may go without a checksum
	for port := first; port < first+n; port++ {
		binary.BigEndian.PutUint16(p[20:], uint16(port))
		if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
			return fmt.Errorf("datagram %d: %w", port, err)
		}
	}
	return nil
}
