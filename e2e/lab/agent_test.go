package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary plays the agent, and the lab that dies under an agent.
func TestMain(m *testing.M) {
	switch os.Getenv("LAB_TEST_ROLE") {
	case "agent":
		os.Exit(agentMain())
	case "lab":
		os.Exit(labMain())
	}
	os.Exit(m.Run())
}

func agentMain() int {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	addrs, err := net.InterfaceAddrs()
	fmt.Println("args", os.Args[1:])
	fmt.Println("addresses", addrs, err)
	if strings.Contains(fmt.Sprint(os.Args), "--fail") {
		return 7
	}
	fmt.Println("ready")
	<-stop
	fmt.Println("stopping")
	return 0
}

func asAgent(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("LAB_AGENT", self)
	t.Setenv("LAB_TEST_ROLE", "agent")
}

func logHas(a *Agent, text string) func() error {
	return func() error {
		if !strings.Contains(a.Log(), text) {
			return fmt.Errorf("no %q in the log:\n%s", text, a.Log())
		}
		return nil
	}
}

func TestAgent(t *testing.T) {
	w := NewWithoutIPVS(t)
	asAgent(t)
	t.Setenv("LAB_AGENT_ARGS", "-v 4")
	c := w.Cluster(t)
	a := w.StartAgent(t, w.Node(2), c, "--healthz-bind-address", "")
	Eventually(t, 30*time.Second, "the agent being ready", logHas(a, "ready"))
	want := fmt.Sprintf("args [run --source-dir %s --hostname-override node2 --cluster-cidr 10.244.0.0/16,fd10:244::/32 --healthz-bind-address  -v 4]", c.Dir)
	for _, text := range []string{want, w.Node(2).V4.String(), w.Node(2).V6.String()} {
		if err := logHas(a, text)(); err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(a.Log(), w.Node(1).V4.String()) {
		t.Errorf("the agent of node2 sees node1:\n%s", a.Log())
	}
	if err := a.Wait(50 * time.Millisecond); err == nil || !a.Running() {
		t.Errorf("it ended? %v", err)
	}
	if state := w.Node(2).State(); !strings.Contains(state, "ready") || strings.Contains(w.Node(1).State(), "ready") {
		t.Errorf("the agent's log is not in the state of its node alone:\n%s", w.State())
	}
	if err := a.Stop(); err != nil {
		t.Errorf("stopping it: %v", err)
	}
	if err := logHas(a, "stopping")(); err != nil {
		t.Error(err)
	}
	if err := a.Stop(); err != nil {
		t.Errorf("stopping it again: %v", err)
	}
}

func TestAgentExits(t *testing.T) {
	w := NewWithoutIPVS(t)
	asAgent(t)
	c := w.Cluster(t)
	a := w.StartAgent(t, w.Node(1), c, "--fail")
	var exit *exec.ExitError
	if err := a.Wait(30 * time.Second); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("an agent that exits with 7: %v", err)
	}
	var out bytes.Buffer
	a, err := w.RunAgent(w.Node(1), c, &out)
	if err != nil {
		t.Fatal(err)
	}
	Eventually(t, 30*time.Second, "the agent being ready", logHas(a, "ready"))
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := a.Wait(0); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("a killed agent: %v", err)
	}
	if out.String() != a.Log() {
		t.Errorf("out got %q, the log %q", out.String(), a.Log())
	}
}

// An agent that dies under a test must not go unnoticed.
func TestAgentThatDiesIsToldOf(t *testing.T) {
	w := NewWithoutIPVS(t)
	asAgent(t)
	a, err := w.RunAgent(w.Node(1), w.Cluster(t), nil, "--fail")
	if err != nil {
		t.Fatal(err)
	}
	<-a.done
	if err := a.endOfTest(); err == nil {
		t.Error("an agent that ended by itself was not told of")
	}
	b, err := w.RunAgent(w.Node(1), w.Cluster(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.endOfTest(); err != nil || b.Running() {
		t.Errorf("an agent that ran to the end of the test: %v", err)
	}
}

// labMain starts an agent, says its process id and waits to be killed.
func labMain() int {
	os.Setenv("LAB_TEST_ROLE", "agent")
	w, err := Build(Config{Nodes: 1, Pods: []PodSpec{}})
	if err == nil {
		var a *Agent
		if a, err = w.RunAgent(w.Node(1), &Cluster{Dir: os.TempDir()}, nil); err == nil {
			fmt.Println(a.Pid())
			select {}
		}
	}
	fmt.Println(err)
	return 1
}

func TestAgentDiesWithTheLab(t *testing.T) {
	needPrivileges(t)
	asAgent(t)
	t.Setenv("LAB_TEST_ROLE", "lab")
	lab := exec.Command(os.Getenv("LAB_AGENT"))
	out, err := lab.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var pid int
	if _, scanErr := fmt.Sscan(line, &pid); scanErr != nil {
		t.Errorf("the lab said %q: %v", line, err)
	} else if alive(pid) != nil {
		t.Error(alive(pid))
	}
	lab.Process.Kill()
	lab.Wait()
	if pid == 0 {
		return
	}
	Eventually(t, 30*time.Second, "the end of the agent", func() error {
		if alive(pid) == nil {
			return fmt.Errorf("agent %d outlives its lab", pid)
		}
		return nil
	})
}

// alive has no error for a process that is neither gone nor a zombie, which it
// stays where nobody reaps orphans.
func alive(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	if _, state, ok := strings.Cut(string(stat), ") "); !ok || state[0] == 'Z' || state[0] == 'X' {
		return fmt.Errorf("process %d is ended: %s", pid, stat)
	}
	return nil
}
