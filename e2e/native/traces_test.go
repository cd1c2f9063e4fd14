package native

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// traces are what a program can leave behind on a machine, by kind. "modules" is no such kind: a kernel keeps them.
func traces(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{
		"network namespace": namespaces(t),
		"process":           processes(t),
		"mount":             mounts(t),
		"link or address":   links(t),
		"nftables rule":     command(t, "nft", "list", "ruleset"),
		"IPVS":              lines(t, "/proc/net/ip_vs"),
		"sysctl":            sysctls(t),
		"file":              files(t),
		"modules":           lines(t, "/proc/modules"),
	}
	for i, line := range found["modules"] {
		found["modules"][i], _, _ = strings.Cut(line, " ")
	}
	return found
}

// changes lists what came and went between two looks.
func changes(before, after map[string][]string) (list []string) {
	for kind := range after {
		if kind == "modules" {
			continue
		}
		for _, line := range after[kind] {
			if !slices.Contains(before[kind], line) && !(kind == "sysctl" && ofNewModule(line, before[kind])) {
				list = append(list, fmt.Sprintf("%s left behind: %s", kind, line))
			}
		}
		for _, line := range before[kind] {
			if !slices.Contains(after[kind], line) {
				list = append(list, fmt.Sprintf("%s gone: %s", kind, line))
			}
		}
	}
	slices.Sort(list)
	return list
}

// ofNewModule: a sysctl that was not there at all is a module's, and stays with it.
func ofNewModule(line string, before []string) bool {
	key, _, _ := strings.Cut(line, " = ")
	return !slices.ContainsFunc(before, func(b string) bool { return strings.HasPrefix(b, key+" = ") })
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func command(t *testing.T, name string, args ...string) []string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// namespaces are those that a process or a thread is in, or that have a name.
func namespaces(t *testing.T) (list []string) {
	t.Helper()
	held, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range held {
		if ns, err := os.Readlink(link); err == nil && !slices.Contains(list, ns) { // a thread may end meanwhile
			list = append(list, ns)
		}
	}
	names, err := filepath.Glob("/run/netns/*")
	if err != nil {
		t.Fatal(err)
	}
	return append(list, names...)
}

// processes are those of user space, but ourselves.
func processes(t *testing.T) (list []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
			list = append(list, strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " "))
		}
	}
	return list
}

func mounts(t *testing.T) (list []string) {
	t.Helper()
	for _, line := range lines(t, "/proc/self/mountinfo") {
		f := strings.Fields(line)
		list = append(list, f[4]+" "+strings.Join(f[6:], " "))
	}
	return list
}

func links(t *testing.T) (list []string) {
	t.Helper()
	all, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		list = append(list, fmt.Sprintf("%s %s %s", l.Attrs().Name, l.Type(), l.Attrs().Flags&net.FlagUp))
		addrs, err := netlink.AddrList(l, unix.AF_UNSPEC)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			list = append(list, l.Attrs().Name+" "+a.IPNet.String())
		}
	}
	return list
}

// restless change by themselves, whatever anybody does.
var restless = []string{"fs/aio-nr", "fs/dentry-state", "fs/file-nr", "fs/inode-nr", "fs/inode-state", "fs/quota/syncs", "kernel/ns_last_pid", "kernel/pty/nr",
	"kernel/random/boot_id", "kernel/random/entropy_avail", "kernel/random/uuid", "net/netfilter/nf_conntrack_count", "vm/stat_refresh"}

func sysctls(t *testing.T) (list []string) {
	t.Helper()
	const root = "/proc/sys/"
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		key := strings.TrimPrefix(file, root)
		if err != nil || d.IsDir() || slices.Contains(restless, key) {
			return nil // some cannot be read, or go with a link
		}
		if b, err := os.ReadFile(file); err == nil {
			list = append(list, key+" = "+strings.TrimSpace(string(b)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// files are those where programs put things that they mean to take away again. On a machine of the lab's own nobody
// else does; elsewhere only what has our name is ours.
func files(t *testing.T) (list []string) {
	t.Helper()
	_, err := os.Stat(wire.SpecFile)
	own := err == nil
	for _, root := range []string{"/etc", "/run", "/tmp", "/usr/local", "/var/tmp"} {
		err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
			if strings.HasPrefix(file, filepath.Dir(os.Getenv("XDG_CACHE_HOME"))) {
				return fs.SkipDir // the test's own
			}
			if err == nil && (own || strings.Contains(file, "ipvs-proxy")) {
				list = append(list, file)
			}
			return nil // one that went meanwhile is no trace
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// The control: each kind of trace is noticed.
func TestTracesAreNoticed(t *testing.T) {
	if os.Getenv("IPVS_PROXY_LAB") != "1" {
		t.Skip("needs a kernel with IPVS, as root: run it in the lab (IPVS_PROXY_LAB=1)")
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	run := func(args ...string) func() {
		return func() { command(t, args[0], args[1:]...) }
	}
	file := filepath.Join(os.TempDir(), "ipvs-proxy-left-behind")
	mountPoint := t.TempDir()
	sleeper := exec.Command("sleep", "1000")
	for _, c := range []struct {
		kind       string
		make, undo func()
	}{
		{"network namespace", run("ip", "netns", "add", "left"), func() { command(t, "ip", "netns", "del", "left"); _ = unix.Unmount("/run/netns", 0) }},
		{"link or address", run("ip", "link", "add", "left0", "type", "dummy"), run("ip", "link", "del", "left0")},
		{"nftables rule", run("nft", "add", "table", "inet", "left"), run("nft", "delete", "table", "inet", "left")},
		{"IPVS", run("ipvsadm", "-A", "-t", "10.96.9.9:9"), run("ipvsadm", "-D", "-t", "10.96.9.9:9")},
		{"sysctl", flip(t, "net/ipv4/ip_default_ttl", "63"), flip(t, "net/ipv4/ip_default_ttl", "64")},
		{"file", func() { touch(t, file) }, func() { _ = os.Remove(file) }},
		{"process", func() { _ = sleeper.Start() }, func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }},
		{"mount", func() { _ = unix.Mount("tmpfs", mountPoint, "tmpfs", 0, "") }, func() { _ = unix.Unmount(mountPoint, 0) }},
	} {
		before := traces(t)
		c.make()
		found := changes(before, traces(t))
		c.undo()
		if !slices.ContainsFunc(found, func(l string) bool { return strings.HasPrefix(l, c.kind+" ") }) {
			t.Errorf("a %s stayed and was not noticed; found %q", c.kind, found)
		}
		if left := changes(before, traces(t)); len(left) > 0 {
			t.Errorf("a %s went, and there is still %q", c.kind, left)
		}
	}
}

func flip(t *testing.T, key, value string) func() {
	return func() {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func touch(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
