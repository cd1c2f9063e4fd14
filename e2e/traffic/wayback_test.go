//go:build kubeproxy

package traffic

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// kubeProxyProgram is kube-proxy itself. Compiling it takes a quarter of an hour, so these tests are for those who ask for
// them: make takeover.
func kubeProxyProgram(t *testing.T) string {
	t.Helper()
	program := filepath.Join(os.Getenv("LAB_DIR"), "kube-proxy")
	if _, err := os.Stat(program); err != nil {
		t.Fatal("kube-proxy is not in the lab's cache: go run ./e2e/lab/cmd/lab e2e --build puts it there")
	}
	return program
}

// hasMode: kube-proxy refuses mode nftables on kernels before 5.13 (pkg/proxy/nftables/proxier.go, minKernelVersion), so
// there is nothing to take over from, nor to go back to.
func hasMode(t *testing.T, mode string) bool {
	t.Helper()
	if mode == "nftables" && kernelBefore(t, 5, 13) {
		t.Log("kube-proxy has no mode nftables on this kernel")
		return false
	}
	return true
}

// start runs kube-proxy on the node, beside a server of the cluster's objects.
func (k *kubeProxy) start(program, mode string, more ...string) *lab.Agent {
	k.t.Helper()
	return k.startWith(netip.AddrPortFrom(k.n.V4, 6443), program, mode, more...)
}

// startWith is start with the API server at an address of the node.
func (k *kubeProxy) startWith(api netip.AddrPort, program, mode string, more ...string) *lab.Agent {
	k.t.Helper()
	kubeconfig := k.s.cluster.ServeAPI(k.t, k.n.Host, api)
	return k.s.w.StartProgram(k.t, k.n.Host, slices.Concat([]string{program}, lab.KubeProxyFlags(mode, k.n, kubeconfig), more)...)
}

