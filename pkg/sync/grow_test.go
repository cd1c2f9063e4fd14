package sync

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// slowService is one whose endpoints start slowly.
func slowService(over string, ports ...int32) *corev1.Service {
	s := service("web", "10.96.0.10", ports...)
	s.Annotations = map[string]string{cluster.SlowStartAnnotation: over}
	return s
}

// weightsOf are those of a virtual server in the kernel, in a line.
func (s *stepper) weightsOf(key ipvs.Key) string {
	var list []string
	for _, r := range s.kernel.Servers[key].Reals {
		list = append(list, fmt.Sprint(r.Weight))
	}
	return strings.Join(list, " ")
}

// linesOf are the writes that follow from something and what is due within some time.
func (s *stepper) linesOf(f func(), d time.Duration) []string {
	s.kernel.Log = nil
	f()
	s.pass(d)
	return lines(s.kernel.Log)
}

// B71: a new endpoint's weight grows in the kernel, write by write and no other write; a restart in the middle writes
// nothing and goes on; what was said of it is no tampering.
func TestB71Grow(t *testing.T) {
	web := slowService("90s", 80)
	two, three := slice(web, "10.244.2.10", "10.244.2.11"), slice(web, "10.244.2.10", "10.244.2.11", "10.244.2.12")
	s := newStepper()
	s.start(completeModel(web, two))
	s.pass(2 * time.Minute)
	wantLines(t, "a new endpoint", s.linesOf(func() { give(s.model, three) }, time.Second),
		"ipvsadm -a -t 10.96.0.10:80 -r 10.244.2.12:8080 -m -w 1")
	wantLines(t, "before its time", s.linesOf(func() {}, 8*time.Second))
	wantLines(t, "the first step", s.linesOf(func() {}, 2*time.Second), "ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.12:8080 -m -w 2")
	for n := 3; n <= 5; n++ {
		wantLines(t, "another step", s.linesOf(func() {}, 10*time.Second), fmt.Sprintf("ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.12:8080 -m -w %d", n))
	}
	r, err := Rehearse(t.Context(), s.kernel, completeModel(web, three), Options{Now: func() time.Time { return s.now }})
	if err != nil || len(r.Steps) > 0 {
		t.Errorf("diff beside the agent: %v, %v", r.Steps, err)
	}
	wantLines(t, "a restart", s.linesOf(func() { s.start(completeModel(web, three)) }, 5*time.Second))
	wantLines(t, "and on", s.linesOf(func() {}, 6*time.Second), "ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.12:8080 -m -w 6")
	s.pass(50 * time.Second)
	if got := s.weightsOf(webKey); got != "10 10 10" {
		t.Errorf("in the end: %s", got)
	}
	wantLines(t, "afterwards", s.linesOf(func() {}, time.Hour))
	for i := range s.loop.diary.kept {
		if w := s.loop.diary.at(i); w.why != WhySlowStart {
			t.Errorf("%s: because of %s", w.op, w.why)
		}
	}
	if s.audit().found > 0 {
		t.Errorf("the audit found %d differences", s.audit().found)
	}
}

