package sync

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// scenario is a change after whose every single write the process dies.
type scenario struct {
	before, after []any
	// prepare changes the node while no agent runs.
	prepare func(*stepper)
	// live: the agent hears of the change while it runs; otherwise it starts with it.
	live bool
	// opt of the agent that makes the change and of those after it.
	opt Options
	// wait is how long after the change writes are still due.
	wait time.Duration
}

// shape is a state that a Service with its endpoints can be in; every change from one to another is a
// scenario.
func shapes() map[string][]any {
	port := func(p int32, proto corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: strings.ToLower(string(proto)), Port: p, Protocol: proto}
	}
	of := func(ips []string, change func(*corev1.Service), slices ...func(*corev1.Service) *discoveryv1.EndpointSlice) []any {
		s := service("web", ips[0], 80)
		s.Spec.ClusterIPs = ips
		if change != nil {
			change(s)
		}
		objs := []any{s}
		for _, f := range slices {
			objs = append(objs, f(s))
		}
		return objs
	}
	eps := func(addrs ...string) func(*corev1.Service) *discoveryv1.EndpointSlice {
		return func(s *corev1.Service) *discoveryv1.EndpointSlice {
			e := slice(s, addrs...)
			if len(addrs) > 0 && strings.Contains(addrs[0], ":") {
				e.Name = s.Name + "-6"
			}
			return e
		}
	}
	four, both := []string{"10.96.0.10"}, []string{"10.96.0.10", "fd00:96::10"}
	two := func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{port(53, corev1.ProtocolTCP), port(53, corev1.ProtocolUDP)}
	}
	return map[string][]any{
		"nothing":       {},
		"two endpoints": of(four, nil, eps("10.244.1.5@node1", "10.244.2.10@node2")),
		"no endpoint":   of(four, nil, eps()),
		"others":        of(four, nil, eps("10.244.2.11@node2")),
		"dual stack":    of(both, nil, eps("10.244.1.5@node1", "10.244.2.10@node2"), eps("fd10:244:1::5@node1")),
		"two protocols": of(four, two, eps("10.244.1.5@node1", "10.244.2.10@node2")),
		"affinity":      of(four, func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, eps("10.244.2.10@node2")),
		"another IP":    of([]string{"10.96.0.12"}, nil, eps("10.244.1.5@node1", "10.244.2.10@node2")),
		"another proxy": of(four, func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "x"} }, eps("10.244.2.10@node2")),
		"three ports":   of(four, func(s *corev1.Service) { s.Spec.Ports = service("", "", 80, 443, 8443).Spec.Ports }, eps("10.244.1.5@node1")),
		"load balancer": of(both, func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.Ports[0].NodePort = 30080
		}, eps("10.244.1.5@node1")),
		"external Local": of(both, func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.5"}, {IP: "fd20:113::5"}}
			s.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24", "2001:db8::/32"}
		}, eps("10.244.1.5@node1", "10.244.2.10@node2"), eps("fd10:244:2::5@node2")),
		"both Local, none here": of(both, func(s *corev1.Service) {
			local := corev1.ServiceInternalTrafficPolicyLocal
			s.Spec.Type, s.Spec.InternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, &local
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.5"}}
			s.Spec.LoadBalancerSourceRanges = []string{"198.51.0.0/16"}
		}, eps("10.244.2.10@node2")),
		"became another": of(four, func(s *corev1.Service) { s.CreationTimestamp.Time = time.Unix(1e9, 0) }, eps("10.244.1.6@node1")),
	}
}

