package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What State prints is bounded: a failed test should show its cause, not 5,000
// Services.
const (
	maxSectionLines = 200
	maxAgentLog     = 8 << 10
)

// State prints what a node's kernel and its agent are up to: IPVS, addresses,
// routes, nftables, conntrack, sysctls and the end of the log. What cannot be
// had is said in its place.
func (n *Node) State() string {
	var b strings.Builder
	fmt.Fprintf(&b, "======== %s (%s, %s)\n", n.Name, n.V4, n.V6)
	for _, s := range []struct {
		title string
		text  func() (string, error)
	}{
		{"IPVS", n.ipvsTable},
		{"addresses", n.addresses},
		{"routes", n.routes},
		{"nft list ruleset", nftRuleset},
		{"conntrack", conntrackTable},
		{"sysctls", sysctls},
		{"agents", func() (string, error) { return n.agentLogs(), nil }},
	} {
		fmt.Fprintf(&b, "---- %s: %s\n", n.Name, s.title)
		var text string
		err := n.Do(func() (err error) {
			text, err = s.text()
			return err
		})
		b.WriteString(firstLines(text, maxSectionLines))
		if err != nil {
			fmt.Fprintf(&b, "(not to be had: %v)\n", err)
		}
	}
	return b.String()
}

// firstLines cuts a text and says how much is missing.
func firstLines(s string, n int) string {
	if s == "" {
		return ""
	}
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	if len(lines) > n {
		lines = append(lines[:n:n], fmt.Sprintf("[and %d more lines]", len(lines)-n))
	}
	return strings.Join(lines, "\n") + "\n"
}

// ipvsTable prints the table in the manner of ipvsadm -Sn, with counters.
func (n *Node) ipvsTable() (string, error) {
	servers, err := n.VirtualServers()
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintln(&b, s)
		for _, r := range s.Reals {
			fmt.Fprintf(&b, "    %s\n", r)
		}
	}
	return b.String(), err
}

func (n *Node) addresses() (string, error) {
	links, err := n.nl.LinkList()
	if err != nil {
		return "", fmt.Errorf("links: %w", err)
	}
	var b strings.Builder
	for _, l := range links {
		a := l.Attrs()
		fmt.Fprintf(&b, "%d: %s (%s) %s\n", a.Index, a.Name, l.Type(), a.Flags)
		addrs, err := n.nl.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return b.String(), fmt.Errorf("addresses of %s: %w", a.Name, err)
		}
		for _, addr := range addrs {
			fmt.Fprintf(&b, "    %s\n", addr.IPNet)
		}
	}
	return b.String(), nil
}

// routes prints table main, and of table local what was not made by the kernel
// for an address.
func (n *Node) routes() (string, error) {
	links, err := n.nl.LinkList()
	if err != nil {
		return "", fmt.Errorf("links: %w", err)
	}
	name := map[int]string{}
	for _, l := range links {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	var b strings.Builder
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := n.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return b.String(), fmt.Errorf("routes: %w", err)
		}
		for _, r := range all {
			if r.Table == unix.RT_TABLE_LOCAL && r.Protocol == unix.RTPROT_KERNEL && name[r.LinkIndex] != "kube-ipvs0" {
				continue
			}
			b.WriteString(route(r, name) + "\n")
		}
	}
	return b.String(), nil
}

func route(r netlink.Route, name map[int]string) string {
	dst := "default"
	if r.Dst != nil {
		dst = r.Dst.String()
	}
	if r.Type != unix.RTN_UNICAST {
		dst = fmt.Sprintf("type %d %s", r.Type, dst)
	}
	s := fmt.Sprintf("%s dev %s", dst, name[r.LinkIndex])
	if r.Gw != nil {
		s += " via " + r.Gw.String()
	}
	if r.Src != nil {
		s += " src " + r.Src.String()
	}
	return fmt.Sprintf("%s table %d proto %s", s, r.Table, r.Protocol)
}

// nftRuleset runs the tool: it starts in this thread's namespace.
func nftRuleset() (string, error) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, nft, "list", "ruleset").CombinedOutput()
	return string(out), err
}

