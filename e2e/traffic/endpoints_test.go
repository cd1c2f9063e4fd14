package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B2: endpoints come from slices: a named port may have another number in each, a repeated endpoint is one
// real server until its last copy goes, and conditions that are not given count as true.
func TestB2Slices(t *testing.T) {
	s := newStage(t).start()
	s.w.ServeHTTP(t, 9090, s.w.Pod("pod-c"))
	svc := web(2)
	a, b, c := s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	slices := func(name string, target uint16, pods ...*lab.Pod) []lab.Object {
		v4, v6 := s.w.SlicesFor(svc, pods...)
		var out []lab.Object
		for _, sl := range []lab.Slice{v4, v6} {
			sl.Name = fmt.Sprintf("%s-%s-%d", svc.Name, name, sl.Family)
			sl.Ports = []lab.Port{{Name: "http", Port: 80, TargetPort: target}}
			for i := range sl.Endpoints {
				sl.Endpoints[i].Ready, sl.Endpoints[i].Serving, sl.Endpoints[i].Terminating = nil, nil, nil
			}
			out = append(out, sl)
		}
		return out
	}
	one, two := slices("one", 8080, a, b), slices("two", 8080, b)
	s.cluster.Apply(svc)
	s.cluster.Apply(one...)
	s.cluster.Apply(two...)
	s.cluster.Apply(slices("three", 9090, c)...)
	s.ready(svc)
	want := func(t *testing.T, family int, pods map[*lab.Pod]uint16) {
		t.Helper()
		var list []string
		for p, port := range pods {
			list = append(list, netip.AddrPortFrom(p.Addr(family), port).String()+" 1")
		}
		for _, n := range s.w.Nodes {
			wantReals(t, n, at(svc, family, 80), list...)
		}
	}
	each(t, func(t *testing.T, family int) {
		want(t, family, map[*lab.Pod]uint16{a: 8080, b: 8080, c: 9090})
		byPod, lost := a.Spread(at(svc, family, 80), 6)
		if len(lost) > 0 || byPod["pod-a"] != 2 || byPod["pod-b"] != 2 || byPod["pod-c"] != 2 {
			t.Errorf("6 requests: %v, lost %v; want 2 of each pod, pod-c on its own port", byPod, lost)
		}
	})
	// Slice one goes: pod-a's only copy, and one of pod-b's two. Nothing drains: no connection is left on pod-a.
	s.cluster.Delete(one...)
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			lab.Eventually(t, soon, "pod-a takes no more", func() error {
				got := strings.Join(reals(t, n, at(svc, family, 80)), ", ")
				if strings.Contains(got, netip.AddrPortFrom(a.Addr(family), 8080).String()+" 1") ||
					!strings.Contains(got, netip.AddrPortFrom(b.Addr(family), 8080).String()+" 1") {
					return fmt.Errorf("real servers on %s: %s", n.Name, got)
				}
				return nil
			})
		}
		byPod, lost := a.Spread(at(svc, family, 80), 6)
		if len(lost) > 0 || byPod["pod-b"] != 3 || byPod["pod-c"] != 3 {
			t.Errorf("6 requests after the slice went: %v, lost %v; want 3 of pod-b and pod-c", byPod, lost)
		}
	})
}

// B4: data that cannot be used costs itself alone and is named with object and field.
func TestB4BadEndpoints(t *testing.T) {
	s := newStage(t).start()
	good := web(5)
	s.apply(good, s.pods()...)
	svc := web(4)
	svc.Ports = append(svc.Ports, lab.Port{Name: "zero", Port: 81}, lab.Port{Name: "huge", Port: 82}, lab.Port{Name: "none", Port: 83})
	s.cluster.Apply(svc)
	bad := map[int][]string{
		4: {"127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1", "10.96.0.4", "10.96.0.5", "not-an-address"},
		6: {"::1", "fe80::1", "ff02::1", "::", "10.0.0.1", "fd00:96::4", "fd00:96::5", "::ffff:10.0.0.1"},
	}
	for _, family := range []int{4, 6} {
		s.cluster.Write(fmt.Sprintf("bad-%d.yaml", family), badSlice(family, svc.Name, bad[family], s.w.Pod("pod-b").Addr(family)))
	}
	s.ready(svc)
	s.ready(good)
	each(t, func(t *testing.T, family int) {
		pod := netip.AddrPortFrom(s.w.Pod("pod-b").Addr(family), 8080).String() + " 1"
		for _, n := range s.w.Nodes {
			wantReals(t, n, at(svc, family, 80), pod)
			for _, port := range []uint16{81, 82, 83} {
				wantReals(t, n, at(svc, family, port))
			}
		}
		for _, c := range s.clients() {
			for range 4 {
				if r := c.Ask(at(svc, family, 80)); r.Verdict != lab.Answered || r.Pod != "pod-b" {
					t.Errorf("%s asks the Service with bad endpoints: %s; want pod-b", c.name, r)
				}
			}
			if r := c.Ask(at(good, family, 80)); r.Verdict != lab.Answered {
				t.Errorf("%s asks its neighbour: %s", c.name, r)
			}
		}
	})
	log := s.agents[0].Log()
	for _, want := range []string{"bad-ipv4", "bad-ipv6", "endpoints[0].addresses[0]", "ports[1]", "10.96.0.5"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not name %q", want)
		}
	}
}

// badSlice is a slice with bad endpoints around one good one, and bad ports beside a good one.
func badSlice(family int, service string, addrs []string, good netip.Addr) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: bad-ipv%d
  namespace: default
  labels: {kubernetes.io/service-name: %s}
addressType: IPv%d
ports:
- {name: http, port: 8080, protocol: TCP}
- {name: zero, port: 0, protocol: TCP}
- {name: huge, port: 70000, protocol: TCP}
- {name: none, protocol: TCP}
endpoints:
`, family, service, family)
	for i, a := range addrs {
		if i == len(addrs)/2 {
			fmt.Fprintf(&b, "- {addresses: [%q], conditions: {}}\n- {addresses: []}\n", good)
		}
		fmt.Fprintf(&b, "- {addresses: [%q], conditions: {ready: true}}\n", a)
	}
	return b.String()
}
