package kernel

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The process's first thread cannot end and would keep a namespace for ever; the main goroutine holds on to
// it, so that no test runs on it.
func init() { runtime.LockOSThread() }

// inNetns gives the test a network namespace of its own, with lo up. The test's thread is never given back:
// the runtime ends it, and the namespace with it.
func inNetns(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace of its own")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("set lo up: %v", err)
	}
}

// needsIPVS skips outside the lab, where the kernel need not have IPVS; in the lab nothing is skipped.
func needsIPVS(t *testing.T) {
	t.Helper()
	if os.Getenv("IPVS_PROXY_LAB") == "" {
		t.Skip("needs a kernel with IPVS: make test runs this in the lab")
	}
}
