package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// elsewhere has the pods in ranges in which the lab's are not: what protects these is what slices say of them, and
// each node's own Node object.
const elsewhere = "--cluster-cidr=10.99.0.0/16,fd10:99::/32"

// free are addresses that nobody has: whoever asks for them gets them, which is the control of each attack.
var free = []string{"203.0.113.90", "fd20:113::90"}

// promptly is time enough for what follows from one change of a file, and short enough to find that it does not follow.
const promptly = 15 * time.Second

// wantHitPromptly waits until a client's requests reach a pod or a daemon.
func wantHitPromptly(t testing.TB, c *lab.Host, to netip.AddrPort, who string) {
	t.Helper()
	lab.Eventually(t, promptly, fmt.Sprintf("%s asks %s and hits %s", c.Name, to, who), func() error {
		if r := c.Ask(to, lab.Timeout(time.Second)); r.Pod != who {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// inside are clients with a route to pods.
func (s *stage) inside() []client {
	return slices.DeleteFunc(s.everyone(), func(c client) bool { return c.name == "outside" })
}

// takes applies an attack with pod-c behind it, and waits for what it may have, of each family.
func (s *stage) takes(t *testing.T, attack lab.Service, port uint16) {
	t.Helper()
	s.apply(attack, s.w.Pod("pod-c"))
	for _, a := range free {
		for _, n := range s.w.Nodes {
			wantHitPromptly(t, n.Host, netip.AddrPortFrom(netip.MustParseAddr(a), port), "pod-c")
		}
	}
}

// B60, B61: mallory writes the address of a pod of the bank into a Service that is older than the bank's, as a load
// balancer's address or an external IP. The pod keeps its own traffic, and the bank its endpoint, by the ranges of pods and
// by what slices say alone, whoever came first, before and after a restart.
func TestB61PodAddresses(t *testing.T) {
	for _, by := range []struct{ name, arg, why string }{
		{"ranges", "--v=2", "is in a range of the cluster's pods"},
		{"slices", elsewhere, "is an endpoint of Service bank/vault"},
	} {
		t.Run(by.name, func(t *testing.T) {
			s := newStage(t).start(anyExternalIP, by.arg)
			bank, pod := web(60), s.w.Pod("pod-b")
			bank.Namespace, bank.Name, bank.Created = "bank", "vault", younger
			keeps := func(t *testing.T) {
				t.Helper()
				each(t, func(t *testing.T, family int) {
					only(t, s.w.Nodes, s.everyone(), at(bank, family, 80), pod)
					for _, c := range s.inside() {
						hits(t, c, netip.AddrPortFrom(pod.Addr(family), 8080), map[string]int{"pod-b": 2})
					}
					for _, n := range s.w.Nodes {
						unserved(t, n, pod.Addr(family))
					}
					// Node 1 has the pod, and refuses its range anyway; node 2 has it from the slices.
					wantSaid(t, s.agents[1], "mallory/innocent", pod.Addr(family).String()+" "+by.why)
				})
			}
			for _, claim := range claims {
				for _, first := range []string{"the bank", "mallory"} {
					t.Run(claim.field+", "+first+" first", func(t *testing.T) {
						attack := claim.with(mallory(61, 8080, 80), append([]string{pod.V4.String(), pod.V6.String()}, free...)...)
						if first == "the bank" {
							s.apply(bank, pod)
							s.ready(bank)
						}
						s.takes(t, attack, 8080)
						if first == "mallory" {
							if by.arg == elsewhere { // the control: what an attack would be, while no slice names the pod
								each(t, func(t *testing.T, family int) {
									wantHit(t, s.w.Node(2).Host, netip.AddrPortFrom(pod.Addr(family), 8080), "pod-c")
								})
							}
							s.apply(bank, pod)
						}
						keeps(t)
						s.restart(1)
						keeps(t)
						s.gone(attack)
						s.gone(bank)
					})
				}
			}
		})
	}
}

// B60: of a load balancer's address and an endpoint that somebody writes by hand, the older Service's holds: an alias that
// leads to somebody's load balancer does not take that away.
func TestB60HandMadeEndpoint(t *testing.T) {
	s := newStage(t).start()
	shop := announced(web(62), free...)
	shop.Type, shop.Created = "LoadBalancer", older
	for _, c := range []struct {
		name    string
		created time.Time
		serves  bool
	}{{"younger", younger, true}, {"older", older.Add(-time.Hour), false}} {
		t.Run("an alias that is "+c.name, func(t *testing.T) {
			s.takes(t, shop, 80)
			alias := web(63)
			alias.Created = c.created
			objs := []lab.Object{alias}
			for i, family := range []int{4, 6} {
				objs = append(objs, lab.Slice{Service: alias.Name, Family: family, Ports: alias.Ports,
					Endpoints: []lab.Endpoint{{Addr: netip.MustParseAddr(free[i])}}})
			}
			s.cluster.Apply(objs...)
			for i, a := range s.agents {
				want := []string{"default/web63", "is a virtual IP of a Service"}
				if !c.serves {
					want = []string{"default/web62", "is an endpoint of Service default/web63, which is older"}
				}
				wantSaid(t, a, want...)
				each(t, func(t *testing.T, family int) {
					to := netip.AddrPortFrom(netip.MustParseAddr(free[map[int]int{4: 0, 6: 1}[family]]), 80)
					if !c.serves {
						wantBound(t, s.w.Nodes[i], to.Addr(), false)
						return
					}
					hits(t, client{"node", s.w.Nodes[i].Host}, to, map[string]int{"pod-c": 2})
				})
			}
			s.cluster.Delete(objs...)
			s.takes(t, shop, 80)
		})
	}
}

// B61: a slice of default/kubernetes that names somebody's load balancer takes it away as long as it does, which is the
// control, and no longer: no agent has to be restarted.
func TestB61SliceOfTheAPIServer(t *testing.T) {
	s := newStage(t).start()
	shop := announced(web(64), free...)
	shop.Type = "LoadBalancer"
	s.takes(t, shop, 80)
	var objs []lab.Object
	for i, family := range []int{4, 6} {
		objs = append(objs, lab.Slice{Service: "kubernetes", Family: family, Ports: []lab.Port{{Name: "https", Port: 443, TargetPort: 6443}},
			Endpoints: []lab.Endpoint{{Addr: netip.MustParseAddr(free[i])}}})
	}
	s.cluster.Apply(objs...)
	for i, a := range s.agents {
		wantSaid(t, a, "default/web64", "is an address of the API server")
		for _, addr := range free {
			wantBound(t, s.w.Nodes[i], netip.MustParseAddr(addr), false)
		}
	}
	s.cluster.Delete(objs...)
	s.takes(t, shop, 80)
}

// B60: the ClusterIP of a Service that another proxy serves is that Service's, on every port. The other proxy is a machine
// on the wire here. Without the Service mallory gets the address, which is the control.
func TestB60ClusterIPOfAnotherProxy(t *testing.T) {
	s := newStage(t).start(anyExternalIP)
	bank := web(60)
	bank.Namespace, bank.Name, bank.Created = "bank", "vault", younger
	bank.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "another"}
	s.outsiders(80)
	br0, err := s.w.Wire.Netlink().LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range bank.ClusterIPs {
		ip := netip.MustParseAddr(a)
		if err := s.w.Wire.Netlink().AddrAdd(br0, &netlink.Addr{IPNet: netipNet(netip.PrefixFrom(ip, ip.BitLen()))}); err != nil {
			t.Fatal(err)
		}
	}
	for _, claim := range claims {
		t.Run(claim.field, func(t *testing.T) {
			s.takes(t, claim.with(mallory(61, 80, 443), slices.Concat(bank.ClusterIPs, free)...), 80)
			answeredBy := func(who string) {
				t.Helper()
				each(t, func(t *testing.T, family int) {
					for _, c := range s.inside() {
						wantHit(t, c.Host, at(bank, family, 80), who)
					}
				})
			}
			answeredBy("pod-c") // the control
			s.cluster.Apply(bank)
			answeredBy("wire")
			each(t, func(t *testing.T, family int) {
				for i, n := range s.w.Nodes {
					unserved(t, n, at(bank, family, 80).Addr())
					wantSaid(t, s.agents[i], "mallory/innocent", at(bank, family, 443).String()+"/tcp belongs to Service bank/vault")
				}
			})
			s.restart(0)
			answeredBy("wire")
			s.cluster.Delete(bank)
			answeredBy("pod-c")
		})
	}
}

// B61: a second address of a node, the gateway of its pods, the first and last addresses of its subnets and those that
// belong to no host are for no Service; the node's daemons answer as before.
func TestB61AddressesOfNoHost(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	if err := n.AddDummy("eth1", netip.MustParsePrefix("198.18.7.1/24"), netip.MustParsePrefix("fd18:7::1/64")); err != nil {
		t.Fatal(err)
	}
	daemon(t, n, 22)
	s.start(anyExternalIP, elsewhere)
	for i, c := range []struct {
		addr, why string
		daemon    bool
	}{
		{"198.18.7.1", "stands on an interface of this node, with its subnet", true},
		{"fd18:7::1", "stands on an interface of this node, with its subnet", true},
		{n.Gateway4.String(), "is in a range of the cluster's pods", true},
		{n.Gateway6.String(), "is in a range of the cluster's pods", true},
		{"198.18.7.255", "can be no host's", false},
		{"172.28.128.255", "can be no host's", false},
		{"172.28.128.0", "can be no host's", false},
		{"fd28:128::", "can be no host's", false},
		{"240.0.0.1", "can be no host's", false},
		{"0.0.0.5", "is in 0.0.0.0/8", false},
	} {
		for _, claim := range claims {
			t.Run(claim.field+" "+c.addr, func(t *testing.T) {
				attack := claim.with(mallory(61, 22, 80), append([]string{c.addr}, free...)...)
				attack.Name = fmt.Sprintf("%s%d", strings.ToLower(claim.field[strings.Index(claim.field, ".")+1:]), i)
				s.takes(t, attack, 80)
				addr := netip.MustParseAddr(c.addr)
				wantSaid(t, s.agents[0], "mallory/"+attack.Name, c.addr, c.why)
				unserved(t, n, addr)
				if c.daemon {
					for _, from := range []*lab.Host{n.Host, s.w.Pod("pod-a").Host} {
						hits(t, client{from.Name, from}, netip.AddrPortFrom(addr, 22), map[string]int{"daemon of node1": 2})
					}
				}
				s.gone(attack)
			})
		}
	}
}

// B4: endpoints that no host can be cost the good one beside them nothing, and are named. The control is an address that
// could be a host: it stays among the endpoints.
func TestB4EndpointsOfNoHost(t *testing.T) {
	s := newStage(t).start()
	svc, pod := web(65), s.w.Pod("pod-b")
	bad := map[int][]string{4: {"0.0.0.5", "240.0.0.1", "172.28.128.255", "172.28.128.0"}, 6: {"fd28:128::"}}
	absent := map[int]string{4: "172.28.128.77", 6: "fd28:128::77"}
	apply := func(more map[int][]string) {
		objs := []lab.Object{svc}
		for _, family := range []int{4, 6} {
			sl := lab.Slice{Service: svc.Name, Family: family, Ports: svc.Ports, Endpoints: []lab.Endpoint{{Addr: pod.Addr(family), Node: pod.Node.Name}}}
			for _, a := range more[family] {
				sl.Endpoints = append(sl.Endpoints, lab.Endpoint{Addr: netip.MustParseAddr(a)})
			}
			objs = append(objs, sl)
		}
		s.cluster.Apply(objs...)
	}
	apply(map[int][]string{4: {absent[4]}, 6: {absent[6]}})
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			wantReals(t, n, at(svc, family, 80), netip.AddrPortFrom(pod.Addr(family), 8080).String()+" 1", netip.AddrPortFrom(netip.MustParseAddr(absent[family]), 8080).String()+" 1")
		}
	})
	apply(bad)
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			only(t, []*lab.Node{n}, nil, at(svc, family, 80), pod)
		}
		for _, c := range s.everyone() {
			hits(t, c, at(svc, family, 80), map[string]int{"pod-b": 6})
		}
		for _, a := range bad[family] {
			wantSaid(t, s.agents[0], "default/web65", a)
		}
	})
}

