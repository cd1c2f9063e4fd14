package lab

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Container has a node's agents run as a container runtime would run them from an image, in the node's network
// namespace: the image is their root, which is read-only, and they have the named capabilities and no way to more.
type Container struct {
	Root       string            // the unpacked image
	Command    []string          // the program in the image, and what comes before the flags
	Binds      map[string]string // what else is mounted: path in the container, path outside; read-only
	Caps       []uintptr         // unix.CAP_*
	Privileged bool              // /proc/sys may be written
}

// NewContainer unpacks the image that the environment's LAB_IMAGE names, a root file system in a tar file. The
// container has the program as kube-proxy's DaemonSet starts it, CAP_NET_ADMIN, and the cluster's directory.
// LAB_IMAGE_PROGRAM names a program to have in place of the image's.
func NewContainer(t testing.TB, c *Cluster) *Container {
	t.Helper()
	root := t.TempDir()
	if err := unpack(os.Getenv("LAB_IMAGE"), root); err != nil {
		t.Fatalf("unpack the image that LAB_IMAGE names: %v", err)
	}
	binds := map[string]string{c.Dir: c.Dir}
	if mutant := os.Getenv("LAB_IMAGE_PROGRAM"); mutant != "" {
		binds["/usr/local/bin/ipvs-proxy"] = mutant
	}
	return &Container{Root: root, Command: []string{"/usr/local/bin/kube-proxy"}, Binds: binds, Caps: []uintptr{unix.CAP_NET_ADMIN}}
}

func unpack(file, root string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpackOne(filepath.Join(root, filepath.Clean("/"+h.Name)), h, r); err != nil {
			return err
		}
	}
}

func unpackOne(to string, h *tar.Header, content io.Reader) error {
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(to, mode.Perm())
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, to)
	case tar.TypeReg:
		f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode.Perm())
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	}
	return fmt.Errorf("%s: a file of type %q, which the lab does not unpack", h.Name, h.Typeflag)
}

// in makes a command one of the container: its first argument, run or another subcommand of the agent, gives way
// to the container's own command, unless that is for an init container. Without a container it does nothing.
func (c *Container) in(cmd *exec.Cmd) {
	if c == nil {
		return
	}
	rest := cmd.Args[1:]
	if len(rest) > 0 && rest[0] == "run" {
		rest = rest[1:]
	}
	cmd.Path, cmd.Args, cmd.Err = c.Command[0], slices.Concat(c.Command, rest), nil
}

// enter moves this thread, which must end with it, into the container. It is in the node's network namespace.
func (c *Container) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("new mount namespace: %w", err)
	}
	if err := c.mount(); err != nil {
		return err
	}
	// Not pivot_root, which the kernel refuses where / is the initial RAM disk.
	if err := errors.Join(unix.Chdir(c.Root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("make %s the root: %w", c.Root, err)
	}
	for cap := uintptr(0); cap <= unix.CAP_LAST_CAP; cap++ {
		if slices.Contains(c.Caps, cap) {
			continue
		}
		// EINVAL: this kernel has no such capability.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, cap, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", cap, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	return nil
}

// mount puts the container's file systems together.
func (c *Container) mount() error {
	const plain, readOnly = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY
	type mount struct {
		from, to, fs string
		flags        uintptr
	}
	list := []mount{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{c.Root, c.Root, "", unix.MS_BIND},
		{"proc", c.Root + "/proc", "proc", plain},
		{"sysfs", c.Root + "/sys", "sysfs", plain | unix.MS_RDONLY},
		{"tmpfs", c.Root + "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC},
	}
	for _, device := range []string{"/dev/null", "/dev/zero", "/dev/urandom"} {
		list = append(list, mount{device, c.Root + device, "", unix.MS_BIND})
	}
	for to, from := range c.Binds {
		list = append(list, mount{from, c.Root + to, "", unix.MS_BIND}, mount{"", c.Root + to, "", readOnly})
	}
	if !c.Privileged {
		list = append(list, mount{c.Root + "/proc/sys", c.Root + "/proc/sys", "", unix.MS_BIND}, mount{"", c.Root + "/proc/sys", "", readOnly})
	}
	list = append(list, mount{"", c.Root, "", readOnly})
	for _, m := range list {
		if err := mountPoint(m.to, m.from); err != nil {
			return fmt.Errorf("mount point %s: %w", m.to, err)
		}
		if err := unix.Mount(m.from, m.to, m.fs, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.from, m.to, err)
		}
	}
	return nil
}

// mountPoint makes what is to be mounted on: a file for a file, else a directory.
func mountPoint(to, from string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	if info, err := os.Stat(from); err == nil && filepath.IsAbs(from) && !info.IsDir() {
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, nil, 0o644)
	}
	return os.MkdirAll(to, 0o755)
}
