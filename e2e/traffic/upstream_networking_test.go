package traffic

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// The tests whose names begin with TestUpstream ask what a test of Kubernetes' own network suite asks, row by row:
// e2e/upstream.yaml says which subtest is for which. One world carries many of them, for time's sake.

// protocol is what a row of upstream's matrix runs over, with the Service port of granular for it.
type protocol struct {
	name string
	asking
	port uint16
}

var protocols = []protocol{
	{"http", asks[0], 80}, {"udp", asks[1], 90}, {"sctp", asking{"SCTP", (*lab.Host).AskSCTP}, 100},
}

// granular is a Service over all three protocols with node ports; secondary turns the order of its families.
func granular(n int, secondary bool) lab.Service {
	svc := web(n)
	svc.Type = "NodePort"
	svc.Ports = []lab.Port{
		{Name: "http", Port: 80, TargetPort: 8080, NodePort: uint16(30000 + n)},
		{Name: "udp", Protocol: "UDP", Port: 90, TargetPort: 5353, NodePort: uint16(30000 + n)},
		{Name: "sctp", Protocol: "SCTP", Port: 100, TargetPort: 9090, NodePort: uint16(30000 + n)},
	}
	if secondary {
		slices.Reverse(svc.ClusterIPs)
	}
	return svc
}

// ofFamily is a frontend at the Service's ClusterIP of a family, wherever that stands in its list.
func ofFamily(svc lab.Service, family int, port uint16) netip.AddrPort {
	for _, ip := range svc.ClusterIPs {
		if a := netip.MustParseAddr(ip); a.Is4() == (family == 4) {
			return netip.AddrPortFrom(a, port)
		}
	}
	return netip.AddrPort{}
}

// tos are the ways to a granular Service over a protocol: its ClusterIP and the node port of each node.
func (s *stage) tos(svc lab.Service, family int, p protocol) []netip.AddrPort {
	list := []netip.AddrPort{ofFamily(svc, family, p.port)}
	for _, n := range s.w.Nodes {
		list = append(list, netip.AddrPortFrom(n.Addr(family), svc.Ports[0].NodePort))
	}
	return list
}

// eachOrder runs f with a Service for each place that the family under test has in its list of addresses: of the
// first upstream's suite asks in networking.go, of the second in dual_stack.go.
func eachOrder(t *testing.T, first, second lab.Service, f func(t *testing.T, svc lab.Service, family int)) {
	for _, order := range []string{"primary", "secondary"} {
		t.Run(order, func(t *testing.T) {
			each(t, func(t *testing.T, family int) {
				svc := first
				if (family == 4) != (order == "primary") {
					svc = second
				}
				f(t, svc, family)
			})
		})
	}
}

// turns: each of the pods answers a client once in so many questions.
func turns(t *testing.T, c client, to netip.AddrPort, by asking, names ...string) {
	t.Helper()
	want := map[string]int{}
	for _, name := range names {
		want[name] = 1
	}
	answersBy(t, c, to, by)
	hitsBy(t, c, to, by, want)
}

