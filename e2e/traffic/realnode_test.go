package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// TestMain lets the kernel call this program as its modprobe, see asModprobe.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "-q" && os.Args[2] == "--" {
		if err := insert(strings.TrimPrefix(os.Args[3], "rtnl-link-")); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// asModprobe has the kernel of the lab's own machine load by itself what it is asked for, as a distribution's does, until
// the test ends.
func asModprobe(t *testing.T) {
	t.Helper()
	const file = "/proc/sys/kernel/modprobe"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(program), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, before, 0); err != nil {
			t.Error(err)
		}
	})
}

// firstLink finds an interface of the machine's first network namespace, in which the tests run.
func firstLink(t *testing.T, name string) (found bool) {
	t.Helper()
	_, err := netlink.LinkByName(name)
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Fatal(err)
	}
	return err == nil
}

// loadedSchedulers names those that are there as modules.
func loadedSchedulers(t *testing.T) (names []string) {
	t.Helper()
	for line := range strings.Lines(readFile(t, "/proc/modules")) {
		if m, _, _ := strings.Cut(line, " "); strings.HasPrefix(m, "ip_vs_") {
			names = append(names, m)
		}
	}
	slices.Sort(names)
	return names
}

// B43: check and init have the kernel load what the configuration asks for and nothing else: no other scheduler, and the
// module dummy without the interface that it makes by itself. The control is what anybody else's question leaves.
func TestB43OnlyWhatIsWanted(t *testing.T) {
	lab.New(t)
	if !ownMachine() {
		t.Skip("needs a machine on which modules may be removed; the lab's own is one")
	}
	asModprobe(t)
	unload(t, append(loadedSchedulers(t), "dummy")...)
	for _, command := range []string{"check", "init"} {
		for _, scheduler := range []string{"rr", "sed"} {
			t.Run(command+" with "+scheduler, func(t *testing.T) {
				for _, m := range []string{"dummy", "ip_vs_sed", "ip_vs_rr"} {
					if isLoaded(t, m) {
						lab.Eventually(t, soon, "unload "+m, func() error { return unix.DeleteModule(m, unix.O_NONBLOCK) })
					}
				}
				cmd := exec.Command(os.Getenv("LAB_AGENT"), append([]string{command, "--ipvs-scheduler=" + scheduler}, untuned...)...)
				out, err := cmd.CombinedOutput()
				if err != nil && command == "init" {
					t.Fatalf("%v:\n%s", err, out)
				}
				if firstLink(t, "dummy0") {
					t.Errorf("dummy0 is left:\n%s", out)
				}
				if !isLoaded(t, "dummy") {
					t.Errorf("the kernel did not load dummy, so nothing was shown:\n%s", out)
				}
				if got, want := loadedSchedulers(t), []string{"ip_vs_" + scheduler}; !slices.Equal(got, want) {
					t.Errorf("schedulers %q are loaded, want %q:\n%s", got, want, out)
				}
			})
		}
	}
	t.Run("control", func(t *testing.T) {
		lab.Eventually(t, soon, "unload dummy", func() error { return unix.DeleteModule("dummy", unix.O_NONBLOCK) })
		made := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "asked"}}
		if err := netlink.LinkAdd(made); err != nil {
			t.Fatal(err)
		}
		if !firstLink(t, "dummy0") {
			t.Error("the kernel makes no dummy0, so nobody could leave one")
		}
		for _, name := range []string{"asked", "dummy0"} {
			if l, err := netlink.LinkByName(name); err == nil {
				err = netlink.LinkDel(l)
				if err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// B43: on a machine without a bridge yet, check asks for br_netfilter, and init loads it: the bridge comes with the first pod.
// The control is the agent, which says nothing of it as long as there is no bridge.
func TestB43InitBeforeTheBridge(t *testing.T) {
	w := lab.New(t)
	if !ownMachine() {
		t.Skip("needs a machine on which modules may be removed; the lab's own is one")
	}
	outside := &lab.Node{Host: w.Client} // a host without a bridge
	root := modulesRoot(t, "", map[string][]string{"br_netfilter": {"bridge"}, "bridge": nil})
	unload(t, "br_netfilter")
	if f := check(t, outside); len(f.of("warning", "br_netfilter is not loaded", "once pods stand on a bridge", "IPv4 and IPv6", "modprobe br_netfilter", "init loads it")) != 1 {
		t.Errorf("check does not ask for the module:\n%s", strings.Join(f.lines, "\n"))
	}
	agent := w.StartAgent(t, outside, w.Cluster(t), untuned...)
	programmed(t, agent)
	if strings.Contains(agent.Log(), "br_netfilter") {
		t.Errorf("the agent speaks of a bridge that is not there:\n%s", agent.Log())
	}
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	initNode(t, outside, 0, []string{"warning: br_netfilter could not be loaded: ", "pods that stand on no bridge do without"}, "--modules-root="+t.TempDir())
	initNode(t, outside, 0, []string{"br_netfilter: loaded " + root}, "--modules-root="+root)
	if f := check(t, outside); !isLoaded(t, "br_netfilter") || len(f.of("ok", "br_netfilter: bridges hand their packets to IPVS")) != 1 {
		t.Errorf("check after init:\n%s", strings.Join(f.lines, "\n"))
	}
	initNode(t, outside, 0, []string{"br_netfilter: there"}, "--modules-root="+root)
}

// byHand takes out of iptables what leads to kube-proxy's chains before IPVS, as an administrator would, and leaves the chains.
func (k *kubeProxy) byHand() {
	k.t.Helper()
	for _, family := range []int{4, 6} {
		table := ""
		for line := range strings.Lines(k.run("", k.program(family, "-save"))) {
			line = strings.TrimSpace(line)
			if name, is := strings.CutPrefix(line, "*"); is {
				table = name
			}
			rule, is := strings.CutPrefix(line, "-A ")
			if is && !strings.HasPrefix(rule, "KUBE-") && (strings.HasSuffix(rule, "-j KUBE-SERVICES") || strings.HasSuffix(rule, "-j KUBE-PROXY-FIREWALL")) {
				k.run("*"+table+"\n-D "+rule+"\nCOMMIT\n", k.program(family, "-restore"), "--noflush")
			}
		}
	}
}

// B54: while rules of kube-proxy stand before IPVS the agent says so, once, and on its page, and so does check; when somebody
// has taken out what leads to them it says that it is over, and check does not warn of chains that are left. Meanwhile packets
// go where those rules say: to an endpoint that has left, from pod, node and outside. Afterwards they do not.
func TestB54RulesBeforeIPVS(t *testing.T) {
	for _, way := range []struct {
		name   string
		legacy bool
		put    func(*kubeProxy)
		out    func(*kubeProxy)
		says   []string // of what stands there
		left   string   // what check says of the rest
	}{
		{"iptables-nft", false, (*kubeProxy).iptables, (*kubeProxy).byHand, []string{"nftables ip nat: PREROUTING leads to KUBE-SERVICES", "nftables ip6 nat: "}, "in mode iptables left does not stand before IPVS"},
		{"iptables-legacy", true, (*kubeProxy).iptables, (*kubeProxy).byHand, []string{"table nat of iptables-legacy: PREROUTING leads to KUBE-SERVICES", "table nat of ip6tables-legacy"}, ""},
		{"nftables", false, (*kubeProxy).nftables, func(k *kubeProxy) {
			k.run("delete table ip kube-proxy\ndelete table ip6 kube-proxy\n", "nft", "-f", "-")
		}, []string{"nftables table ip kube-proxy", "nftables table ip6 kube-proxy"}, ""},
	} {
		t.Run(way.name, func(t *testing.T) {
			s := newStage(t)
			n, b, c := s.w.Node(1), s.w.Pod("pod-b"), s.w.Pod("pod-c")
			svc := taken()
			proxy := &kubeProxy{t: t, s: s, n: n, svc: svc, pods: []*lab.Pod{b, c}, legacy: way.legacy}
			s.apply(svc, b) // pod-c has left
			way.put(proxy)
			agent := s.w.StartAgent(t, n, s.cluster, slices.Concat([]string{"--config", ownFile(t, "takeover: {leftovers: Keep}")}, untuned)...)
			programmed(t, agent)
			const warning, over = "rules of kube-proxy stand before IPVS: they serve Services in its place", "no rules of another proxy stand before IPVS any more"
			stale := func(want bool) {
				t.Helper()
				each(t, func(t *testing.T, family int) {
					for _, from := range s.clients() {
						byPod, lost := from.Spread(at(svc, family, 80), 6)
						if len(lost) > 0 || (byPod["pod-c"] > 0) != want {
							t.Errorf("%s: %v, lost %v; an endpoint that has left is asked, want %t", from.name, byPod, lost, want)
						}
					}
				})
			}
			verbose := func() string {
				return wantCode(t, n.Host, netip.AddrPortFrom(loopback, 10249), "/healthz?verbose", 200).body
			}
			lab.Eventually(t, soon, "the agent says it", func() error { return says(agent.Log(), warning) })
			stale(true)
			for _, part := range way.says {
				if err := errors.Join(says(agent.Log(), part), says(verbose(), "[!]before IPVS: "), says(verbose(), part)); err != nil {
					t.Error(err)
				}
				if f := check(t, n); len(f.of("warning", "stand before IPVS", part)) != 1 {
					t.Errorf("check does not say %q:\n%s", part, strings.Join(f.lines, "\n"))
				}
			}
			way.out(proxy)
			lab.Eventually(t, soon, "the agent says that it is over", func() error { return says(agent.Log(), over) })
			stale(false)
			if text := verbose(); strings.Contains(text, "before IPVS") {
				t.Errorf("still on the page:\n%s", text)
			}
			if k := strings.Count(agent.Log(), warning); k != 1 {
				t.Errorf("said %d times", k)
			}
			if f := check(t, n); len(f.of("warning")) > 0 || way.left != "" && len(f.of("ok", way.left)) != 1 {
				t.Errorf("check afterwards:\n%s", strings.Join(f.lines, "\n"))
			}
		})
	}
}

// says wants a text to have a part.
func says(text, part string) error {
	if !strings.Contains(text, part) {
		return fmt.Errorf("%q is not said:\n%s", part, text)
	}
	return nil
}
