package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// enterContainer starts this program again in namespaces of its own.
func enterContainer(args []string) error {
	runtime.LockOSThread() // Pdeathsig follows the thread that forks
	cmd := exec.Command("/proc/self/exe", append([]string{"inside-" + args[0]}, args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if _, err := os.Stat(namedNamespaces); err != nil { // the container makes it, to mount on: see furnish
		defer os.Remove(namedNamespaces)
	}
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		return fmt.Errorf("make namespaces of mounts, network and processes: %w%s", err, why(err))
	}
	return err
}

// why says what an errno of a right that lacks is about.
func why(err error) string {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return " (root without CAP_SYS_ADMIN or behind a filter of system calls, as in a container)"
	}
	return ""
}

// insideNative runs the job of the given specification.
func insideNative(file string) error {
	// The host holds our standard input open. When it goes away, however it
	// does, so do we, and with the init all of this process namespace.
	in := newInput()
	go func() {
		in.follow(os.Stdin)
		select {
		case <-in.bye: // it knows that we go
		default:
			os.Exit(1)
		}
	}()
	var spec wire.Spec
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	s := stream{fd: 1, nonce: spec.Nonce}
	if err := errors.Join(furnish(), settle()); err != nil {
		s.send(wire.Message{Fatal: err.Error()})
	} else {
		runAll(s, in, spec)
	}
	s.send(wire.Message{Bye: true})
	return nil
}

// namedNamespaces is where namespaces have names.
const namedNamespaces = "/run/netns"

// furnish turns the fresh mount namespace into one where the tests may mount
// and name network namespaces without the machine seeing it.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private (a chroot?): %w%s", err, why(err))
	}
	if err := os.MkdirAll(namedNamespaces, 0o755); err != nil {
		return err
	}
	for _, m := range []struct{ fs, dir string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"}, // shows the devices of this network namespace
		{"tmpfs", namedNamespaces},
	} {
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w%s", m.fs, m.dir, err, why(err))
		}
	}
	return nil
}
