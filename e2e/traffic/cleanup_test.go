package traffic

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// nftList is what nft prints of something on a node.
func nftList(t testing.TB, n *lab.Node, what ...string) string {
	t.Helper()
	return nftTool(t, n, append([]string{"list"}, what...)...)
}

// cleanup runs a command that cleans up and wants its exit status and words in what it prints.
func cleanup(t *testing.T, n *lab.Node, exit int, words []string, args ...string) (all string) {
	t.Helper()
	stdout, stderr, got := n.Command(t, 0, args...)
	all = stdout + stderr
	if got != exit {
		t.Fatalf("%q: exit status %d, want %d:\n%s", args, got, exit, all)
	}
	for _, w := range words {
		if !strings.Contains(all, w) {
			t.Errorf("%q does not say %q:\n%s", args, w, all)
		}
	}
	return all
}

// addServer makes a virtual server as another program would.
func addServer(t *testing.T, n *lab.Node, at netip.AddrPort, scheduler string) {
	t.Helper()
	svc := &mobyipvs.Service{AddressFamily: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Address: at.Addr().AsSlice(), Port: at.Port(),
		SchedName: scheduler, Netmask: ^uint32(0)}
	if at.Addr().Is6() {
		svc.AddressFamily, svc.Netmask = unix.AF_INET6, 128
	}
	if err := n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.NewService(svc)
	}); err != nil {
		t.Fatalf("virtual server %s on %s: %v", at, n.Name, err)
	}
}

// strangers are what other programs of a node have, on and off the addresses of a Service: a virtual server
// with an address of its own that serves, another one on an address of ours, an address and a table of nftables.
type strangers struct {
	pod             *lab.Pod // behind serving
	serving, beside netip.AddrPort
	addr            netip.Prefix
	tables          string
}

func (s *stage) strangers(n *lab.Node, pod *lab.Pod, on netip.Addr) strangers {
	s.t.Helper()
	x := strangers{pod, netip.MustParseAddrPort("192.0.2.55:80"), netip.AddrPortFrom(on, 9999), netip.MustParsePrefix("203.0.113.155/32"), ""}
	foreignServer(s.t, n, x.serving, netip.AddrPortFrom(pod.V4, 8080))
	addServer(s.t, n, x.beside, "wlc")
	if err := n.AddAddr(x.addr); err != nil {
		s.t.Fatal(err)
	}
	nft(s.t, n, `table inet strangers {
		set owned { type ipv4_addr . inet_proto . inet_service; elements = { 10.96.0.55 . tcp . 80 } }
		chain input { type filter hook input priority 0; policy accept; tcp dport 7 drop; }
	}
	table ip ipvs-proxy { 
		chain mine { tcp dport 7 drop; }
	}`)
	x.tables = theirTables(s.t, n)
	return x
}

// theirTables are those of strangers, one of them with our table's name in another family.
func theirTables(t *testing.T, n *lab.Node) string {
	t.Helper()
	return nftList(t, n, "table", "inet", "strangers") + nftList(t, n, "table", "ip", "ipvs-proxy")
}

// stand: all of theirs is as they made it.
func (x strangers) stand(t *testing.T, n *lab.Node) {
	t.Helper()
	wantHit(t, n.Host, x.serving, x.pod.Name)
	for _, a := range []netip.Addr{x.addr.Addr(), x.serving.Addr()} {
		if !hasAddr(t, n, a) {
			t.Errorf("the foreign address %s is gone from %s", a, n.Name)
		}
	}
	if got := theirTables(t, n); got != x.tables {
		t.Errorf("foreign tables of nftables changed:\n%s\nwas:\n%s", got, x.tables)
	}
}

