package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// A load balancer asks each node's healthCheckNodePort, and sends only to those that have endpoints (B22).
func TestB22HealthCheckNodePort(t *testing.T) {
	s := newStage(t).start()
	svc := web(42)
	svc.Type = "LoadBalancer"
	svc.Ports[0].NodePort = 30142
	svc.Spec = map[string]any{"externalTrafficPolicy": "Local", "healthCheckNodePort": 32142}
	svc.Status = map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": "198.51.100.42"}}}}
	pod := s.w.Pod("pod-c")
	here, there := pod.Node, s.w.Node(1)
	if here == there {
		t.Fatalf("%s is on %s", pod.Name, there.Name)
	}
	// The body is kube-proxy's, byte for byte.
	body := func(local int) string {
		return fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": true\n}", svc.Name, local)
	}
	wants := func(n *lab.Node, code, local int) {
		t.Helper()
		for _, a := range []netip.Addr{n.V4, n.V6} {
			p := wantCode(t, s.w.Client, netip.AddrPortFrom(a, 32142), "/", code)
			if p.body != body(local) || p.header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(local) || p.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %v %s", a, p.header, p.body)
			}
		}
	}
	v4, v6 := s.w.SlicesFor(svc, pod)
	s.cluster.Apply(svc, v4, v6)
	wants(here, 200, 1)
	wants(there, 503, 0)

	// A pod that ends still serves, but new connections had better go elsewhere.
	no, yes := false, true
	for _, slice := range []*lab.Slice{&v4, &v6} {
		e := &slice.Endpoints[0]
		e.Ready, e.Serving, e.Terminating = &no, &yes, &yes
	}
	s.cluster.Apply(v4, v6)
	wants(here, 503, 0)
	s.cluster.Delete(svc, v4, v6)
	lab.Eventually(t, soon, "the port closes", func() error {
		if r := s.w.Client.Connect(netip.AddrPortFrom(here.V4, 32142)); r.Verdict != lab.Refused {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// B22: a healthCheckNodePort that another process of a node holds, on one of its addresses, costs that node its answer
// there and nothing else: the other family and the other node answer, the Service is served, and the node says what is
// wrong. Once the process is gone the agent answers, without a restart.
func TestB22PortHeldByAnother(t *testing.T) {
	s := newStage(t).start()
	const port = 32143
	held, free := s.w.Node(1), s.w.Node(2)
	stop, err := held.ServeHTTP("another", port, held.V4)
	if err != nil {
		t.Fatal(err)
	}
	svc := policies{externalLocal: true}.with(balanced(web(43), 43))
	svc.Spec["healthCheckNodePort"] = port
	s.apply(svc, s.pods()...)
	wantProblems(t, held, map[string]int{"HealthCheckNodePort": 1})
	answersFor := func(n *lab.Node, family, local int) {
		t.Helper()
		p := wantCode(t, s.w.Client, netip.AddrPortFrom(n.Addr(family), port), "/", 200)
		if want := fmt.Sprintf("\"localEndpoints\": %d,", local); !strings.Contains(p.body, want) {
			t.Errorf("%s over IPv%d: %s, want %s", n.Name, family, p.body, want)
		}
	}
	answersFor(held, 6, 2)
	answersFor(free, 4, 1)
	answersFor(free, 6, 1)
	if p := wantCode(t, s.w.Client, netip.AddrPortFrom(held.V4, port), "/", 200); !strings.HasPrefix(p.body, "pod=another ") {
		t.Errorf("%s is not held: %s", held.Name, p.body)
	}
	wantProblems(t, free, map[string]int{})
	for _, want := range []string{svc.Name, "spec.healthCheckNodePort: 32143 cannot be served on node " + held.Name, "address already in use"} {
		if !strings.Contains(s.agents[0].Log(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	each(t, func(t *testing.T, family int) { s.servesBut(t, svc, family, nil) })

	stop()
	lab.Eventually(t, soon, held.Name+" answers", func() error {
		p, err := get(s.w.Client, netip.AddrPortFrom(held.V4, port), "/")
		if err == nil && !strings.Contains(p.body, "\"localEndpoints\": 2,") {
			err = fmt.Errorf("%d: %s", p.code, p.body)
		}
		return err
	})
	wantProblems(t, held, map[string]int{})
}

// B82: a load balancer that passes packets on as they are asks at its own address. There the healthCheckNodePort is
// answered as at the node's, in both families, where node ports are limited to some addresses too; the ports beside it are
// refused as ever, and it is with the Service that it goes.
func TestB82HealthCheckAtBalancer(t *testing.T) {
	const port = 32182
	for _, args := range [][]string{{"--vip-binding=address"}, {"--vip-binding=route", "--nodeport-addresses=primary"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			s := newStage(t).start(args...)
			svc := policies{externalLocal: true}.with(balanced(web(82), 82))
			svc.Spec["healthCheckNodePort"] = port
			s.apply(svc, s.w.Pod("pod-c"))
			outside := s.w.Client
			for via, code := range map[int]int{1: 503, 2: 200} {
				if err := s.w.ClientViaNode(via); err != nil {
					t.Fatal(err)
				}
				each(t, func(t *testing.T, family int) {
					lb := balancerAddr(svc, family)
					p := wantCode(t, outside, netip.AddrPortFrom(lb, port), "/", code)
					if want := fmt.Sprintf("\"localEndpoints\": %d,", via-1); !strings.Contains(p.body, want) {
						t.Errorf("through node%d: %s, want %s", via, p.body, want)
					}
					for _, beside := range []netip.AddrPort{netip.AddrPortFrom(lb, port+1), at(svc, family, port)} {
						if r := outside.Connect(beside); r.Verdict != lab.Refused {
							t.Errorf("%s: %s; want it refused", beside, r)
						}
					}
					here := client{"the node itself", s.w.Node(via).Host}
					wantCode(t, here.Host, netip.AddrPortFrom(lb, port), "/", code)
					wantCode(t, outside, netip.AddrPortFrom(s.w.Node(via).Addr(family), port), "/", code)
				})
			}
			cluster := policies{}.with(svc)
			s.apply(cluster, s.w.Pod("pod-c"))
			each(t, func(t *testing.T, family int) {
				lab.Eventually(t, soon, "with externalTrafficPolicy Cluster nobody is asked", func() error {
					if r := outside.Connect(netip.AddrPortFrom(balancerAddr(svc, family), port)); r.Verdict != lab.Refused {
						return fmt.Errorf("%s", r)
					}
					return nil
				})
			})
		})
	}
}