// B71: an endpoint starts once, whatever it is behind: several slices, ports, families and frontends; TCP, UDP and SCTP.
func TestB71GrowEverywhere(t *testing.T) {
	web := slowService("90s", 80)
	web.Spec.Type, web.Spec.ClusterIPs = corev1.ServiceTypeNodePort, []string{"10.96.0.10", "fd00:96::10"}
	web.Spec.Ports = append(web.Spec.Ports, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Name: "sctp", Port: 38412, Protocol: corev1.ProtocolSCTP})
	web.Spec.Ports[0].NodePort = 30080
	s := newStepper()
	s.kernel.Node = ipvs.Local{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Own: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	old, old6 := slice(web, "10.244.2.10", "10.244.2.11"), slice(web, "fd10:244:2::10", "fd10:244:2::11")
	old6.Name = "web-6"
	node := &corev1.Node{}
	node.Name, node.Status.Addresses = thisNode, []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	s.start(completeModel(web, old, old6, node))
	s.pass(2 * time.Minute)
	fresh, fresh6 := slice(web, "10.244.2.12"), slice(web, "fd10:244:2::12")
	fresh.Name, fresh6.Name = "web-2", "web-62"
	give(s.model, fresh, fresh6)
	s.pass(0)
	all := func(want string) {
		t.Helper()
		for k := range s.kernel.Servers {
			if got := s.weightsOf(k); got != want {
				t.Errorf("%s has weights %s, want %s", k, got, want)
			}
		}
	}
	if len(s.kernel.Servers) != 7 {
		t.Fatalf("%d virtual servers", len(s.kernel.Servers))
	}
	all("10 10 1")
	s.pass(25 * time.Second)
	all("10 10 3")
	// It moves to the other slice; between the two events it is nowhere.
	s.model.DeleteSlice("default", "web-2")
	s.pass(time.Second)
	give(s.model, slice(web, "10.244.2.10", "10.244.2.11", "10.244.2.12"))
	s.pass(time.Second)
	all("10 10 3")
	s.pass(8 * time.Second)
	all("10 10 4")
	another := web.DeepCopy() // one more frontend, in the middle
	another.Spec.ExternalIPs = []string{"203.0.113.1"}
	s.opt.Desk.ExternalIPs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	s.start(completeModel(another, slice(web, "10.244.2.10", "10.244.2.11", "10.244.2.12"), old6, fresh6, node))
	s.pass(0)
	if len(s.kernel.Servers) != 10 {
		t.Fatalf("%d virtual servers", len(s.kernel.Servers))
	}
	all("10 10 4")
	s.pass(2 * time.Minute)
	all("10 10 10")
}

// B71: an endpoint that comes back while its connections end starts slowly again, and keeps them.
func TestB71GrowBack(t *testing.T) {
	web := slowService("90s", 80)
	both := slice(web, "10.244.2.10", "10.244.2.11")
	s := newStepper()
	s.start(completeModel(web, both))
	s.pass(time.Minute)
	s.kernel.Conns[webKey] = map[netip.AddrPort]ipvs.Conns{netip.MustParseAddrPort("10.244.2.11:8080"): {Active: 1}}
	wantLines(t, "it leaves", s.linesOf(func() { give(s.model, slice(web, "10.244.2.10")) }, 20*time.Second), "ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.11:8080 -m -w 0")
	wantLines(t, "and is back", s.linesOf(func() { give(s.model, both) }, time.Second), "ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.11:8080 -m -w 1")
	s.pass(95 * time.Second)
	if got := s.weightsOf(webKey); got != "10 10" {
		t.Errorf("in the end: %s", got)
	}
	// Away at a restart, it is new as well.
	give(s.model, slice(web, "10.244.2.10"))
	s.pass(20 * time.Second)
	s.start(completeModel(web, both))
	s.pass(0)
	if got := s.weightsOf(webKey); got != "10 1" {
		t.Errorf("back at a restart: %s", got)
	}
}

// B71: a weight that somebody else changed is put right at once, to what it is to be now; and a write that fails costs a
// moment only.
func TestB71GrowTampered(t *testing.T) {
	web := slowService("90s", 80)
	s := newStepper()
	s.start(completeModel(web, slice(web, "10.244.2.10")))
	s.pass(time.Minute)
	give(s.model, slice(web, "10.244.2.10", "10.244.2.11"))
	s.pass(45 * time.Second)
	server := s.kernel.Servers[webKey]
	server.Reals = slices.Clone(server.Reals)
	server.Reals[0].Weight, server.Reals[1].Weight = 3, 7
	s.kernel.Servers[webKey] = server
	s.pass(11 * time.Second) // an audit
	if got := s.weightsOf(webKey); got != "10 6" {
		t.Errorf("after an audit: %s", got)
	}
	s.door.fault = func(ipvs.Op) fault { return fault{err: errTimeout, unknown: true} }
	s.pass(5 * time.Second)
	s.door.fault = nil
	s.pass(2 * time.Second)
	if got := s.weightsOf(webKey); got != "10 7" {
		t.Errorf("after writes that failed: %s", got)
	}
}

