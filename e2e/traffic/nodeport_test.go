package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// nodePort is web(n) on node port 30000+n over TCP, and dns on the same number over UDP.
func nodePort(n int) lab.Service {
	svc := web(n)
	svc.Type = "NodePort"
	svc.Ports = []lab.Port{
		{Name: "http", Port: 80, TargetPort: 8080, NodePort: uint16(30000 + n)},
		{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 5353, NodePort: uint16(30000 + n)},
	}
	return svc
}

// ownAddrs are the addresses of a family that a node has itself and a client has a route to: on the wire and,
// but for outside clients, that of the bridge of its pods.
func (s *stage) ownAddrs(n *lab.Node, family int, c *lab.Host) []netip.Addr {
	bridge := map[int]netip.Addr{4: n.Gateway4, 6: n.Gateway6}[family]
	if c == s.w.Client {
		return []netip.Addr{n.Addr(family)}
	}
	return []netip.Addr{n.Addr(family), bridge}
}

// everyone is a client of each kind, near and far.
func (s *stage) everyone() []client {
	return append(s.clients(), client{"pod of another node", s.w.Pod("pod-c").Host}, client{"another node", s.w.Node(2).Host})
}

// daemon has a process of a node answer on a port of all its addresses.
func daemon(t *testing.T, n *lab.Node, port uint16) (name string) {
	t.Helper()
	name = "daemon of " + n.Name
	stop, err := n.ServeHTTP(name, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return name
}

// B11: a node port is served on every address of every node, to every kind of client, over TCP and UDP, also
// by a node without a pod; and nothing else of the node is touched: neither its daemons, nor loopback, nor the
// port's number on a virtual IP.
func TestB11NodePort(t *testing.T) {
	s := newStage(t).start()
	s.serveUDP(5353, s.pods()...)
	svc := nodePort(11)
	port := svc.Ports[0].NodePort
	for _, n := range s.w.Nodes {
		daemon(t, n, 22)
		daemon(t, n, port)
	}
	b, c := s.w.Pod("pod-b"), s.w.Pod("pod-c")
	s.apply(svc, c)
	s.onNodePorts(svc, c)
	t.Run("node1 without a pod", func(t *testing.T) {
		each(t, func(t *testing.T, family int) { s.reached(t, family, port, map[string]int{"pod-c": 2}) })
	})
	s.apply(svc, b, c)
	s.onNodePorts(svc, b, c)
	t.Run("two pods", func(t *testing.T) {
		each(t, func(t *testing.T, family int) { s.reached(t, family, port, map[string]int{"pod-b": 1, "pod-c": 1}) })
	})
	s.restart(0) // now with virtual IPs on the node
	if log := s.agents[0].Log(); strings.Contains(log, "\tprogrammed\t") {
		t.Errorf("a start on a correct node wrote something:\n%s", log)
	}
	t.Run("what is no node port", func(t *testing.T) {
		each(t, func(t *testing.T, family int) { s.untouched(t, family, svc) })
	})
}

// onNodePorts waits until the pods stand behind a Service's node port, which both protocols share, on every
// address of every node.
func (s *stage) onNodePorts(svc lab.Service, pods ...*lab.Pod) {
	s.t.Helper()
	for _, n := range s.w.Nodes {
		for _, family := range []int{4, 6} {
			var want []string
			for _, p := range pods {
				for _, target := range []uint16{8080, 5353} {
					want = append(want, netip.AddrPortFrom(p.Addr(family), target).String()+" 1")
				}
			}
			for _, a := range s.ownAddrs(n, family, n.Host) {
				wantReals(s.t, n, netip.AddrPortFrom(a, svc.Ports[0].NodePort), want...)
			}
		}
	}
}

// reached: whoever asks a node port on any address gets the pods in turn.
func (s *stage) reached(t *testing.T, family int, port uint16, want map[string]int) {
	for _, n := range s.w.Nodes {
		for _, c := range s.everyone() {
			for _, a := range s.ownAddrs(n, family, c.Host) {
				to := netip.AddrPortFrom(a, port)
				if byPod, lost := c.Spread(to, 2); len(lost) > 0 || !maps.Equal(byPod, want) {
					t.Errorf("%s asks %s twice: %v, lost %v; want %v", c.name, to, byPod, lost, want)
				}
				byPod := map[string]int{}
				for range 2 {
					byPod[c.AskUDP(to).Pod]++
				}
				if !maps.Equal(byPod, want) {
					t.Errorf("%s asks %s twice over UDP: %v; want %v", c.name, to, byPod, want)
				}
			}
		}
	}
}

// untouched: what is no node port is as it was.
func (s *stage) untouched(t *testing.T, family int, svc lab.Service) {
	port := svc.Ports[0].NodePort
	for _, n := range s.w.Nodes {
		for _, c := range s.everyone() {
			for _, a := range s.ownAddrs(n, family, c.Host) {
				if r := c.Ask(netip.AddrPortFrom(a, 22)); r.Pod != "daemon of "+n.Name {
					t.Errorf("%s asks port 22 of %s: %s; want the node's daemon", c.name, a, r)
				}
			}
		}
		for _, a := range s.ownAddrs(n, family, n.Host) {
			if bound(t, n, a) {
				t.Errorf("%s's own address %s is on its kube-ipvs0", n.Name, a)
			}
		}
		loopback := netip.MustParseAddr(map[int]string{4: "127.0.0.1", 6: "::1"}[family])
		if r := n.Ask(netip.AddrPortFrom(loopback, port)); r.Pod != "daemon of "+n.Name {
			t.Errorf("%s asks port %d of its loopback: %s; want its daemon", n.Name, port, r)
		}
	}
	for _, c := range s.everyone() {
		if r := c.Connect(at(svc, family, port)); r.Verdict != lab.Refused {
			t.Errorf("%s connects to port %d of the ClusterIP: %s; want refused", c.name, port, r)
		}
	}
}

// B11: --nodeport-addresses chooses among the node's addresses; what it leaves out stays with the node.
func TestB11NodePortAddresses(t *testing.T) {
	const wire4, wire6, bridge4, bridge6 = 1, 2, 4, 8
	nodes := []struct {
		flag   string
		served int
		warns  string
	}{
		{"172.28.128.0/24", wire4 | wire6 | bridge6, ""}, // one family: all of the other
		{"fd28:128::/64", wire4 | bridge4 | wire6, ""},
		{"primary", wire4 | wire6, ""},
		{"all", wire4 | wire6 | bridge4 | bridge6, ""},
		{"localhost", 0, "node ports on localhost"},
		{"127.0.0.0/8,fd10:244::/32", bridge6, "node ports on 127.0.0.0/8"},
	}
	s := newStage(t, lab.Config{Nodes: len(nodes)})
	svc := nodePort(12)
	port := svc.Ports[0].NodePort
	s.apply(svc, s.w.Pod("pod-c"))
	for i, n := range nodes {
		s.agents = append(s.agents, s.w.StartAgent(t, s.w.Nodes[i], s.cluster, "--nodeport-addresses="+n.flag))
	}
	for _, a := range s.agents {
		programmed(t, a)
	}
	for i, n := range nodes {
		t.Run(strings.ReplaceAll(n.flag, "/", "_"), func(t *testing.T) {
			node := s.w.Nodes[i]
			daemon := daemon(t, node, port)
			for bit, a := range map[int]netip.Addr{wire4: node.V4, wire6: node.V6, bridge4: node.Gateway4, bridge6: node.Gateway6} {
				want := daemon
				if n.served&bit != 0 {
					want = "pod-c"
				}
				asking := []client{{node.Name, node.Host}}
				if bit == wire4 || bit == wire6 {
					asking = append(asking, client{"outside", s.w.Client})
				}
				for _, c := range asking {
					if r := c.Ask(netip.AddrPortFrom(a, port)); r.Pod != want {
						t.Errorf("%s asks %s of %s: %s; want %s", c.name, a, node.Name, r, want)
					}
				}
			}
			if warned := strings.Contains(s.agents[i].Log(), "node ports are not served there"); warned != (n.warns != "") ||
				!strings.Contains(s.agents[i].Log(), n.warns) {
				t.Errorf("want a warning of %q in the log:\n%s", n.warns, s.agents[i].Log())
			}
		})
	}
}

// B11: the node's addresses are followed live: a node port is served on one that comes, on whatever interface,
// and no more on one that goes, also when it went while no agent ran.
func TestB11AddressesFollowed(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	svc := nodePort(13)
	s.apply(svc, s.w.Pod("pod-c"))
	s.ready(svc)
	answers(t, n.Host, netip.AddrPortFrom(n.V4, svc.Ports[0].NodePort)) // the start is over
	served := func(t *testing.T, a netip.Addr, want bool) func() error {
		to := netip.AddrPortFrom(a, svc.Ports[0].NodePort)
		return func() error {
			if _, is := table(t, n)["tcp "+to.String()]; is != want {
				return fmt.Errorf("virtual server on %s: %t, want %t", to, is, want)
			}
			if !want {
				return nil
			}
			if r := s.w.Client.Ask(to, lab.Timeout(time.Second)); r.Pod != "pod-c" {
				return fmt.Errorf("outside asks %s: %s", to, r)
			}
			return nil
		}
	}
	each(t, func(t *testing.T, family int) {
		extra, later := netip.MustParsePrefix("172.28.128.77/32"), netip.MustParsePrefix("203.0.113.77/32")
		if family == 6 {
			extra, later = netip.MustParsePrefix("fd28:128::77/128"), netip.MustParsePrefix("fd20:113::77/128")
		}
		s.followed(t, n, "the node port is served on a new address of eth0",
			func() error { return n.AddAddr(extra) }, served(t, extra.Addr(), true))
		s.followed(t, n, "the node port is served on a new interface",
			func() error { return n.AddDummy("extra0", later) }, served(t, later.Addr(), true))
		limit := s.inTime(t, n, noticed) + 10*time.Second // so long it is held (B84)
		if err := n.DelAddr(extra); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, limit, "the node port is gone with its address", served(t, extra.Addr(), false))
		if err := s.agents[0].Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.DelLink("extra0"); err != nil {
			t.Fatal(err)
		}
		s.agents[0] = s.w.StartAgent(s.t, n, s.cluster)
		lab.Eventually(t, soon, "a start notices that an interface is gone", served(t, later.Addr(), false))
		if err := served(t, n.Addr(family), true)(); err != nil {
			t.Error(err)
		}
	})
}

