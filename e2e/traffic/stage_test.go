// Package traffic holds the behaviour tests: real packets through a real kernel, programmed by the agent as
// users run it. Each test names the row of the contract that it holds; e2e/mutants has for each row a patch
// that takes the behaviour out, with which the test must fail.
package traffic

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// soon is how long a change may take to reach the kernel where no row of the contract says how long. It is what nobody
// reaches by being slow: the lab may be an emulated machine beside others, on a machine that has other work.
const soon = time.Minute

// stage is a world with an agent on every node.
type stage struct {
	t       *testing.T
	w       *lab.World
	cluster *lab.Cluster
	agents  []*lab.Agent
	args    []string // of the agents
	// raided: another program takes away what the agents write to, while they write.
	raided bool
}

// pods whose servers listen on 8080.
func (s *stage) pods() []*lab.Pod {
	return []*lab.Pod{s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")}
}

func newStage(t *testing.T, cfg ...lab.Config) *stage {
	t.Helper()
	s := &stage{t: t, w: lab.New(t, cfg...)}
	s.cluster = s.w.Cluster(t)
	s.w.ServeHTTP(t, 8080, s.pods()...)
	return s
}

// start starts an agent on every node.
func (s *stage) start(args ...string) *stage {
	s.t.Helper()
	s.args = args
	for _, n := range s.w.Nodes {
		s.agents = append(s.agents, s.w.StartAgent(s.t, n, s.cluster, args...))
	}
	s.t.Cleanup(s.nothingRefused)
	return s
}

// programmed waits until an agent has said that its start is over.
func programmed(t testing.TB, a *lab.Agent) {
	t.Helper()
	lab.Eventually(t, soon, "the start is over", func() error {
		if !strings.Contains(a.Log(), "all Services are programmed") {
			return fmt.Errorf("not said in the log")
		}
		return nil
	})
}

// nothingRefused: a healthy kernel refuses nothing that the agent asks of it.
func (s *stage) nothingRefused() {
	for _, a := range s.agents {
		if strings.Contains(a.Log(), "could not be programmed") && !s.raided {
			s.t.Errorf("the kernel of %s refused something:\n%s", a.Node.Name, a.Log())
		}
	}
}

// inTime is a limit in seconds for what an agent does on a node by itself, with its control: how long the same agent
// takes for a change of the cluster that it is told of, from the file to the kernel and back. A busy machine takes
// longer for both, and ten times the control is given.
func (s *stage) inTime(t testing.TB, n *lab.Node, limit time.Duration) time.Duration {
	t.Helper()
	svc := web(250)
	key := "tcp " + at(svc, 4, 80).String()
	began := time.Now()
	for _, want := range []bool{true, false} {
		if want {
			s.cluster.Apply(svc)
		} else {
			s.cluster.Delete(svc)
		}
		lab.Eventually(t, soon, "the control, a Service that comes and goes", func() error {
			if _, is := table(t, n)[key]; is != want {
				return fmt.Errorf("%s on %s: %t, want %t", key, n.Name, is, want)
			}
			return nil
		})
	}
	if control := time.Since(began); 10*control > limit {
		t.Logf("the control took %s, so that %s are given in place of %s", control, 10*control, limit)
		return 10 * control
	}
	return limit
}

// client is who asks.
type client struct {
	name string
	*lab.Host
}

// clients are one of each kind: in the cluster, a node itself, outside.
func (s *stage) clients() []client {
	return []client{{"pod", s.w.Pod("pod-a").Host}, {"node", s.w.Node(1).Host}, {"outside", s.w.Client}}
}

// web is a dual-stack Service on port 80 with target port 8080. n tells several apart.
func web(n int) lab.Service {
	return lab.Service{
		Name:       fmt.Sprintf("web%d", n),
		ClusterIPs: []string{fmt.Sprintf("10.96.0.%d", n), fmt.Sprintf("fd00:96::%d", n)},
		Ports:      []lab.Port{{Name: "http", Port: 80, TargetPort: 8080}},
	}
}

// apply puts a Service with endpoints into the cluster.
func (s *stage) apply(svc lab.Service, pods ...*lab.Pod) {
	s.t.Helper()
	v4, v6 := s.w.SlicesFor(svc, pods...)
	s.cluster.Apply(svc, v4, v6)
}

// at is a frontend of a Service: its address of the family, and a port.
func at(svc lab.Service, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(svc.ClusterIPs[map[int]int{4: 0, 6: 1}[family]]), port)
}

// each runs f for both families.
func each(t *testing.T, f func(t *testing.T, family int)) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) { f(t, family) })
	}
}

// answers waits until a client gets an answer.
func answers(t testing.TB, c *lab.Host, to netip.AddrPort) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s asks %s", c.Name, to), func() error {
		if r := c.Ask(to, lab.Timeout(time.Second)); r.Verdict != lab.Answered {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// ready waits until the frontends of a Service answer on every node, in both families.
func (s *stage) ready(svc lab.Service) {
	s.t.Helper()
	for _, n := range s.w.Nodes {
		for _, family := range []int{4, 6} {
			answers(s.t, n.Host, at(svc, family, svc.Ports[0].Port))
		}
	}
}

// reals lists the real servers of a frontend on a node, "address weight".
func reals(t testing.TB, n *lab.Node, vip netip.AddrPort) (list []string) {
	t.Helper()
	for addr, r := range destinations(t, n, vip) {
		list = append(list, fmt.Sprintf("%s %d", addr, r.Weight))
	}
	slices.Sort(list)
	return list
}

// active counts the active connections of a real server.
func active(t testing.TB, n *lab.Node, vip netip.AddrPort, real string) int {
	t.Helper()
	for addr, r := range destinations(t, n, vip) {
		if addr.String() == real {
			return r.Active
		}
	}
	return 0
}

// destinations are the real servers of a frontend, whatever its protocol.
func destinations(t testing.TB, n *lab.Node, vip netip.AddrPort) map[netip.AddrPort]lab.RealServer {
	t.Helper()
	servers, err := n.VirtualServers()
	if err != nil {
		t.Fatal(err)
	}
	found := map[netip.AddrPort]lab.RealServer{}
	for _, s := range servers {
		if s.Addr != vip {
			continue
		}
		for _, r := range s.Reals {
			found[r.Addr] = r
		}
	}
	return found
}

// takesNoMore waits until a real server is drained or gone.
func takesNoMore(t testing.TB, n *lab.Node, vip, real netip.AddrPort) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s takes no more connections of %s on %s", real, vip, n.Name), func() error {
		for _, r := range reals(t, n, vip) {
			if strings.HasPrefix(r, real.String()+" ") && r != real.String()+" 0" {
				return fmt.Errorf("it is %s", r)
			}
		}
		return nil
	})
}

// wantReals waits until a frontend has exactly these real servers on a node.
func wantReals(t testing.TB, n *lab.Node, vip netip.AddrPort, want ...string) {
	t.Helper()
	slices.Sort(want)
	lab.Eventually(t, soon, fmt.Sprintf("real servers of %s on %s", vip, n.Name), func() error {
		if got := reals(t, n, vip); !slices.Equal(got, want) {
			return fmt.Errorf("got %s, want %s", strings.Join(got, ", "), strings.Join(want, ", "))
		}
		return nil
	})
}
