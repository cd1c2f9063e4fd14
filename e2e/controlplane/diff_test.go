package controlplane

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B73: diff takes the cluster from the API server as its Job does, with the agents' ServiceAccount and no other right.
// On a node that has nothing all of a Service is to come, beside an agent that is done nothing is left, and a real
// server that another program has taken away is to come back. Its calls are among those that the agents may make
// (every test here looks when it ends).
func TestB73DiffOfACluster(t *testing.T) {
	if realKubeProxy() {
		t.Skip("kube-proxy has no such command")
	}
	s := newStage(t, 1)
	s.startKubelet()
	s.proxyAccount()
	t.Cleanup(func() { s.agentCalls() })
	n := s.w.Node(1)
	svc := s.createService(web("kubia"))
	s.createReplicas("kubia", 2)
	pods := s.pods(s.namespace, "kubia", 2)
	name := s.namespace + "/kubia"
	lab.Eventually(t, soon, "all of the Service is to come", func() error {
		// The endpoints come from a controller, after the pods.
		if lines := s.diff(n, 1, name); len(lines["come"]) < 2*(1+len(pods)) || len(lines) != 1 {
			return fmt.Errorf("%v", lines)
		}
		return nil
	})
	s.agents = append(s.agents, s.startAgent(n, "--conntrack-max-per-core=0"))
	for _, to := range clusterIPs(svc, 80) {
		s.wantServing(t, to, appPort, pods...)
	}
	if lines := s.diff(n, 0, name); len(lines) != 0 {
		t.Errorf("beside an agent that is done: %v", lines)
	}
	if err := s.agents[0].Stop(); err != nil {
		t.Fatal(err)
	}
	to := clusterIPs(svc, 80)[0]
	gone := netip.AddrPortFrom(pods[0].Addr(map[bool]int{true: 4, false: 6}[to.Addr().Is4()]), appPort)
	if err := n.Do(func() error {
		out, err := exec.Command("ipvsadm", "-d", "-t", to.String(), "-r", gone.String()).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("ipvsadm -d: %w: %s", err, out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	lines := s.diff(n, 1, name)
	if len(lines["come"]) != 1 || len(lines) != 1 || !strings.Contains(lines["come"][0], gone.String()) {
		t.Errorf("real server %s of %s is gone: %v", gone, to, lines)
	}
}

// diff runs the command on a node and wants its exit status. It returns the lines about a Service by what they do.
func (s *stage) diff(n *lab.Node, exit int, service string) map[string][]string {
	s.t.Helper()
	args := []string{"diff", "--kubeconfig", s.kubeconfig(metav1.NamespaceSystem, "kube-proxy", s.server()), "--hostname-override", n.Name,
		"--cluster-cidr", fmt.Sprintf("%s,%s", lab.ClusterCIDR4, lab.ClusterCIDR6), "--conntrack-max-per-core=0", "-o", "json"}
	out, stderr, got := n.Command(s.t, 0, slices.Concat(args, strings.Fields(os.Getenv("LAB_AGENT_ARGS")))...)
	var d struct {
		Writes []struct{ Verb, Service, Line string }
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil || got != exit {
		s.t.Fatalf("exit status %d, want %d, %v:\n%s%s", got, exit, err, out, stderr)
	}
	lines := map[string][]string{}
	for _, w := range d.Writes {
		if w.Service == service {
			lines[w.Verb] = append(lines[w.Verb], w.Line)
		}
	}
	return lines
}
