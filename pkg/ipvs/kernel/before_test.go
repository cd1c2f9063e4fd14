package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// standingBefore is what stands before IPVS, in one text.
func standingBefore(t *testing.T) string {
	t.Helper()
	lines, err := StandsBefore(context.Background())
	must(t, err)
	return strings.Join(lines, "\n")
}

// B54: what stands before IPVS are the rules that lead to kube-proxy's chains, whichever iptables it used. Its chains alone do
// not, nor does what marks, masquerades or accepts behind IPVS.
func TestB54Before(t *testing.T) {
	for _, old := range []bool{false, true} {
		for _, mode := range []string{"iptables", "ipvs"} {
			t.Run(fmt.Sprintf("%s, legacy %t", mode, old), func(t *testing.T) {
				l := newLeavings(t, old)
				if lines := standingBefore(t); lines != "" {
					t.Fatalf("without kube-proxy: %s", lines)
				}
				l.put(mode)
				lines := standingBefore(t)
				for _, v6 := range []bool{false, true} {
					in := map[bool]string{false: "nftables ip nat: ", true: "nftables ip6 nat: "}[v6]
					if old {
						in = "table nat of " + l.program(v6, "") + ": "
					}
					if !strings.Contains(lines, in) || !strings.Contains(lines, "PREROUTING leads to KUBE-SERVICES") || !strings.Contains(lines, "OUTPUT leads to KUBE-SERVICES") {
						t.Errorf("%q is missing:\n%s", in, lines)
					}
				}
				for _, behind := range []string{"KUBE-POSTROUTING", "KUBE-FORWARD", "KUBE-MARK-MASQ"} {
					if strings.Contains(lines, behind) {
						t.Errorf("%s is said to stand before IPVS:\n%s", behind, lines)
					}
				}
				for _, v6 := range []bool{false, true} {
					l.unlink(v6)
				}
				if lines := standingBefore(t); lines != "" {
					t.Errorf("nothing leads there any more: %s", lines)
				}
				if all := l.all(); !strings.Contains(all, ":KUBE-SERVICES") || !strings.Contains(all, "-j KUBE-POSTROUTING") {
					t.Errorf("the chains are gone as well, so nothing was shown:\n%s", all)
				}
			})
		}
	}
}

// unlink takes out by hand what leads to kube-proxy's chains, but for what is behind IPVS.
func (l *leavings) unlink(v6 bool) {
	l.t.Helper()
	table := ""
	for line := range strings.Lines(l.run("", l.program(v6, "save"))) {
		if name, is := strings.CutPrefix(strings.TrimSpace(line), "*"); is {
			table = name
		}
		rule, is := strings.CutPrefix(strings.TrimSpace(line), "-A ")
		words := strings.Fields(rule)
		if !is || strings.HasPrefix(words[0], "KUBE-") || strings.Contains(rule, "-j KUBE-POSTROUTING") || strings.Contains(rule, "-j KUBE-FORWARD") || !strings.Contains(rule, "-j KUBE-") {
			continue
		}
		l.run("*"+table+"\n-D "+rule+"\nCOMMIT\n", l.program(v6, "restore"), "--noflush")
	}
}

// B54: of kube-proxy's tables of mode nftables those stand before IPVS that a packet comes to.
func TestB54BeforeNftables(t *testing.T) {
	l := newLeavings(t, false)
	l.put("nftables") // tables with a chain to which nothing leads
	if lines := standingBefore(t); lines != "" {
		t.Errorf("a table that no packet comes to: %s", lines)
	}
	l.run("", "nft", "add chain ip6 kube-proxy nat-output { type nat hook output priority -100 ; }")
	if lines := standingBefore(t); lines != "" {
		t.Errorf("a chain without rules: %s", lines)
	}
	l.run("", "nft", "add rule ip6 kube-proxy nat-output jump services")
	if lines := standingBefore(t); lines != "nftables table ip6 kube-proxy" {
		t.Errorf("said: %q", lines)
	}
}

// B87: policies of iptables-legacy that drop are found, those of others' chains are none.
func TestB87LegacyPolicies(t *testing.T) {
	l := newLeavings(t, true)
	names := func() (names []string) {
		chains, err := LegacyChains()
		must(t, err)
		for _, c := range chains {
			names = append(names, fmt.Sprintf("%s forward %t input %t drop %t: %s", c, c.Forward, c.Input, c.Drop, c.Show))
		}
		return names
	}
	if got := names(); len(got) > 0 {
		t.Errorf("nothing drops: %q", got)
	}
	l.run("", l.program(false, ""), "-P", "INPUT", "DROP")
	l.run("", l.program(true, ""), "-P", "FORWARD", "DROP")
	l.run("", l.program(true, ""), "-P", "OUTPUT", "DROP")
	want := []string{
		"iptables-legacy filter INPUT forward false input true drop true: iptables-legacy -t filter -S INPUT",
		"ip6tables-legacy filter FORWARD forward true input false drop true: ip6tables-legacy -t filter -S FORWARD",
	}
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// B87: rules that keep packets to an address out of connection tracking are found, as nft and iptables write them; those about
// a range, another address's source or a port are not about one address.
func TestB87Untracked(t *testing.T) {
	l := newLeavings(t, false)
	n, err := newNFT(Config{})
	must(t, err)
	t.Cleanup(n.close)
	l.run(`table inet dns {
 chain pre { type filter hook prerouting priority raw
  ip daddr 10.96.0.10 udp dport 53 notrack
  ip6 daddr fd00:96::a tcp dport 53 notrack
  ip daddr 10.97.0.0/16 notrack
  ip saddr 10.98.0.1 notrack
  udp dport 53 notrack
  ip daddr 10.99.0.1 accept
 }
}
`, "nft", "-f", "-")
	l.run("", "iptables-nft", "-t", "raw", "-A", "OUTPUT", "-d", "10.96.0.11/32", "-p", "udp", "--dport", "53", "-j", "CT", "--notrack")
	l.run("", "iptables-nft", "-t", "raw", "-A", "OUTPUT", "-d", "10.96.0.12/32", "-p", "udp", "--dport", "53", "-j", "CT", "--zone", "5")
	found, err := n.untracked(context.Background())
	must(t, err)
	var got []string
	for _, u := range found {
		got = append(got, u.Chain+" "+u.Addr.String())
	}
	slices.Sort(got)
	want := []string{"inet dns pre 10.96.0.10", "inet dns pre fd00:96::a", "ip raw OUTPUT 10.96.0.11"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if vips, err := UntrackedVIPs(context.Background(), nil); err != nil || len(vips) > 0 {
		t.Errorf("no virtual IP is there: %v, %v", vips, err)
	}
	vips, err := UntrackedVIPs(context.Background(), []netip.Addr{netip.MustParseAddr("10.96.0.11")})
	if err != nil || len(vips) != 1 || vips[0].Chain != "ip raw OUTPUT" {
		t.Errorf("one is: %v, %v", vips, err)
	}
}