// A client in a pod, on a node and on an endpoint itself, over every protocol, to the ClusterIP and to node ports,
// in both families and in both places that a family can have: all endpoints answer. Then what changes them.
func TestUpstreamGranular(t *testing.T) {
	s := newStage(t).start()
	s.serveUDP(5353, s.pods()...)
	s.serveSCTP(s.pods()...)
	asker := s.addPod(lab.PodSpec{Name: "asker", Node: 1})
	first, second := granular(80, false), granular(81, true)
	s.apply(first, s.pods()...)
	s.apply(second, s.pods()...)
	all := []string{"pod-a", "pod-b", "pod-c"}
	for _, c := range []client{{"pod", asker.Host}, {"node", s.w.Node(1).Host}, {"endpoint", s.w.Pod("pod-a").Host}} {
		t.Run(c.name+"-Service", func(t *testing.T) {
			for _, p := range protocols {
				t.Run(p.name, func(t *testing.T) {
					eachOrder(t, first, second, func(t *testing.T, svc lab.Service, family int) {
						for _, to := range s.tos(svc, family, p) {
							turns(t, c, to, p.asking, all...)
						}
					})
				})
			}
		})
	}
	pod := client{"pod", asker.Host}
	t.Run("same selector", func(t *testing.T) { s.sameSelector(t, all) })
	t.Run("update endpoints", func(t *testing.T) {
		for _, p := range protocols[:2] {
			t.Run(p.name, func(t *testing.T) {
				eachOrder(t, first, second, func(t *testing.T, svc lab.Service, family int) {
					to := ofFamily(svc, family, p.port)
					turns(t, pod, to, p.asking, all...)
					s.apply(svc, s.podsBut("pod-b")...)
					s.wantServing(t, to, s.podsBut("pod-b")...)
					for range 3 {
						turns(t, pod, to, p.asking, "pod-a", "pod-c")
					}
					s.apply(svc, s.pods()...)
					s.wantServing(t, to, s.pods()...)
					turns(t, pod, to, p.asking, all...)
				})
			})
		}
	})
	t.Run("update nodePort", func(t *testing.T) {
		for _, p := range protocols[:2] {
			t.Run(p.name, func(t *testing.T) {
				each(t, func(t *testing.T, family int) { s.nodePortGoes(t, family, p, all) })
			})
		}
	})
	t.Run("affinity", func(t *testing.T) { s.granularAffinity(t, pod) })
}

// sameSelector: of two Services with the same endpoints one goes, and the other does not notice.
func (s *stage) sameSelector(t *testing.T, all []string) {
	one, two := granular(82, false), granular(83, false)
	each(t, func(t *testing.T, family int) {
		s.apply(one, s.pods()...)
		s.apply(two, s.pods()...)
		c := client{"endpoint", s.w.Pod("pod-a").Host}
		for _, to := range append(s.tos(one, family, protocols[0]), s.tos(two, family, protocols[0])...) {
			turns(t, c, to, asks[0], all...)
		}
		v4, v6 := s.w.SlicesFor(one)
		s.cluster.Delete(one, v4, v6)
		s.wantGone(t, at(one, family, 80))
		for _, to := range s.tos(two, family, protocols[0]) {
			hits(t, c, to, map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 2})
		}
	})
}

// nodePortGoes: with its Service a node port goes, and ten questions of the node find nobody.
func (s *stage) nodePortGoes(t *testing.T, family int, p protocol, all []string) {
	svc, n := granular(84, false), s.w.Node(1)
	s.apply(svc, s.pods()...)
	c, to := client{"node", n.Host}, netip.AddrPortFrom(n.Addr(family), svc.Ports[0].NodePort)
	turns(t, c, to, p.asking, all...)
	v4, v6 := s.w.SlicesFor(svc)
	s.cluster.Delete(svc, v4, v6)
	s.wantGone(t, at(svc, family, 80))
	for range 10 {
		if r := p.ask(n.Host, to, lab.Timeout(time.Second)); r.Verdict != lab.Refused {
			t.Errorf("the node asks its port %s, which went with its Service, over %s: %s; want it refused", to, p.asking.name, r)
		}
	}
}

func (s *stage) granularAffinity(t *testing.T, c client) {
	first, second := granular(85, false), granular(86, true)
	for _, svc := range []*lab.Service{&first, &second} {
		svc.Spec = map[string]any{"sessionAffinity": "ClientIP"}
		s.apply(*svc, s.pods()...)
	}
	for _, p := range protocols[:2] {
		t.Run(p.name, func(t *testing.T) {
			eachOrder(t, first, second, func(t *testing.T, svc lab.Service, family int) {
				to := ofFamily(svc, family, p.port)
				answersBy(t, c, to, p.asking)
				if a, b := pinned(t, c, to, p.asking), pinned(t, c, to, p.asking); a != b {
					t.Errorf("%s asks %s: first %s, then %s", c.name, to, a, b)
				}
			})
		})
	}
}

// echo answers on a host with what it was sent, over TCP and UDP, on an address; the zero value is all of them.
func echo(t *testing.T, h *lab.Host, on netip.Addr, port uint16) {
	t.Helper()
	var ln *net.TCPListener
	err := h.Do(func() (err error) {
		ln, err = net.ListenTCP("tcp", &net.TCPAddr{IP: on.AsSlice(), Port: int(port)})
		return err
	})
	if err != nil {
		t.Fatalf("echo on %s: %v", h.Name, err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.CopyN(conn, conn, int64(len(large)))
			}()
		}
	}()
	answersDatagrams(t, h, on, port, func(b []byte) []byte { return b })
}