// serves waits until the Service's frontends answer everybody.
func (k *kubeProxy) serves() {
	k.t.Helper()
	for _, family := range []int{4, 6} {
		for _, c := range k.s.clients() {
			lab.Eventually(k.t, 2*time.Minute, fmt.Sprintf("%s asks over IPv%d", c.name, family), func() error {
				if r := c.Ask(at(k.svc, family, 80), lab.Timeout(5*time.Second)); r.Verdict != lab.Answered {
					return fmt.Errorf("%s", r)
				}
				if r := c.Connect(at(k.svc, family, 81), lab.Timeout(5*time.Second)); r.Err != nil {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
		}
	}
}

// wrote waits until kube-proxy has written its rules in both families.
func (k *kubeProxy) wrote(mode string) {
	k.t.Helper()
	want := map[string]string{"iptables": "KUBE-SVC-", "ipvs": "KUBE-CLUSTER-IP"}[mode]
	lab.Eventually(k.t, 2*time.Minute, "kube-proxy writes its rules", func() error {
		if mode == "nftables" {
			if got := nftList(k.t, k.n, "ruleset"); strings.Count(got, "service-") < 8 || !strings.Contains(got, "table ip6 kube-proxy") {
				return fmt.Errorf("%s", got)
			}
			return nil
		}
		for _, family := range []int{4, 6} {
			if got := k.run("", k.program(family, "-save"), "-t", "nat"); !strings.Contains(got, want) && !strings.Contains(got, "KUBE-6-CLUSTER-IP") {
				return fmt.Errorf("%s", got)
			}
		}
		return nil
	})
}

// wayBack is a stage with an agent on node1 that serves, and what goes on there.
func wayBack(t *testing.T) (*stage, *kubeProxy, *lab.Agent) {
	t.Helper()
	s, k := takenStage(t)
	agent := s.w.StartAgent(t, k.n, s.cluster)
	k.serves()
	return s, k, agent
}

// logs waits until an agent has said something.
func logs(t *testing.T, a *lab.Agent, limit time.Duration, what string) {
	t.Helper()
	lab.Eventually(t, limit, "the agent says: "+what, func() error {
		if !strings.Contains(a.Log(), what) {
			return fmt.Errorf("not in the log")
		}
		return nil
	})
}

// B58: the way back to kube-proxy itself. To mode ipvs: the agent ends, kube-proxy starts, and when it has written its rules
// cleanup --keep-ipvs takes ours; nothing is lost. The control: with the table gone before kube-proxy is there the kernel
// stops to translate what was masqueraded. To the other modes: kube-proxy starts, from which the agent steps back, then the
// agent ends and cleanup takes out what is ours; no connection that begins after that is lost, nor one before that is
// over by then, flows from one port of pods and from outside go on, and connections that go through IPVS end.
func TestB58WayBack(t *testing.T) {
	program := kubeProxyProgram(t)
	for _, way := range []struct {
		name, mode string
		change     func(k *kubeProxy, agent *lab.Agent)
		loses      bool
	}{
		{"ipvs", "ipvs", func(k *kubeProxy, _ *lab.Agent) {
			k.start(program, "ipvs")
			k.wrote("ipvs")
			if said := cleanup(k.t, k.n, 0, []string{"nft delete table inet ipvs-proxy"}, "cleanup", "--keep-ipvs"); strings.Contains(said, "warning") {
				k.t.Errorf("kube-proxy has its rules: %s", said)
			}
		}, false},
		{"ipvs, control", "ipvs", func(k *kubeProxy, _ *lab.Agent) {
			cleanup(k.t, k.n, 0, []string{"warning: no other proxy has written its rules"}, "cleanup", "--keep-ipvs")
			k.start(program, "ipvs")
			k.wrote("ipvs")
		}, true},
		{"iptables", "iptables", nil, false},
		{"nftables", "nftables", nil, false},
	} {
		if !hasMode(t, way.mode) {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			s, k, agent := wayBack(t)
			k.t = t
			on := s.goesOn(t, k.svc)
			if way.change == nil {
				k.start(program, way.mode)
				k.wrote(way.mode)
				logs(t, agent, time.Minute, "another proxy is at work on this node")
			}
			if err := agent.Stop(); err != nil {
				t.Fatal(err)
			}
			if way.change == nil {
				cleanup(t, k.n, 0, nil, "cleanup")
				on.ended = time.Now()
			} else {
				way.change(k, agent)
			}
			on.more(8)
			if way.change == nil {
				on.flowsGoOn()
			}
			sum := on.stop()
			switch t.Logf("through the change: %s", sum); {
			case way.loses:
				if sum.lost+sum.broken+sum.missing == 0 {
					t.Error("the control lost nothing")
				}
			case sum.lost > 0 || way.change != nil && sum.broken+sum.missing > 0:
				t.Errorf("lost something")
			}
			k.serves()
			if strings.Contains(nftList(t, k.n, "ruleset"), ourTable) {
				t.Error("our table is left")
			}
		})
	}
}

// flowsGoOn waits until each flow is answered anew but for those of the node, whose sockets have the virtual IP as their
// own address.
func (r *traffic) flowsGoOn() {
	r.t.Helper()
	for i, f := range r.flows {
		if i%3 == 1 {
			continue
		}
		before := f.Report().Answered
		lab.Eventually(r.t, time.Minute, fmt.Sprintf("flow %d is answered again", i), func() error {
			if r := f.Report(); r.Answered < before+2 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	}
}

// F26: kube-proxy itself comes back beside the agent. The agent notices, says so and writes nothing while an endpoint leaves,
// which kube-proxy follows alone; when kube-proxy is gone, the agent takes over again and takes out what it left. Nothing
// is lost on the way.
func TestF26KubeProxyComesBack(t *testing.T) {
	program := kubeProxyProgram(t)
	s, k, agent := wayBack(t)
	on := s.goesOn(t, k.svc)
	p := k.start(program, "iptables")
	k.wrote("iptables")
	logs(t, agent, 10*time.Second, "another proxy is at work on this node")
	on.more(4)
	sum := on.stop()
	before := reals(t, k.n, at(k.svc, 4, 80))
	s.apply(k.svc, s.w.Pod("pod-b"))
	lab.Eventually(t, time.Minute, "kube-proxy follows", func() error {
		byPod, lost := s.w.Client.Spread(at(k.svc, 4, 80), 6)
		if byPod["pod-b"] != 6 {
			return fmt.Errorf("%v %v", byPod, lost)
		}
		return nil
	})
	if after := reals(t, k.n, at(k.svc, 4, 80)); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("beside kube-proxy the agent wrote: %q, was %q", after, before)
	}
	on = s.goesOn(t, k.svc)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	logs(t, agent, 3*time.Minute, "took out what kube-proxy left")
	on.more(4)
	back := on.stop()
	if t.Logf("kube-proxy comes: %s", sum); sum.lost+sum.broken+sum.missing > 0 {
		t.Error("lost something")
	}
	if t.Logf("kube-proxy has gone: %s", back); back.lost+back.broken+back.missing > 0 {
		t.Error("lost something")
	}
	wantReals(t, k.n, at(k.svc, 4, 80), "10.244.1.11:8080 1")
	if left := k.rules(); strings.Contains(left, "KUBE-SERVICES") {
		t.Errorf("left:\n%s", left)
	}
}

// B54: the same with kube-proxy itself, which is killed.
func TestB54TakeOverFromKubeProxy(t *testing.T) {
	program := kubeProxyProgram(t)
	for _, mode := range []string{"iptables", "nftables", "ipvs"} {
		if !hasMode(t, mode) {
			continue
		}
		t.Run(mode, func(t *testing.T) {
			takeOver(t, false, func(k *kubeProxy) {
				p := k.start(program, mode)
				k.serves()
				k.wrote(mode) // all of it
				if err := p.Kill(); err != nil {
					t.Fatal(err)
				}
			}, false, false)
		})
	}
}
