package plane

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// Where the world of the lab has the control plane. The lab's own package is for the guest's side.
var (
	labAddress  = netip.MustParseAddr("172.28.128.1")
	labServices = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")}
)

// Package is that of the tests which need a control plane.
const Package = "./e2e/controlplane"

// Recording is where the repository keeps what kube-proxy of a release serves.
func Recording(release string) string { return "pkg/healthz/testdata/kube-proxy-" + release }

// Programs are the files of all that a job needs, compiled where they are not in the cache. root is the root of the
// repository, release one of programs.Releases.
func Programs(ctx context.Context, root, release string, log io.Writer) (map[string]string, error) {
	return programs.Build(ctx, root, release, log, programs.Etcd, programs.APIServer, programs.ControllerManager,
		programs.KubeProxy, programs.CoreDNS, programs.Portmap)
}

// ForLab starts a control plane of a release for a job of the lab, in a directory that it makes. What tests hand out
// goes to the directory out; empty: they may not. It is run at the root of the repository.
func ForLab(ctx context.Context, release, dir, out string, log io.Writer) (*Plane, error) {
	files, err := Programs(ctx, ".", release, log)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	start := time.Now()
	p, err := Start(ctx, Options{Release: release, Programs: files, Dir: dir, Out: out, Address: labAddress, ServiceCIDRs: labServices})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(log, "== control plane of Kubernetes %s ready after %s\n", release, time.Since(start).Round(100*time.Millisecond))
	return p, nil
}

// Equip gives a job the way to the control plane, and what its tests need besides.
func (p *Plane) Equip(job *machine.Job) error {
	info, err := p.Info()
	if err != nil {
		return err
	}
	file := filepath.Join(p.opts.Dir, InfoFile)
	if err := os.WriteFile(file, info, 0o600); err != nil {
		return err
	}
	job.HostPorts = append(job.HostPorts, p.Port, p.Control)
	job.KubeProxy = true
	job.Memory = max(job.Memory, 2048) + 2048
	job.Files[InfoFile] = file
	// There is none yet of a release that is recorded for the first time.
	if recording := Recording(p.opts.Release); exists(recording) {
		job.Files["recording"] = recording
	}
	for _, name := range []string{programs.KubeProxy, programs.CoreDNS, programs.Portmap} {
		job.Files[name] = p.opts.Programs[name]
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