// B31 on a node port: a client that sent before there was a Service, and keeps sending from one port, is served
// once there is one. What it sent was the node's own until then, and refused.
func TestB31UDPNodePortFromZero(t *testing.T) {
	s := newStage(t).start()
	c := s.w.Pod("pod-c")
	s.serveUDP(5353, c)
	svc := nodePort(14)
	var flows []*lab.Flow
	for _, family := range []int{4, 6} {
		for _, cl := range s.clients() {
			flows = append(flows, flow(t, cl.Host, netip.AddrPortFrom(s.w.Node(1).Addr(family), svc.Ports[1].NodePort)))
		}
	}
	for _, f := range flows {
		lab.Eventually(t, soon, "the flow is refused", func() error {
			if r := f.Report(); r.Sent < 20 || r.Refused == 0 || r.Answered > 0 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	}
	s.apply(svc, c)
	for _, f := range flows {
		reaches(t, f, "pod-c", 5)
	}
}

// B84: an address of the node that goes and is back in a moment, as when DHCP or keepalived takes it off and puts it on
// again, cuts no connection of a node port on it. The control: one that stays away takes its virtual server with it.
func TestB84AddressGone(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	svc := nodePort(84)
	s.apply(svc, s.w.Pod("pod-c"))
	s.ready(svc)
	each(t, func(t *testing.T, family int) {
		extra := netip.MustParsePrefix(map[int]string{4: "172.28.128.84/24", 6: "fd28:128::84/64"}[family])
		to := netip.AddrPortFrom(extra.Addr(), svc.Ports[0].NodePort)
		if err := n.AddAddr(extra); err != nil {
			t.Fatal(err)
		}
		answers(t, s.w.Client, to)
		gaps := 0
		r := underLoad(t, s.w.Client, to, patient, func() {
			for ; gaps < 5; gaps++ {
				if err := n.DelAddr(extra); err != nil {
					t.Fatal(err)
				}
				time.Sleep(50 * time.Millisecond) // so long it is away: that is the fault
				if err := n.AddAddr(extra); err != nil {
					t.Fatal(err)
				}
				lab.Eventually(t, soon, "the address answers again", func() error {
					if r := s.w.Client.Ask(to, lab.Timeout(patient)); r.Verdict != lab.Answered {
						return fmt.Errorf("%s", r)
					}
					return nil
				})
			}
		})
		// Who comes while the address is away has no way to it.
		cut := slices.DeleteFunc(r.Losses, func(l lab.Loss) bool { return l.Reply.Verdict == lab.Unreachable })
		if t.Logf("%d gaps of 50 ms: %s", gaps, r); len(cut) > 0 {
			t.Errorf("connections that stood were cut: %v", cut)
		}
		limit := s.inTime(t, n, noticed) + 10*time.Second
		if err := n.DelAddr(extra); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, limit, "what hangs on an address that stays away goes", func() error {
			if _, is := table(t, n)["tcp "+to.String()]; is {
				return fmt.Errorf("%s is still served", to)
			}
			return nil
		})
	})
}
