package traffic

import (
	"fmt"
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
)

// proxyName is the label that says which proxy a Service is for.
const proxyName = "service.kubernetes.io/service-proxy-name"

func labelled(svc lab.Service, value string) lab.Service {
	svc.Labels = map[string]string{proxyName: value}
	return svc
}

// B1: which Services are ours: none that is headless, an ExternalName, or labelled for another proxy; and the
// label counts at once when it comes or goes on a live Service. Slices of headless Services do not count.
func TestB1WhichServices(t *testing.T) {
	s := newStage(t).start()
	plain, live := web(101), web(102)
	s.apply(plain, s.pods()...)
	s.apply(live, s.pods()...)
	s.ready(plain)
	s.ready(live)
	// What is not ours, each with slices that would do.
	headless, external, other, empty := web(103), web(104), labelled(web(105), "another"), labelled(web(106), "")
	headless.ClusterIPs = []string{"None"}
	external.Type, external.Spec = "ExternalName", map[string]any{"externalName": "example.com"} // its old address is still in it
	for _, svc := range []lab.Service{headless, external, other, empty} {
		s.apply(svc, s.pods()...)
	}
	witness := web(107)
	s.applyWithHeadlessSlices(witness, s.w.Pod("pod-c"), s.w.Pod("pod-b"))
	s.ready(witness) // read after all of them
	s.wantFrontends(t, slices.Concat(frontends(plain), frontends(live), frontends(witness))...)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			hits(t, c, at(witness, family, 80), map[string]int{"pod-c": 4})
		}
	})
	load := underLoad(t, s.w.Client, at(plain, 4, 80), patient, func() {
		for range 2 {
			began := time.Now()
			s.cluster.Apply(labelled(live, "another"))
			s.wantFrontends(t, append(frontends(plain), frontends(witness)...)...)
			t.Logf("the label came: gone after %s", time.Since(began).Round(time.Millisecond))
			each(t, func(t *testing.T, family int) { s.wantGone(t, at(live, family, 80)) })
			began = time.Now()
			s.cluster.Apply(live)
			s.wantFrontends(t, slices.Concat(frontends(plain), frontends(live), frontends(witness))...)
			t.Logf("the label went: back after %s", time.Since(began).Round(time.Millisecond))
			s.ready(live)
			each(t, func(t *testing.T, family int) {
				for _, c := range s.clients()[:2] {
					hits(t, c, at(live, family, 80), map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 2})
				}
			})
		}
	})
	if t.Logf("the Service beside it: %s", load); load.Lost > 0 {
		t.Errorf("the Service beside it: %s", load)
	}
	wouldNotice(t, s.w.Client, s.w.Node(1), at(plain, 4, 80))
	s.notAWordOf(t, headless, external, other, empty)
}

// applyWithHeadlessSlices gives a Service one pod in its own slices, and another in slices that are labelled
// as those of a headless Service: left over from one that had the same name.
func (s *stage) applyWithHeadlessSlices(svc lab.Service, own, leftover *lab.Pod) {
	s.t.Helper()
	v4, v6 := s.w.SlicesFor(svc, leftover)
	for _, sl := range []lab.Slice{v4, v6} {
		sl.Name = fmt.Sprintf("%s-leftover-ipv%d", svc.Name, sl.Family)
		sl.Labels = map[string]string{"service.kubernetes.io/headless": ""}
		s.cluster.Apply(sl)
	}
	s.apply(svc, own)
}

// notAWordOf: what is not ours is not reported as wrong either.
func (s *stage) notAWordOf(t *testing.T, svcs ...lab.Service) {
	t.Helper()
	for _, a := range s.agents {
		for _, svc := range svcs {
			if strings.Contains(a.Log(), "default/"+svc.Name) {
				t.Errorf("the log of %s speaks of %s:\n%s", a.Node.Name, svc.Name, a.Log())
			}
		}
	}
}

