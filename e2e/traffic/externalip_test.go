package traffic

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B14: external IPs are neither bound nor served unless --external-ip-cidrs allows their range, and the log says
// of which Service and field; where it does, every client is served. One Service may have both kinds.
func TestB14ExternalIPs(t *testing.T) {
	s := newStage(t)
	node := s.w.Node(1)
	allowed := map[int]netip.Addr{4: netip.MustParseAddr("198.51.100.9"), 6: netip.MustParseAddr("fd20:51::9")}
	never := map[int]netip.Addr{4: netip.MustParseAddr("203.0.113.9"), 6: netip.MustParseAddr("fd20:113::9")}
	svc := web(97)
	svc.Namespace = "default"
	svc.Spec = map[string]any{"externalIPs": []string{allowed[4].String(), never[4].String(), allowed[6].String(), never[6].String()}}
	s.apply(svc, s.w.Pod("pod-b"))
	closed := func(t *testing.T, a netip.Addr) {
		t.Helper()
		for _, c := range s.clients() {
			if r := c.Connect(netip.AddrPortFrom(a, 80), lab.Timeout(300*time.Millisecond)); r.Verdict == lab.Answered {
				t.Errorf("%s reaches the external IP %s: %s", c.name, a, r)
			}
		}
		if bound(t, node, a) {
			t.Errorf("%s is bound", a)
		}
	}
	agent := s.w.StartAgent(t, node, s.cluster)
	programmed(t, agent)
	each(t, func(t *testing.T, family int) {
		answers(t, node.Host, at(svc, family, 80))
		closed(t, allowed[family])
		closed(t, never[family])
		refusedInLog(t, agent, svc, "spec.externalIPs: "+allowed[family].String(), "--external-ip-cidrs")
	})
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	agent = s.w.StartAgent(t, node, s.cluster, "--external-ip-cidrs=198.51.100.0/24,fd20:51::/64")
	programmed(t, agent)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			to := netip.AddrPortFrom(allowed[family], 80)
			answers(t, c.Host, to)
			if r := c.Ask(to); r.Pod != "pod-b" {
				t.Errorf("%s asks the external IP: %s", c.name, r)
			}
			if r := c.Connect(netip.AddrPortFrom(allowed[family], 9999)); r.Verdict != lab.Refused {
				t.Errorf("%s asks for another port of the external IP: %s; want it refused", c.name, r)
			}
		}
		closed(t, never[family])
		refusedInLog(t, agent, svc, "spec.externalIPs: "+never[family].String(), "--external-ip-cidrs")
	})
}