// scenarios are all of them.
func scenarios() map[string]scenario {
	all := map[string]scenario{}
	for from, before := range shapes() {
		for to, after := range shapes() {
			if from != to {
				all[from+", then "+to] = scenario{before: before, after: after, live: true}
			}
		}
		all["restart while stopped: two endpoints, then "+from] = scenario{before: shapes()["two endpoints"], after: before}
	}
	web, other := service("web", "10.96.0.10", 80), service("other", "10.96.0.10", 80)
	other.CreationTimestamp.Time, web.CreationTimestamp.Time = time.Unix(1000, 0), time.Unix(2000, 0)
	full := []any{web, slice(web, "10.244.1.5@node1", "10.244.2.10")}
	otherFull := []any{other, slice(other, "10.244.2.20")}
	elsewhere := other.DeepCopy()
	elsewhere.Spec.ClusterIP, elsewhere.Spec.ClusterIPs = "10.96.0.11", []string{"10.96.0.11"}
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
	one := []any{web, slice(web, "10.244.1.5@node1")}

	all["VIP moves to another Service"] = scenario{before: full, after: otherFull, live: true}
	all["an older Service takes the VIP"] = scenario{before: full, after: append(full, otherFull...), live: true}
	all["the older Service gives it back"] = scenario{before: append(full, otherFull...), after: full, live: true}
	all["two Services swap their VIPs"] = scenario{before: append([]any{elsewhere, slice(elsewhere, "10.244.2.20")}, full...), after: swapped(full, elsewhere), live: true}
	all["a VIP becomes an endpoint's address"] = scenario{before: full, after: []any{web, slice(web, "10.244.2.10", "10.96.0.11"), elsewhere, slice(elsewhere, "10.244.2.20")}, live: true}
	all["another scheduler"] = scenario{before: full, after: full, opt: Options{Desk: desk.Options{Scheduler: "wlc"}}}
	all["kube-proxy's leftovers, wanted"] = scenario{after: full, prepare: leftovers}
	all["kube-proxy's leftovers, one endpoint less"] = scenario{after: one, prepare: leftovers}
	all["kube-proxy's leftovers, unwanted"] = scenario{prepare: leftovers}
	all["a drain under way, without connections"] = scenario{before: full, after: one, live: true, wait: 10 * time.Second}
	all["a drain under way, with connections"] = scenario{before: full, after: one, prepare: func(s *stepper) {
		s.kernel.Conns[key] = map[netip.AddrPort]ipvs.Conns{netip.MustParseAddrPort("10.244.2.10:8080"): {Active: 1}}
	}, opt: Options{DrainDeadline: 20 * time.Second}, wait: 30 * time.Second}
	all["foreign servers"] = scenario{before: full, after: one, prepare: func(s *stepper) {
		s.kernel.Servers[ipvs.Key{Addr: foreignAddr, Port: 80, Proto: ipvs.TCP}] = foreignServer
	}}
	all["a foreign server on our VIP"] = scenario{before: full, after: nil, prepare: func(s *stepper) {
		s.kernel.Servers[ipvs.Key{Addr: key.Addr, Port: 9999, Proto: ipvs.TCP}] = foreignServer
	}}
	for name, drop := range map[string]func(*stepper){
		"interface": func(s *stepper) { s.kernel.DropLink() },
		"table":     func(s *stepper) { s.kernel.DropTable() },
		"servers":   func(s *stepper) { clear(s.kernel.Servers) },
		"all":       func(s *stepper) { s.kernel.DropLink(); s.kernel.DropTable(); clear(s.kernel.Servers) },
	} {
		all[name+" missing"] = scenario{before: full, after: full, prepare: drop}
		all[name+" missing and endpoints gone"] = scenario{before: full, after: []any{web, slice(web)}, prepare: drop}
	}
	return all
}

// swapped gives each of two Services the other's VIP.
func swapped(full []any, elsewhere *corev1.Service) []any {
	a, b := full[0].(*corev1.Service).DeepCopy(), elsewhere.DeepCopy()
	a.Spec.ClusterIP, b.Spec.ClusterIP = b.Spec.ClusterIP, a.Spec.ClusterIP
	a.Spec.ClusterIPs, b.Spec.ClusterIPs = b.Spec.ClusterIPs, a.Spec.ClusterIPs
	return []any{a, slice(a, "10.244.1.5@node1", "10.244.2.10"), b, slice(b, "10.244.2.20")}
}

