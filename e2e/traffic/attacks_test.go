package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// thief is a Service of another namespace, older than any other, that reaches for addresses by its external IPs
// and by the status that only a load balancer's controller should write.
func thief(n int, addrs ...string) lab.Service {
	var ingress []map[string]any
	for _, a := range addrs {
		ingress = append(ingress, map[string]any{"ip": a})
	}
	svc := web(n)
	svc.Namespace, svc.Name, svc.Type, svc.Created = "evil", fmt.Sprintf("thief%d", n), "LoadBalancer", time.Unix(1, 0)
	svc.Ports = []lab.Port{{Name: "http", Port: 80, TargetPort: 8080}, {Name: "free", Port: 443, TargetPort: 8080}, {Name: "daemon", Port: 9999, TargetPort: 8080}}
	svc.Spec = map[string]any{"externalIPs": addrs}
	svc.Status = map[string]any{"loadBalancer": map[string]any{"ingress": ingress}}
	return svc
}

// refusedInLog waits until an agent has said that a Service does not get an address, and in which field.
func refusedInLog(t *testing.T, a *lab.Agent, svc lab.Service, parts ...string) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("the log says of %s %q", svc.Name, parts), func() error {
		for line := range strings.Lines(a.Log()) {
			if !strings.Contains(line, svc.Namespace+"/"+svc.Name) {
				continue
			}
			all := true
			for _, p := range parts {
				all = all && strings.Contains(line, p)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("it does not")
	})
}