// B86: k3s's ServiceLB writes all nodes' addresses into a load balancer's status, and nobody has configured the nodes'
// ranges. Each node still reaches the others' daemons: a list with its own address is a list of nodes, and so are what
// slices have of nodes and of the API server. What is hinted at is protectedCIDRs. The control is a status that names
// another node alone, which nobody can tell from a load balancer.
func TestB86OtherNodesAddresses(t *testing.T) {
	s := newStage(t).start()
	one, two := s.w.Node(1), s.w.Node(2)
	for _, n := range s.w.Nodes {
		daemon(t, n, 6443)
	}
	of := func(number int, nodes ...*lab.Node) lab.Service {
		svc := web(number)
		svc.Type, svc.Ports = "LoadBalancer", []lab.Port{{Name: "http", Port: 80, TargetPort: 8080}, {Name: "api", Port: 6443, TargetPort: 8080}}
		var list []string
		for _, n := range nodes {
			list = append(list, n.V4.String(), n.V6.String())
		}
		return announced(svc, list...)
	}
	asks := func(from *lab.Host, to *lab.Node, who string) {
		t.Helper()
		for _, family := range []int{4, 6} {
			wantHitPromptly(t, from, netip.AddrPortFrom(to.Addr(family), 6443), who)
		}
	}
	reaches := func(pairs [][2]*lab.Node) {
		t.Helper()
		for _, way := range pairs {
			asks(way[0].Host, way[1], "daemon of "+way[1].Name)
			each(t, func(t *testing.T, family int) {
				hits(t, client{way[0].Name, way[0].Host}, netip.AddrPortFrom(way[1].Addr(family), 6443), map[string]int{"daemon of " + way[1].Name: 2})
				unserved(t, way[0], way[1].Addr(family))
			})
		}
	}
	t.Run("a list of all nodes", func(t *testing.T) {
		svc := of(208, one, two)
		s.apply(svc, s.pods()...)
		s.ready(svc) // whatever the status says is decided then
		reaches([][2]*lab.Node{{one, two}, {two, one}})
		asks(s.w.Pod("pod-c").Host, one, "daemon of node1")
		for i, a := range s.agents {
			wantSaid(t, a, "default/web208", s.w.Nodes[1-i].V4.String(), "is taken for another node's", "protectedCIDRs, which is empty")
		}
		s.gone(svc)
	})
	for _, known := range []struct {
		name, why string
		with      func() []lab.Object
	}{
		{"by a pod of the host's network", "is an endpoint of Service default/agent", func() []lab.Object {
			agent := web(209)
			agent.Name = "agent"
			objs := byHand(agent, "host", 9100, two.Host)
			for i := range objs {
				sl := objs[i].(lab.Slice)
				sl.Endpoints[0].Node = two.Name
				objs[i] = sl
			}
			return append(objs, agent)
		}},
		{"by the API server's Service", "is an address of the API server", func() []lab.Object {
			api := lab.Service{Name: "kubernetes", ClusterIPs: []string{"10.96.0.1", "fd00:96::1"}, Selector: map[string]string{}, Ports: []lab.Port{{Name: "https", Port: 443, TargetPort: 6443}}}
			return append(byHand(api, "server", 6443, two.Host), api)
		}},
	} {
		t.Run(known.name, func(t *testing.T) {
			svc := of(210, two)
			s.apply(svc, s.w.Pod("pod-a"))
			asks(one.Host, two, "pod-a") // the control
			objs := known.with()
			s.cluster.Apply(objs...)
			reaches([][2]*lab.Node{{one, two}})
			wantSaid(t, s.agents[0], "default/web210", two.V4.String()+" "+known.why)
			s.cluster.Delete(objs...)
			s.gone(svc)
		})
	}
}

