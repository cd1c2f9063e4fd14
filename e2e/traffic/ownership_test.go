package traffic

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// anyExternalIP is the worst configuration: whoever may write a Service may take any address.
const anyExternalIP = "--external-ip-cidrs=0.0.0.0/0,::/0"

var (
	older   = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	younger = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
)

// mallory's Service has its own ClusterIP, its own pod behind it, and is older than anybody's.
func mallory(n int, ports ...uint16) lab.Service {
	svc := web(n)
	svc.Namespace, svc.Name, svc.Created, svc.Ports = "mallory", "innocent", older, nil
	for _, p := range ports {
		svc.Ports = append(svc.Ports,
			lab.Port{Name: fmt.Sprintf("tcp%d", p), Port: p, TargetPort: 8080},
			lab.Port{Name: fmt.Sprintf("udp%d", p), Protocol: "UDP", Port: p, TargetPort: 5353})
	}
	return svc
}

// claims are the ways to write an address that one does not own into a Service.
var claims = []struct {
	field string
	with  func(svc lab.Service, addrs ...string) lab.Service
}{
	{"status.loadBalancer", func(svc lab.Service, addrs ...string) lab.Service {
		svc.Type = "LoadBalancer"
		return announced(svc, addrs...)
	}},
	{"spec.externalIPs", func(svc lab.Service, addrs ...string) lab.Service {
		svc.Spec = map[string]any{"externalIPs": addrs}
		return svc
	}},
}

// gone deletes a Service and its slices.
func (s *stage) gone(svc lab.Service) {
	s.t.Helper()
	v4, v6 := s.w.SlicesFor(svc)
	s.cluster.Delete(svc, v4, v6)
}

// only: a frontend's new connections go to one pod, on some nodes and for some clients.
func only(t *testing.T, nodes []*lab.Node, clients []client, to netip.AddrPort, pod *lab.Pod) {
	t.Helper()
	want := netip.AddrPortFrom(pod.Addr(familyOf(to)), 8080)
	for _, n := range nodes {
		lab.Eventually(t, soon, fmt.Sprintf("%s of %s is %s's alone", to, n.Name, pod.Name), func() error {
			if got := table(t, n)["tcp "+to.String()].serving(); len(got) != 1 || got[0] != want {
				return fmt.Errorf("%v take new connections, want %s", got, want)
			}
			return nil
		})
	}
	for _, c := range clients {
		wantHit(t, c.Host, to, pod.Name) // that it serves says nothing of its guard
		hits(t, c, to, map[string]int{pod.Name: 2})
	}
}

// B60: mallory writes the ClusterIP of the bank into a Service of another namespace, as a load balancer's address
// or an external IP, on the port that the bank uses and on free ones, over TCP and UDP. The bank keeps its
// address, and mallory gets none of it, whoever came first, before and after a restart. Only when the bank has
// gone the address is anybody's.
func TestB60ClusterIPIsNotForOthers(t *testing.T) {
	s := newStage(t).start(anyExternalIP)
	s.serveUDP(5353, s.pods()...)
	bank := web(60)
	bank.Namespace, bank.Name, bank.Created = "bank", "vault", younger
	for _, claim := range claims {
		attack := claim.with(mallory(61, 80, 443), bank.ClusterIPs...)
		for _, first := range []string{"the bank", "mallory"} {
			t.Run(fmt.Sprintf("%s, %s first", claim.field, first), func(t *testing.T) {
				if first == "mallory" {
					// Nobody has the address yet: it is mallory's, and that shows what an attack would be.
					s.apply(attack, s.w.Pod("pod-c"))
					each(t, func(t *testing.T, family int) {
						for _, port := range []uint16{80, 443} {
							only(t, s.w.Nodes, s.everyone(), at(bank, family, port), s.w.Pod("pod-c"))
						}
					})
					s.apply(bank, s.w.Pod("pod-b"))
				} else {
					s.apply(bank, s.w.Pod("pod-b"))
					s.ready(bank)
					s.apply(attack, s.w.Pod("pod-c"))
				}
				s.holdsOut(t, bank, attack)
				s.restart(0)
				s.holdsOut(t, bank, attack)
				s.gone(bank)
				each(t, func(t *testing.T, family int) {
					only(t, s.w.Nodes, s.everyone(), at(bank, family, 443), s.w.Pod("pod-c"))
				})
				s.apply(bank, s.w.Pod("pod-b")) // and comes back
				s.holdsOut(t, bank, attack)
				s.gone(bank)
				s.gone(attack)
				each(t, func(t *testing.T, family int) {
					for _, n := range s.w.Nodes {
						wantBound(t, n, at(bank, family, 443).Addr(), false)
					}
				})
			})
		}
	}
}