// B1: with --service-proxy-name an agent serves exactly the Services that are labelled so: a canary on node1,
// where another proxy has the rest, while node2 has the usual agent.
func TestB1ServiceProxyName(t *testing.T) {
	s := newStage(t)
	usual := web(111)
	canary, other := labelled(web(112), "canary"), labelled(web(113), "other")
	for _, svc := range []lab.Service{usual, canary, other} {
		s.apply(svc, s.pods()...)
	}
	foreignServer(t, s.w.Node(1), at(usual, 4, 80), netip.AddrPortFrom(s.w.Pod("pod-b").V4, 8080))
	foreign := "tcp " + at(usual, 4, 80).String()
	s.agents = append(s.agents,
		s.w.StartAgent(t, s.w.Node(1), s.cluster, "--service-proxy-name=canary"), s.w.StartAgent(t, s.w.Node(2), s.cluster))
	t.Cleanup(s.nothingRefused)
	onCanary, onNode2 := s.clients()[:2], []client{{"pod of node2", s.w.Pod("pod-c").Host}, {"node2", s.w.Node(2).Host}}
	all := map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 2}

	wantHas(t, s.w.Node(1), append(frontends(canary), foreign)...)
	wantHas(t, s.w.Node(2), frontends(usual)...)
	each(t, func(t *testing.T, family int) {
		for _, c := range onCanary {
			answers(t, c.Host, at(canary, family, 80))
			hits(t, c, at(canary, family, 80), all)
		}
		for _, c := range onNode2 {
			answers(t, c.Host, at(usual, family, 80))
			hits(t, c, at(usual, family, 80), all)
		}
	})
	hits(t, onCanary[0], at(usual, 4, 80), map[string]int{"pod-b": 3}) // by the other proxy

	// The canary takes over one Service more and gives back the first; node2 follows.
	s.cluster.Apply(labelled(other, "canary"))
	canary.Labels = nil
	s.cluster.Apply(canary)
	wantHas(t, s.w.Node(1), append(frontends(other), foreign)...)
	wantHas(t, s.w.Node(2), append(frontends(usual), frontends(canary)...)...)
	each(t, func(t *testing.T, family int) {
		for _, c := range onCanary {
			answers(t, c.Host, at(other, family, 80))
			hits(t, c, at(other, family, 80), all)
		}
		for _, c := range onNode2 {
			answers(t, c.Host, at(canary, family, 80))
			hits(t, c, at(canary, family, 80), all)
		}
	})
	hits(t, onCanary[0], at(usual, 4, 80), map[string]int{"pod-b": 3})
}

// foreignServer makes a virtual server as another balancer of the node would, with its address on an interface
// of its own.
func foreignServer(t *testing.T, n *lab.Node, vip, real netip.AddrPort) {
	t.Helper()
	lo, err := n.Netlink().LinkByName("lo")
	if err == nil {
		err = n.Netlink().AddrAdd(lo, &netlink.Addr{IPNet: netipNet(netip.PrefixFrom(vip.Addr(), 32))})
	}
	if err != nil {
		t.Fatalf("address %s on lo of %s: %v", vip.Addr(), n.Name, err)
	}
	err = n.Do(func() error {
		h, err := lab.OpenIPVS()
		if err != nil {
			return err
		}
		defer h.Close()
		svc := &mobyipvs.Service{AddressFamily: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Address: net.IP(vip.Addr().AsSlice()),
			Port: vip.Port(), SchedName: "wlc", Netmask: 0xffffffff}
		if err := h.NewService(svc); err != nil {
			return err
		}
		return h.NewDestination(svc, &mobyipvs.Destination{AddressFamily: unix.AF_INET, Address: net.IP(real.Addr().AsSlice()), Port: real.Port(), Weight: 1})
	})
	if err != nil {
		t.Fatalf("virtual server %s of %s: %v", vip, n.Name, err)
	}
}

// B3: hand-made slices, inside and outside the cluster at once, and those that Kubernetes mirrors from
// Endpoints; edited live.
func TestB3ByHand(t *testing.T) {
	s := newStage(t).start()
	svc := web(130)
	svc.Selector = map[string]string{}
	inside := []*lab.Host{s.w.Pod("pod-b").Host, s.w.Pod("pod-c").Host}
	outside := s.outsiders(8080)
	s.cluster.Apply(svc)
	here := byHand(svc, "here", 8080, inside[0])
	s.cluster.Apply(here...)
	there := byHand(svc, "there", 8080, outside[0])
	for i, obj := range there { // as the mirroring controller labels them
		sl := obj.(lab.Slice)
		sl.Labels = map[string]string{"endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"}
		there[i] = sl
	}
	s.cluster.Apply(there...)
	steps := []struct {
		name   string
		change func()
		want   map[string]int
	}{
		{"as written", func() {}, map[string]int{"pod-b": 2, "client": 2}},
		{"another pod", func() { s.cluster.Apply(byHand(svc, "here", 8080, inside[1])...) }, map[string]int{"pod-c": 2, "client": 2}},
		{"two of each", func() {
			s.cluster.Apply(byHand(svc, "here", 8080, inside...)...)
			s.cluster.Apply(byHand(svc, "there", 8080, outside...)...)
		}, map[string]int{"pod-b": 1, "pod-c": 1, "client": 1, "wire": 1}},
		{"inside alone", func() { s.cluster.Delete(there...) }, map[string]int{"pod-b": 2, "pod-c": 2}},
	}
	addrs := map[string]*lab.Host{}
	for _, h := range slices.Concat(inside, outside) {
		addrs[h.Name] = h
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			step.change()
			each(t, func(t *testing.T, family int) {
				var hosts []*lab.Host
				for name := range step.want {
					hosts = append(hosts, addrs[name])
				}
				to := at(svc, family, 80)
				s.wantServedBy(t, to, hosts...)
				for _, c := range append(s.clients(), client{"node2", s.w.Node(2).Host}) {
					answers(t, c.Host, to)
					hits(t, c, to, step.want)
				}
			})
		})
	}
	s.cluster.Delete(here...)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			wantRefused(t, c, at(svc, family, 80))
		}
	})
}