// B61: kube-ipvs0 gets another name, and what stands on it is no address of the node's: no node port is served on a
// ClusterIP, and no daemon answers there, while the agent runs and after a restart. The control is a daemon of the node
// on the node's own address, and its node port there.
func TestB61InterfaceRenamed(t *testing.T) {
	for _, binding := range []string{"address", "route"} {
		t.Run(binding, func(t *testing.T) {
			s := newStage(t)
			s.start("--vip-binding=" + binding)
			n := s.w.Node(1)
			svc := nodePort(66)
			svc.Ports = svc.Ports[:1]
			port := svc.Ports[0].NodePort
			s.apply(svc, s.pods()...)
			s.ready(svc)
			name := daemon(t, n, 81)
			programmed(t, s.agents[0])
			s.raided = true
			closed := func(when string) {
				t.Helper()
				each(t, func(t *testing.T, family int) {
					vip := at(svc, family, 80)
					for _, c := range []client{{"pod", s.w.Pod("pod-a").Host}, {"outside", s.w.Client}} {
						answers(t, c.Host, vip)
						wantRefused(t, c, netip.AddrPortFrom(vip.Addr(), 81))
						wantRefused(t, c, netip.AddrPortFrom(vip.Addr(), port))
						wantHit(t, c.Host, netip.AddrPortFrom(n.Addr(family), 81), name)
						answers(t, c.Host, netip.AddrPortFrom(n.Addr(family), port))
					}
					wantReals(t, n, netip.AddrPortFrom(vip.Addr(), port))
				})
			}
			closed("before")
			batch := filepath.Join(t.TempDir(), "batch") // in one process, so that the agent cannot set it up in between
			if err := os.WriteFile(batch, []byte("link set kube-ipvs0 down\nlink set kube-ipvs0 name old0\nlink set old0 up\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := s.agents[0].Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			shell(t, n, "ip -batch "+batch)
			if err := s.agents[0].Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			each(t, func(t *testing.T, family int) {
				lab.Eventually(t, soon, "the interface is there again", func() error {
					found, err := onInterface(n, at(svc, family, 80).Addr())
					if err == nil && !found {
						err = errors.New("the virtual IP does not stand on it")
					}
					return err
				})
			})
			if binding == "address" { // routes go when an interface goes down
				wantSaid(t, s.agents[0], "has another name now", "ip link delete old0")
			}
			closed("renamed")
			s.restart(0)
			closed("after a restart")
			shell(t, n, "ip link delete old0")
			closed("deleted")
		})
	}
}

// B61: something else has the name kube-ipvs0: the agent says what it is and what to do, in its log and at its health's
// side, check says it as well, and the agent serves as soon as it is gone.
func TestB61InterfaceOfAnother(t *testing.T) {
	for kind, add := range map[string]string{"veth": "ip link add kube-ipvs0 type veth peer name kube-x", "bridge": "ip link add kube-ipvs0 type bridge"} {
		t.Run(kind, func(t *testing.T) {
			s := newStage(t)
			n := s.w.Node(1)
			shell(t, n, add)
			check(t, n).want(t, "problem", "kube-ipvs0 is of type "+kind+", not dummy", "ip link delete kube-ipvs0")
			svc := web(67)
			s.apply(svc, s.pods()...)
			s.start()
			wantSaid(t, s.agents[0], "is of type "+kind+", not dummy", "ip link delete kube-ipvs0")
			lab.Eventually(t, soon, "its health says it", func() error {
				p, err := get(n.Host, netip.AddrPortFrom(loopback, 10249), "/healthz?verbose")
				if err == nil && !strings.Contains(p.body, "ip link delete kube-ipvs0") {
					err = fmt.Errorf("it says %s", p.body)
				}
				return err
			})
			if r := n.Ask(at(svc, 4, 80), lab.Timeout(time.Second)); r.Verdict == lab.Answered {
				t.Errorf("the control: %s without a usable interface", r)
			}
			shell(t, n, "ip link delete kube-ipvs0")
			s.ready(svc)
			if still := check(t, n).of("problem", "kube-ipvs0"); len(still) > 0 {
				t.Errorf("check still complains of the interface: %q", still)
			}
		})
	}
}
