package traffic

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// explained is what `ipvs-proxy explain -o json` says.
type explained struct {
	Frontends []explainedFrontend
	Writes    []struct{ Line string }
}

type explainedFrontend struct {
	Frontend, Code  string
	RedirectsInside string
	Endpoints       []struct {
		Address string
		Used    bool
	}
}

// explain runs the command for a Service on a node and wants one of these exit statuses.
func (s *stage) explain(t *testing.T, n *lab.Node, svc string, exits ...int) (x explained, text string) {
	t.Helper()
	args := slices.Concat([]string{"explain", svc}, s.diffArgs(n, append([]string{"-o", "json"}, s.args...)...)[1:])
	out, stderr, exit := n.Command(t, 0, args...)
	if err := json.Unmarshal([]byte(out), &x); !slices.Contains(exits, exit) || stderr != "" || err != nil {
		t.Fatalf("exit status %d, want one of %v, %v:\n%s%s", exit, exits, err, out, stderr)
	}
	return x, out
}

// of is a frontend.
func (x explained) of(t *testing.T, to string) explainedFrontend {
	t.Helper()
	i := slices.IndexFunc(x.Frontends, func(f explainedFrontend) bool { return f.Frontend == to })
	if i < 0 {
		t.Fatalf("no frontend %s in %+v", to, x)
	}
	return x.Frontends[i]
}

// means is what a client meets by what was said of a frontend.
func (x explained) means(t *testing.T, pods []*lab.Pod, to netip.AddrPort, inside bool) (o outcome) {
	t.Helper()
	f := x.of(t, to.String()+"/tcp")
	if inside && f.RedirectsInside != "" {
		f = x.of(t, f.RedirectsInside+"/tcp")
	}
	const dropped = "IPX0303" // for clients outside, or for all where there is nothing to lead to
	if f.Code == dropped && !inside {
		o.dropped = true
		return o
	}
	for _, ep := range f.Endpoints {
		if !ep.Used {
			continue
		}
		for _, p := range pods {
			if a := netip.MustParseAddrPort(ep.Address).Addr(); a == p.V4 || a == p.V6 {
				o.pods = append(o.pods, p.Name)
			}
		}
	}
	slices.Sort(o.pods)
	o.dropped = f.Code == dropped && len(o.pods) == 0
	return o
}

// B73: what explain says becomes of a frontend is what becomes of a client's requests: for each pair of policies, with
// endpoints here and elsewhere, elsewhere only, and none, for clients outside, pods and nodes, by ClusterIP, load balancer's
// address, external IP and node port, in both families. And the kernel agrees, by explain's own word.
func TestB73ExplainIsTrue(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	compared := 0
	for _, p := range []policies{{externalLocal: true}, {internalLocal: true, externalLocal: true}, {internalLocal: true}, {}} {
		svc := p.with(everywhere(76))
		for _, eps := range [][]*lab.Pod{s.pods(), {s.w.Pod("pod-c")}, {}} {
			t.Run(fmt.Sprintf("%s, %d endpoints", p, len(eps)), func(t *testing.T) {
				s.apply(svc, eps...)
				compared += s.isTrue(t, svc)
			})
		}
	}
	t.Logf("%d comparisons of a client's requests with what was said", compared)
	if compared < 250 {
		t.Errorf("%d comparisons: the test shows little", compared)
	}
}

// isTrue compares all clients of a Service with what is said of it on the node that takes their requests.
func (s *stage) isTrue(t *testing.T, svc lab.Service) (compared int) {
	t.Helper()
	said := map[*lab.Node]explained{}
	for _, n := range s.w.Nodes {
		said[n], _ = s.explain(t, n, "default/"+svc.Name, 0, 1)
	}
	each(t, func(t *testing.T, family int) {
		for _, w := range s.ways(svc, family) {
			for _, a := range s.askers(w.kind) {
				if !a.inside && w.kind == "ClusterIP" && a.Host != s.w.Client {
					continue
				}
				becomes(t, a.client, w.tcp, asks[0], family, said[a.through].means(t, s.pods(), w.tcp, a.inside))
				compared++
			}
		}
	})
	for _, n := range s.w.Nodes {
		lab.Eventually(t, soon, "explain says that the kernel agrees", func() error {
			if x, out := s.explain(t, n, "default/"+svc.Name, 0, 1); len(x.Writes) > 0 {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}
	return compared
}

// B73: a Service that the kernel does not hold as wanted, one that is not there, and questions that are none.
func TestB73ExplainFindsWhatIsWrong(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	svc := web(77)
	s.apply(svc, s.pods()...)
	agent := s.w.StartAgent(t, n, s.cluster)
	programmed(t, agent)
	if err := agent.Stop(); err != nil {
		t.Fatal(err)
	}
	s.explain(t, n, "default/web77", 0)
	each(t, func(t *testing.T, family int) {
		vip, real := at(svc, family, 80), behind(family, s.w.Pod("pod-a"))[0]
		shell(t, n, fmt.Sprintf("ipvsadm -d -t %s -r %s", vip, real))
		line := fmt.Sprintf("ipvsadm -a -t %s -r %s -m -w 1", vip, real)
		if x, out := s.explain(t, n, "default/web77", 1); len(x.Writes) != 1 || x.Writes[0].Line != line {
			t.Errorf("want %s:\n%s", line, out)
		}
		shell(t, n, line)
	})
	for _, c := range []struct{ service, says string }{
		{"default/web7", "no Service default/web7 that this proxy serves; there is default/web77"},
		{"web77", `"web77" names no Service: want NAMESPACE/NAME`},
	} {
		out, stderr, exit := n.Command(t, 0, slices.Concat([]string{"explain", c.service}, s.diffArgs(n)[1:])...)
		if exit != 2 || out != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, c.says) {
			t.Errorf("%s: exit status %d:\n%s%s", c.service, exit, out, stderr)
		}
	}
}
