package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Names of the machines, as the Vagrantfile has them.
const (
	master = "k8s-master"
	node1  = "k8s-node1"
	node2  = "k8s-node2"
)

var (
	nodes     = []string{master, node1, node2}
	addresses = map[string]string{master: "172.28.128.14", node1: "172.28.128.10", node2: "172.28.128.11"}
)

// vagrant runs the command in the directory of the Vagrantfile. What it keeps is in the directory of the state.
func (c *cluster) vagrant(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "vagrant", args...)
	cmd.Dir = filepath.Join(c.root, here)
	cmd.Env = append(os.Environ(), "VAGRANT_DOTFILE_PATH="+filepath.Join(c.dir, "vagrant"))
	if os.Getenv("VAGRANT_DEFAULT_PROVIDER") == "" {
		cmd.Env = append(cmd.Env, "VAGRANT_DEFAULT_PROVIDER=libvirt")
	}
	return run(cmd)
}

// run returns what a command printed; its error has the last lines of all that it said.
func run(cmd *exec.Cmd) ([]byte, error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(out.String()+"\n"+said.String()), "\n")
		return out.Bytes(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
	return out.Bytes(), nil
}

// on runs a script on a machine, as root.
func (c *cluster) on(ctx context.Context, machine, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "ssh", "-F", filepath.Join(c.dir, "ssh.conf"), machine, "sudo", "sh", "-eu")
	cmd.Stdin = strings.NewReader(script)
	out, err := run(cmd)
	if err != nil {
		err = fmt.Errorf("on %s: %w", machine, err)
	}
	return string(out), err
}

// startMachines starts those that do not run, one after the other, and learns the way to each.
func (c *cluster) startMachines(ctx context.Context) error {
	if err := startLibvirt(ctx); err != nil {
		return err
	}
	var conf bytes.Buffer
	for _, m := range nodes {
		if err := c.step("machine "+m, func() error {
			if status, err := c.vagrant(ctx, "status", "--machine-readable", m); err == nil && strings.Contains(string(status), m+",state,running") {
				return errDone
			}
			_, err := c.vagrant(ctx, "up", "--no-provision", m)
			return err
		}); err != nil {
			return err
		}
		out, err := c.vagrant(ctx, "ssh-config", m)
		if err != nil {
			return err
		}
		conf.Write(out)
	}
	// One connection for all commands: to make one takes an emulated machine seconds.
	fmt.Fprintf(&conf, "Host *\n  ControlMaster auto\n  ControlPath %s/%%n.sock\n  ControlPersist 10m\n  ServerAliveInterval 15\n  ConnectTimeout 120\n", c.dir)
	return os.WriteFile(filepath.Join(c.dir, "ssh.conf"), conf.Bytes(), 0o600)
}

// startLibvirt starts libvirt's programs where no service manager does.
func startLibvirt(ctx context.Context) error {
	if _, err := exec.LookPath("libvirtd"); err != nil { // another provider
		return nil
	}
	answers := func() error { return exec.CommandContext(ctx, "virsh", "--connect", "qemu:///system", "uri").Run() }
	if answers() == nil {
		return nil
	}
	for _, program := range []string{"virtlogd", "libvirtd"} {
		if _, err := run(exec.CommandContext(ctx, program, "-d")); err != nil {
			return fmt.Errorf("start libvirt: %w", err)
		}
	}
	return until(ctx, time.Minute, "libvirt answers", answers)
}

// until asks again, once a second, until there is no error; what says for what.
func until(ctx context.Context, limit time.Duration, what string, ask func() error) error {
	end := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: not within %s: %w", what, limit, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w, last: %w", what, ctx.Err(), err)
		case <-time.After(time.Second):
		}
	}
}
