package traffic

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// hostPort is a port of a node that another program leads to a pod.
type hostPort struct {
	proto        string
	port, target uint16
}

// The one who is asked by host ports, and what answers there.
const (
	hostPortPod  = "pod-b"
	hostPortName = "host port"
	hostPortTCP  = 9090
	hostPortUDP  = 9053
)

// hostPortForms are the programs that have host ports, by the rules that they write.
var hostPortForms = []struct {
	name string
	put  func(t *testing.T, n *lab.Node, pod *lab.Pod, ports []hostPort)
}{
	{"CNI portmap over iptables-nft", portmapIPTables("nft")},
	{"CNI portmap over iptables-legacy", portmapIPTables("legacy")},
	{"plain nftables", portmapNFTables},
}

// portmapIPTables writes what the CNI plugin portmap does by default; Docker's chain DOCKER is of the same kind.
func portmapIPTables(of string) func(*testing.T, *lab.Node, *lab.Pod, []hostPort) {
	return func(t *testing.T, n *lab.Node, pod *lab.Pod, ports []hostPort) {
		t.Helper()
		for family, program := range map[int]string{4: "iptables-" + of + "-restore", 6: "ip6tables-" + of + "-restore"} {
			restorePortmap(t, n, pod, ports, family, program)
		}
	}
}

func restorePortmap(t *testing.T, n *lab.Node, pod *lab.Pod, ports []hostPort, family int, program string) {
	t.Helper()
	var rules strings.Builder
	for _, p := range ports {
		match := fmt.Sprintf("-A CNI-DN-0123456789abcdef01234 -p %s -m %[1]s --dport %d ", p.proto, p.port)
		fmt.Fprintf(&rules, "%s-s %s -j CNI-HOSTPORT-SETMARK\n", match, podRange(family))
		fmt.Fprintf(&rules, "%s-j DNAT --to-destination %s\n", match, netip.AddrPortFrom(pod.Addr(family), p.target))
	}
	input := "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n:CNI-HOSTPORT-MASQ - [0:0]\n:CNI-DN-0123456789abcdef01234 - [0:0]\n" +
		"-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n" +
		"-A POSTROUTING -j CNI-HOSTPORT-MASQ\n-A CNI-HOSTPORT-SETMARK -j MARK --or-mark 0x2000\n" +
		"-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n-A CNI-HOSTPORT-DNAT -j CNI-DN-0123456789abcdef01234\n" + rules.String() + "COMMIT\n"
	if err := n.Do(func() error {
		cmd := exec.Command(program, "--noflush")
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", program, err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// portmapNFTables writes the same as plain nftables, as portmap's other backend and Docker's do.
func portmapNFTables(t *testing.T, n *lab.Node, pod *lab.Pod, ports []hostPort) {
	t.Helper()
	for family, ip := range map[int]string{4: "ip", 6: "ip6"} {
		var rules strings.Builder
		for _, p := range ports {
			fmt.Fprintf(&rules, "%s dport %d dnat to %s\n", p.proto, p.port, netip.AddrPortFrom(pod.Addr(family), p.target))
		}
		nft(t, n, fmt.Sprintf(`table %s cni_hostport {
chain hostports {
%s}
chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump hostports; }
chain output { type nat hook output priority -100; fib daddr type local jump hostports; }
}
`, ip, rules.String()))
	}
}

// B80: what other programs do with local addresses does not take a Service's packets: on the ClusterIP, that of
// default/kubernetes too, on a load balancer's and an external address, and on a node port. A Service without endpoints and
// a port that no Service has are refused as ever, and a Local policy holds. The host port itself works on the node's own
// addresses. The control: with the kernel told not to shield what is a Service's, the host port answers in its place.
func TestB80HostPorts(t *testing.T) {
	for _, binding := range []string{"address", "route"} {
		for _, form := range hostPortForms {
			t.Run(form.name+", binding "+binding, func(t *testing.T) {
				s := newStage(t)
				s.hostPorts(t, form.put, "--vip-binding="+binding)
			})
			if t.Failed() {
				return
			}
		}
	}
}

func (s *stage) hostPorts(t *testing.T, put func(*testing.T, *lab.Node, *lab.Pod, []hostPort), binding string) {
	n, pod := s.w.Node(1), s.w.Pod(hostPortPod)
	s.serveUDP(5353, s.w.Pod("pod-c"))
	if _, err := pod.Host.ServeHTTP(hostPortName, hostPortTCP); err != nil {
		t.Fatal(err)
	}
	if _, err := pod.ServeUDP(hostPortName, hostPortUDP); err != nil {
		t.Fatal(err)
	}
	svc, local, empty, api := everywhere(80), policies{externalLocal: true}.with(everywhere(81)), web(82), lab.Service{Name: "kubernetes",
		ClusterIPs: []string{"10.96.0.1", "fd00:96::1"}, Selector: map[string]string{}, Ports: []lab.Port{{Name: "https", Port: 443, TargetPort: 6443}}}
	ports := []hostPort{{"tcp", 80, hostPortTCP}, {"tcp", 443, hostPortTCP}, {"udp", 53, hostPortUDP}, {"tcp", 8888, hostPortTCP}}
	for _, svc := range []lab.Service{svc, local} {
		for _, p := range svc.Ports {
			ports = append(ports, hostPort{proto(p), p.NodePort, map[string]uint16{"tcp": hostPortTCP, "udp": hostPortUDP}[proto(p)]})
		}
	}
	put(t, n, pod, ports)
	s.start(allowExternalIPs, binding)
	for _, svc := range []lab.Service{svc, local} {
		s.apply(svc, s.w.Pod("pod-c"))
	}
	s.apply(empty)
	stop, err := s.w.Node(2).ServeHTTP("apiserver", 6443)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	s.cluster.Apply(append(hostEndpoints(api, s.w.Node(2)), api)...)
	s.ready(svc)
	s.ready(local)
	s.ready(api)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			s.servedBesideHostPorts(t, c, family, svc, local, empty, api)
		}
		for _, c := range s.everyone() {
			if c.Host == pod.Host || c.Host == s.w.Pod("pod-a").Host {
				continue // the lab's rules do not bring replies from a pod of the same bridge back
			}
			hits(t, c, netip.AddrPortFrom(n.Addr(family), 80), map[string]int{hostPortName: 1})
			hitsBy(t, c, netip.AddrPortFrom(n.Addr(family), 53), asks[1], map[string]int{hostPortName: 1})
		}
	})
	if t.Failed() {
		return
	}
	s.hostPortsUnshielded(t, n, svc, api)
}

