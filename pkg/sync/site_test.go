package sync

import (
	"context"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

func addrsOf(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return ipvs.SortAddrs(out)
}

// A scheduler that the kernel lacks: rr serves, live connections or not, and nobody is asked twice (B43).
func TestMissingSchedulerFallsBack(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Desk.Scheduler = "nonesuch"
		web := service("web", "10.96.0.1", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.start()
		time.Sleep(5 * time.Second)
		key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: ipvs.TCP}
		r.tamper(func() {
			if s := r.kernel.Servers[key]; s.Scheduler != "rr" || len(s.Reals) != 1 {
				t.Errorf("%s is %+v, want rr with its endpoint", key, s)
			}
		})
		other := service("other", "10.96.0.2", 80)
		asked := 0
		r.tamper(func() {
			r.kernel.Fail = func(op ipvs.Op) error {
				if o, ok := op.(ipvs.AddServer); ok && o.Scheduler == "nonesuch" {
					asked++
				}
				return nil
			}
		})
		r.set(other, slice(other, "10.244.2.11"))
		time.Sleep(time.Second)
		if asked > 0 {
			t.Errorf("asked for it %d times more", asked)
		}
	})
}

// B42: without IPv6 a Service keeps its IPv4 side, and gets the other one as soon as IPv6 is switched on.
func TestIPv6SwitchedOff(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.kernel.Node.NoIPv6 = true
		web := service("web", "10.96.0.1", 80)
		web.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
		only6 := service("only6", "fd00:96::2", 80)
		r.set(web, slice(web, "10.244.2.10"), only6, slice(only6, "fd10:244:2::10"))
		r.synced()
		r.start()
		six := func() (n int) {
			r.tamper(func() {
				for k := range r.kernel.Servers {
					if k.Addr.Is6() {
						n++
					}
				}
			})
			return n
		}
		if n := six(); n > 0 || len(r.kernel.Servers) != 1 {
			t.Errorf("%d IPv6 virtual servers of %d", n, len(r.kernel.Servers))
		}
		r.tamper(func() { r.kernel.SetNode(ipvs.Local{}) })
		time.Sleep(time.Second)
		if n := six(); n != 2 {
			t.Errorf("switched on: %d IPv6 virtual servers, want 2", n)
		}
		r.tamper(func() { r.kernel.SetNode(ipvs.Local{NoIPv6: true}) })
		time.Sleep(time.Second)
		if n := six(); n != 0 {
			t.Errorf("switched off again: %d IPv6 virtual servers", n)
		}
	})
}

// detectLocalMode NodeCIDR: the Node's own ranges are those of its pods, and are followed.
func TestNodePodRanges(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.NodePods = true
		r.synced()
		r.start()
		for _, cidr := range []string{"10.244.1.0/24", "10.244.7.0/24"} {
			n := &corev1.Node{}
			n.Name, n.Spec.PodCIDRs = thisNode, []string{cidr}
			r.model.SetNode(n)
			time.Sleep(time.Second)
			r.tamper(func() {
				if want := []netip.Prefix{netip.MustParsePrefix(cidr)}; !slices.Equal(r.kernel.Pods, want) {
					t.Errorf("pods are %v, want %v", r.kernel.Pods, want)
				}
			})
		}
	})
}

// nodeNamed is this node's object with an address.
func nodeNamed(address string) *corev1.Node {
	n := &corev1.Node{}
	n.Name = thisNode
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	return n
}

// B61: an API server that was reached and leaves its Service for a moment stays protected: with another's Service on its
// address it could not come back. What its slice alone says is no more lasting than the slice: once that no longer names
// another Service's address, the address serves again. It is so where another proxy serves default/kubernetes, too.
func TestAPIServerStaysProtected(t *testing.T) {
	for _, proxyName := range []string{"", "canary"} {
		t.Run("service-proxy-name "+proxyName, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.model = cluster.NewModel(cluster.Options{NodeName: thisNode, ServiceProxyName: proxyName})
				api := service("kubernetes", "10.96.0.1", 443)
				thief := balancer("thief", "10.96.0.9", "192.0.2.100", 1, 443)
				if proxyName != "" {
					thief.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": proxyName}
				}
				r.set(api, slice(api, "192.0.2.100"), thief, slice(thief, "10.244.2.10"))
				r.synced()
				r.start()
				bound := func(when string, want bool) {
					t.Helper()
					time.Sleep(5 * time.Second)
					r.tamper(func() {
						if r.kernel.Addrs[netip.MustParseAddr("192.0.2.100")] != want || !r.kernel.Addrs[netip.MustParseAddr("10.96.0.9")] {
							t.Errorf("%s, bound: %v; want the thief's own address, and the API server's: %t", when, r.kernel.Addrs, want)
						}
					})
				}
				bound("a slice names it", false)
				r.model.SetSlice(slice(api))
				bound("no slice names it any more", true)
				r.model.SetSlice(slice(api, "192.0.2.100"))
				bound("and again", false)
				r.model.AddAPIServers([]netip.Addr{netip.MustParseAddr("192.0.2.100")})
				r.model.SetSlice(slice(api)) // it is restarted
				bound("it was reached", false)
			})
		})
	}
}

