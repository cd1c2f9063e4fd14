package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

const (
	boxName = "ipvs-proxy/debian-12"
	// kernelDir is where libvirt may read the box's kernel; the box's own Vagrantfile names it.
	kernelDir = "/var/lib/libvirt/images/ipvs-proxy-debian-12"
)

// libvirtPackages are what Vagrant needs of Debian to start machines by libvirt, without a service manager as well.
var libvirtPackages = []string{"vagrant", "vagrant-libvirt", "libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients",
	"qemu-system-x86", "qemu-utils", "dnsmasq-base", "iptables", "openssh-client"}

// box makes the box and hands it to Vagrant, where that has no such box or another one.
func (c *cluster) box(ctx context.Context) error {
	if err := machine.EnsurePackages(ctx, c.out, append([]string{"mmdebstrap", "e2fsprogs"}, libvirtPackages...)...); err != nil {
		return err
	}
	script := filepath.Join(c.root, here, "box.sh")
	text, err := os.ReadFile(script)
	if err != nil {
		return err
	}
	sources, err := c.sources()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	key := hex.EncodeToString(sum[:8])
	if kept, err := os.ReadFile(filepath.Join(kernelDir, "key")); err == nil && string(kept) == key {
		list, err := c.vagrant(ctx, "box", "list")
		if err == nil && strings.Contains(string(list), boxName+" ") {
			return nil
		}
	}
	return c.step("box of Debian 12", func() error {
		dir, err := os.MkdirTemp(c.dir, "box-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		for _, args := range [][]string{
			{script, sources, dir},
			{"tar", "-C", dir, "-cf", filepath.Join(dir, "box.tar"), "box.img", "metadata.json", "Vagrantfile"},
			{"install", "-D", "-m", "644", "-t", kernelDir, filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")},
		} {
			if _, err := run(exec.CommandContext(ctx, args[0], args[1:]...)); err != nil {
				return err
			}
		}
		if _, err := c.vagrant(ctx, "box", "add", "--force", "--name", boxName, filepath.Join(dir, "box.tar")); err != nil {
			return fmt.Errorf("hand the box to Vagrant: %w", err)
		}
		return os.WriteFile(filepath.Join(kernelDir, "key"), []byte(key), 0o644)
	})
}
