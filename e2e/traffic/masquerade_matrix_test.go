package traffic

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// frontends are a Service's ways in, by name, in one family. Node ports are asked for on node1.
func (s *stage) frontends(svc lab.Service, family int) map[string]netip.AddrPort {
	fs := map[string]netip.AddrPort{"ClusterIP": at(svc, family, svc.Ports[0].Port)}
	if p := svc.Ports[0].NodePort; p != 0 {
		fs["NodePort"] = netip.AddrPortFrom(s.w.Node(1).Addr(family), p)
	}
	if a := balancerAddr(svc, family); a.IsValid() {
		fs["LoadBalancer"] = netip.AddrPortFrom(a, svc.Ports[0].Port)
	}
	if a := externalAddr(svc, family); a.IsValid() {
		fs["ExternalIP"] = netip.AddrPortFrom(a, svc.Ports[0].Port)
	}
	return fs
}

// balancerAddr is the address that a load balancer gave a Service.
func balancerAddr(svc lab.Service, family int) netip.Addr {
	balancer, _ := svc.Status["loadBalancer"].(map[string]any)
	ingress, _ := balancer["ingress"].([]map[string]any)
	for _, in := range ingress {
		if a := netip.MustParseAddr(in["ip"].(string)); a.Is4() == (family == 4) {
			return a
		}
	}
	return netip.Addr{}
}

// balanced makes a Service a LoadBalancer with node ports from 30000+n and the addresses 203.0.113.n, fd20:113::n.
func balanced(svc lab.Service, n int) lab.Service {
	svc.Type = "LoadBalancer"
	ports := append([]lab.Port(nil), svc.Ports...)
	for i := range ports {
		ports[i].NodePort = uint16(30000 + n + 1000*i)
	}
	svc.Ports = ports
	svc.Status = map[string]any{"loadBalancer": map[string]any{"ingress": []map[string]any{
		{"ip": fmt.Sprintf("203.0.113.%d", n)}, {"ip": fmt.Sprintf("fd20:113::%d", n)}}}}
	return svc
}

// B26, the whole of it: as whom a pod, the node and an outside client are seen by a pod of another node through
// each frontend, for each way to tell pods from others. The rules of one way replace those of another in place.
func TestB26Matrix(t *testing.T) {
	s := newStage(t)
	svc := balanced(web(60), 60)
	s.apply(svc, s.w.Pod("pod-c"))
	node, pod, outside := s.w.Node(1), s.w.Pod("pod-a"), s.w.Client
	for _, mode := range []struct {
		name string
		args []string
		// seen is as whom a client is seen through the ClusterIP: "own" or "node".
		pod, outside string
	}{
		{"ClusterCIDR", nil, "own", "node"},
		{"BridgeInterface", []string{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"}, "own", "node"},
		{"InterfaceNamePrefix", []string{"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cni"}, "own", "node"},
		// The control of the two before: with another interface, pods are strangers.
		{"BridgeInterface of another name", []string{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni00"}, "node", "node"},
		// Rules stay until the Node's ranges are heard: those of before, to which pods are strangers.
		{"NodeCIDR", []string{"--detect-local-mode=NodeCIDR"}, "own", "node"},
		{"InterfaceNamePrefix that none has", []string{"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=ni0"}, "node", "node"},
		{"masqueradeAll", []string{"--masquerade-all"}, "node", "node"},
	} {
		t.Run(mode.name, func(t *testing.T) {
			agent := s.w.StartAgent(t, node, s.cluster, mode.args...)
			programmed(t, agent)
			each(t, func(t *testing.T, family int) {
				for kind, to := range s.frontends(svc, family) {
					// From another node only node ports lead here. The endpoint itself is such a client: with its own
					// address it would be sent to itself.
					if kind == "NodePort" {
						if r := s.w.Pod("pod-c").Ask(to); r.Verdict != lab.Answered || r.Source != node.Addr(family) {
							t.Errorf("pod of another node through %s %s: %s; want it seen as %s", kind, to, r, node.Addr(family))
						}
					}
					for _, c := range []struct {
						name, seen string
						*lab.Host
					}{{"pod", mode.pod, pod.Host}, {"node", "node", node.Host}, {"outside", mode.outside, outside}} {
						want := node.Addr(family)
						if kind == "ClusterIP" && c.seen == "own" {
							want = c.Host.Addr(family)
						}
						if r := c.Ask(to); r.Verdict != lab.Answered || r.Source != want {
							t.Errorf("%s through %s %s: %s; want it seen as %s", c.name, kind, to, r, want)
						}
					}
				}
			})
			if err := agent.Stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
