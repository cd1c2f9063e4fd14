package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// describe notes what the machines are.
func (c *cluster) describe(ctx context.Context) error {
	said, err := c.on(ctx, master, `. /etc/os-release
echo "$PRETTY_NAME"
uname -r
containerd --version | cut -d ' ' -f 3
runc --version | head -n 1 | cut -d ' ' -f 3
systemd-detect-virt || true
nproc`)
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	if len(lines) != 6 {
		return fmt.Errorf("describe %s: %q", master, said)
	}
	c.record.Versions = []version{
		{"machines", lines[0]}, {"Linux", lines[1]}, {"containerd", lines[2]}, {"runc", lines[3]},
		{"Kubernetes, by kubeadm", programs.Default}, {"etcd", etcdTag}, {"CoreDNS", coreDNSTag}, {"flannel, VXLAN", flannelTag},
	}
	how := map[string]string{"qemu": "emulated processors", "kvm": "KVM", "oracle": "VirtualBox"}[lines[4]]
	if how == "" {
		how = lines[4]
	}
	c.record.Machines = fmt.Sprintf("three machines of %s processors each (%s)", lines[5], how)
	return c.record.write()
}
