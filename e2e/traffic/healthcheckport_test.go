package traffic

import (
	"fmt"
	"net/netip"
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
