package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// keptProgram is what the agent costs as a program of its own, with a directory as its source and without an audit.
type keptProgram struct {
	There bool // the program is
	Start time.Duration
	Idle  time.Duration // in idleTime
	Most  int64         // bytes that it had in memory, until all was programmed
}

// unaudited is a configuration in which the audit never comes.
const unaudited = `apiVersion: ipvs-proxy.io/v1alpha1
kind: IPVSProxyConfiguration
auditPeriod: 10000h
`

// runKeptProgram keeps a node by the agent itself.
func runKeptProgram(o options) (is keptProgram, err error) {
	path, there := agentProgram()
	if !there {
		return is, nil
	}
	is.There = true
	dir, err := os.MkdirTemp("", "kept-")
	if err != nil {
		return is, err
	}
	defer os.RemoveAll(dir)
	source, config := filepath.Join(dir, "source"), filepath.Join(dir, "config.yaml")
	if err := errors.Join(os.Mkdir(source, 0o700), os.WriteFile(config, []byte(unaudited), 0o600), o.writeObjects(filepath.Join(source, "all.yaml"))); err != nil {
		return is, err
	}
	var said bytes.Buffer
	agent := exec.Command(path, "run", "--source-dir", source, "--config", config, "--hostname-override", nodeName(0), "--cluster-cidr", "10.128.0.0/9")
	agent.Stderr = &said
	agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := agent.Start(); err != nil {
		return is, err
	}
	err = is.follow(agent.Process.Pid, o)
	if stop := errors.Join(agent.Process.Signal(unix.SIGTERM), agent.Wait()); err != nil || stop != nil {
		err = fmt.Errorf("%w; %s", errors.Join(err, stop), tail(said.String()))
	}
	return is, err
}

// follow measures an agent from its start on.
func (is *keptProgram) follow(pid int, o options) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	for {
		left, err := countReals(-o.services * o.endpoints)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err == nil && left >= 0 {
			break
		}
		if time.Sleep(time.Second); ctx.Err() != nil {
			return fmt.Errorf("not programmed: %d real servers", left+o.services*o.endpoints)
		}
	}
	time.Sleep(5 * time.Second) // addresses, and what else is left to write
	if is.Start, err = timeOf(pid); err == nil {
		is.Most, err = mostMemory(pid)
	}
	time.Sleep(10 * time.Minute) // until the collector rests
	used, more := timeOf(pid)
	time.Sleep(idleTime)
	now, another := timeOf(pid)
	is.Idle = now - used
	return errors.Join(err, more, another)
}

// writeObjects writes the cluster as kubectl prints it, into one file.
func (o options) writeObjects(file string) error {
	text := bytes.NewBufferString("apiVersion: v1\nkind: List\nitems:\n")
	for i := range o.services {
		svc, eps := service(i, corev1.ServicePort{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}), webSlice(i, o.endpoints, 0)
		svc.APIVersion, svc.Kind, eps.APIVersion, eps.Kind = "v1", "Service", "discovery.k8s.io/v1", "EndpointSlice"
		eps.Namespace = svc.Namespace
		for _, obj := range []any{svc, eps} {
			b, err := yaml.Marshal(obj)
			if err != nil {
				return err
			}
			fmt.Fprintf(text, "- %s\n", strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", "\n  "))
		}
	}
	return os.WriteFile(file, text.Bytes(), 0o600)
}

// timeOf is the processor time that a process has had.
func timeOf(pid int) (time.Duration, error) {
	const scheduler = 2 // CPUCLOCK_SCHED: as exact as the scheduler
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduler), &t); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// mostMemory is the most that a process had in memory.
func mostMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, is := strings.CutPrefix(line, "VmHWM:"); is {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d does not say what it had in memory", pid)
}

// tail is the end of what a program said.
func tail(text string) string { return text[max(0, len(text)-1000):] }