// holdsOut: the bank's clients reach the bank and nobody else, mallory's own address works, and mallory is told.
func (s *stage) holdsOut(t *testing.T, bank, attack lab.Service) {
	t.Helper()
	s.ready(attack)
	each(t, func(t *testing.T, family int) {
		vip := at(bank, family, 80)
		for _, c := range s.everyone() {
			for _, free := range []uint16{443, 22} {
				wantRefused(t, c, netip.AddrPortFrom(vip.Addr(), free))
			}
		}
		for _, c := range s.clients() {
			// The kernel limits how often it tells one client by ICMP: what counts is that mallory does not answer.
			if r := c.AskUDP(vip, lab.Timeout(300*time.Millisecond)); r.Verdict == lab.Answered {
				t.Errorf("%s asks %s of the bank over UDP: %s", c.name, vip, r)
			}
		}
		only(t, s.w.Nodes, s.everyone(), vip, s.w.Pod("pod-b"))
		for _, n := range s.w.Nodes {
			wantReals(t, n, netip.AddrPortFrom(vip.Addr(), 443))
		}
	})
	for _, a := range s.agents {
		for _, ip := range bank.ClusterIPs {
			for _, port := range []uint16{80, 443} {
				at := netip.AddrPortFrom(netip.MustParseAddr(ip), port)
				wantSaid(t, a, "mallory/innocent", at.String()+"/tcp belongs to Service bank/vault")
				wantSaid(t, a, "mallory/innocent", at.String()+"/udp belongs to Service bank/vault")
			}
		}
	}
}

// rival is a Service with a frontend of one kind on the same address and port as its rivals'.
type rival struct {
	svc lab.Service
	pod *lab.Pod
}

// B60: on one address and port a load balancer's address comes before a node port, and that before an external
// IP, however old the Services are. When the owner goes, the next one takes over; the losers are told.
func TestB60Ranks(t *testing.T) {
	s := newStage(t).start(anyExternalIP)
	n := s.w.Node(1)
	shared := []string{"203.0.113.62", "fd20:113::62"}
	for _, a := range shared {
		addr := netip.MustParseAddr(a)
		if err := n.AddAddr(netip.PrefixFrom(addr, addr.BitLen())); err != nil { // where it is a node port's as well
			t.Fatal(err)
		}
	}
	const port = 30062
	of := func(n int, name string, created time.Time) lab.Service {
		svc := web(n)
		svc.Name, svc.Created = name, created
		svc.Ports = []lab.Port{{Name: "http", Port: port, TargetPort: 8080}}
		return svc
	}
	balancer := claims[0].with(of(62, "z-balancer", younger.Add(time.Hour)), shared...)
	nodePort := of(63, "m-nodeport", younger)
	nodePort.Type, nodePort.Ports = "NodePort", []lab.Port{{Name: "http", Port: 80, TargetPort: 8080, NodePort: port}}
	external := claims[1].with(of(64, "a-external", older), shared...)
	a, b, c := s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	ranks := []rival{{balancer, a}, {nodePort, b}, {external, c}}
	owned := func(t *testing.T, by rival) {
		t.Helper()
		each(t, func(t *testing.T, family int) {
			to := netip.AddrPortFrom(balancerAddr(balancer, family), port)
			only(t, s.w.Nodes[:1], s.clients(), to, by.pod)
			if by.pod != c { // the node's own address is the node port's all the time
				only(t, s.w.Nodes[:1], s.clients(), netip.AddrPortFrom(n.Addr(family), port), b)
			}
		})
	}
	for _, r := range slices.Backward(ranks) { // each takes over from the one before
		s.apply(r.svc, r.pod)
		owned(t, r)
	}
	for _, loser := range ranks[1:] {
		for _, a := range shared {
			at := netip.AddrPortFrom(netip.MustParseAddr(a), port).String()
			wantSaid(t, s.agents[0], "default/"+loser.svc.Name, at+"/tcp belongs to Service default/z-balancer")
		}
	}
	s.restart(0)
	owned(t, ranks[0])
	for i, r := range ranks[:2] {
		s.gone(r.svc)
		owned(t, ranks[i+1])
	}
}

