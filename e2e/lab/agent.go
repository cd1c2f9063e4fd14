package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stopTime is how long an agent may take to end after SIGTERM.
const stopTime = 30 * time.Second

// commandTime is how long a command of the agent may take, on a machine that has other work.
const commandTime = 5 * time.Minute

// Agent is a running ipvs-proxy of a node, or another program in a namespace of the world.
type Agent struct {
	Node *Node // nil for another program
	host *Host
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{} // closed when the process has ended
	err  error         // its exit, once done is closed

	mu    sync.Mutex
	ended bool // the test ended it or waits for its end
}

// StartAgent runs the program that the environment's LAB_AGENT names on a node;
// it ends with the test at the latest. An agent that ends by itself fails the
// test, unless the test waited for that.
func (w *World) StartAgent(t testing.TB, n *Node, c *Cluster, args ...string) *Agent {
	t.Helper()
	a, err := w.RunAgent(n, c, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	a.endWith(t)
	return a
}

// StartAgentOf is StartAgent for an agent that reads an API server: source are the arguments that say which.
func (w *World) StartAgentOf(t testing.TB, n *Node, source []string, args ...string) *Agent {
	t.Helper()
	a, err := w.runAgent(n, source, nil, args)
	if err != nil {
		t.Fatal(err)
	}
	a.endWith(t)
	return a
}

// StartProgram runs another program in a namespace, as StartAgent runs the agent: it is not expected to end by
// itself.
func (w *World) StartProgram(t testing.TB, h *Host, args ...string) *Agent {
	t.Helper()
	a, err := w.RunProgram(h, args...)
	if err != nil {
		t.Fatal(err)
	}
	a.endWith(t)
	return a
}

// RunProgram is StartProgram outside tests.
func (w *World) RunProgram(h *Host, args ...string) (*Agent, error) {
	a := &Agent{host: h, log: &logBuffer{}, done: make(chan struct{}), cmd: exec.Command(args[0], args[1:]...)}
	return a, w.runProcess(a, h.enter)
}

// endWith ends the agent with the test, and shows its log when that failed.
func (a *Agent) endWith(t testing.TB) {
	t.Cleanup(func() {
		if err := a.endOfTest(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", a, tail(a.Log(), 32<<10))
		}
	})
}

// RunAgent is StartAgent outside tests: the log also goes to out, unless that
// is nil, and the agent ends with the world at the latest.
func (w *World) RunAgent(n *Node, c *Cluster, out io.Writer, args ...string) (*Agent, error) {
	return w.runAgent(n, []string{"--source-dir", c.Dir}, out, args)
}

func (w *World) runAgent(n *Node, source []string, out io.Writer, args []string) (*Agent, error) {
	program := os.Getenv("LAB_AGENT")
	if program == "" {
		return nil, errors.New("LAB_AGENT does not name the program ipvs-proxy")
	}
	a := &Agent{Node: n, host: n.Host, log: &logBuffer{out: out}, done: make(chan struct{})}
	a.cmd = exec.Command(program, slices.Concat([]string{"run"}, source, []string{"--hostname-override", n.Name,
		"--cluster-cidr", fmt.Sprintf("%s,%s", ClusterCIDR4, ClusterCIDR6)}, args, strings.Fields(os.Getenv("LAB_AGENT_ARGS")))...)
	n.Container.in(a.cmd)
	return a, w.runProcess(a, n.enterForAgents)
}

// runProcess starts the process in the namespace that enter enters.
func (w *World) runProcess(a *Agent, enter func() error) error {
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	a.cmd.WaitDelay = 2 * time.Second // a grandchild may hold the log open
	started := make(chan error, 1)
	go a.run(enter, started)
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", a, err)
	}
	w.mu.Lock()
	w.agents = append(w.agents, a)
	w.mu.Unlock()
	return nil
}

// run starts the process in its namespace and stays until it ends: the
// parent that Pdeathsig watches is the thread, not the process. The thread is
// never unlocked, so it dies with this goroutine.
func (a *Agent) run(enter func() error, started chan<- error) {
	runtime.LockOSThread()
	err := enter()
	if err == nil {
		err = a.cmd.Start()
	}
	started <- err
	if err != nil {
		return
	}
	a.err = a.cmd.Wait()
	close(a.done)
}