// B61: the address by which the API server is reached is for no Service, even if it turns up when one has it.
func TestAPIServersHostIsProtected(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		host := netip.MustParseAddr("192.0.2.100")
		thief := balancer("thief", "10.96.0.9", host.String(), 1, 443)
		r.set(thief, slice(thief, "10.244.2.10"))
		r.synced()
		r.start()
		expect := func(want bool) {
			t.Helper()
			r.tamper(func() {
				if r.kernel.Addrs[host] != want || !r.kernel.Addrs[netip.MustParseAddr("10.96.0.9")] {
					t.Errorf("bound: %v; want %s: %t", r.kernel.Addrs, host, want)
				}
			})
		}
		expect(true)
		r.model.AddAPIServers([]netip.Addr{host})
		time.Sleep(5 * time.Second)
		expect(false)
	})
}

// B61, B11: a Node object that is gone for a moment neither lays the node's own address open nor takes its node ports.
func TestNodeObjectGone(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		own := netip.MustParseAddr("192.0.2.7")
		r.kernel.Node = ipvs.Local{Addrs: []netip.Addr{own}, Sources: []netip.Addr{own}}
		r.opt.Desk.NodePorts = desk.NodePortAddresses{Primary: true}
		thief := nodePorts(balancer("thief", "10.96.0.9", own.String(), 1, 22), 30022)
		r.set(thief, slice(thief, "10.244.2.10"))
		r.model.SetNode(nodeNamed(own.String()))
		r.synced()
		r.start()
		check := func(when string) {
			t.Helper()
			r.tamper(func() {
				if _, stolen := r.kernel.Servers[ipvs.Key{Addr: own, Port: 22, Proto: ipvs.TCP}]; stolen {
					t.Errorf("%s: the node's port 22 is a virtual server", when)
				}
				if _, served := r.kernel.Servers[ipvs.Key{Addr: own, Port: 30022, Proto: ipvs.TCP}]; !served {
					t.Errorf("%s: the node port is not served", when)
				}
			})
		}
		check("at first")
		r.model.DeleteNode(thisNode)
		time.Sleep(5 * time.Second)
		check("without its Node object")
		r.restart(thief, slice(thief, "10.244.2.10"))
		time.Sleep(5 * time.Second)
		check("after a restart without it")
	})
}

// The first start takes over the node ports that the proxy before served on more addresses than are configured now;
// another balancer's virtual servers stay.
func TestNodePortsAreTakenOver(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7", "172.17.0.1")}
		r.opt.Desk.NodePorts = desk.NodePortAddresses{Primary: true}
		leftover := ipvs.Key{Addr: netip.MustParseAddr("172.17.0.1"), Port: 30080, Proto: ipvs.TCP}
		foreign := ipvs.Key{Addr: netip.MustParseAddr("172.17.0.1"), Port: 8443, Proto: ipvs.TCP}
		for _, k := range []ipvs.Key{leftover, foreign} {
			r.kernel.Servers[k] = ipvs.Server{Scheduler: "rr", Reals: []ipvs.Real{{Addr: netip.MustParseAddrPort("10.244.2.10:8080"), Weight: 1}}}
		}
		web := nodePorts(service("web", "10.96.0.1", 80), 30080)
		r.set(web, slice(web, "10.244.2.10"))
		r.model.SetNode(nodeNamed("192.0.2.7"))
		r.synced()
		r.start()
		time.Sleep(10 * time.Second)
		r.tamper(func() {
			if _, there := r.kernel.Servers[leftover]; there {
				t.Errorf("%s is still there", leftover)
			}
			if _, there := r.kernel.Servers[foreign]; !there {
				t.Errorf("%s, which is foreign, is gone", foreign)
			}
		})
	})
}

// A frontend of a node's address with an endpoint there: what bypasses it cannot be told from what it serves, so no
// conntrack entry is deleted for it (B31).
func TestNothingIsForgottenOfWhatServesItself(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
		dns := nodePorts(service("dns", "10.96.0.1", 53), 30053)
		dns.Spec.Ports[0].Protocol = corev1.ProtocolUDP
		eps := slice(dns, "192.0.2.7@node1")
		r.set(dns, eps)
		r.model.SetNode(nodeNamed("192.0.2.7"))
		r.synced()
		r.start()
		time.Sleep(5 * time.Second)
		forgotten := map[ipvs.Key]bool{}
		r.tamper(func() {
			for _, op := range r.kernel.Log {
				if f, ok := op.(ipvs.Forget); ok {
					forgotten[f.Key] = true
				}
			}
		})
		if forgotten[ipvs.Key{Addr: netip.MustParseAddr("192.0.2.7"), Port: 30053, Proto: ipvs.UDP}] || len(forgotten) != 1 {
			t.Errorf("forgot of %v; want the ClusterIP alone", forgotten)
		}
	})
}

