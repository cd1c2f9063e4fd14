package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// toolPath is where the base image keeps its tools.
const toolPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// bootMachine is PID 1 of the virtual machine. It does not return: an init
// that ends is a kernel panic.
func bootMachine() error {
	if err := machine(); err != nil {
		// The stream may be what is missing, so the console hears it too.
		fmt.Printf("lab guest: %v\n", err)
	}
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Printf("lab guest: power off: %v\n", err)
	select {}
}

func machine() error {
	if err := mountAll(); err != nil {
		return err
	}
	console()
	var spec wire.Spec
	b, err := os.ReadFile(wire.SpecFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return fmt.Errorf("%s: %w", wire.SpecFile, err)
	}
	loadErr := loadModules(wire.ModuleOrder)
	port, err := openPort()
	if err != nil {
		return errors.Join(loadErr, err)
	}
	s, in := stream{fd: port, nonce: spec.Nonce}, newInput()
	go in.follow(portReader(port))
	err = errors.Join(loadErr, settle())
	if err == nil && spec.Network {
		err = network()
	}
	if err != nil {
		s.send(wire.Message{Fatal: err.Error()})
	} else {
		runAll(s, in, spec)
	}
	s.send(wire.Message{Bye: true})
	awaitHost(in)
	return err
}

func mountAll() error {
	for _, m := range []struct{ fs, dir, opt string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", "mode=620,ptmxmode=666"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, m.opt); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.dir, err)
		}
	}
	return os.MkdirAll("/run/netns", 0o755)
}

// console makes the kernel's console our standard output: the initramfs has
// no /dev/console of its own, so the kernel started us without one.
func console() {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	for i := range 3 {
		_ = unix.Dup3(fd, i, 0)
	}
	if fd > 2 {
		unix.Close(fd)
	}
}

// loadModules loads what the list names and goes on after an error, so that
// one answer names all that failed.
func loadModules(list string) error {
	b, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	var errs []error
	for name := range strings.FieldsSeq(string(b)) {
		if err := loadModule(name); err != nil {
			errs = append(errs, fmt.Errorf("load module %s: %w", filepath.Base(name), err))
		}
	}
	return errors.Join(errs...)
}

func loadModule(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.FinitModule(fd, parameters[strings.TrimSuffix(filepath.Base(path), ".ko")], 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// openPort opens the virtio port that the host listens on. It appears some
// time after its driver. The descriptor is kept blocking and out of Go's
// poller, because the commands inherit it as their standard output.
func openPort() (int, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, name := range names {
			if b, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(b)) != wire.Port {
				continue
			}
			dev := "/dev/" + filepath.Base(filepath.Dir(name))
			fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err == nil {
				return fd, nil
			}
			if time.Now().After(deadline) {
				return -1, fmt.Errorf("open %s: %w", dev, err)
			}
		}
		if time.Now().After(deadline) {
			return -1, fmt.Errorf("no virtio port named %q (have %q)", wire.Port, names)
		}
	}
}

// portReader reads the port, which Go's poller does not know.
type portReader int

func (r portReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(r), b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// awaitHost waits until the host has read everything: power off could be
// faster than the queue of the port.
func awaitHost(in *input) {
	select {
	case <-in.bye:
	case <-in.gone:
	case <-time.After(10 * time.Second):
	}
}

// network brings the card to the host up, with the address that QEMU's user network expects of its first machine.
// There is no route to anywhere else.
func network() error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find the network card: %w", err)
	}
	addr, err := netlink.ParseAddr("10.0.2.15/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(eth0, addr); err != nil {
		return fmt.Errorf("give the network card its address: %w", err)
	}
	if err := netlink.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("set the network card up: %w", err)
	}
	return nil
}

// settle gives the commands what they may expect of any machine.
func settle() error {
	if err := raiseFiles(65536); err != nil {
		return fmt.Errorf("raise the number of open files: %w", err)
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// IPVS refuses destinations as "not unicast" while lo is down.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// raiseFiles raises the limit of open files as far as we may, up to n.
func raiseFiles(n uint64) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	if lim.Cur >= n {
		return nil
	}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: max(n, lim.Max)}) == nil {
		return nil
	}
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: min(n, lim.Max), Max: lim.Max})
}