// leftovers are what kube-proxy leaves on its interface.
func leftovers(s *stepper) {
	s.kernel.Link = true
	for _, addr := range []string{"10.96.0.10", "10.96.0.99"} {
		a := netip.MustParseAddr(addr)
		s.kernel.Addrs[a] = true
		s.kernel.Servers[ipvs.Key{Addr: a, Port: 80, Proto: ipvs.TCP}] = ipvs.Server{Scheduler: "rr", Reals: []ipvs.Real{
			{Addr: netip.MustParseAddrPort("10.244.1.5:8080"), Weight: 1}, {Addr: netip.MustParseAddrPort("10.244.2.10:8080"), Weight: 1}}}
	}
}

// TestEveryCrashPoint lets the process die after every single write of every scenario. Each state is safe,
// nothing wanted is taken away, nothing foreign is touched, and a new process comes to the same end as one
// that never crashed (F41).
func TestEveryCrashPoint(t *testing.T) {
	points := 0
	all := scenarios()
	for name, sc := range all {
		t.Run(name, func(t *testing.T) {
			whole := sc.run(t, -1)
			for n := range whole.writes + 1 {
				if end := sc.run(t, n).end; end != whole.end {
					t.Errorf("after a crash at write %d and a restart:\n%s\nwant:\n%s", n, end, whole.end)
				}
			}
			points += whole.writes + 1
		})
	}
	t.Logf("%d crash points in %d scenarios", points, len(all))
	if len(all) < 50 || points < 500 {
		t.Errorf("only %d crash points in %d scenarios", points, len(all))
	}
}

// ending is what became of a scenario.
type ending struct {
	writes int
	end    string // what the kernel held
}

// run lets the process die after n writes, and never with n below 0.
func (sc scenario) run(t *testing.T, n int) (e ending) {
	s := newStepper()
	if sc.before != nil {
		s.start(completeModel(sc.before...))
		s.pass(2 * time.Second)
	}
	if sc.prepare != nil {
		sc.prepare(s)
	}
	s.opt = sc.opt
	want := expect(newModel(sc.after...), s.kernel.Node, s.opt)
	foreign := map[ipvs.Key]ipvs.Server{}
	for k, server := range s.kernel.Servers {
		if server.Scheduler == foreignServer.Scheduler && sc.opt.Desk.Scheduler == "" {
			foreign[k] = server
		}
	}
	known := hazards(s.kernel, foreign)
	s.door.after = func(op ipvs.Op) {
		e.writes++
		if want.wantsBack(op) {
			t.Errorf("crash at %d: %s takes away what is wanted", n, op)
		}
		now := hazards(s.kernel, foreign)
		for h := range now {
			if h.caused(op, known) && (h.what != tooFar || want.sets[ipvs.SetKept][h.key]) {
				t.Errorf("crash at %d: after %s: %s", n, op, h)
			}
		}
		known = now
	}
	dead := false
	s.door.fault = func(ipvs.Op) fault {
		if dead = dead || e.writes == n; dead {
			return fault{err: errDead, unknown: true}
		}
		return fault{}
	}
	if sc.live {
		newWorld(sc.before...).become(s.model, newWorld(sc.after...))
	} else {
		s.start(completeModel(sc.after...))
	}
	s.pass(sc.wait)
	s.door.fault = nil
	if n >= 0 {
		s.start(completeModel(sc.after...))
	}
	writes := e.writes
	s.pass(max(restTime, sc.wait))
	for k := range foreign {
		if !want.servers[k].Exists() && s.kernel.Servers[k].Scheduler != foreignServer.Scheduler {
			t.Errorf("crash at %d: the foreign server %s was touched", n, k)
		}
	}
	if diffs := want.compare(s.kernel, func(k ipvs.Key) bool { return foreign[k].Exists() }); len(diffs) > 0 {
		t.Errorf("crash at %d: %s", n, strings.Join(diffs, "; "))
	}
	return ending{writes, dumpOf(s.kernel)}
}
