package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kubeproxy"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/legacy"
)

// leavings are put by the programs that kube-proxy uses, in a namespace of the test's own. In the lab they must be there.
type leavings struct {
	t      *testing.T
	legacy bool // iptables-legacy, else iptables-nft
}

func newLeavings(t *testing.T, old bool) *leavings {
	t.Helper()
	inNetns(t)
	l := &leavings{t, old}
	for _, p := range []string{l.program(false, "restore"), "ipset", "nft"} {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("IPVS_PROXY_LAB") != "" {
				t.Fatal(err)
			}
			t.Skipf("needs %s", p)
		}
	}
	for _, v6 := range []bool{false, true} {
		l.restore(v6, "others.rules", "--counters")
	}
	l.run("", "ipset", "create", "KUBE-SRC-OTHERS", "hash:ip") // as kube-router calls its own
	l.run("", "ipset", "create", "mine", "hash:ip")
	return l
}

func (l *leavings) program(v6 bool, what string) string {
	name := "iptables"
	if v6 {
		name = "ip6tables"
	}
	name += map[bool]string{false: "-nft", true: "-legacy"}[l.legacy]
	if what == "" {
		return name
	}
	return name + "-" + what
}

func (l *leavings) run(input, name string, args ...string) string {
	l.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s\n%s", cmd, err, out, input)
	}
	return string(out)
}

// text is a file of testdata for a family.
func (l *leavings) text(v6 bool, file string) string {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "leavings", file))
	if err != nil {
		l.t.Fatal(err)
	}
	words := []string{"@VIP", "10.96.0.5", "@LB", "203.0.113.5", "@NONE", "10.96.0.6", "@PODS", "10.244.0.0/16", "@CLIENTS", "198.51.100.0/24",
		"@POD1", "10.244.1.5", "@POD2", "10.244.2.5", "@TO1", "10.244.1.5:8080", "@TO2", "10.244.2.5:8080", "@SET", "KUBE-", "@FAMILY", "family inet"}
	if v6 {
		words = []string{"@VIP", "fd00:96::5", "@LB", "fd20:113::5", "@NONE", "fd00:96::6", "@PODS", "fd10:244::/48", "@CLIENTS", "2001:db8::/32",
			"@POD1", "fd10:244:1::5", "@POD2", "fd10:244:2::5", "@TO1", "[fd10:244:1::5]:8080", "@TO2", "[fd10:244:2::5]:8080", "@SET", "KUBE-6-", "@FAMILY", "family inet6"}
	}
	return strings.NewReplacer(words...).Replace(string(b))
}

func (l *leavings) restore(v6 bool, file string, args ...string) {
	l.t.Helper()
	l.run(l.text(v6, file), l.program(v6, "restore"), args...)
}

// put puts what kube-proxy leaves of a mode.
func (l *leavings) put(mode string) {
	l.t.Helper()
	for _, v6 := range []bool{false, true} {
		if mode == "nftables" {
			l.run("", "nft", fmt.Sprintf("add table %s kube-proxy; add chain %s kube-proxy services", map[bool]string{false: "ip", true: "ip6"}[v6], map[bool]string{false: "ip", true: "ip6"}[v6]))
			continue
		}
		if mode == "ipvs" {
			l.run(l.text(v6, "ipvs.sets"), "ipset", "restore", "-exist")
		}
		l.restore(v6, mode+".rules", "--noflush", "--counters")
	}
}

var comments = regexp.MustCompile(`(?m)^#.*\n`)

// all is what there is: rules with their counters, and the names of the sets.
func (l *leavings) all() string {
	var b strings.Builder
	for _, v6 := range []bool{false, true} {
		b.WriteString(comments.ReplaceAllString(l.run("", l.program(v6, "save"), "-c"), ""))
	}
	sets := strings.Fields(l.run("", "ipset", "list", "-n"))
	slices.Sort(sets)
	for _, s := range sets {
		b.WriteString("set " + s + "\n")
	}
	b.WriteString(l.run("", "nft", "list", "tables"))
	return b.String()
}

