package traffic

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// asking is a protocol and the way to ask over it.
type asking struct {
	name string
	ask  func(*lab.Host, netip.AddrPort, ...lab.AskOption) lab.Reply
}

var asks = []asking{{"TCP", (*lab.Host).Ask}, {"UDP", (*lab.Host).AskUDP}}

// hits: a client's requests are answered by these pods, so many times each.
func hits(t testing.TB, c client, to netip.AddrPort, want map[string]int) {
	t.Helper()
	hitsBy(t, c, to, asks[0], want)
}

func hitsBy(t testing.TB, c client, to netip.AddrPort, by asking, want map[string]int) {
	t.Helper()
	n := 0
	for _, times := range want {
		n += times
	}
	got := map[string]int{}
	inOrder := ""
	for range n {
		r := by.ask(c.Host, to)
		if r.Verdict != lab.Answered {
			t.Errorf("%s asks %s: %s", c.name, to, r)
		}
		got[r.Pod]++
		inOrder += fmt.Sprintf("\n\tfrom port %d: %s", r.LocalPort, r)
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s asks %s over %s %d times: answered by %v, want %v%s", c.name, to, by.name, n, got, want, inOrder)
	}
}

// pinned: a client always hits one pod.
func pinned(t testing.TB, c client, to netip.AddrPort, by asking) (pod string) {
	t.Helper()
	const times = 6
	got := map[string]int{}
	for range times {
		r := by.ask(c.Host, to)
		if r.Verdict != lab.Answered {
			t.Errorf("%s asks %s: %s", c.name, to, r)
		}
		got[r.Pod]++
		pod = r.Pod
	}
	if len(got) != 1 {
		t.Errorf("%s asks %s over %s %d times: answered by %v, want one pod", c.name, to, by.name, times, got)
	}
	return pod
}

