package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// Tags under which images of others are served: the versions that e2e/programs requires.
const (
	etcdTag    = "3.7.3"
	coreDNSTag = "v1.15.0"
	flannelTag = "v0.27.4"
	pauseTag   = "3.10.2"
)

// agentImage is the repository of the agent's image, and agentVersion the release that the cluster gets.
const (
	agentImage   = hostAddress + "/ipvs-proxy"
	agentVersion = "v0.0.1"
)

// built are the programs of others that the machines run.
var built = []string{programs.Kubelet, programs.Kubeadm, programs.Kubectl, programs.KubeProxy, programs.APIServer,
	programs.ControllerManager, programs.Scheduler, programs.Etcd, programs.CoreDNS, programs.Flannel}

// ready makes all that the machines need and this machine has not: Debian's packages, programs, the box, a release.
func (c *cluster) ready(ctx context.Context) (err error) {
	if err := machine.EnsurePackages(ctx, c.out, "mmdebstrap", "openssh-client", "git"); err != nil {
		return err
	}
	if provider := os.Getenv("VAGRANT_DEFAULT_PROVIDER"); os.Getenv("BOX") == "" && (provider == "" || provider == "libvirt") {
		if err := c.box(ctx); err != nil {
			return err
		}
	}
	if c.programs, err = programs.Build(ctx, c.root, programs.Default, c.out, built...); err != nil {
		return err
	}
	bin := filepath.Join(c.dir, "bin")
	for _, dir := range []string{bin, filepath.Join(c.dir, "blobs")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, p := range []string{programs.Kubelet, programs.Kubeadm, programs.Kubectl} {
		if err := relink(c.programs[p], filepath.Join(bin, p)); err != nil {
			return err
		}
	}
	if err := c.goBuild(ctx, "./app", filepath.Join(c.dir, "app")); err != nil {
		return err
	}
	if _, err := c.tools(ctx); err != nil {
		return err
	}
	return c.release(ctx)
}

// relink makes a symbolic link anew.
func relink(to, link string) error {
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(to, link)
}

// goBuild builds a program of this module.
func (c *cluster) goBuild(ctx context.Context, pkg, file string) error {
	cmd := exec.CommandContext(ctx, machine.GoTool(), "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", file, pkg)
	cmd.Dir = filepath.Join(c.root, here)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := run(cmd)
	return err
}

// release makes a release of what is in the tree, as make release does: the cluster installs its files.
func (c *cluster) release(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, machine.GoTool(), "run", "./release", "--source", c.root, "--version", agentVersion,
		"--image", agentImage, "--out", c.dist(), "--dirty")
	cmd.Dir = filepath.Join(c.root, "hack/release")
	_, err := run(cmd)
	return err
}

// dist is the directory of the release.
func (c *cluster) dist() string { return filepath.Join(c.dir, "dist") }

// serve serves what the machines ask for, as long as ctx lasts.
func (c *cluster) serve(ctx context.Context) error {
	tools, err := c.tools(ctx)
	if err != nil {
		return err
	}
	if err := serveFiles(ctx, filepath.Join(c.dir, "bin"), filepath.Join(c.dir, "blobs")); err != nil {
		return err
	}
	return c.step("images", func() error {
		for _, i := range c.images(tools) {
			if err := i.push(ctx); err != nil {
				return err
			}
		}
		cmd := exec.CommandContext(ctx, machine.GoTool(), "run", "./push", "--archive",
			filepath.Join(c.dist(), "ipvs-proxy-"+agentVersion+"-image.tar"), "--image", agentImage)
		cmd.Dir = filepath.Join(c.root, "hack/release")
		_, err := run(cmd)
		return err
	})
}

func (c *cluster) images(tools string) []image {
	app := filepath.Join(c.dir, "app")
	out := []image{
		{name: "pause:" + pauseTag, file: app, path: "/app", command: []string{"/app", "pause"}},
		{name: "etcd:" + etcdTag, file: c.programs[programs.Etcd], path: "/usr/local/bin/etcd"},
		{name: "coredns/coredns:" + coreDNSTag, file: c.programs[programs.CoreDNS], path: "/coredns", command: []string{"/coredns"}},
		{name: "flannel:" + flannelTag, file: c.programs[programs.Flannel], path: "/flanneld", base: tools, command: []string{"/flanneld"}},
		{name: "app:1", file: app, path: "/app", command: []string{"/app"}},
	}
	for _, p := range []string{programs.APIServer, programs.ControllerManager, programs.Scheduler} {
		out = append(out, image{name: p + ":v" + programs.Default, file: c.programs[p], path: "/usr/local/bin/" + p})
	}
	return append(out, image{name: "kube-proxy:v" + programs.Default, file: c.programs[programs.KubeProxy], path: "/usr/local/bin/kube-proxy", base: tools})
}

// tools is a layer with what kube-proxy and flannel start: of Debian's packages.
func (c *cluster) tools(ctx context.Context) (string, error) {
	const packages = "iptables,ipset,kmod,dash,busybox-static,curl"
	sources, err := c.sources()
	if err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(packages))
	dir, err := machine.Cached("image-tools-"+hex.EncodeToString(key[:8]), func(tmp string) error {
		fmt.Fprintln(c.out, "getting the packages that images need, once")
		_, err := run(exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=extract", "--include="+packages,
			"--skip=output/dev", suite, filepath.Join(tmp, "root.tar"), sources))
		return err
	})
	return filepath.Join(dir, "root.tar"), err
}

// suite of Debian that box and images are of.
const suite = "bookworm"

// sources is a file with an apt sources list.
func (c *cluster) sources() (string, error) {
	text, err := machine.SourceList(suite)
	if err != nil {
		return "", err
	}
	file := filepath.Join(c.dir, "sources.list")
	return file, os.WriteFile(file, []byte(text), 0o644)
}