// B60: of the same kind, the older Service owns the address and port, and of the same age the one whose namespace
// and name come first: whoever was heard of first, and before and after a restart.
func TestB60OlderOwns(t *testing.T) {
	s := newStage(t).start(anyExternalIP)
	shared := []string{"203.0.113.65", "fd20:113::65"}
	for i, kind := range []string{"LoadBalancer", "ExternalIP", "NodePort"} {
		of := func(n int, name string, created time.Time) lab.Service {
			svc := web(n + 2*i)
			svc.Name, svc.Created = name, created
			switch kind {
			case "LoadBalancer":
				return claims[0].with(svc, shared...)
			case "ExternalIP":
				return claims[1].with(svc, shared...)
			}
			svc.Type, svc.Ports[0].NodePort = "NodePort", 30065
			return svc
		}
		to := func(family int) netip.AddrPort {
			if kind == "NodePort" {
				return netip.AddrPortFrom(s.w.Node(1).Addr(family), 30065)
			}
			return netip.AddrPortFrom(netip.MustParseAddr(shared[map[int]int{4: 0, 6: 1}[family]]), 80)
		}
		contests := []struct {
			name          string
			winner, loser lab.Service
		}{
			{"older", of(70, "zulu", older), of(71, "alpha", younger)},
			{"name", of(70, "alpha", older), of(71, "zulu", older)},
		}
		if i > 0 { // the order of names is the same for all kinds
			contests = contests[:1]
		}
		for _, why := range contests {
			t.Run(kind+", "+why.name, func(t *testing.T) {
				owned := func(by *lab.Pod) {
					t.Helper()
					each(t, func(t *testing.T, family int) { only(t, s.w.Nodes[:1], s.clients(), to(family), by) })
				}
				b, c := s.w.Pod("pod-b"), s.w.Pod("pod-c")
				s.apply(why.loser, c)
				owned(c)
				s.apply(why.winner, b)
				owned(b)
				each(t, func(t *testing.T, family int) {
					wantSaid(t, s.agents[0], "default/"+why.loser.Name, to(family).String()+"/tcp belongs to Service default/"+why.winner.Name)
				})
				s.restart(0)
				owned(b)
				s.gone(why.winner)
				owned(c)
				s.gone(why.loser)
				each(t, func(t *testing.T, family int) { wantReals(t, s.w.Node(1), to(family)) })
			})
		}
	}
}

