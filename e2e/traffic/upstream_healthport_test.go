package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// The health check port of each of three nodes, and what their node ports do meanwhile.
func TestUpstreamHealthCheckPort(t *testing.T) {
	const port = 32180
	s := newStage(t, lab.Config{Nodes: 3}).start()
	one, two, three := s.w.Node(1), s.w.Node(2), s.w.Node(3)
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	outside, inside := client{"outside", s.w.Client}, client{"node1", one.Host}
	svc := externalLocal.with(balanced(web(180), 180))
	local := svc
	local.Spec = maps.Clone(svc.Spec)
	local.Spec["healthCheckNodePort"] = port
	cluster := policies{}.with(svc)
	health := func(t *testing.T, family int, codes ...int) {
		t.Helper()
		for i, n := range s.w.Nodes {
			to := netip.AddrPortFrom(n.Addr(family), port)
			if codes != nil {
				wantCode(t, outside.Host, to, "/healthz", codes[i])
				continue
			}
			lab.Eventually(t, soon, fmt.Sprintf("%s closes", to), func() error {
				if r := outside.Connect(to, lab.Timeout(time.Second)); r.Verdict != lab.Refused {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
		}
	}
	askNode := func(t *testing.T, from client, n *lab.Node, family int, want outcome) {
		t.Helper()
		becomes(t, from, netip.AddrPortFrom(n.Addr(family), svc.Ports[0].NodePort), asks[0], family, want)
	}
	podC, none := outcome{pods: []string{"pod-c"}}, outcome{dropped: true}
	t.Run("nodes with endpoints", func(t *testing.T) {
		each(t, func(t *testing.T, family int) {
			s.apply(local, c)
			health(t, family, 503, 200, 503)
			s.apply(local, a)
			health(t, family, 200, 503, 503)
			s.apply(local, a, c)
			health(t, family, 200, 200, 503)
		})
	})
	t.Run("policy changes", func(t *testing.T) {
		each(t, func(t *testing.T, family int) {
			s.apply(local, c)
			for range 2 {
				health(t, family, 503, 200, 503)
				askNode(t, outside, two, family, podC)
				askNode(t, inside, one, family, podC) // a client inside the cluster
				askNode(t, outside, three, family, none)
				s.apply(cluster, c)
				health(t, family)
				for _, n := range s.w.Nodes {
					askNode(t, outside, n, family, podC)
				}
				s.apply(local, c)
			}
		})
	})
	t.Run("only terminating", func(t *testing.T) {
		each(t, func(t *testing.T, family int) {
			s.apply(local, c)
			health(t, family, 503, 200, 503)
			v4, v6 := s.w.SlicesFor(local, c)
			ends := map[string]bool{"pod-c": true}
			s.cluster.Apply(terminates(v4, ends), terminates(v6, ends))
			health(t, family, 503, 503, 503)
			askNode(t, outside, two, family, podC)
		})
	})
}
