package traffic

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// execControl is a program that does what the agent must not: it starts others. One of them is not there, as in
// the agent's image none would be.
const execControl = "/exec-control"

func init() {
	if os.Args[0] == execControl {
		err := exec.Command("/sbin/modprobe", "ip_vs").Run()
		fmt.Println(err)
		os.Exit(0)
	}
}

// kubeadmConfig is what kubeadm keeps in its ConfigMap, with the lab's pods. A node in a namespace cannot tune
// connection tracking as a whole.
const kubeadmConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
clusterCIDR: %s,%s
conntrack: {maxPerCore: 0, min: null, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
healthzBindAddress: ""
kind: KubeProxyConfiguration
metricsBindAddress: ""
mode: ipvs
nodePortAddresses: null
`

// The agent in its image, as kubeadm's DaemonSet would start it, with CAP_NET_ADMIN and nothing else, on a node
// that an init container of the same image has set up: it serves and follows changes, starts and stops, says
// nothing of missing rights, and never tries to start another program.
func TestImageRunsTheAgent(t *testing.T) {
	s := newStage(t)
	container := lab.NewContainer(t, s.cluster)
	const config = "/var/lib/kube-proxy/config.conf"
	file := filepath.Join(t.TempDir(), "config.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, kubeadmConfig, lab.ClusterCIDR4, lab.ClusterCIDR6), 0o644); err != nil {
		t.Fatal(err)
	}
	container.Binds[config] = file
	kubeletsOOMScore(t)
	execs := lab.CountExecs(t)
	commands := 0
	for _, n := range s.w.Nodes {
		setSysctls(t, n, zero(wantedSysctls))
		first := *container
		first.Command, first.Privileged, first.Caps = []string{"/usr/local/bin/ipvs-proxy"}, true, []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_MODULE}
		n.Container = &first
		initNode(t, n, 0, []string{"sysctl -w net/ipv4/ip_forward=1"}, "--config="+config)
		n.Container = container
		commands++
	}
	s.start("--config=" + config)
	svc := web(90)
	s.apply(svc, s.pods()[:2]...)
	s.ready(svc)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			answers(t, c.Host, at(svc, family, 80))
		}
	})
	started := map[int]bool{}
	for _, a := range s.agents {
		confined(t, a)
		started[a.Pid()] = true
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
	}
	s.agents = nil
	s.start("--config=" + config)
	s.apply(svc, s.pods()[2])
	each(t, func(t *testing.T, family int) {
		for _, n := range s.w.Nodes {
			addr := netip.AddrPortFrom(s.pods()[2].Addr(family), 8080).String() + " 1"
			lab.Eventually(t, soon, "an agent that was started anew follows", func() error {
				if got := reals(t, n, at(svc, family, 80)); !slices.Contains(got, addr) {
					return fmt.Errorf("real servers %q", got)
				}
				return nil
			})
		}
	})
	for _, a := range s.agents {
		started[a.Pid()] = true
		if log := a.Log(); strings.Contains(log, "operation not permitted") || strings.Contains(log, "permission denied") || strings.Contains(log, "read-only") || strings.Contains(log, "node set-up is incomplete") {
			t.Errorf("%s wants more than it has:\n%s", a, log)
		}
	}
	onlyStarts(t, execs, started, commands)

	// The control: the count notices a program in the same container that tries to start another.
	container.Binds[execControl], container.Command = executable(t), []string{execControl}
	control := s.w.StartAgent(t, s.w.Node(1), s.cluster)
	if err := control.Wait(soon); err != nil {
		t.Fatal(err)
	}
	if n := len(execs.ByThread(t)) - len(started) - commands; n != 2 || !strings.Contains(control.Log(), "no such file") {
		t.Errorf("the control started another program, and the count of starts went up by %d, want 2: %s", n, control.Log())
	}
}

// kubeletsOOMScore gives this process, and so the agents, the OOM score that the kubelet gives a pod of priority
// system-node-critical. It is not the one in kube-proxy's configuration, which the agent may not set.
func kubeletsOOMScore(t *testing.T) {
	t.Helper()
	const file = "/proc/self/oom_score_adj"
	had, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("-997"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, had, 0); err != nil {
			t.Error(err)
		}
	})
}

func executable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// onlyStarts: each agent came about by one execve, so did the commands, and there was no other.
func onlyStarts(t *testing.T, execs *lab.Execs, agents map[int]bool, commands int) {
	t.Helper()
	noticed, others := 0, 0
	for tid, n := range execs.ByThread(t) {
		if n != 1 {
			t.Errorf("thread %d tried to start a program %d times", tid, n)
		}
		if agents[tid] {
			noticed++
		} else {
			others++
		}
	}
	if noticed != len(agents) {
		t.Errorf("of the starts of %d agents %d were noticed", len(agents), noticed)
	}
	if others != commands {
		t.Errorf("besides the agents %d programs were started, want the %d of the init containers", others, commands)
	}
}

// confined: a process has the rights of the manifest's container and no others.
func confined(t *testing.T, a *lab.Agent) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", a.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	have := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		have[key] = strings.TrimSpace(value)
	}
	netAdmin := fmt.Sprintf("%016x", uint64(1)<<unix.CAP_NET_ADMIN)
	for key, want := range map[string]string{"CapEff": netAdmin, "CapPrm": netAdmin, "CapBnd": netAdmin, "CapAmb": "0000000000000000", "NoNewPrivs": "1"} {
		if have[key] != want {
			t.Errorf("%s: %s is %q, want %s", a, key, have[key], want)
		}
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", a.Pid())); err != nil || exe != "/usr/local/bin/ipvs-proxy" {
		t.Errorf("%s: it runs %s, %v", a, exe, err)
	}
	var root unix.Statfs_t
	if err := unix.Statfs(fmt.Sprintf("/proc/%d/root", a.Pid()), &root); err != nil || root.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("%s: its root is not read-only, %v", a, err)
	}
}