// theirs is what is kube-proxy's of that.
var theirs = regexp.MustCompile(`(?m)^(:|.*\s)` + kubeproxy.Pattern() + `( .*)?\n|^table ip6? kube-proxy\n`)

// without is what is there without kube-proxy's.
func (l *leavings) without(all string) string {
	var b strings.Builder
	for line := range strings.Lines(theirs.ReplaceAllString(all, "")) {
		if name, is := strings.CutPrefix(strings.TrimSpace(line), "set "); !is || !kubeproxy.IsSet(name) {
			b.WriteString(line)
		}
	}
	return b.String()
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// bare is it without counters. (iptables-legacy-restore itself forgets those of policies.)
func bare(all string) string { return counters.ReplaceAllString(all, "") }

// packet has the rules of INPUT and OUTPUT, and their policies, count.
func (l *leavings) packet() {
	l.t.Helper()
	c, err := net.Dial("udp", "127.0.0.1:9")
	if err == nil {
		_, err = c.Write([]byte("x"))
		c.Close()
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// leavingsDoor is a Kernel as far as Left and Trace need one.
func leavingsDoor(t *testing.T) *Kernel {
	t.Helper()
	n, err := newNFT(Config{})
	if err != nil {
		t.Fatal(err)
	}
	k := &Kernel{nft: n, sets: newSetDoor(), traces: legacy.Traces{}}
	t.Cleanup(func() { n.close(); k.sets.sock.close() })
	return k
}

// take does up to n of what Left lists, and says how many it did.
func take(t *testing.T, k *Kernel, n int) (texts []string) {
	t.Helper()
	ctx := context.Background()
	list, _, err := k.Left(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range list[:min(n, len(list))] {
		take := func() error { return left.Take(ctx) }
		err := take()
		for deadline := time.Now().Add(5 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			err = take()
		}
		if err != nil {
			t.Fatalf("%s: %v", left.Text, err)
		}
		texts = append(texts, left.Text)
	}
	return texts
}

func eachWay(t *testing.T, f func(t *testing.T, old bool, modes ...string)) {
	for _, old := range []bool{false, true} {
		for _, modes := range [][]string{{"iptables"}, {"ipvs"}, {"nftables"}, {"ipvs", "iptables", "nftables"}} {
			t.Run(map[bool]string{false: "nft", true: "legacy"}[old]+" "+strings.Join(modes, "+"), func(t *testing.T) { f(t, old, modes...) })
		}
	}
}

// B54: what kube-proxy left in each of its modes goes, whichever iptables it used, and everything else stays as it was, with its
// order and its counters: what the kubelet has, what others call KUBE-…, what only speaks of it. A process that dies after
// any of the writes leaves the rest to the next one. Nothing of this needs IPVS, so that it is tried on this machine's own
// kernel after every write; in the lab, and of all modes together, after some.
func TestB54LeavingsGo(t *testing.T) {
	eachWay(t, func(t *testing.T, old bool, modes ...string) {
		l := newLeavings(t, old)
		before := l.all()
		if texts := take(t, leavingsDoor(t), 99); texts != nil {
			t.Fatalf("there is nothing of kube-proxy's, and this goes: %q", texts)
		}
		kept, stride := "", 1
		if len(modes) > 1 {
			stride = 7
		}
		if os.Getenv("IPVS_PROXY_LAB") != "" {
			stride *= 3
		}
		for point := 0; ; point += stride {
			for _, m := range modes {
				l.put(m)
			}
			l.packet()
			if kept = l.without(l.all()); bare(kept) != bare(before) {
				t.Fatalf("beside kube-proxy's there is:\n%s\nwant:\n%s", kept, before)
			}
			first := take(t, leavingsDoor(t), point)
			rest := take(t, leavingsDoor(t), 99)
			if after := l.all(); after != kept {
				t.Fatalf("after %q and %q:\n%s\nwant:\n%s", first, rest, after, kept)
			}
			if len(rest) == 0 {
				t.Logf("%d writes: %q", len(first), first)
				break
			}
		}
	})
}

// B54: the chain that accepts replies stays where the policy is to drop them, and the mark for masquerading where a plugin
// for host ports relies on it; both are said.
func TestB54OthersRelyOnIt(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacy %t", old), func(t *testing.T) {
			l := newLeavings(t, old)
			l.put("iptables")
			l.run("", l.program(false, ""), "-P", "FORWARD", "DROP")
			l.run("", l.program(false, ""), "-t", "nat", "-A", "CNI-HOSTPORT-DNAT", "-j", "KUBE-MARK-MASQ")
			_, stays, err := leavingsDoor(t).Left(context.Background())
			if err != nil || len(stays) != 2 || !strings.Contains(stays[0], "KUBE-FORWARD stays") || !strings.Contains(stays[1], "CNI-HOSTPORT-DNAT leads there") {
				t.Errorf("%q %v", stays, err)
			}
			take(t, leavingsDoor(t), 99)
			rules := l.run("", l.program(false, "save"))
			for _, want := range []string{"-j KUBE-FORWARD", "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP", "-j KUBE-MARK-MASQ", "-A KUBE-MARK-MASQ -j MARK", "-j KUBE-POSTROUTING", "-A KUBE-POSTROUTING"} {
				if !strings.Contains(rules, want) {
					t.Errorf("%q is gone:\n%s", want, rules)
				}
			}
			for _, gone := range []string{"KUBE-SERVICES -", "KUBE-SVC-", "KUBE-PROXY-FIREWALL"} {
				if strings.Contains(rules, gone) {
					t.Errorf("%q is left:\n%s", gone, rules)
				}
			}
			if rules := l.run("", l.program(true, "save")); strings.Contains(rules, ":KUBE-FORWARD") {
				t.Errorf("IPv6 drops nothing, and the chain is left:\n%s", rules)
			}
		})
	}
}

// F26: what kube-proxy writes is noticed: by notifications in nftables, by the trace in iptables-legacy and ipsets. What others
// write, what is only taken away, and counters are no signs.
func TestF26SignsOfKubeProxy(t *testing.T) {
	for _, old := range []bool{false, true} {
		for _, mode := range []string{"iptables", "ipvs", "nftables"} {
			if old && mode == "nftables" {
				continue
			}
			t.Run(fmt.Sprintf("%s, legacy %t", mode, old), func(t *testing.T) {
				l := newLeavings(t, old)
				k := leavingsDoor(t)
				w, err := watch(BindAddress)
				if err != nil {
					t.Fatal(err)
				}
				defer w.close()
				k.nft.sock.note(&w.nft)
				trace := traceOf(t, k)
				sign := func() (string, bool) {
					time.Sleep(100 * time.Millisecond) // for what should not be heard nobody can wait
					was := trace
					trace = traceOf(t, k)
					return w.tampering.take().Proxy, was != trace
				}
				program := l.program(false, "")
				quiet := func(what string) {
					if heard, traced := sign(); heard != "" || traced {
						t.Errorf("%s: heard %q, trace changed %t", what, heard, traced)
					}
				}
				l.run("", program, "-I", "INPUT", "-p", "tcp", "--dport", "8", "-j", "ACCEPT")
				l.run("", program, "-N", "MORE")
				l.run("", "ipset", "add", "mine", "192.0.2.1")
				quiet("others'")
				l.put(mode)
				heard, traced := sign()
				if want := !old; (heard != "") != want || (old || mode == "ipvs") != traced {
					t.Errorf("kube-proxy's: heard %q, trace changed %t", heard, traced)
				}
				t.Logf("heard %q, trace changed %t", heard, traced)
				l.run("", program, "-Z")
				l.run("", program, "-I", "INPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
				quiet("counters, and others'")
				take(t, k, 99)
				if heard, _ := sign(); heard != "" {
					t.Errorf("our own: heard %q", heard)
				}
			})
		}
	}
}

func traceOf(t *testing.T, k *Kernel) uint64 {
	t.Helper()
	v, err := k.Trace(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