// servedBesideHostPorts asks everything that a client may ask.
func (s *stage) servedBesideHostPorts(t *testing.T, c client, family int, svc, local, empty, api lab.Service) {
	t.Helper()
	hits(t, c, at(api, family, 443), map[string]int{"apiserver": 1})
	for _, w := range s.ways(svc, family) {
		hits(t, c, w.tcp, map[string]int{"pod-c": 2})
		hitsBy(t, c, w.udp, asks[1], map[string]int{"pod-c": 2})
	}
	for _, w := range s.ways(local, family) {
		want := policies{externalLocal: true}.want(s.w.Node(1), c.Host != s.w.Client, w.kind, []*lab.Pod{s.w.Pod("pod-c")})
		for i, to := range []netip.AddrPort{w.tcp, w.udp} {
			r := asks[i].ask(c.Host, to, lab.Timeout(map[bool]time.Duration{false: lab.Patience(lab.DefaultTimeout), true: 300 * time.Millisecond}[want.dropped]))
			if want.dropped && r.Verdict != lab.TimedOut || !want.dropped && r.Pod != "pod-c" {
				t.Errorf("%s asks %s %s over %s: %s; want %s", c.name, w.kind, to, asks[i].name, r, want)
			}
		}
	}
	for _, to := range []netip.AddrPort{at(empty, family, 80), at(svc, family, 8888), netip.AddrPortFrom(balancerAddr(svc, family), 8888)} {
		if r := c.Connect(to); r.Verdict != lab.Refused {
			t.Errorf("%s asks %s, where nothing is served: %s", c.name, to, r)
		}
	}
}

// hostPortsUnshielded is the control, and that an agent which starts puts it right, also for who keeps sending datagrams.
func (s *stage) hostPortsUnshielded(t *testing.T, n *lab.Node, svc, api lab.Service) {
	t.Helper()
	if err := s.agents[0].Stop(); err != nil {
		t.Fatal(err)
	}
	each := func(want map[string]string) {
		t.Helper()
		for _, family := range []int{4, 6} {
			for _, c := range []client{{"outside", s.w.Client}, {"node", n.Host}} {
				for _, w := range s.ways(svc, family) {
					wantHit(t, c.Host, w.tcp, want["web"])
				}
				wantHit(t, c.Host, at(api, family, 443), want["api"])
			}
		}
	}
	each(map[string]string{"web": "pod-c", "api": "apiserver"}) // while no agent runs, too
	nft(t, n, "flush set inet ipvs-proxy shielded")
	each(map[string]string{"web": hostPortName, "api": hostPortName})
	var flows []*lab.Flow
	for _, family := range []int{4, 6} {
		for _, w := range s.ways(svc, family) {
			f := flow(t, s.w.Client, w.udp)
			reaches(t, f, hostPortName, 3)
			flows = append(flows, f)
		}
	}
	began := time.Now()
	s.agents[0] = s.w.StartAgent(t, n, s.cluster, s.args...)
	programmed(t, s.agents[0])
	each(map[string]string{"web": "pod-c", "api": "apiserver"})
	for _, f := range flows { // that keep sending from one port
		reaches(t, f, "pod-c", 3)
		f.Stop()
	}
	t.Logf("put right within %s of the start", time.Since(began).Round(100*time.Millisecond))
}
