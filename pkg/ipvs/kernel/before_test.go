package kernel

import (
	"context"
	"fmt"
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