// wantHit waits until a client's requests reach a pod.
func wantHit(t testing.TB, c *lab.Host, to netip.AddrPort, pod string) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s asks %s and hits %s", c.Name, to, pod), func() error {
		if r := c.Ask(to); r.Pod != pod {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// wantGone waits until an address is none of a node's any more, and nobody answers on it.
func (s *stage) wantGone(t testing.TB, to netip.AddrPort) {
	t.Helper()
	for _, n := range s.w.Nodes {
		lab.Eventually(t, soon, fmt.Sprintf("%s leaves %s", to.Addr(), n.Name), func() error {
			if bound(t, n, to.Addr()) {
				return fmt.Errorf("it is bound")
			}
			return nil
		})
	}
	for _, c := range s.clients() {
		if r := c.Connect(to, lab.Timeout(300*time.Millisecond)); r.Verdict == lab.Answered {
			t.Errorf("%s connects to %s, which nobody has: %s", c.name, to, r)
		}
	}
}

// patient is a time-out that an emulated machine does not reach by being slow.
const patient = 20 * time.Second

// underLoad lets a client ask on and on: for a while, while f happens, and for a while after it. Each request is
// under way for a second, so that a connection that is cut shows. One that hears nothing is lost after its time.
func underLoad(t testing.TB, c *lab.Host, to netip.AddrPort, timeout time.Duration, f func()) lab.LoadReport {
	t.Helper()
	l := c.StartLoad(to, lab.LoadConfig{Rate: 20, Wait: time.Second, Timeout: timeout})
	more := func(n int) {
		t.Helper()
		began := l.Report()
		lab.Eventually(t, time.Minute, "the load goes on", func() error {
			if r := l.Report(); r.Sent < began.Sent+n {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	}
	more(20)
	f()
	more(30)
	return l.Stop()
}

// podsBut are the usual pods but one.
func (s *stage) podsBut(name string) []*lab.Pod {
	return slices.DeleteFunc(s.pods(), func(p *lab.Pod) bool { return p.Name == name })
}

func (s *stage) addPod(spec lab.PodSpec) *lab.Pod {
	s.t.Helper()
	p, err := s.w.AddPod(spec)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// onPort are the slices of pods that listen on one number; a named port may have several.
func (s *stage) onPort(svc lab.Service, number uint16, pods ...*lab.Pod) (objs []lab.Object) {
	v4, v6 := s.w.SlicesFor(svc, pods...)
	for _, sl := range []lab.Slice{v4, v6} {
		sl.Name = fmt.Sprintf("%s-%d-ipv%d", svc.Name, number, sl.Family)
		sl.Ports = []lab.Port{{Name: svc.Ports[0].Name, Port: number}}
		objs = append(objs, sl)
	}
	return objs
}

// byHand are slices as a person writes them: they say neither node nor pod nor conditions.
func byHand(svc lab.Service, name string, port uint16, hosts ...*lab.Host) (objs []lab.Object) {
	for _, family := range []int{4, 6} {
		sl := lab.Slice{Service: svc.Name, Name: fmt.Sprintf("%s-%s-ipv%d", svc.Name, name, family), Family: family,
			Labels: map[string]string{"endpointslice.kubernetes.io/managed-by": "staff"}}
		for _, p := range svc.Ports {
			sl.Ports = append(sl.Ports, lab.Port{Name: p.Name, Protocol: p.Protocol, Port: port})
		}
		for _, h := range hosts {
			sl.Endpoints = append(sl.Endpoints, lab.Endpoint{Addr: h.Addr(family)})
		}
		objs = append(objs, sl)
	}
	return objs
}

// outsiders are two machines outside the cluster that serve on a port. As on a site whose router knows the
// pods, they have a way to them.
func (s *stage) outsiders(port uint16) []*lab.Host {
	s.t.Helper()
	machines := []*lab.Host{s.w.Client, s.w.Wire}
	for _, m := range machines {
		if _, err := m.ServeHTTP(m.Name, port); err != nil {
			s.t.Fatal(err)
		}
		for _, n := range s.w.Nodes {
			for dst, via := range map[netip.Prefix]netip.Addr{n.PodCIDR4: n.V4, n.PodCIDR6: n.V6} {
				if err := m.Netlink().RouteAdd(&netlink.Route{Dst: netipNet(dst), Gw: via.AsSlice()}); err != nil {
					s.t.Fatalf("%s's way to %s: %v", m.Name, dst, err)
				}
			}
		}
	}
	return machines
}

func netipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// frontend is a virtual server as the kernel has it.
type frontend struct {
	pins  uint32 // how long it holds a client, in seconds; 0: not at all
	reals map[netip.AddrPort]*mobyipvs.Destination
}

// serving are the real servers that take new connections, sorted.
func (f frontend) serving() (list []netip.AddrPort) {
	for a, d := range f.reals {
		if d.Weight > 0 {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return list
}

// table reads all virtual servers of a node, by "tcp 10.96.0.1:80".
func table(t testing.TB, n *lab.Node) map[string]frontend {
	t.Helper()
	found := map[string]frontend{}
	err := n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		services, err := h.GetServices()
		if err != nil {
			return err
		}
		for _, svc := range services {
			proto := map[uint16]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[svc.Protocol]
			f := frontend{reals: map[netip.AddrPort]*mobyipvs.Destination{}}
			if svc.Flags&uint32(ipvs.Persistent) != 0 {
				f.pins = svc.Timeout
			}
			dests, err := h.GetDestinations(svc)
			if err != nil {
				return err
			}
			for _, d := range dests {
				f.reals[addrPort(d.Address, d.Port)] = d
			}
			found[proto+" "+addrPort(svc.Address, svc.Port).String()] = f
		}
		return nil
	})
	if err != nil {
		t.Fatalf("IPVS table of %s: %v", n.Name, err)
	}
	return found
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

// frontends are the virtual servers that a Service should have.
func frontends(svc lab.Service) (list []string) {
	for _, ip := range svc.ClusterIPs {
		for _, p := range svc.Ports {
			proto := "tcp"
			if p.Protocol != "" {
				proto = strings.ToLower(p.Protocol)
			}
			list = append(list, proto+" "+netip.AddrPortFrom(netip.MustParseAddr(ip), p.Port).String())
		}
	}
	return list
}

// onEveryNode waits until what a node's kernel holds is right, on every node.
func (s *stage) onEveryNode(t testing.TB, what string, right func(map[string]frontend) error) {
	t.Helper()
	for _, n := range s.w.Nodes {
		lab.Eventually(t, soon, what+" on "+n.Name, func() error { return right(table(t, n)) })
	}
}

// wantFrontends: these virtual servers and no others.
func (s *stage) wantFrontends(t testing.TB, want ...string) {
	t.Helper()
	for _, n := range s.w.Nodes {
		wantHas(t, n, want...)
	}
}

// wantHas: the same of one node.
func wantHas(t testing.TB, n *lab.Node, want ...string) {
	t.Helper()
	slices.Sort(want)
	lab.Eventually(t, soon, "virtual servers of "+n.Name, func() error {
		if got := slices.Sorted(maps.Keys(table(t, n))); !slices.Equal(got, want) {
			return fmt.Errorf("%s, want %s", strings.Join(got, ", "), strings.Join(want, ", "))
		}
		return nil
	})
}

// wantPins: a frontend holds its clients so long.
func (s *stage) wantPins(t testing.TB, by asking, to netip.AddrPort, seconds uint32) {
	t.Helper()
	s.onEveryNode(t, "affinity of "+to.String(), func(have map[string]frontend) error {
		if f, ok := have[strings.ToLower(by.name)+" "+to.String()]; !ok || f.pins != seconds {
			return fmt.Errorf("there: %t, holds clients for %d s, want %d", ok, f.pins, seconds)
		}
		return nil
	})
}

// wantServing: these pods, and no others, take new connections of the frontends on an address and port, over
// whatever protocol.
func (s *stage) wantServing(t testing.TB, to netip.AddrPort, pods ...*lab.Pod) {
	t.Helper()
	hosts := make([]*lab.Host, len(pods))
	for i, p := range pods {
		hosts[i] = p.Host
	}
	s.wantServedBy(t, to, hosts...)
}

func (s *stage) wantServedBy(t testing.TB, to netip.AddrPort, hosts ...*lab.Host) {
	t.Helper()
	var want []netip.Addr
	for _, h := range hosts {
		want = append(want, h.Addr(familyOf(to)))
	}
	slices.SortFunc(want, netip.Addr.Compare)
	s.onEveryNode(t, "who serves "+to.String(), func(have map[string]frontend) error {
		n := 0
		for name, f := range have {
			if !strings.HasSuffix(name, " "+to.String()) {
				continue
			}
			n++
			got := f.serving()
			if !slices.EqualFunc(got, want, func(a netip.AddrPort, b netip.Addr) bool { return a.Addr() == b }) {
				return fmt.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		if n == 0 {
			return fmt.Errorf("no virtual server")
		}
		return nil
	})
}

// wantIdle: a pod takes no new connection and has none left, in either family.
func (s *stage) wantIdle(t testing.TB, pod *lab.Pod) {
	t.Helper()
	s.onEveryNode(t, pod.Name+" has answered all", func(have map[string]frontend) error {
		for name, f := range have {
			for a, d := range f.reals {
				if (a.Addr() == pod.V4 || a.Addr() == pod.V6) && (d.Weight > 0 || d.ActiveConnections > 0) {
					return fmt.Errorf("%s sends to %s with weight %d, %d connections are active", name, a, d.Weight, d.ActiveConnections)
				}
			}
		}
		return nil
	})
}

// leaves: a pod that takes no new connection answers what it was asked, and is gone.
func (s *stage) leaves(t testing.TB, pod *lab.Pod) {
	t.Helper()
	open, err := pod.Finish(8080, patient)
	if err != nil {
		t.Fatal(err)
	}
	if open > 0 {
		t.Errorf("%s has %d connections after %s, and no node sends to it", pod.Name, open, patient)
	}
	if err := pod.Remove(); err != nil {
		t.Fatal(err)
	}
}

// wantActive waits until a TCP frontend of a node has so many active connections.
func wantActive(t testing.TB, n *lab.Node, to netip.AddrPort, want int) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("connections of %s stand", to), func() error {
		sum := 0
		for _, d := range table(t, n)["tcp "+to.String()].reals {
			sum += d.ActiveConnections
		}
		if sum != want {
			return fmt.Errorf("%d are active, want %d", sum, want)
		}
		return nil
	})
}

func familyOf(to netip.AddrPort) int {
	if to.Addr().Is4() {
		return 4
	}
	return 6
}
