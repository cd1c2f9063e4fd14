package traffic

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// mended is how long the agent may take to put right what another program changed. It should take a second; an emulated
// machine takes longer for everything, and an agent that only looks now and then takes 10 s.
const mended = 3 * time.Second

// raid is what another program does to a node.
type raid struct {
	name string
	do   func(t *testing.T, s *stage, svc lab.Service) error
}

// B74, F22: the interface with the virtual IPs, and what stands on it.
func TestHealsInterface(t *testing.T) {
	heals(t, 164,
		raid{"the interface deleted", func(_ *testing.T, s *stage, _ lab.Service) error { return s.w.Node(1).DelLink("kube-ipvs0") }},
		raid{"the interface set down", func(_ *testing.T, s *stage, _ lab.Service) error {
			link, err := s.w.Node(1).Netlink().LinkByName("kube-ipvs0")
			if err != nil {
				return err
			}
			return s.w.Node(1).Netlink().LinkSetDown(link)
		}},
		raid{"an IPv4 address deleted", func(_ *testing.T, s *stage, svc lab.Service) error {
			return takeOff(s.w.Node(1), at(svc, 4, 80).Addr())
		}},
		raid{"an IPv6 address deleted", func(_ *testing.T, s *stage, svc lab.Service) error {
			return takeOff(s.w.Node(1), at(svc, 6, 80).Addr())
		}})
}

// B74, F23: the nftables table, and what is in it. Each leaves the virtual IP unguarded.
func TestHealsTable(t *testing.T) {
	script := func(text string) func(*testing.T, *stage, lab.Service) error {
		return func(t *testing.T, s *stage, svc lab.Service) error {
			nft(t, s.w.Node(1), strings.ReplaceAll(text, "VIP", svc.ClusterIPs[0]))
			return nil
		}
	}
	heals(t, 165,
		raid{"the ruleset flushed", script("flush ruleset")},
		raid{"the table deleted", script("delete table inet ipvs-proxy")},
		raid{"an element deleted", script("delete element inet ipvs-proxy vips4 { VIP }")},
		raid{"the shield taken down", script("flush set inet ipvs-proxy shielded")}, // B80
		raid{"a rule deleted", func(t *testing.T, s *stage, _ lab.Service) error {
			handles := regexp.MustCompile(`# handle (\d+)\n\t}`).FindStringSubmatch(nftTool(t, s.w.Node(1), "-a", "list", "chain", "inet", "ipvs-proxy", "check"))
			if handles == nil {
				return fmt.Errorf("chain check has no rules")
			}
			nft(t, s.w.Node(1), "delete rule inet ipvs-proxy check handle "+handles[1])
			return nil
		}})
}

// B74: IPVS, which tells nobody.
func TestHealsVirtualServers(t *testing.T) {
	heals(t, 166,
		raid{"all virtual servers deleted", func(_ *testing.T, s *stage, _ lab.Service) error {
			return s.w.Node(1).Do(func() error {
				h, err := lab.OpenIPVS()
				if err != nil {
					return err
				}
				defer h.Close()
				return h.Flush()
			})
		}},
		raid{"a virtual server deleted", func(_ *testing.T, s *stage, svc lab.Service) error {
			return s.w.Node(1).DeleteVirtualServer(at(svc, 4, 80))
		}})
}

// heals: after each raid the node is soon as it was before, and serves.
func heals(t *testing.T, number int, raids ...raid) {
	s := newStage(t).start()
	svc := web(number)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	programmed(t, s.agents[0])
	s.raided = true // what is written the moment that the table goes has nowhere to go
	n, pod := s.w.Node(1), client{"pod", s.w.Pod("pod-a").Host}
	before := stateOf(t, n, svc)
	// Where the guard is gone, this one answers.
	if _, err := n.ServeHTTP("node", 81); err != nil {
		t.Fatal(err)
	}
	for _, r := range raids {
		t.Run(r.name, func(t *testing.T) {
			limit := s.inTime(t, n, mended)
			same := func() error {
				if now := stateOf(t, n, svc); now != before {
					return fmt.Errorf("it is\n%s\nand was\n%s", now, before)
				}
				return nil
			}
			lab.Eventually(t, soon, "the control is gone", same)
			if err := r.do(t, s, svc); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			lab.Eventually(t, limit, "guarded again", func() error {
				if r := pod.Connect(at(svc, 4, 81), lab.Timeout(100*time.Millisecond)); r.Verdict != lab.Refused {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			guarded := time.Since(began)
			lab.Eventually(t, limit-guarded, "all as it was", same)
			t.Logf("port 81 refused after %s, all as it was after %s", guarded.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
			for _, family := range []int{4, 6} {
				for _, c := range s.clients() {
					hits(t, c, at(svc, family, 80), map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1})
					wantRefused(t, c, at(svc, family, 82))
				}
			}
		})
	}
}

// stateOf prints what a node's kernel has of ours: the table but for what it has counted, the virtual servers, and whether
// the virtual IPs are bound.
func stateOf(t *testing.T, n *lab.Node, svc lab.Service) string {
	t.Helper()
	table := strings.FieldsFunc(nftTool(t, n, "-n", "-s", "list", "ruleset"), func(r rune) bool { return r == '\n' || r == ',' || r == '{' || r == '}' })
	for i := range table {
		line, _, _ := strings.Cut(strings.TrimSpace(table[i]), " expires ") // the shield's time runs
		table[i] = line                                                     // elements come in any order
	}
	// The record that the start is over comes when everything else is done, and no client can tell.
	table = slices.DeleteFunc(table, func(line string) bool { return strings.HasPrefix(line, "0.0.0.0 ") })
	slices.Sort(table)
	var b strings.Builder
	b.WriteString(strings.Join(table, "\n"))
	for _, family := range []int{4, 6} {
		to := at(svc, family, 80)
		found, err := onInterface(n, to.Addr())
		fmt.Fprintf(&b, "\n%s: bound %t %v, to %s", to, found, err, strings.Join(reals(t, n, to), ", "))
	}
	return b.String()
}

// nftTool runs the nft tool on a node.
func nftTool(t testing.TB, n *lab.Node, args ...string) (text string) {
	t.Helper()
	if err := n.Do(func() error {
		out, err := exec.Command("nft", args...).CombinedOutput()
		text = string(out)
		if err != nil {
			return fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return text
}

// takeOff takes a virtual IP off a node's interface, in whichever form it stands there.
func takeOff(n *lab.Node, vip netip.Addr) error {
	link, err := n.Netlink().LinkByName("kube-ipvs0")
	if err != nil {
		return err
	}
	whole := netlink.NewIPNet(vip.AsSlice())
	if binding() == "ROUTE" {
		return n.Netlink().RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: whole, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_NOWHERE})
	}
	return n.Netlink().AddrDel(link, &netlink.Addr{IPNet: whole})
}