// B25: the node's zone changes live, and only Services with zone hints are decided anew.
func TestZoneChange(t *testing.T) {
	near, far, plain := "10.244.1.5:8080", "10.244.2.10:8080", service("plain", "10.96.0.2", 80)
	web := service("web", "10.96.0.1", 80)
	hinted := slice(web, "10.244.1.5@node1", "10.244.2.10@node2")
	for i, zone := range []string{"a", "b"} {
		hinted.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
	}
	inZone := func(zone string) *corev1.Node {
		n := nodeNamed("192.0.2.7")
		n.Labels = map[string]string{corev1.LabelTopologyZone: zone}
		return n
	}
	balanced := balancer("balanced", "10.96.0.3", "203.0.113.3", 1, 80)
	s := newStepper()
	s.start(completeModel(web, hinted, plain, slice(plain, "10.244.2.10"), balanced, slice(balanced, "10.244.2.10"), inZone("a")))
	s.pass(2 * time.Second)
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: ipvs.TCP}
	takes := func() (list []string) {
		for _, r := range s.kernel.Servers[key].Reals {
			if r.Weight > 0 {
				list = append(list, r.Addr.String())
			}
		}
		return list
	}
	for _, c := range []struct {
		zone string
		want []string
	}{{"a", []string{near}}, {"b", []string{far}}, {"c", []string{near, far}}, {"a", []string{near}}} {
		give(s.model, inZone(c.zone))
		s.pass(time.Second)
		if got := takes(); !slices.Equal(got, c.want) {
			t.Errorf("in zone %s: %v, want %v", c.zone, got, c.want)
		}
	}
	moved := s.loop.desk.Site()
	moved.Node.Zone = "b"
	if again := s.loop.desk.Move(moved.Node, moved.Local, nil, s.now); !slices.Equal(again, []cluster.ID{idOf("web")}) {
		t.Errorf("another zone has %v decided anew, want web alone", again)
	}
}

// B61: a Node object that is gone for a moment does not lay its pods' addresses open.
func TestPodRangesHold(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		node := nodeNamed("192.0.2.7")
		node.Spec.PodCIDRs = []string{"10.244.1.0/24"}
		r.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7")}
		thief := balancer("thief", "10.96.0.9", "10.244.1.5", 1, 80)
		r.set(thief, slice(thief, "10.244.2.10"))
		r.model.SetNode(node)
		r.synced()
		r.start()
		check := func(when string) {
			t.Helper()
			time.Sleep(5 * time.Second)
			r.tamper(func() {
				if r.kernel.Addrs[netip.MustParseAddr("10.244.1.5")] || !r.kernel.Addrs[netip.MustParseAddr("10.96.0.9")] {
					t.Errorf("%s, bound: %v; want the thief's own address and not the pod's", when, r.kernel.Addrs)
				}
			})
		}
		check("at first")
		r.model.DeleteNode(thisNode)
		check("the Node object is gone")
		r.model.SetNode(nodeNamed("192.0.2.7"))
		check("and back, not filled in yet")
	})
}

// locals counts how often the node's addresses are read.
type locals struct {
	Kernel
	n int
}

func (l *locals) Local(ctx context.Context) (ipvs.Local, error) {
	l.n++
	return l.Kernel.Local(ctx)
}

// The node's addresses are read when something is heard of them, when what every Key stands on shows that they may be
// others, and now and then: on a node at rest they are not what the agent is busy with.
func TestLocalIsReadOnNews(t *testing.T) {
	for name, c := range map[string]struct {
		happens  func(*fake.Kernel)
		in       time.Duration
		from, to int
	}{
		"nothing":                          {func(*fake.Kernel) {}, time.Hour, 1, 2},
		"an address":                       {func(k *fake.Kernel) { k.SetNode(ipvs.Local{Addrs: addrsOf("192.0.2.9")}) }, time.Second, 1, 1},
		"IPv6 is off, of which none tells": {func(k *fake.Kernel) { k.Node.NoIPv6 = true }, time.Minute, 1, 1},
		"another interface":                {func(k *fake.Kernel) { k.DropLink(); k.Hear(ipvs.Tampering{Base: true}) }, time.Second, 1, 1},
		"another, of which none tells":     {func(k *fake.Kernel) { k.DropLink() }, time.Minute, 1, 1},
		"the base cannot be read": {func(k *fake.Kernel) {
			k.FailRead = func() error { return syscall.EIO }
		}, time.Minute, 1, 100},
		"ours has another name": {func(k *fake.Kernel) { k.SetNode(ipvs.Local{Renamed: "was-ours"}) }, 10 * time.Minute, 10, 12},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.opt.AuditPeriod = 1000 * time.Hour
				r.synced()
				l := &locals{Kernel: &locked{&r.mu, r.kernel}}
				r.startOn(l)
				time.Sleep(90 * time.Second)
				r.tamper(func() { l.n = 0; c.happens(r.kernel) })
				time.Sleep(c.in)
				r.tamper(func() {
					if l.n < c.from || l.n > c.to {
						t.Errorf("the node's addresses are read %d times in %v, want %d to %d", l.n, c.in, c.from, c.to)
					}
				})
			})
		})
	}
}