// B60, the attack: somebody who may write Services in a namespace of his own reaches for another's ClusterIP, for
// the port in use and for free ones. External IPs are allowed everywhere, to make it as easy as can be. Whoever
// comes first, whether the agent starts before or after it, the victim keeps all of its address; when the victim
// goes, what the other claims is his.
func TestB60ClusterIPIsNotToBeHad(t *testing.T) {
	s := newStage(t)
	victim := web(90)
	steal := thief(91, victim.ClusterIPs...)
	s.apply(steal, s.w.Pod("pod-c")) // first
	agent := s.w.StartAgent(t, s.w.Node(1), s.cluster, "--external-ip-cidrs=0.0.0.0/0,::/0")
	programmed(t, agent)
	s.apply(victim, s.w.Pod("pod-b"))
	untouched := func(t *testing.T) {
		t.Helper()
		each(t, func(t *testing.T, family int) {
			answers(t, s.w.Node(1).Host, at(steal, family, 80)) // the thief's own address works: he was heard
			lab.Eventually(t, soon, "the victim has its address", func() error {
				if r := s.w.Client.Ask(at(victim, family, 80), lab.Timeout(time.Second)); r.Pod != "pod-b" {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			for _, c := range s.clients() {
				for range 4 {
					if r := c.Ask(at(victim, family, 80)); r.Verdict != lab.Answered || r.Pod != "pod-b" {
						t.Errorf("%s asks the victim: %s; want pod-b", c.name, r)
					}
				}
				for _, free := range []uint16{443, 9999} {
					if r := c.Connect(at(victim, family, free)); r.Verdict != lab.Refused {
						t.Errorf("%s asks for the victim's free port %d: %s; want it refused", c.name, free, r)
					}
				}
			}
		})
	}
	untouched(t)
	refusedInLog(t, agent, steal, victim.ClusterIPs[0]+":443/tcp belongs to Service default/web90")
	// After a restart both are there from the beginning.
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	agent = s.w.StartAgent(t, s.w.Node(1), s.cluster, "--external-ip-cidrs=0.0.0.0/0,::/0")
	programmed(t, agent)
	untouched(t)
	v4, v6 := s.w.SlicesFor(victim)
	s.cluster.Delete(victim, v4, v6)
	each(t, func(t *testing.T, family int) {
		lab.Eventually(t, soon, "the address is free, and the next one's", func() error {
			if r := s.w.Client.Ask(at(victim, family, 443), lab.Timeout(time.Second)); r.Pod != "pod-c" {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	})
	s.apply(victim, s.w.Pod("pod-b"))
	untouched(t)
}

// B61, the attack: addresses that would cut the node or the whole cluster off are refused whoever asks for them:
// the node's own, the API server's, the configured ones. What stands there goes on answering.
func TestB61NodeAndAPIServerAreNotToBeHad(t *testing.T) {
	s := newStage(t)
	node, other := s.w.Node(1), s.w.Node(2)
	for _, n := range s.w.Nodes {
		for _, port := range []uint16{80, 443, 9999} {
			stop, err := n.ServeHTTP("daemon of "+n.Name, port)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(stop)
		}
	}
	api := web(92)
	api.Name = "kubernetes"
	s.cluster.Apply(append(hostEndpoints(api, other), api)...) // the API server is on node2
	addrs := []string{node.V4.String(), node.V6.String(), other.V4.String(), other.V6.String(), s.w.Wire.V4.String(), s.w.Wire.V6.String()}
	steal := thief(93, addrs...)
	s.apply(steal, s.w.Pod("pod-c"))
	agent := s.w.StartAgent(t, node, s.cluster, "--external-ip-cidrs=0.0.0.0/0,::/0",
		"--protected-cidrs="+s.w.Wire.V4.String()+"/32,"+s.w.Wire.V6.String()+"/128")
	programmed(t, agent)
	each(t, func(t *testing.T, family int) {
		answers(t, node.Host, at(steal, family, 80)) // the thief's own address works: he was heard
		for _, n := range s.w.Nodes {
			for _, port := range []uint16{80, 443, 9999} {
				for _, c := range []client{{"pod", s.w.Pod("pod-a").Host}, {"node", node.Host}, {"outside", s.w.Client}} {
					if r := c.Ask(netip.AddrPortFrom(n.Addr(family), port)); r.Verdict != lab.Answered || r.Pod != "daemon of "+n.Name {
						t.Errorf("%s asks %s port %d: %s; want its daemon", c.name, n.Name, port, r)
					}
				}
			}
		}
	})
	for _, a := range addrs {
		for _, field := range []string{"spec.externalIPs: ", "status.loadBalancer: "} {
			refusedInLog(t, agent, steal, field+a)
		}
		for _, n := range []*lab.Node{node} {
			if bound(t, n, netip.MustParseAddr(a)) {
				t.Errorf("%s is bound on %s", a, n.Name)
			}
		}
	}
	servers, err := node.VirtualServers()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range servers {
		for _, a := range addrs {
			if v.Addr.Addr().String() == a && v.Addr.Port() < 30000 {
				t.Errorf("there is a virtual server %s", v)
			}
		}
	}
}

// B60: of several Services with one address and port the load balancer's wins over the node port, that over the
// external IP, and among equals the older; the next takes over when the owner goes.
func TestB60OrderOfClaims(t *testing.T) {
	s := newStage(t)
	agent := s.w.StartAgent(t, s.w.Node(1), s.cluster, "--external-ip-cidrs=198.51.100.0/24,fd20:51::/64")
	programmed(t, agent)
	claim := func(n int, created int64, kind, v4, v6 string) lab.Service {
		svc := web(n)
		svc.Created = time.Unix(created, 0)
		switch kind {
		case "balancer":
			svc.Type = "LoadBalancer"
			svc.Status = map[string]any{"loadBalancer": map[string]any{"ingress": []map[string]any{{"ip": v4}, {"ip": v6}}}}
		case "external":
			svc.Spec = map[string]any{"externalIPs": []string{v4, v6}}
		}
		return svc
	}
	const v4, v6 = "198.51.100.7", "fd20:51::7"
	order := []struct {
		svc lab.Service
		pod string
	}{
		{claim(94, 500, "balancer", v4, v6), "pod-a"}, // the oldest load balancer
		{claim(95, 900, "balancer", v4, v6), "pod-b"},
		{claim(96, 100, "external", v4, v6), "pod-c"}, // older than both
	}
	for i := range order { // the last one first
		o := order[len(order)-1-i]
		s.apply(o.svc, s.w.Pod(o.pod))
	}
	for _, o := range order {
		for family, a := range map[int]string{4: v4, 6: v6} {
			to := netip.AddrPortFrom(netip.MustParseAddr(a), 80)
			lab.Eventually(t, soon, fmt.Sprintf("%s belongs to %s", to, o.svc.Name), func() error {
				if r := s.w.Client.Ask(to, lab.Timeout(time.Second)); r.Pod != o.pod {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			for range 3 {
				if r := s.w.Client.Ask(to); r.Pod != o.pod {
					t.Errorf("IPv%d: %s; want %s", family, r, o.pod)
				}
			}
		}
		v4, v6 := s.w.SlicesFor(o.svc)
		s.cluster.Delete(o.svc, v4, v6)
	}
}