// conntrackTable lists the entries with their status, which tells who translated them: IPVS changes the reply and
// leaves no trace there, a rule sets dnat or snat.
func conntrackTable() (string, error) {
	var b strings.Builder
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family})
		entries, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		errs = append(errs, err)
		for _, e := range entries {
			line, err := conntrackEntry(e)
			errs = append(errs, err)
			b.WriteString(line)
		}
	}
	return b.String(), errors.Join(errs...)
}

func conntrackEntry(msg []byte) (string, error) {
	e, err := attributes(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return "", err
	}
	proto, sent, err := tuple(e[nl.CTA_TUPLE_ORIG])
	if err != nil {
		return "", err
	}
	_, reply, err := tuple(e[nl.CTA_TUPLE_REPLY])
	if err != nil {
		return "", err
	}
	number := func(attr uint16) (n uint32) {
		if v := e[attr]; len(v) == 4 {
			n = binary.BigEndian.Uint32(v)
		}
		return n
	}
	status := number(nl.CTA_STATUS)
	s := fmt.Sprintf("%s %s reply %s mark %#x timeout %d status %#x", proto, sent, reply, number(nl.CTA_MARK), number(nl.CTA_TIMEOUT), status)
	for _, bit := range []struct { // enum ip_conntrack_status
		mask uint32
		name string
	}{{1 << 1, "replied"}, {1 << 2, "assured"}, {1 << 4, "snat"}, {1 << 5, "dnat"}} {
		if status&bit.mask != 0 {
			s += " " + bit.name
		}
	}
	return s + "\n", nil
}

// attributes splits a list of netlink attributes by type.
func attributes(b []byte) (map[uint16][]byte, error) {
	list, err := nl.ParseRouteAttr(b)
	m := make(map[uint16][]byte, len(list))
	for _, a := range list {
		m[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
	}
	return m, err
}

// tuple prints one direction of an entry.
func tuple(b []byte) (proto, s string, err error) {
	t, err := attributes(b)
	if err != nil {
		return "", "", err
	}
	ip, err := attributes(t[nl.CTA_TUPLE_IP])
	if err != nil {
		return "", "", err
	}
	p, err := attributes(t[nl.CTA_TUPLE_PROTO])
	if err != nil {
		return "", "", err
	}
	end := func(v4, v6, port uint16) string {
		a, _ := netip.AddrFromSlice(append(slices.Clip(ip[v4]), ip[v6]...))
		if n := p[port]; len(n) == 2 {
			return netip.AddrPortFrom(a, binary.BigEndian.Uint16(n)).String()
		}
		return a.String()
	}
	if n := p[nl.CTA_PROTO_NUM]; len(n) == 1 {
		proto = protocol(uint16(n[0]))
	}
	return proto, end(nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC, nl.CTA_PROTO_SRC_PORT) + " -> " +
		end(nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST, nl.CTA_PROTO_DST_PORT), nil
}

// sysctls prints what IPVS and the paths to it depend on.
func sysctls() (string, error) {
	var b strings.Builder
	for _, key := range []string{
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
		"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/eth0/rp_filter",
		"net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce",
		"net/ipv4/conf/all/route_localnet",
		"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables",
		"net/ipv4/vs/conntrack", "net/ipv4/vs/conn_reuse_mode",
		"net/ipv4/vs/expire_nodest_conn", "net/ipv4/vs/expire_quiescent_template",
	} {
		value, err := os.ReadFile("/proc/sys/" + key)
		if err != nil {
			value = fmt.Appendf(nil, "(%v)", err)
		}
		fmt.Fprintf(&b, "%s = %s\n", key, strings.TrimSpace(string(value)))
	}
	return b.String(), nil
}

// agentLogs prints the end of the log of each agent that ran on the node.
func (n *Node) agentLogs() string {
	n.world.mu.Lock()
	agents := n.world.agents
	n.world.mu.Unlock()
	var b strings.Builder
	for _, a := range agents {
		if a.Node != n {
			continue
		}
		state := "running"
		if !a.Running() {
			state = fmt.Sprintf("ended, exit %v", a.err)
		}
		fmt.Fprintf(&b, "%s, %s:\n%s", a, state, tail(a.Log(), maxAgentLog))
	}
	return b.String()
}
