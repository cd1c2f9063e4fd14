// Package programs builds the programs of others that the tests run: those of Kubernetes, etcd, CoreDNS, flannel
// and the CNI plugin portmap.
// Each has a Go module of its own below this directory, for its dependencies are none of the agent's; what it
// requires there is what is built. Compiling them takes a quarter of an hour, so they stay in the lab's cache.
package programs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// Dir is where the modules are, below the root of the repository.
const Dir = "e2e/programs"

// Names of programs.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	KubeProxy         = "kube-proxy"
	Kubelet           = "kubelet"
	Kubeadm           = "kubeadm"
	Kubectl           = "kubectl"
	CoreDNS           = "coredns"
	Flannel           = "flannel"
	Portmap           = "portmap"
)

// Releases are the versions of Kubernetes whose programs can be built, each from a module of its own, newest first.
var Releases = []string{"1.37.2", "1.36.3", "1.35.4"}

// Default is that of Releases which tests run beside where nobody says which.
const Default = "1.37.2"

// CheckRelease says why a version of Kubernetes is none that can be built.
func CheckRelease(version string) error {
	if !slices.Contains(Releases, version) {
		return fmt.Errorf("no programs of Kubernetes %q: want one of %s", version, strings.Join(Releases, ", "))
	}
	return nil
}

// program is a main package of one of the modules.
type program struct {
	module string // directory below Dir
	pkg    string
	vars   map[string]string // string variables that the linker sets
	c      bool              // a part of it is written in C
}

var programs = map[string]program{
	Etcd:    {module: "etcd", pkg: "go.etcd.io/etcd/server/v3"},
	CoreDNS: {module: "coredns", pkg: "github.com/coredns/coredns"},
	Flannel: {module: "flannel", pkg: "github.com/flannel-io/flannel", c: true},
	Portmap: {module: "cni", pkg: "github.com/containernetworking/plugins/plugins/meta/portmap"},
}

// ofKubernetes are the programs that a release of Kubernetes has; those of a node's machine are had of Default alone.
var (
	ofKubernetes = []string{APIServer, ControllerManager, KubeProxy}
	ofMachines   = []string{Scheduler, Kubelet, Kubeadm, Kubectl}
)

// find returns the program of a name, for one of Kubernetes that of a release.
func find(release, name string) (program, error) {
	if p, ok := programs[name]; ok {
		return p, nil
	}
	switch {
	case slices.Contains(ofKubernetes, name):
	case !slices.Contains(ofMachines, name):
		return program{}, fmt.Errorf("no program called %q", name)
	case release != Default:
		return program{}, fmt.Errorf("no %s of Kubernetes %q: want %s", name, release, Default)
	}
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	// Release builds take the version from version control, which a module has not.
	return program{module: "kubernetes-" + major + "." + minor, pkg: "k8s.io/kubernetes/cmd/" + name, vars: map[string]string{
		"k8s.io/component-base/version.gitVersion":   "v" + release,
		"k8s.io/component-base/version.gitMajor":     major,
		"k8s.io/component-base/version.gitMinor":     minor,
		"k8s.io/component-base/version.gitCommit":    "",
		"k8s.io/component-base/version.gitTreeState": "clean",
	}}, CheckRelease(release)
}

// Build returns the files of the named programs, static ones for this machine's kind of processor. root is the
// root of the repository, release one of Releases. What is not in the cache is compiled, which log is told.
func Build(ctx context.Context, root, release string, log io.Writer, names ...string) (map[string]string, error) {
	files := map[string]string{}
	for _, name := range names {
		p, err := find(release, name)
		if err != nil {
			return nil, err
		}
		file, err := p.build(ctx, filepath.Join(root, Dir, p.module), name, log)
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", name, err)
		}
		files[name] = file
	}
	return files, nil
}

// Cached is the file of a program that Build has compiled; empty: it has not.
func Cached(ctx context.Context, root, release, name string) (string, error) {
	p, err := find(release, name)
	if err != nil {
		return "", err
	}
	key, err := cacheKey(ctx, filepath.Join(root, Dir, p.module), p.buildArgs())
	if err != nil {
		return "", err
	}
	return machine.InCache(filepath.Join(name+"-"+key, name))
}

func (p program) build(ctx context.Context, module, name string, log io.Writer) (string, error) {
	args := p.buildArgs()
	key, err := cacheKey(ctx, module, args)
	if err != nil {
		return "", err
	}
	dir, err := machine.Cached(name+"-"+key, func(tmp string) error {
		start := time.Now()
		fmt.Fprintf(log, "building %s of %s, once\n", name, p.pkg)
		cmd := goCommand(ctx, module, slices.Concat([]string{"build", "-o", filepath.Join(tmp, name)}, args)...)
		if p.c {
			if err := machine.EnsureCompiler(ctx, log); err != nil {
				return err
			}
			cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		fmt.Fprintf(log, "built %s in %s\n", name, time.Since(start).Round(time.Second))
		return nil
	})
	return filepath.Join(dir, name), err
}

func (p program) buildArgs() []string {
	flags := "-s -w"
	for _, v := range slices.Sorted(maps.Keys(p.vars)) {
		flags += " -X " + v + "=" + p.vars[v]
	}
	args := []string{"-mod=readonly", "-trimpath", "-buildvcs=false"}
	if p.c {
		args = append(args, "-tags", "netgo,osusergo")
		flags += " -linkmode external -extldflags -static"
	}
	return append(args, "-ldflags", flags, p.pkg)
}

// goCommand runs go in a module of its own, whatever workspace the caller is in.
func goCommand(ctx context.Context, module string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, machine.GoTool(), args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOWORK=off")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// cacheKey follows from all that a program is made of: its module, the compiler, and how it is called.
func cacheKey(ctx context.Context, module string, args []string) (string, error) {
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", name, len(b), b)
	}
	version, err := goCommand(ctx, module, "version").Output()
	if err != nil {
		return "", fmt.Errorf("ask Go for its version: %w", err)
	}
	fmt.Fprintf(sum, "%s%s", version, strings.Join(args, "\x00"))
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}
