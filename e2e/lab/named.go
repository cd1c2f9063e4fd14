package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namesDir is where iproute2 and others look for named namespaces.
const namesDir = "/run/netns"

// Publish gives every namespace of the world its host's name under /run/netns, until the host is closed, so that a
// person finds it: ip netns exec pod-a ...
func (w *World) Publish() error {
	if err := os.MkdirAll(namesDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of named namespaces: %w", err)
	}
	for _, h := range w.hosts() {
		if err := h.publish(); err != nil {
			return fmt.Errorf("name the namespace of %s: %w", h.Name, err)
		}
	}
	return nil
}

func (h *Host) publish() error {
	h.mu.RLock()
	ns := h.ns
	h.mu.RUnlock()
	name := filepath.Join(namesDir, h.Name)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", int(ns)), name, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("mount on %s: %w", name, err), os.Remove(name))
	}
	h.onClose(func() {
		_ = unix.Unmount(name, unix.MNT_DETACH)
		_ = os.Remove(name)
	})
	return nil
}

// Here is the namespace in which this process was started, as a host that asks.
func Here() (*Host, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("this process's namespace: %w", err)
	}
	return &Host{Name: "here", ns: ns, closers: map[*closer]struct{}{}}, nil
}