func hasAddr(t *testing.T, n *lab.Node, want netip.Addr) (found bool) {
	t.Helper()
	if err := n.Do(func() error {
		addrs, err := net.InterfaceAddrs()
		for _, a := range addrs {
			p, _ := netip.ParsePrefix(a.String())
			found = found || p.Addr() == want
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// hasDevice reports whether a node has kube-ipvs0.
func hasDevice(t *testing.T, n *lab.Node) bool {
	t.Helper()
	return n.Do(func() error {
		_, err := net.InterfaceByName("kube-ipvs0")
		return err
	}) == nil
}

func virtualServers(t *testing.T, n *lab.Node) []string {
	t.Helper()
	return slices.Sorted(maps.Keys(table(t, n)))
}

const ourTable = "table inet ipvs-proxy {"

// B55, F25: cleanup removes what an agent left, and nothing of anybody else; while the agent is at work it
// refuses; run again, it says that there is nothing and writes nothing. The next agent starts from there.
func TestB55Cleanup(t *testing.T) {
	s := newStage(t).start()
	svc := announced(web(55), "203.0.113.56", "fd20:113::56")
	svc.Type, svc.Ports[0].NodePort = "LoadBalancer", 30055
	s.apply(svc, s.pods()...)
	s.ready(svc)
	for i, how := range [][]string{{"cleanup"}, {"run", "--cleanup"}} {
		t.Run(strings.Join(how, " "), func(t *testing.T) {
			n := s.w.Nodes[i]
			programmed(t, s.agents[i])
			theirs := s.strangers(n, []*lab.Pod{s.w.Pod("pod-a"), s.w.Pod("pod-c")}[i], at(svc, 4, 80).Addr())
			foreign := []string{"tcp " + theirs.serving.String(), "tcp " + theirs.beside.String()}
			slices.Sort(foreign)
			lab.Eventually(t, soon, "node ports on their addresses, too", func() error {
				if got := virtualServers(t, n); len(got) != 8+2+len(foreign) {
					return fmt.Errorf("%q", got)
				}
				return nil
			})
			before := virtualServers(t, n)

			cleanup(t, n, 1, []string{"stop it first"}, how...)
			if got := virtualServers(t, n); !slices.Equal(got, before) {
				t.Errorf("beside an agent at work: %q, was %q", got, before)
			}
			if err := s.agents[i].Stop(); err != nil {
				t.Fatal(err)
			}
			each(t, func(t *testing.T, family int) { answers(t, n.Host, at(svc, family, 80)) }) // the kernel serves on
			sysctls := sysctlsOf(t, n, slices.Collect(maps.Keys(wantedSysctls))...)

			words := []string{"ip link del kube-ipvs0", "nft delete table inet ipvs-proxy"}
			for _, name := range before {
				if !slices.Contains(foreign, name) {
					words = append(words, "ipvsadm -D -t "+strings.TrimPrefix(name, "tcp "))
				}
			}
			all := cleanup(t, n, 0, words, how...)
			if strings.Contains(all, theirs.serving.String()) || strings.Contains(all, theirs.beside.String()) {
				t.Errorf("cleanup speaks of what is not ours:\n%s", all)
			}
			if got := virtualServers(t, n); !slices.Equal(got, foreign) {
				t.Errorf("virtual servers left: %q, want %q", got, foreign)
			}
			if hasDevice(t, n) || strings.Contains(nftList(t, n, "ruleset"), ourTable) {
				t.Errorf("left: kube-ipvs0 %t\n%s", hasDevice(t, n), nftList(t, n, "ruleset"))
			}
			for _, ip := range slices.Concat(svc.ClusterIPs, []string{"203.0.113.56", "fd20:113::56"}) {
				if hasAddr(t, n, netip.MustParseAddr(ip)) {
					t.Errorf("address %s is left", ip)
				}
			}
			theirs.stand(t, n)
			if after := sysctlsOf(t, n, slices.Collect(maps.Keys(wantedSysctls))...); !maps.Equal(after, sysctls) {
				t.Errorf("sysctls %v, were %v", after, sysctls)
			}

			state := kernelState(t, n)
			cleanup(t, n, 0, []string{"nothing to remove"}, how...)
			if again := kernelState(t, n); again != state {
				t.Errorf("the second cleanup wrote:\n%s\nwas:\n%s", again, state)
			}
			s.agents[i] = s.w.StartAgent(t, n, s.cluster, s.args...)
			each(t, func(t *testing.T, family int) { answers(t, n.Host, at(svc, family, 80)) })
			theirs.stand(t, n)
			if got := virtualServers(t, n); !slices.Equal(got, before) {
				t.Errorf("the next agent: %q, want %q", got, before)
			}
		})
	}
}

// B55: cleanup --keep-ipvs takes the table alone. What serves goes on serving, an agent that comes later takes it
// over as its own, and what somebody else put on kube-ipvs0 keeps the interface.
func TestB55KeepIPVS(t *testing.T) {
	s := newStage(t).start()
	svc := web(57)
	s.apply(svc, s.pods()...)
	s.ready(svc)
	n := s.w.Node(1)
	programmed(t, s.agents[0])
	cleanup(t, n, 1, []string{"stop it first"}, "cleanup", "--keep-ipvs")
	if err := s.agents[0].Stop(); err != nil {
		t.Fatal(err)
	}
	before, servers := nftList(t, n, "ruleset"), virtualServers(t, n)
	if !strings.Contains(before, ourTable) {
		t.Fatalf("no table to begin with:\n%s", before)
	}
	// There is no other proxy, and that is said.
	cleanup(t, n, 0, []string{"nft delete table inet ipvs-proxy", "warning: no other proxy has written its rules"}, "cleanup", "--keep-ipvs")
	if strings.Contains(nftList(t, n, "ruleset"), ourTable) || !slices.Equal(virtualServers(t, n), servers) {
		t.Errorf("virtual servers %q, were %q\n%s", virtualServers(t, n), servers, nftList(t, n, "ruleset"))
	}
	for _, how := range [][]string{{"cleanup", "--keep-ipvs"}, {"cleanup"}} { // nothing is recorded as ours any more
		cleanup(t, n, 0, []string{"nothing to remove"}, how...)
	}
	each(t, func(t *testing.T, family int) {
		wantBound(t, n, at(svc, family, 80).Addr(), true)
		answers(t, s.w.Pod("pod-a").Host, at(svc, family, 80))
	})
	s.agents[0] = s.w.StartAgent(t, n, s.cluster)
	programmed(t, s.agents[0])
	if err := s.agents[0].Stop(); err != nil {
		t.Fatal(err)
	}
	stranger := netip.MustParsePrefix("203.0.113.157/32")
	if err := n.Do(func() error {
		return exec.Command("ip", "addr", "add", stranger.String(), "dev", "kube-ipvs0").Run()
	}); err != nil {
		t.Fatal(err)
	}
	cleanup(t, n, 0, []string{"kube-ipvs0 stays: address " + stranger.Addr().String()}, "cleanup")
	if got := virtualServers(t, n); len(got) > 0 || !hasAddr(t, n, stranger.Addr()) || strings.Contains(nftList(t, n, "ruleset"), ourTable) {
		t.Errorf("left: %q, the other's address %t\n%s", got, hasAddr(t, n, stranger.Addr()), nftList(t, n, "ruleset"))
	}
}

// B55: whoever sends datagrams from one port all the time is served by another proxy's rules once cleanup is done: with
// its connection IPVS takes away what connection tracking knows of the flow (ip_vs_conn_drop_conntrack), so that the
// rules are asked again.
func TestB55FlowsGoOn(t *testing.T) {
	s, k := takenStage(t)
	n, svc := k.n, k.svc
	agent := s.w.StartAgent(t, n, s.cluster)
	programmed(t, agent)
	type flow struct {
		name string
		*lab.Flow
	}
	var flows []flow
	for _, family := range []int{4, 6} {
		for _, from := range s.clients() {
			if from.name == "node" {
				continue // its socket has the virtual IP as its own address, which goes
			}
			f, err := from.StartFlow(at(svc, family, 53), 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			flows = append(flows, flow{fmt.Sprintf("%s/IPv%d", from.name, family), f})
		}
	}
	answered := func(when string) {
		t.Helper()
		for _, f := range flows {
			before := f.Report().Answered
			lab.Eventually(t, soon, f.name+" is answered "+when, func() error {
				if r := f.Report(); r.Answered < before+3 {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
		}
	}
	answered("through IPVS")
	k.iptables()
	answered("while both have rules")
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	cleanup(t, n, 0, nil, "cleanup")
	answered("by the other proxy's rules")
	for _, f := range flows {
		t.Logf("%s: %s", f.name, f.Stop())
	}
}
