package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

const (
	// bootLimit is long: 4 s is usual, 5 times that was seen on a busy host.
	bootLimit = 3 * time.Minute
	// slowBootLimit is that of a machine whose clock counts instructions, which is slower. 3 min were not enough for one
	// with ten agents, on a host with 15 programs at work for each processor.
	slowBootLimit = 12 * time.Minute
	// bootTries is how often a machine may fail before its commands start.
	// Software emulation crashes a kernel at boot once in a while, and that
	// says nothing about the commands. A failure after that is final.
	bootTries = 3
)

// runVM boots the virtual machine and runs the job in it.
func runVM(ctx context.Context, s *session, dir string) error {
	vm, err := prepare(ctx, s, dir)
	if err != nil {
		return err
	}
	limit := bootLimit
	if s.job.Icount {
		limit = slowBootLimit
	}
	for try := 1; ; try++ {
		cmd := exec.Command(vm.qemu, vm.args...)
		var errs strings.Builder
		cmd.Stderr = &errs
		err := s.drive(ctx, cmd, limit)
		if err == nil {
			complaints(s.job.Log, vm.console)
			return nil
		}
		err = explain(err, errs.String(), vm.console)
		if s.isUp || s.fatal != "" || ctx.Err() != nil || errors.Is(err, errTime) || try == bootTries {
			return err
		}
		fmt.Fprintf(s.job.Log, "lab: boot %d of at most %d failed: %v\n", try, bootTries, err)
		s.again()
	}
}

// complaints shows what the kernel found wrong with itself and survived.
func complaints(log io.Writer, console string) {
	b, _ := os.ReadFile(console)
	for line := range strings.Lines(strings.ReplaceAll(string(b), "\r", "")) {
		if strings.Contains(line, "WARNING: ") || strings.Contains(line, "BUG: ") || strings.Contains(line, "detected stall") {
			fmt.Fprintf(log, "lab: the kernel complained: %s", line)
		}
	}
}

// explain adds what the machine itself said last.
func explain(err error, qemu, console string) error {
	log, _ := os.ReadFile(console)
	text := strings.ReplaceAll(string(log), "\r", "")
	if i := strings.Index(text, "Kernel panic"); i >= 0 {
		line, _, _ := strings.Cut(text[i:], "\n")
		err = fmt.Errorf("%w: %s", err, line)
	}
	for line := range strings.Lines(qemu) {
		// Our processor has features that software emulation lacks, always.
		if !strings.Contains(line, "TCG doesn't support requested feature") {
			err = fmt.Errorf("%w\n%s", err, strings.TrimSpace(line))
		}
	}
	if text != "" {
		err = fmt.Errorf("%w\nlast words on the console:\n%s", err, tail([]byte(text), 60))
	}
	return err
}

// virtual is a machine ready to boot.
type virtual struct {
	qemu    string
	args    []string
	console string
}

// preparing: what one installs and puts into the cache, another that runs at the same time finds there.
var preparing sync.Mutex

func prepare(ctx context.Context, s *session, dir string) (virtual, error) {
	preparing.Lock()
	defer preparing.Unlock()
	if runtime.GOARCH != "amd64" {
		return virtual{}, fmt.Errorf("the lab's virtual machine is x86-64, this machine is %s", runtime.GOARCH)
	}
	k, err := kernelOf(s.job.Kernel)
	if err != nil {
		return virtual{}, err
	}
	cache, err := cacheDir()
	if err != nil {
		return virtual{}, err
	}
	tools := append([]tool{qemuTool, guestTool}, s.job.tools()...)
	if k.Compress == "zstd" {
		tools = append(tools, zstdTool)
	}
	if err := ensure(ctx, cache, s.job.Log, tools...); err != nil {
		return virtual{}, err
	}
	u, err := k.fetch(ctx, cache, s.job.Log)
	if err != nil {
		return virtual{}, err
	}
	base, err := baseImage(ctx, cache, k, u, s.job)
	if err != nil {
		return virtual{}, err
	}
	guest, err := BuildGuest(ctx, dir)
	if err != nil {
		return virtual{}, err
	}
	spec, err := json.Marshal(s.job.spec(guestDir, s.nonce, vmHost))
	if err != nil {
		return virtual{}, err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := jobImage(initrd, base, guest, spec, s.job.Files); err != nil {
		return virtual{}, err
	}
	qemu, err := findTool(qemuTool.program)
	if err != nil {
		return virtual{}, err
	}
	console := filepath.Join(dir, "console")
	return virtual{qemu, qemuArgs(s.job, k, u, initrd, console, hasKVM()), console}, nil
}

// qemuArgs is the machine: no disk, no network card unless the job wants to reach the host, a console that
// goes to a file, and one virtio port for the stream. An emulated serial line would
// carry a megabyte of output only slowly, and a terminal would change it.
func qemuArgs(job Job, k Kernel, u unpacked, initrd, console string, kvm bool) []string {
	cpus := job.CPUs
	if job.Icount {
		cpus, kvm = 1, false
	}
	if cpus <= 0 {
		cpus = k.SMP
		if kvm {
			cpus = min(runtime.NumCPU(), 4)
		}
	}
	line := kernelLine
	if !job.Icount {
		line += " init_on_alloc=0" // zeroes in all that the kernel allocates cost time, and are part of what is counted
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-m", strconv.Itoa(job.Memory), "-smp", strconv.Itoa(cpus),
		"-kernel", u.Vmlinuz, "-initrd", initrd, "-append", line,
		"-serial", "file:" + console,
		"-device", "virtio-serial-pci", "-chardev", "stdio,id=lab,signal=off",
		"-device", "virtserialport,chardev=lab,name=" + wire.Port,
	}
	if len(job.HostPorts) > 0 {
		// Without a ROM: nothing boots from this card.
		args = append(args, "-netdev", "user,id=host,ipv6=off", "-device", "virtio-net-pci,netdev=host,romfile=")
	}
	if kvm {
		return append(args, "-accel", "kvm", "-cpu", "host")
	}
	if job.Icount {
		// An instruction takes 1 ns, and nobody waits for a timer: whoever sleeps wakes at once.
		return append(args, "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", countedProcessor)
	}
	return append(args, "-accel", "tcg,thread=multi", "-cpu", emulatedProcessor)
}

const (
	// countedProcessor is that of all figures: another one has other instructions. cmpxchg16b as emulated crashed 6.12 twice.
	countedProcessor = "Haswell,-cx16"
	// emulatedProcessor has no fast "rep movsb" either: emulated it takes a turn for each byte, and a kernel that is told of it
	// clears and copies pages with it. Without it and init_on_alloc the tests of policies took 35 s of processor in place of 57.
	emulatedProcessor = countedProcessor + ",-erms"
)

// kernelLine: an oops is a panic, and a panic ends the machine. The console
// is a slow line and gets warnings and worse; mitigations only cost time; no
// tunnel devices appear by themselves.
const kernelLine = "console=ttyS0 loglevel=5 panic=-1 oops=panic rdinit=/init " +
	"mitigations=off nowatchdog random.trust_cpu=on net.ifnames=0 fb_tunnels=none"

// hasKVM says whether hardware virtualisation is there. A /dev/kvm that opens
// is no proof: there are hosts where it does and a stock kernel dies in it.
func hasKVM() bool {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !virtFlag(string(b)) {
		return false
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// virtFlag looks for the processor's own word on virtualisation.
func virtFlag(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		key, val, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		for f := range strings.FieldsSeq(val) {
			if f == "vmx" || f == "svm" {
				return true
			}
		}
	}
	return false
}
