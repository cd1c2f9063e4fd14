package traffic

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B87: check and the agent's start name what on a node takes packets away from IPVS, each by itself and with what to do, and do
// not when it is gone, or harmless.
func TestB87Neighbours(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	svc := web(87)
	s.apply(svc, s.w.Pod("pod-b"))
	first := s.w.StartAgent(t, n, s.cluster)
	programmed(t, first)
	vip4, vip6 := at(svc, 4, 80).Addr(), at(svc, 6, 80).Addr()
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	check(t, n).able(t)
	table := func(rules string) func() { return func() { nft(t, n, rules) } }
	cache := func(addrs ...string) func() {
		return func() { dnsInterface(t, n, addrs...) }
	}
	noCache := func() { deleteLink(t, n, "nodelocaldns") }
	untracked := fmt.Sprintf("table inet dns { chain pre { type filter hook prerouting priority -300; ip daddr %s notrack; ip6 daddr %s notrack; ip daddr 169.254.20.10 notrack; }; }", vip4, vip6)
	for _, c := range []struct {
		name     string
		do, undo func()
		says     []string // nothing: it is harmless
	}{
		{"firewall of iptables-nft", table("table ip6 filter { chain INPUT { type filter hook input priority 0; policy drop; ct state established accept; }; }"), table("delete table ip6 filter"),
			[]string{"chain ip6 filter INPUT drops packets to this node", "must accept the Services' addresses and ports (nft list chain ip6 filter INPUT)"}},
		{"firewall of its own before IPVS", table("table inet fw { chain in { type filter hook input priority 97; policy drop; ct state established accept; }; }"), table("delete table inet fw"),
			[]string{"chain inet fw in drops packets to this node"}},
		{"firewall of its own behind IPVS", table("table inet fw { chain in { type filter hook input priority 200; policy drop; ct state established accept; }; }"), table("delete table inet fw"), nil},
		{"NodeLocal DNSCache with the ClusterIP", cache("169.254.20.10", "10.96.0.10"), noCache,
			[]string{"interface nodelocaldns has the address 10.96.0.10: ", "variant of its manifest for IPVS", "169.254.20.10"}},
		{"NodeLocal DNSCache for IPVS", cache("169.254.20.10"), noCache, nil},
		{"untracked, IPv4", table(untracked), table("delete table inet dns"), []string{"chain inet dns pre keeps packets to the virtual IP " + vip4.String() + " out of connection tracking"}},
		{"untracked, IPv6", table(untracked), table("delete table inet dns"), []string{"chain inet dns pre keeps packets to the virtual IP " + vip6.String() + " out of connection tracking"}},
		{"untracked, an address of no Service", table("table inet dns { chain pre { type filter hook prerouting priority -300; ip daddr 192.0.2.53 notrack; }; }"), table("delete table inet dns"), nil},
		{"flow table", table("table inet fw { flowtable fast { hook ingress priority 0; devices = { eth0 }; }; }"), table("delete table inet fw"),
			[]string{"flow table inet fw fast takes connections past the chain forward"}},
		{"NetworkManager", func() { managerSocket(t, n) }, func() {}, []string{"NetworkManager is at work on this node", "leaves kube-ipvs0 alone", "unmanaged-devices+=interface-name:kube-ipvs0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do()
			f := check(t, n)
			agent := s.w.StartAgent(t, n, s.cluster, untuned...)
			programmed(t, agent)
			if err := agent.Stop(); err != nil {
				t.Fatal(err)
			}
			said := strings.Count(agent.Log(), "something on this node is in the way of Services")
			if len(c.says) == 0 {
				f.able(t)
				if said > 0 {
					t.Errorf("said at the start:\n%s", agent.Log())
				}
			}
			for _, part := range c.says {
				if len(f.of("warning", part)) != 1 || !strings.Contains(agent.Log(), part) {
					t.Errorf("%q is not said; check:\n%s\nthe start:\n%s", part, strings.Join(f.lines, "\n"), agent.Log())
				}
			}
			c.undo()
		})
	}
}

// dnsInterface makes the interface of NodeLocal DNSCache with some addresses.
func dnsInterface(t *testing.T, n *lab.Node, addrs ...string) {
	t.Helper()
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "nodelocaldns"}}
	if err := n.Netlink().LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if err := n.Netlink().AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(a), Mask: net.CIDRMask(32, 32)}}); err != nil {
			t.Fatal(err)
		}
	}
}

func deleteLink(t *testing.T, n *lab.Node, name string) {
	t.Helper()
	link, err := n.Netlink().LinkByName(name)
	if err == nil {
		err = n.Netlink().LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// managerSocket listens as NetworkManager does in a node's namespace, until the test ends. The kernel lists the path as it
// was given, and nobody looks at the rest of it.
func managerSocket(t *testing.T, n *lab.Node) {
	t.Helper()
	path := filepath.Join(os.TempDir(), "NetworkManager", "private-dhcp")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	if err := n.Do(func() (err error) {
		l, err = net.Listen("unix", path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close() // which removes the path
		os.Remove(filepath.Dir(path))
	})
}

// kernelBefore compares with the running kernel's version.
func kernelBefore(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var have [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &have[0], &have[1]); err != nil {
		t.Fatal(err)
	}
	return have[0] < major || have[0] == major && have[1] < minor
}

// B87: what a flow table does to a Service: the client's connection to an endpoint on another node hangs once it is in there.
// The control is the same connection without the flow table. On Linux 7.2 it lives, on 6.12 it does not; between these nobody looked.
func TestB87FlowTable(t *testing.T) {
	s := newStage(t).start()
	c := s.w.Pod("pod-c")
	if _, err := c.ServeLines(c.Name, 8081); err != nil {
		t.Fatal(err)
	}
	svc := web(88)
	svc.Ports = []lab.Port{{Name: "lines", Port: 81, TargetPort: 8081}}
	s.apply(svc, c)
	n := s.w.Node(1)
	for _, family := range []int{4, 6} {
		wantReals(t, n, at(svc, family, 81), netip.AddrPortFrom(c.Addr(family), 8081).String()+" 1")
	}
	for _, with := range []bool{false, true} {
		t.Run(fmt.Sprintf("flow table %t", with), func(t *testing.T) {
			if with {
				nft(t, n, "table inet fw { flowtable fast { hook ingress priority 0; devices = { eth0, cni0 }; }; chain forward { type filter hook forward priority 0; meta l4proto tcp flow add @fast; }; }")
				defer nft(t, n, "delete table inet fw")
			}
			each(t, func(t *testing.T, family int) {
				kept, err := s.w.Pod("pod-a").StartKept(at(svc, family, 81), 100*time.Millisecond)
				if err != nil {
					t.Logf("no connection: %v", err)
					if !with {
						t.Fatal(err)
					}
					return
				}
				enough := func() error {
					if r := kept.Report(); r.Answered < 20 && r.Err == nil {
						return fmt.Errorf("%s", r)
					}
					return nil
				}
				if !with {
					lab.Eventually(t, soon, "the connection goes on", enough)
				} else {
					time.Sleep(5 * time.Second) // for what does not come nobody can wait; the control gets 20 answers in 2 s
				}
				r := kept.Stop()
				hangs, want := r.Err != nil || r.Answered < 20, with && kernelBefore(t, 7, 2)
				if hangs != want {
					t.Errorf("with a flow table %t: %s; want it to hang: %t", with, r, want)
				}
				t.Log(r)
			})
		})
	}
}
