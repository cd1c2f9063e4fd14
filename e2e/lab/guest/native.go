package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// enterContainer starts this program again in namespaces of its own.
func enterContainer(args []string) error {
	runtime.LockOSThread() // Pdeathsig follows the thread that forks
	cmd := exec.Command("/proc/self/exe", append([]string{"inside-" + args[0]}, args[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("container of namespaces: %w", err)
	}
	return nil
}

// insideProbe tries what the tests need, in a namespace that ends with us.
func insideProbe() error {
	if err := furnish(); err != nil {
		return err
	}
	return errors.Join(probeIPVS(), probeDummy(), probeNFT())
}

func probeIPVS() error {
	if _, err := netlink.GenlFamilyGet("IPVS"); err == nil {
		return nil
	}
	// Kernels before 5.16 do not load ip_vs for its family.
	_ = exec.Command("modprobe", "ip_vs").Run()
	if _, err := netlink.GenlFamilyGet("IPVS"); err != nil {
		return fmt.Errorf("this machine's kernel %s has no IPVS: %w", release(), err)
	}
	return nil
}

func probeDummy() error {
	d := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}}
	if err := netlink.LinkAdd(d); err != nil {
		return fmt.Errorf("this kernel has no dummy links: %w", err)
	}
	return nil
}

func probeNFT() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "probe"})
	ch := c.AddChain(&nftables.Chain{
		Name: "post", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Masq{},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("this kernel has no nftables masquerade: %w", err)
	}
	return nil
}

// insideNative runs the job of the given specification.
func insideNative(file string) error {
	// The host holds our standard input open. When it goes away, however it
	// does, so do we, and with the init all of this process namespace.
	in := newInput()
	go func() {
		in.follow(os.Stdin)
		select {
		case <-in.bye: // it knows that we go
		default:
			os.Exit(1)
		}
	}()
	var spec wire.Spec
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	s := stream{fd: 1, nonce: spec.Nonce}
	if err := errors.Join(furnish(), settle()); err != nil {
		s.send(wire.Message{Fatal: err.Error()})
	} else {
		runAll(s, in, spec)
	}
	s.send(wire.Message{Bye: true})
	return nil
}

// furnish turns the fresh mount namespace into one where the tests may mount
// and name network namespaces without the machine seeing it.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private (a chroot?): %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	for _, m := range []struct{ fs, dir string }{
		{"proc", "/proc"},
		{"sysfs", "/sys"}, // shows the devices of this network namespace
		{"tmpfs", "/run/netns"},
	} {
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.dir, err)
		}
	}
	return nil
}
