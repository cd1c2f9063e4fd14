package controlplane

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// heals is how soon after the end of a trouble with the API server an agent must know what has changed (F3).
const heals = time.Minute

// startKubia starts agents and a Service with three pods, which answers on every node.
func (s *stage) startKubia() (to netip.AddrPort, pods []*lab.Pod) {
	s.t.Helper()
	s.startKubelet()
	s.startAgents()
	kubia := s.createService(web("kubia"))
	s.createReplicas("kubia", 3)
	pods = s.pods(s.namespace, "kubia", 3)
	to = clusterIP(kubia, 80)
	s.wantServing(s.t, to, appPort, pods...)
	return to, pods
}

// F1: the API server is restarted under load, once asked to end and once killed. Nothing is lost, the nodes stay
// healthy, and afterwards they follow the cluster again: a new pod serves, and a new Service works in both families.
func TestAPIServerRestarted(t *testing.T) {
	s := newStage(t, 3)
	to, pods := s.startKubia()
	kubia, err := s.api.CoreV1().Services(s.namespace).Get(s.ctx, "kubia", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stopHealth := s.watchHealth()
	load := underLoad(s, to, func() {
		for i, how := range []string{"/stop", "/stop?signal=kill"} {
			s.stopAPI(how)
			time.Sleep(5 * time.Second) // the load goes on: this is how long there is no API server
			for _, c := range s.clients() {
				hits(t, c, clusterIPs(kubia, 80)[1], pods...) // the load is the other family's
			}
			s.startAPI()
			back := time.Now()
			s.scale("kubia", 4+i)
			pods = s.pods(s.namespace, "kubia", 4+i) // the lab's kubelet has to find back, too
			there := time.Now()
			s.wantServingWithin(t, heals, to, appPort, pods...)
			t.Logf("%s: the new pod is ready %s after the API server is back, and on every node %s later", how,
				there.Sub(back).Round(100*time.Millisecond), time.Since(there).Round(100*time.Millisecond))
			s.wantNewService(fmt.Sprintf("later-%d", i), "kubia", pods)
		}
	})
	stopHealth()
	wantNone(s, "API server restarted twice", to, load)
}

// wantNewService makes another Service of an application and asks it from everywhere.
func (s *stage) wantNewService(name, app string, pods []*lab.Pod) {
	s.t.Helper()
	svc := web(name)
	svc.Spec.Selector = map[string]string{"app": app}
	for _, to := range clusterIPs(s.createService(svc), 80) {
		s.wantServing(s.t, to, appPort, pods...)
		for _, c := range s.clients() {
			hits(s.t, c, to, pods...)
		}
	}
}

// cutTime is how long the nodes are cut off; make faults asks for 10 min.
func cutTime() time.Duration {
	if os.Getenv(faults.Variable) == faults.Long {
		return 10 * time.Minute
	}
	return 70 * time.Second
}

// F1 and F3: the nodes are cut off from the API server for more than a minute: packets are dropped both ways, so
// that no end of a connection is heard of. Nothing is lost, the nodes stay healthy; and within a minute of the
// network they know what has changed, although nobody told them that their connections are dead.
func TestAPIServerCutOff(t *testing.T) {
	s := newStage(t, 3)
	to, old := s.startKubia()
	stopHealth := s.watchHealth()
	load := underLoad(s, to, func() {
		s.cut()
		began := time.Now()
		s.scale("kubia", 5)
		pods := s.pods(s.namespace, "kubia", 5)
		s.gate.drop()
		time.Sleep(cutTime() - time.Since(began)) // the load goes on: this is how long the nodes are cut off
		s.wantServing(t, to, appPort, old...)     // they cannot know better
		s.heal()
		healed := time.Now()
		s.wantServingWithin(t, heals, to, appPort, pods...)
		t.Logf("cut off for %s; nodes follow %s after the network is back", cutTime(), time.Since(healed).Round(100*time.Millisecond))
	})
	stopHealth()
	lab.Figure(t, "cut off for, s", int(cutTime().Seconds()))
	lab.Figure(t, "requests", load.Sent)
	lab.Figure(t, "requests lost", load.Lost)
	wantNone(s, fmt.Sprintf("cut off for %s", cutTime()), to, load)
}

// F3 again, shorter than any time-out: the API server's end of the connections dies while the nodes are cut off for a
// moment, so these wait for events on connections that will never bring one.
func TestHalfOpenWatch(t *testing.T) {
	s := newStage(t, 3)
	to, _ := s.startKubia()
	load := underLoad(s, to, func() {
		s.cut()
		s.gate.drop()
		// The kernel of the wire sends the ends of these connections again and again; once it has none, it never
		// will. 5 s are far less than any time-out of the agent's.
		time.Sleep(5 * time.Second)
		s.forgetConnections()
		s.heal()
		healed := time.Now()
		s.scale("kubia", 4)
		s.wantServingWithin(t, heals, to, appPort, s.pods(s.namespace, "kubia", 4)...)
		t.Logf("nodes follow %s after the network is back", time.Since(healed).Round(100*time.Millisecond))
	})
	wantNone(s, "half-open watch", to, load)
}

// F2: no API server when the agents start, as after a power failure. What is in the kernel stays and works; when the
// API server comes, the nodes follow.
func TestAPIServerGoneAtStart(t *testing.T) {
	s := newStage(t, 3)
	to, _ := s.startKubia()
	before := s.kernels()
	load := underLoad(s, to, func() {
		// Killed: one that is asked to end first takes itself out of default/kubernetes.
		s.stopAPI("/stop?signal=kill")
		for i, n := range s.w.Nodes {
			if err := s.agents[i].Kill(); err != nil {
				t.Fatal(err)
			}
			s.agents[i] = s.w.StartAgentOf(t, n, s.sources[i])
		}
		time.Sleep(20 * time.Second) // the load goes on: this is how long they do without
		if after := s.kernels(); !slices.Equal(after, before) {
			t.Errorf("the kernels had\n%s\nand have\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
		s.startAPI()
		back := time.Now()
		s.scale("kubia", 4)
		pods := s.pods(s.namespace, "kubia", 4) // the lab's kubelet has to find back, too
		there := time.Now()
		s.wantServingWithin(t, heals, to, appPort, pods...)
		t.Logf("the new pod is ready %s after the API server is back, and on every node %s later",
			there.Sub(back).Round(100*time.Millisecond), time.Since(there).Round(100*time.Millisecond))
	})
	wantNone(s, "agents started without an API server", to, load)
}

// kernels are the virtual and real servers of all nodes.
func (s *stage) kernels() (list []string) {
	s.t.Helper()
	for _, n := range s.w.Nodes {
		servers, err := n.VirtualServers()
		if err != nil {
			s.t.Fatal(err)
		}
		for _, v := range servers {
			list = append(list, fmt.Sprintf("%s %s", n.Name, v.Addr))
			for _, r := range v.Reals {
				list = append(list, fmt.Sprintf("%s %s %s %d", n.Name, v.Addr, r.Addr, r.Weight))
			}
		}
	}
	slices.Sort(list)
	return list
}

// cut has every node drop all packets to and from the API server.
func (s *stage) cut() {
	s.t.Helper()
	for _, n := range s.w.Nodes {
		s.nft(n.Host, fmt.Sprintf(`table inet cut {
	chain in { type filter hook input priority -300; tcp sport %d drop; }
	chain out { type filter hook output priority -300; tcp dport %[1]d drop; }
}`, s.plane.Port))
	}
}

// heal ends what cut began.
func (s *stage) heal() {
	s.t.Helper()
	for _, n := range s.w.Nodes {
		s.nft(n.Host, "delete table inet cut")
	}
}

// forgetConnections has the wire answer nothing on connections that the nodes opened up to now, as a firewall does
// that was restarted: it lets packets of none but new ones through.
func (s *stage) forgetConnections() {
	s.t.Helper()
	s.nft(s.w.Wire, fmt.Sprintf(`table inet forgetful {
	set fresh { type inet_service; flags dynamic,timeout; timeout 1h; }
	chain in { type filter hook input priority -300;
		tcp dport %[1]d tcp flags & (syn|ack) == syn add @fresh { tcp sport }
		tcp dport %[1]d tcp sport != @fresh drop
	}
	chain out { type filter hook output priority -300; tcp sport %[1]d tcp dport != @fresh drop; }
}`, s.plane.Port))
}

func (s *stage) nft(h *lab.Host, rules string) {
	s.t.Helper()
	err := h.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft in %s: %w: %s", h.Name, err, out)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}