// B71: however many endpoints start at once, their weights take a small share of the time, each gets its steps in its turn,
// and a change of something else waits for none of them.
func TestB71GrowPaced(t *testing.T) {
	const n, each = 10_000, 30 * time.Microsecond
	for _, services := range []int{1, 100} {
		t.Run(fmt.Sprintf("%d Services", services), func(t *testing.T) {
			s := newStepper()
			var objs, more []any
			for i := range services {
				web := slowService("10s", 80)
				web.Name, web.Spec.ClusterIP = fmt.Sprintf("web%d", i), fmt.Sprintf("10.96.1.%d", i)
				web.Spec.ClusterIPs = []string{web.Spec.ClusterIP}
				old := slice(web, "10.200.0.1")
				old.Name += "-old"
				objs = append(objs, web, old)
				more = append(more, manyEndpoints(web, i, n/services)...)
			}
			s.start(completeModel(objs...))
			s.pass(time.Minute)
			give(s.model, more...)
			s.pass(0)
			writes, last := map[netip.AddrPort]int{}, s.now
			s.door.fault = func(op ipvs.Op) fault { s.now = s.now.Add(each); return fault{} }
			s.door.after = func(op ipvs.Op) {
				if growth(op) {
					writes[op.Effect().Real]++
					last = s.now
				}
			}
			begun := s.now
			other := service("other", "10.96.0.99", 80)
			s.pass(20 * time.Second)
			asked := s.now
			give(s.model, other, slice(other, "10.244.2.10"))
			s.settle()
			if took := s.now.Sub(asked); took > 10*time.Millisecond {
				t.Errorf("a change waited for %s", took)
			}
			if most := slices.Max(slices.Collect(maps.Values(writes))); most > 2 || len(writes) < n/5 {
				t.Errorf("after 20 s %d of %d endpoints have had a step, and one has had %d", len(writes), n, most)
			}
			key := ipvs.Key{Addr: netip.MustParseAddr("10.96.1.0"), Port: 80, Proto: ipvs.TCP}
			if view := s.loop.view(); !view.Frontend(key).Settled || len(view.Pending(key)) > 0 {
				t.Errorf("that weights wait for their time is told as work to do, with %d writes", len(view.Pending(key)))
			}
			for i := 0; i < 100 && s.loop.growing.len() > 0; i++ {
				s.pass(10 * time.Second)
			}
			total := 0
			for _, w := range writes {
				total += w
			}
			took := last.Sub(begun)
			if share := float64(total) * float64(each) / float64(took); share > 0.008 {
				t.Errorf("%d writes in %s: %.2f %% of the time", total, took, 100*share)
			}
			for _, server := range s.kernel.Servers {
				for _, r := range server.Reals {
					if r.Weight != 10 && server.Scheduler == "wrr" {
						t.Fatalf("in the end: %v", r)
					}
				}
			}
			if took > 90*time.Second {
				t.Errorf("the last step came after %s", took)
			}
		})
	}
}

// manyEndpoints are slices of a hundred.
func manyEndpoints(web *corev1.Service, at, n int) (objs []any) {
	for from := 0; from < n; from += 100 {
		var addrs []string
		for i := from; i < min(from+100, n); i++ {
			addrs = append(addrs, netip.AddrFrom4([4]byte{10, 100 + byte(at), byte(i >> 8), byte(i)}).String())
		}
		sl := slice(web, addrs...)
		sl.Name = fmt.Sprintf("%s-%d", web.Name, from)
		objs = append(objs, sl)
	}
	return objs
}
