package sync

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// onAway is a node with a node port on two addresses, at rest.
func onAway() (s *stepper, web *corev1.Service, key ipvs.Key, served func() bool) {
	s = newStepper()
	s.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7", "203.0.113.9")}
	web = nodePorts(service("web", "10.96.0.1", 80), 30080)
	s.start(completeModel(nodeNamed("192.0.2.7"), web, slice(web, "10.244.2.10")))
	s.pass(3 * time.Second)
	s.kernel.Log = nil
	key = ipvs.Key{Addr: netip.MustParseAddr("203.0.113.9"), Port: 30080, Proto: ipvs.TCP}
	return s, web, key, func() bool { _, is := s.kernel.Servers[key]; return is }
}

// B84: what hangs on an address of the node that is away for a moment is not touched; what is away for longer is gone
// after 10 s. Meanwhile it goes with its Service, and when the address becomes another's.
func TestB84AddressAway(t *testing.T) {
	both, one := ipvs.Local{Addrs: addrsOf("192.0.2.7", "203.0.113.9")}, ipvs.Local{Addrs: addrsOf("192.0.2.7")}
	t.Run("for 50 ms", func(t *testing.T) {
		s, _, _, served := onAway()
		for range 3 {
			s.kernel.SetNode(one)
			s.pass(50 * time.Millisecond)
			s.kernel.SetNode(both)
			s.pass(15 * time.Second)
		}
		if len(s.kernel.Log) > 0 || !served() {
			t.Errorf("served %t, and written: %v", served(), s.kernel.Log)
		}
	})
	t.Run("for 9 s, and its endpoints change", func(t *testing.T) {
		s, web, key, served := onAway()
		s.kernel.SetNode(one)
		s.pass(5 * time.Second)
		give(s.model, slice(web, "10.244.2.10", "10.244.2.11"))
		s.pass(4 * time.Second)
		s.kernel.SetNode(both)
		s.pass(15 * time.Second)
		if !served() || len(s.kernel.Servers[key].Reals) != 2 {
			t.Errorf("%s is %+v, want both endpoints", key, s.kernel.Servers[key])
		}
	})
	t.Run("for good", func(t *testing.T) {
		s, _, key, served := onAway()
		s.kernel.SetNode(one)
		s.pass(9900 * time.Millisecond)
		if !served() {
			t.Error("gone within 9.9 s")
		}
		s.pass(300 * time.Millisecond)
		if served() || s.kernel.Sets[ipvs.SetOwned][key] {
			t.Error("still there after 10.2 s")
		}
		if slices.Contains(s.loop.desk.Site().NodePorts, key.Addr) {
			t.Error("its address still counts as one of node ports after 10.2 s")
		}
		s.kernel.SetNode(both)
		s.pass(time.Second)
		if !served() {
			t.Error("not served when the address is back after all")
		}
	})
	t.Run("and its Service goes", func(t *testing.T) {
		s, _, _, served := onAway()
		s.kernel.SetNode(one)
		s.pass(time.Second)
		s.model.DeleteService("default", "web")
		if s.pass(time.Second); served() {
			t.Error("held without its Service")
		}
	})
	t.Run("and it becomes another's", func(t *testing.T) {
		s, _, key, served := onAway()
		s.kernel.SetNode(one)
		s.pass(time.Second)
		other := balancer("other", "10.96.0.2", key.Addr.String(), 1, 443)
		give(s.model, other, slice(other, "10.244.2.12"))
		if s.pass(time.Second); served() || !s.kernel.Addrs[key.Addr] {
			t.Errorf("the node port is held: %t; bound: %v", served(), s.kernel.Addrs)
		}
	})
}

// B84: the Node object is deleted and registered anew, without addresses at first. Nothing of what hangs on it is
// touched, a load balancer's address that another program put on this node (kube-vip) included.
func TestB84NodeObjectGone(t *testing.T) {
	s := newStepper()
	s.kernel.Node = ipvs.Local{Addrs: addrsOf("192.0.2.7", "203.0.113.5")}
	lb := nodePorts(balancer("web", "10.96.0.20", "203.0.113.5", 1, 80), 30080)
	node, empty := nodeNamed("192.0.2.7"), nodeNamed("192.0.2.7")
	empty.Status.Addresses = nil
	s.start(completeModel(node, lb, slice(lb, "10.244.2.3")))
	s.pass(3 * time.Second)
	key := ipvs.Key{Addr: netip.MustParseAddr("203.0.113.5"), Port: 80, Proto: ipvs.TCP}
	if _, served := s.kernel.Servers[key]; !served {
		t.Fatalf("%s is not served at first", key)
	}
	s.kernel.Log = nil
	for _, step := range []func(){func() { s.model.DeleteNode(thisNode) }, func() { s.model.SetNode(empty) }, func() { s.model.SetNode(node) }} {
		step()
		s.pass(15 * time.Second)
	}
	if len(s.kernel.Log) > 0 {
		t.Errorf("written: %v", s.kernel.Log)
	}
	s.model.SetNode(nodeNamed("203.0.113.5")) // the control: with another address it is another matter
	s.pass(time.Second)
	if _, served := s.kernel.Servers[key]; served || slices.Contains(s.loop.desk.Site().Node.Addrs, netip.MustParseAddr("192.0.2.7")) {
		t.Errorf("%s, by now the Node's own address, is served", key)
	}
}

// B30: an endpoint has not left the cluster while a slice of its Service names it, though the Service has renamed the port.
func TestB30RenamedPortIsListed(t *testing.T) {
	s, web, _, _ := onAway()
	renamed := nodePorts(service("web", "10.96.0.1", 81), 30080)
	s.model.SetService(renamed)
	s.pass(time.Second)
	addr := netip.AddrPortFrom(netip.MustParseAddr("10.244.2.10"), uint16(*slice(web, "10.244.2.10").Ports[0].Port))
	if !s.loop.desk.Lists(idOf("web"), addr) || s.loop.desk.Lists(idOf("web"), netip.AddrPortFrom(addr.Addr(), 1)) {
		t.Errorf("listed: %t, another port %t", s.loop.desk.Lists(idOf("web"), addr), s.loop.desk.Lists(idOf("web"), netip.AddrPortFrom(addr.Addr(), 1)))
	}
}