// answersDatagrams is a server of UDP that may be bound to one address: on a node with several, an answer from a
// socket that is bound to none leaves with the address that is nearest to the client.
func answersDatagrams(t *testing.T, h *lab.Host, on netip.Addr, port uint16, answer func([]byte) []byte) {
	t.Helper()
	var pc *net.UDPConn
	err := h.Do(func() (err error) {
		pc, err = net.ListenUDP("udp", &net.UDPAddr{IP: on.AsSlice(), Port: int(port)})
		return err
	})
	if err != nil {
		t.Fatalf("UDP server on %s: %v", h.Name, err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteToUDPAddrPort(answer(buf[:n]), from)
		}
	}()
}

// large is more than a frame holds: over UDP it comes in fragments, in both directions.
var large = []byte("n" + strings.Repeat("o", 1999))

// echoes: what a client sends in one piece comes back whole.
func echoes(c *lab.Host, network string, to netip.AddrPort) error {
	var conn net.Conn
	err := c.Do(func() (err error) {
		if network == "udp" {
			conn, err = net.DialUDP(network, nil, net.UDPAddrFromAddrPort(to))
		} else {
			conn, err = net.DialTCP(network, nil, net.TCPAddrFromAddrPort(to))
		}
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(lab.Patience(lab.DefaultTimeout))); err != nil {
		return err
	}
	if _, err := conn.Write(large); err != nil {
		return err
	}
	var got []byte
	buf := make([]byte, 1<<16)
	for len(got) < len(large) {
		n, err := conn.Read(buf)
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", len(got), len(large), err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, large) {
		return fmt.Errorf("%d bytes came back, not those that were sent", len(got))
	}
	return nil
}

// Requests that are larger than a frame, to pods and to the nodes' own network.
func TestUpstreamLargeRequests(t *testing.T) {
	s := newStage(t).start()
	asker := s.addPod(lab.PodSpec{Name: "asker", Node: 1})
	for _, p := range s.pods() {
		echo(t, p.Host, netip.Addr{}, 7000)
	}
	service := func(n int, secondary bool) lab.Service {
		svc := granular(n, secondary)
		svc.Ports = []lab.Port{{Name: "tcp", Port: 80, TargetPort: 7000, NodePort: uint16(30000 + n)},
			{Name: "udp", Protocol: "UDP", Port: 80, TargetPort: 7000, NodePort: uint16(30000 + n)}}
		return svc
	}
	first, second := service(90, false), service(91, true)
	s.apply(first, s.pods()...)
	s.apply(second, s.pods()...)
	send := func(t *testing.T, c *lab.Host, network string, to netip.AddrPort) {
		t.Helper()
		what := fmt.Sprintf("%s sends %d bytes to %s over %s", c.Name, len(large), to, network)
		// The first datagram of a process of the node itself comes whole over loopback, may not be split, and
		// is answered with the size that may pass; the next one is split by its sender.
		lab.Eventually(t, soon, what, func() error { return echoes(c, network, to) })
		for range s.pods() {
			if err := echoes(c, network, to); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	for i, network := range []string{"tcp", "udp"} {
		t.Run(protocols[i].name, func(t *testing.T) {
			eachOrder(t, first, second, func(t *testing.T, svc lab.Service, family int) {
				for _, to := range s.tos(svc, family, protocols[0]) {
					if network == "udp" && family == 6 && to.Addr() != s.w.Node(2).V6 { // IPVS of the pod's own node takes it
						tooBig(t, asker.Host, to)
						continue
					}
					send(t, asker.Host, network, to)
				}
			})
		})
		t.Run(protocols[i].name+" from a node and outside", func(t *testing.T) {
			each(t, func(t *testing.T, family int) {
				for _, to := range s.tos(first, family, protocols[0]) {
					send(t, s.w.Client, network, to)
					if network == "tcp" || family == 4 { // else see tooBig
						send(t, s.w.Node(1).Host, network, to)
					}
				}
			})
		})
	}
}

// Datagrams that are larger than a frame, from a pod whose bridge hands nothing to netfilter: there the kernel's limit
// that tooBig holds does not come in, and both families pass.
func TestUpstreamLargeDatagrams(t *testing.T) {
	s := newStage(t, lab.Config{NoBridgeNetfilter: true}).start()
	asker := s.addPod(lab.PodSpec{Name: "asker", Node: 1})
	far := s.w.Pod("pod-c") // such a bridge has no way from one of its pods to another through a Service, see B44
	echo(t, far.Host, netip.Addr{}, 7000)
	services := map[bool]lab.Service{}
	for i, secondary := range []bool{false, true} {
		svc := granular(94+i, secondary)
		svc.Ports = []lab.Port{{Name: "udp", Protocol: "UDP", Port: 80, TargetPort: 7000, NodePort: uint16(30094 + i)}}
		services[secondary] = svc
		s.apply(svc, far)
	}
	eachOrder(t, services[false], services[true], func(t *testing.T, svc lab.Service, family int) {
		for _, to := range s.tos(svc, family, protocols[0]) {
			what := fmt.Sprintf("a pod sends %d bytes to %s over udp", len(large), to)
			lab.Eventually(t, soon, what, func() error { return echoes(asker.Host, "udp", to) })
			for range 3 {
				if err := echoes(asker.Host, "udp", to); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	})
}

// tooBig holds a limit of the kernel: what br_netfilter put together from the IPv6 fragments of a pod on a bridge,
// IPVS takes for one packet that is too big, whatever its fragments' size was (net/netfilter/ipvs/ip_vs_xmit.c,
// __mtu_check_toobig_v6, looks for frag_max_size, which ip6_rcv_core has cleared by then). A process of the node
// itself is told so, too, because IPVS sees what it sends before that is split; there it depends on the endpoint.
// Should it pass one day, e2e/upstream.yaml has rows that can be held.
func tooBig(t *testing.T, c *lab.Host, to netip.AddrPort) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s is told by %s that IPv6 fragments are too big", c.Name, to), func() error {
		if err := echoes(c, "udp", to); !errors.Is(err, unix.EMSGSIZE) {
			return fmt.Errorf("%v, want %w", err, unix.EMSGSIZE)
		}
		return nil
	})
}

// Endpoints on the nodes' own network, asked by a pod and by a node over HTTP and UDP, with small and large requests.
func TestUpstreamHostNetwork(t *testing.T) {
	s := newStage(t).start()
	for _, n := range s.w.Nodes {
		name := daemon(t, n, 8080)
		for _, a := range []netip.Addr{n.V4, n.V6} {
			answersDatagrams(t, n.Host, a, 5353, func([]byte) []byte { return []byte("0 pod=" + name) })
			echo(t, n.Host, a, 7000)
		}
	}
	services := map[bool]lab.Service{}
	for i, secondary := range []bool{false, true} {
		svc := granular(92+i, secondary)
		svc.Ports = append(svc.Ports[:2], lab.Port{Name: "echo", Port: 70, TargetPort: 7000},
			lab.Port{Name: "echo-udp", Protocol: "UDP", Port: 70, TargetPort: 7000})
		services[secondary] = svc
		s.cluster.Apply(append(hostEndpoints(svc, s.w.Nodes...), svc)...)
	}
	eachOrder(t, services[false], services[true], func(t *testing.T, svc lab.Service, family int) {
		for _, c := range s.clients()[:2] {
			for _, p := range protocols[:2] {
				for _, to := range s.tos(svc, family, p) {
					turns(t, c, to, p.asking, "daemon of node1", "daemon of node2")
				}
			}
			for _, network := range []string{"tcp", "udp"} {
				if network == "udp" && family == 6 {
					continue // see tooBig
				}
				for range 2 * len(s.w.Nodes) {
					to := ofFamily(svc, family, 70)
					lab.Eventually(t, soon, fmt.Sprintf("%s sends %d bytes to an endpoint on a node over %s", c.name, len(large), network),
						func() error { return echoes(c.Host, network, to) })
				}
			}
		}
	})
}