// enterForAgents moves this thread, which must end with it, to where the node's
// agents run.
func (n *Node) enterForAgents() error {
	if err := n.enter(); err != nil {
		return err
	}
	if n.Container != nil {
		return n.Container.enter()
	}
	if n.ReadOnlySysctls {
		if err := readOnlySysctls(); err != nil {
			return err
		}
	}
	for _, c := range n.WithoutCaps {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// Command runs the program that the environment's LAB_AGENT names on the node
// until it ends, as the user with the id, and returns what it printed and its
// exit status. Without the program, or where it cannot be run, it fails the test.
func (n *Node) Command(t testing.TB, uid uint32, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv("LAB_AGENT"), args...)
	n.Container.in(cmd)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errOut, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, as with an agent
		err := n.enterForAgents()
		if err == nil {
			err = cmd.Run()
		}
		done <- err
	}()
	if err := <-done; err != nil && (!errors.As(err, new(*exec.ExitError)) || !cmd.ProcessState.Exited()) {
		t.Fatalf("%s on %s: %v\n%s%s", cmd, n.Name, err, &out, &errOut)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// readOnlySysctls makes /proc/sys read-only for this thread, which must end
// with it, and for what it starts.
func readOnlySysctls() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	const dir = "/proc/sys"
	for _, m := range []struct {
		from, to string
		flags    uintptr
	}{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE},
		{dir, dir, unix.MS_BIND},
		{"", dir, unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY},
	} {
		if err := unix.Mount(m.from, m.to, "", m.flags, ""); err != nil {
			return fmt.Errorf("read-only %s: mount on %s: %w", dir, m.to, err)
		}
	}
	return nil
}

func (a *Agent) String() string {
	if a.Node == nil {
		return fmt.Sprintf("%s in %s", strings.Join(a.cmd.Args, " "), a.host.Name)
	}
	return fmt.Sprintf("agent of %s (%s)", a.Node.Name, strings.Join(a.cmd.Args, " "))
}

// Pid is the process id.
func (a *Agent) Pid() int { return a.cmd.Process.Pid }

// Running tells whether the process has not ended yet.
func (a *Agent) Running() bool {
	select {
	case <-a.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal. SIGTERM, SIGINT and SIGKILL announce its end.
func (a *Agent) Signal(sig syscall.Signal) error {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL:
		a.expectEnd()
	}
	if err := a.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("%s to %s: %w", sig, a, err)
	}
	return nil
}

func (a *Agent) expectEnd() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
}

// Wait waits for the end of the process and returns how it exited; nil is exit
// status 0.
func (a *Agent) Wait(timeout time.Duration) error {
	a.expectEnd()
	select {
	case <-a.done:
	case <-time.After(timeout):
	}
	if a.Running() {
		return fmt.Errorf("%s still runs after %s", a, timeout)
	}
	return a.err
}

// Stop sends SIGTERM, waits and returns how the process exited. One that does
// not end within 30 s is killed.
func (a *Agent) Stop() error {
	if err := a.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := a.Wait(stopTime); err != nil {
		if a.Running() {
			return errors.Join(err, a.Kill())
		}
		return err
	}
	return nil
}

// Kill ends the process without a chance to tidy up, and waits.
func (a *Agent) Kill() error {
	if err := a.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-a.done
	return nil
}

// endOfTest tells when the agent had ended by itself, and ends it otherwise.
func (a *Agent) endOfTest() error {
	a.mu.Lock()
	ended := a.ended
	a.mu.Unlock()
	if !a.Running() {
		if ended {
			return nil
		}
		return fmt.Errorf("%s ended by itself: exit %v", a, a.err)
	}
	return a.Kill()
}

// Log is what the agent wrote so far, without the oldest part when it is much.
func (a *Agent) Log() string { return a.log.String() }

const maxLog = 1 << 20

// logBuffer collects a log; of a long one it keeps the last maxLog bytes, and
// up to as many before them.
type logBuffer struct {
	mu  sync.Mutex
	b   []byte
	out io.Writer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if len(l.b) > 2*maxLog { // seldom, so that moving the rest costs little
		l.b = append(l.b[:0], l.b[len(l.b)-maxLog:]...)
	}
	if l.out != nil {
		return l.out.Write(p)
	}
	return len(p), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

// tail is the end of a text, from the start of a line.
func tail(s string, bytes int) string {
	if len(s) <= bytes {
		return s
	}
	s = s[len(s)-bytes:]
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		s = s[i+1:]
	}
	return "[...]\n" + s
}
