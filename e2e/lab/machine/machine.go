// Package machine finds a kernel with IPVS and runs programs on it as root:
// natively where this machine has one, else in a virtual machine that it
// makes from Debian's packages.
package machine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// guestDir is LAB_DIR in the virtual machine.
const guestDir = "/lab"

// Command is a program to run, with LAB_DIR, LAB_KERNEL, PATH and HOME=/tmp
// in its environment. Its process group ends with it: whatever it leaves
// running is killed before the next command starts.
type Command struct {
	Name    string
	Args    []string      // Args[0] is a file of the job, or a tool of the lab (nft, ip, ipvsadm, conntrack, sh)
	Env     []string      // $LAB_DIR in a value stands for that directory
	Dir     string        // below LAB_DIR, the default
	Timeout time.Duration // then SIGQUIT, so that Go prints its goroutines, then SIGKILL; 0: the job's
	Output  io.Writer     // default: the job's
	// Input is what it reads; nil: nothing. Where this is a terminal (an *os.File), the command gets one, too, of
	// the same size, and until it ends each key goes there, Ctrl-C as well. A read that is under way at the end
	// takes the next byte and loses it.
	Input io.Reader
}

// Job is what to run. All of it happens in one boot.
type Job struct {
	Files    map[string]string // name in LAB_DIR -> file or directory of the host
	Commands []Command
	Timeout  time.Duration // for everything; default 30 min. The machine is ended a little later
	Kernel   string        // Debian suite whose kernel to boot; default DefaultKernel; naming one means a virtual machine
	Memory   int           // MiB, default 2048
	CPUs     int           // default: what the kernel bears
	Icount   bool          // a clock that counts instructions, 1 ns each: one emulated processor, whatever CPUs says
	Output   io.Writer     // of the commands, as it comes; default os.Stdout
	Log      io.Writer     // what the lab itself does; default os.Stderr
	OnResult func(Result)  // called when a command has ended

	// HostPorts are TCP ports on this machine's loopback that the commands can reach, see wire.DialHost.
	HostPorts []uint16
	// KubeProxy adds what kube-proxy needs of a machine: programs and kernel modules.
	KubeProxy bool
}

// Result is how a command ended.
type Result struct {
	Command string
	Exit    int // -1: it did not end by itself, see Err
	Took    time.Duration
	Err     string
}

// Report is what happened. It is filled as far as possible when Run fails.
type Report struct {
	Mode    string // Native or VM
	Why     string // and why it was chosen
	Kernel  string // uname -r as the commands saw it
	Boot    time.Duration
	Results []Result
}

// Run runs the job. Its error is about the lab; how the commands fared is in
// the report.
func Run(ctx context.Context, job Job) (Report, error) {
	job.defaults()
	way, err := job.way(ctx)
	if err != nil {
		return Report{}, err
	}
	fmt.Fprintf(job.Log, "lab: %v\n", way)
	dir, err := os.MkdirTemp("", "ipvs-proxy-lab-")
	if err != nil {
		return Report{}, err
	}
	defer os.RemoveAll(dir)
	s := newSession(job)
	s.report.Mode, s.report.Why = way.Mode, way.Why
	run := runVM
	if way.Mode == Native {
		run = runNative
	}
	err = run(ctx, s, dir)
	s.fillUp(err)
	return s.report, err
}

// way is the one that this job takes.
func (j *Job) way(ctx context.Context) (Way, error) {
	switch {
	case j.Icount:
		return Way{Mode: VM, Why: "only an emulated processor counts its instructions"}, nil
	case j.Kernel != "":
		return Way{Mode: VM, Why: "the kernel of Debian " + j.Kernel + " is asked for"}, nil
	}
	return Choose(ctx)
}

func (j *Job) defaults() {
	if j.Timeout <= 0 {
		j.Timeout = 30 * time.Minute
	}
	if j.Memory <= 0 {
		j.Memory = 2048
	}
	if j.Output == nil {
		j.Output = os.Stdout
	}
	if j.Log == nil {
		j.Log = os.Stderr
	}
}

// tools are the programs that the job's commands may use.
func (j *Job) tools() []tool {
	if j.KubeProxy {
		return slices.Concat(testTools, kubeProxyTools)
	}
	return testTools
}

// spec is the job as the guest reads it. host is the way to the job's ports, as wire.DialHost reads it.
func (j *Job) spec(dir, nonce, host string) wire.Spec {
	s := wire.Spec{Nonce: nonce, Dir: dir, Network: len(j.HostPorts) > 0}
	for _, c := range j.Commands {
		limit := c.Timeout
		if limit <= 0 {
			limit = j.Timeout
		}
		w := wire.Command{Name: c.Name, Args: c.Args, Env: c.Env, Dir: c.Dir, Timeout: limit, Input: c.Input != nil}
		if s.Network {
			w.Env = append(slices.Clone(c.Env), wire.HostVariable+"="+host)
		}
		if t := terminal(c.Input); t != nil {
			w.Terminal = sizeOf(t)
		}
		s.Commands = append(s.Commands, w)
	}
	return s
}

func newNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// GuestVariable names a compiled init, for a machine without Go.
const GuestVariable = "LAB_GUEST"

// BuildGuest compiles the lab's init into a directory, unless GuestVariable names one. Go's build cache makes that quick.
func BuildGuest(ctx context.Context, dir string) (string, error) {
	if built := os.Getenv(GuestVariable); built != "" {
		return built, nil
	}
	out := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, GoTool(), "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out,
		"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the lab's init: %w\n%s", err, b)
	}
	return out, nil
}

// GoTool is the go command: GO if the Makefile found one off the PATH.
func GoTool() string {
	if p := os.Getenv("GO"); p != "" {
		return p
	}
	return "go"
}