// B61: mallory writes addresses that a node lives by into a Service: the node's own, the API server's, and
// another node's, which the configuration protects. Their daemons still answer to everyone, and mallory is told.
func TestB61AddressesThatNodesLiveBy(t *testing.T) {
	s := newStage(t)
	s.outsiders(6443) // the wire is the API server's machine
	for i, n := range s.w.Nodes {
		daemon(t, n, 22)
		other := s.w.Nodes[1-i]
		s.agents = append(s.agents, s.w.StartAgent(t, n, s.cluster, anyExternalIP,
			fmt.Sprintf("--protected-cidrs=%s/32,%s/128", other.V4, other.V6)))
	}
	api := lab.Service{Name: "kubernetes", ClusterIPs: []string{"10.96.0.1", "fd00:96::1"}, Selector: map[string]string{},
		Ports: []lab.Port{{Name: "https", Port: 443, TargetPort: 6443}}}
	s.cluster.Apply(api)
	s.cluster.Apply(byHand(api, "apiserver", 6443, s.w.Wire)...)
	s.ready(api)
	for _, claim := range claims {
		for _, victim := range []struct {
			host   *lab.Host
			port   uint16
			daemon string
			why    string
		}{
			{s.w.Node(1).Host, 22, "daemon of node1", "is an address of this node"},
			{s.w.Node(2).Host, 22, "daemon of node2", "is in a protected range"},
			{s.w.Wire, 6443, "wire", "is an address of the API server"},
		} {
			t.Run(claim.field+", "+victim.host.Name, func(t *testing.T) {
				attack := claim.with(mallory(66, victim.port, 4444), victim.host.V4.String(), victim.host.V6.String())
				attack.Name = strings.ToLower(claim.field[strings.Index(claim.field, ".")+1:]) + "-" + victim.host.Name
				s.apply(attack, s.w.Pod("pod-c"))
				s.ready(attack)
				each(t, func(t *testing.T, family int) {
					to := netip.AddrPortFrom(victim.host.Addr(family), victim.port)
					wantSaid(t, s.agents[0], "mallory/"+attack.Name, claim.field+": "+to.Addr().String()+" "+victim.why)
					for _, c := range s.everyone() {
						hits(t, c, to, map[string]int{victim.daemon: 2})
					}
					for _, n := range s.w.Nodes {
						unserved(t, n, to.Addr())
					}
				})
				s.gone(attack)
			})
		}
	}
	t.Run("as ClusterIP", func(t *testing.T) {
		n := s.w.Node(1)
		attack := mallory(69, 22)
		attack.ClusterIPs = []string{n.V4.String(), n.V6.String()}
		s.apply(attack, s.w.Pod("pod-c"))
		each(t, func(t *testing.T, family int) {
			wantSaid(t, s.agents[0], "mallory/innocent", "spec.clusterIPs: "+n.Addr(family).String()+" is an address of this node")
			for _, c := range s.clients() {
				hits(t, c, netip.AddrPortFrom(n.Addr(family), 22), map[string]int{"daemon of node1": 2})
			}
			unserved(t, n, n.Addr(family))
		})
		s.gone(attack)
	})
	t.Run("an API server that comes later", func(t *testing.T) {
		host := s.w.Client
		attack := claims[0].with(mallory(67, 6443), host.V4.String(), host.V6.String())
		s.apply(attack, s.w.Pod("pod-c"))
		inside := []*lab.Host{s.w.Node(1).Host, s.w.Pod("pod-a").Host, s.w.Node(2).Host, s.w.Pod("pod-c").Host}
		each(t, func(t *testing.T, family int) {
			for _, h := range inside {
				wantHit(t, h, netip.AddrPortFrom(host.Addr(family), 6443), "pod-c")
			}
		})
		s.cluster.Apply(byHand(api, "apiserver", 6443, s.w.Wire, host)...)
		each(t, func(t *testing.T, family int) {
			for _, h := range inside {
				// Within a minute the node's own addresses are looked at for other reasons, too.
				wantHitPromptly(t, h, netip.AddrPortFrom(host.Addr(family), 6443), "client")
			}
			for _, n := range s.w.Nodes {
				wantBound(t, n, host.Addr(family), false)
				unserved(t, n, host.Addr(family))
			}
		})
	})
}

// B4, B61: mallory leads a node port to what listens on a node's loopback or link-local addresses only: kubelet,
// a cloud's metadata. Nobody gets there by it.
func TestB61LoopbackEndpoints(t *testing.T) {
	s := newStage(t).start()
	n := s.w.Node(1)
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	stop, err := n.ServeHTTP("kubelet", 10250, loopback...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	attack := mallory(68, 80)
	attack.Type, attack.Ports = "NodePort", []lab.Port{{Name: "http", Port: 80, TargetPort: 10250, NodePort: 30068}}
	for family, addrs := range map[int][]string{4: {"127.0.0.1", "127.8.8.8", "169.254.169.254"}, 6: {"::1", "fe80::1", "::ffff:127.0.0.1"}} {
		sl := lab.Slice{Namespace: attack.Namespace, Service: attack.Name, Family: family, Ports: attack.Ports}
		for _, a := range addrs {
			sl.Endpoints = append(sl.Endpoints, lab.Endpoint{Addr: netip.MustParseAddr(a)})
		}
		s.cluster.Apply(sl)
	}
	s.cluster.Apply(attack)
	for addr, kind := range map[string]string{"127.0.0.1": "a loopback", "127.8.8.8": "a loopback", "169.254.169.254": "a link-local",
		"::1": "a loopback", "fe80::1": "a link-local", "::ffff:127.0.0.1": "an IPv4"} {
		said := fmt.Sprintf(`\"%s\" is %s`, addr, kind)
		wantSaid(t, s.agents[0], "mallory/innocent", said)
	}
	each(t, func(t *testing.T, family int) {
		at := netip.AddrPortFrom(n.Addr(family), 30068)
		if r := n.Ask(netip.AddrPortFrom(loopback[map[int]int{4: 0, 6: 1}[family]], 10250)); r.Pod != "kubelet" {
			t.Errorf("the control, kubelet by loopback: %s", r)
		}
		lab.Eventually(t, soon, "the node port is there", func() error {
			if f, ok := table(t, n)["tcp "+at.String()]; !ok || len(f.reals) > 0 {
				return fmt.Errorf("virtual server %t with %d real servers, want one without", ok, len(f.reals))
			}
			return nil
		})
		for _, c := range s.clients() {
			wantRefused(t, c, at)
		}
	})
}
