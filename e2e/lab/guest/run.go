package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// quitGrace is how long a command that overran its time may take to print
// its goroutines. The virtual machine is slow.
const quitGrace = 15 * time.Second

// lateExit is the status of a command that overran its time, whatever it made
// of the signal; timeout(1) uses the same.
const lateExit = 124

// stream writes messages to the host between the commands' output.
type stream struct {
	fd    int
	nonce string
}

func (s stream) send(m wire.Message) {
	if _, err := portWriter(s.fd).Write(wire.Encode(s.nonce, m)); err != nil {
		fmt.Fprintf(os.Stderr, "lab guest: tell host: %v\n", err)
	}
}

// runAll runs the commands of the job and reports each.
func runAll(s stream, in *input, spec wire.Spec) {
	kernel := release()
	s.send(wire.Message{Kernel: kernel})
	for i, c := range spec.Commands {
		r := runNext(s, in, i, spec.Dir, kernel, c)
		s.send(wire.Message{Result: &r})
	}
}

// runNext runs the command with this index, to the end of all that it started.
func runNext(s stream, in *input, i int, dir, kernel string, c wire.Command) wire.Result {
	r := wire.Result{Index: i, Exit: 127}
	std, err := openStdio(s.fd, c)
	if err != nil {
		r.Err = err.Error()
		return r
	}
	in.attach(i, std) // before the host hears that it may send
	s.send(wire.Message{Start: &i})
	start := time.Now()
	if r.Exit, err = runOne(std, dir, kernel, c); err != nil {
		r.Err = err.Error()
	}
	r.Took = time.Since(start)
	killRest()
	in.detach()
	std.close()
	return r
}

// runOne starts a command and collects all zombies until it ends. It stays
// below os/exec, whose Wait would compete with ours for the exit status.
func runOne(std *stdio, dir, kernel string, c wire.Command) (int, error) {
	if len(c.Args) == 0 {
		return 127, errors.New("no program given")
	}
	env := commandEnv(dir, kernel)
	for _, kv := range c.Env {
		env = append(env, strings.ReplaceAll(kv, "$LAB_DIR", dir))
	}
	prog, err := lookup(dir, c.Args[0], env)
	if err != nil {
		return 127, err
	}
	pid, err := syscall.ForkExec(prog, c.Args, &syscall.ProcAttr{
		Dir:   filepath.Join(dir, c.Dir),
		Env:   env,
		Files: std.child[:],
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: std.terminal},
	})
	if err != nil {
		return 127, fmt.Errorf("start %s: %w", prog, err)
	}
	std.started()
	var late atomic.Bool
	if c.Timeout > 0 {
		quit := time.AfterFunc(c.Timeout, func() { late.Store(true); _ = unix.Kill(pid, unix.SIGQUIT) })
		kill := time.AfterFunc(c.Timeout+quitGrace, func() { _ = unix.Kill(-pid, unix.SIGKILL) })
		defer quit.Stop()
		defer kill.Stop()
	}
	ws, err := reapUntil(pid)
	switch {
	case err != nil:
		return 127, err
	case late.Load():
		return lateExit, fmt.Errorf("did not end within %v, stopped", c.Timeout)
	case ws.Signaled():
		return exitOf(ws), fmt.Errorf("killed by %s", unix.SignalName(ws.Signal()))
	}
	return exitOf(ws), nil
}

// exitOf is the exit status as a shell would give it.
func exitOf(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func reapUntil(pid int) (unix.WaitStatus, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return ws, fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if got == pid {
			return ws, nil
		}
	}
}

// killRest ends whatever a command left running, so that the next one finds
// the machine to itself. As the init of this process namespace we are the
// only one that the signal spares.
func killRest() {
	if os.Getpid() != 1 {
		return
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

func commandEnv(dir, kernel string) []string {
	path := toolPath
	if p := os.Getenv("PATH"); p != "" {
		path += ":" + p
	}
	return []string{"PATH=" + path, "HOME=/tmp", "TMPDIR=/tmp", "LAB_DIR=" + dir, "LAB_KERNEL=" + kernel}
}

// lookup finds the program among the job's files, else on the PATH.
func lookup(dir, name string, env []string) (string, error) {
	if p := filepath.Join(dir, name); executable(p) {
		return p, nil
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(list) {
			if p := filepath.Join(d, name); executable(p) {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("%s: neither a file of the job nor a tool of the lab: %w", name, exec.ErrNotFound)
}

func executable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
