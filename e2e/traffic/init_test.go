package traffic

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// guestModules is where the lab's own machine keeps the files of its modules, flat and not compressed.
const guestModules = "/lib/modules/"

// ownMachine reports whether the kernel is the lab's own, with nobody else on it: only there modules may be
// removed. It has no modprobe, so its kernel can load none by itself.
func ownMachine() bool {
	_, err := os.Stat(guestModules + "ip_vs_sed.ko")
	return err == nil
}

func isLoaded(t *testing.T, module string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	return strings.HasPrefix(string(b), module+" ") || strings.Contains(string(b), "\n"+module+" ")
}

// unload removes modules, the first one first, and has them back at the end of the test.
func unload(t *testing.T, modules ...string) {
	t.Helper()
	for _, m := range modules {
		if !isLoaded(t, m) {
			t.Fatalf("module %s is not loaded", m)
		}
		t.Cleanup(func() {
			if err := insert(m); err != nil {
				t.Errorf("load %s again: %v", m, err)
			}
		})
		// The last test's namespaces may still be on their way out.
		lab.Eventually(t, soon, "unload "+m, func() error { return unix.DeleteModule(m, unix.O_NONBLOCK) })
	}
}

func insert(module string) error {
	f, err := os.Open(guestModules + module + ".ko")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// modulesRoot makes a directory such as a distribution's, with some modules in it. Deps are those of one that
// can be missing: the rest is loaded.
func modulesRoot(t *testing.T, ending string, modules map[string][]string) (root string) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	dir := filepath.Join(root, "lib/modules", unix.ByteSliceToString(u.Release[:]))
	if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	var dep strings.Builder
	for module, deps := range modules {
		fmt.Fprintf(&dep, "kernel/%s.ko%s:", module, ending)
		for _, d := range deps {
			fmt.Fprintf(&dep, " kernel/%s.ko%s", d, ending)
		}
		dep.WriteString("\n")
		b, err := os.ReadFile(guestModules + module + ".ko")
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "kernel", module+".ko"+ending), compress(t, ending, b), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(dep.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func compress(t *testing.T, ending string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch ending {
	case "":
		return b
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".xz":
		w, err = xz.NewWriter(&out)
	case ".zst":
		w, err = zstd.NewWriter(&out)
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatalf("compress to %s: %v", ending, err)
	}
	return out.Bytes()
}

// initNode runs `ipvs-proxy init` and wants an exit status, and parts in what it prints.
func initNode(t *testing.T, n *lab.Node, exit int, parts []string, args ...string) {
	t.Helper()
	stdout, stderr, got := n.Command(t, 0, slices.Concat([]string{"init"}, untuned, args)...)
	all := stdout + stderr
	for _, p := range parts {
		if !strings.Contains(all, p) {
			t.Errorf("init %q does not say %q:\n%s", args, p, all)
		}
	}
	if got != exit || exit == 0 && stderr != "" {
		t.Errorf("init %q: exit status %d, want %d:\n%s", args, got, exit, all)
	}
}

// B43 and B40: init sets a node up, so that check finds nothing; a second one finds all there.
func TestB43InitSetsUp(t *testing.T) {
	n := lab.New(t).Node(1)
	setSysctls(t, n, zero(wantedSysctls))
	initNode(t, n, 0, []string{"ip_vs: ", "nft_masq: ", "sysctl -w net/ipv4/vs/conntrack=1", "sysctl -w net/ipv4/ip_forward=1"})
	if err := wrongSysctls(n, wantedSysctls); err != nil {
		t.Error(err)
	}
	check(t, n).able(t)
	initNode(t, n, 0, []string{"ip_vs: there", "dummy: there", "nft_masq: there", "ip_vs_rr: there", "sysctls: right"})
	setSysctls(t, n, map[string]string{"net/ipv4/vs/conntrack": "0"})
	n.ReadOnlySysctls = true
	initNode(t, n, 0, []string{"warning: sysctl net/ipv4/vs/conntrack is 0, should be 1", "read-only file system"})
}

// B43: a scheduler whose module is missing is loaded from its file, however that is packed; where init cannot,
// one line names the module and what to do.
func TestB43InitLoadsAScheduler(t *testing.T) {
	n := lab.New(t).Node(1)
	if !ownMachine() {
		// Somebody else's kernel: it has the module or loads it by itself.
		initNode(t, n, 0, []string{"ip_vs_sed: "}, "--ipvs-scheduler=sed")
		return
	}
	for _, ending := range []string{"", ".gz", ".xz", ".zst"} {
		t.Run("packed as .ko"+ending, func(t *testing.T) {
			root := modulesRoot(t, ending, map[string][]string{"ip_vs_sed": {"ip_vs"}, "ip_vs": nil})
			args := []string{"--ipvs-scheduler=sed", "--modules-root=" + root}
			unload(t, "ip_vs_sed")
			if len(check(t, n, args[0]).of("warning", "ip_vs_sed", "modprobe ip_vs_sed", "rr serves")) == 0 {
				t.Error("check does not warn of the missing scheduler")
			}
			initNode(t, n, 0, []string{"warning: ", "rr serves in its place", "module ip_vs_sed is missing", "modprobe ip_vs_sed", "mount the node's /lib/modules"},
				args[0], "--modules-root="+t.TempDir())
			n.WithoutCaps = []uintptr{unix.CAP_SYS_MODULE}
			initNode(t, n, 0, []string{"warning: ", "module ip_vs_sed is missing", "ip_vs_sed.ko" + ending + ": operation not permitted", "CAP_SYS_MODULE"}, args...)
			n.WithoutCaps = nil
			if isLoaded(t, "ip_vs_sed") {
				t.Fatal("ip_vs_sed is loaded already")
			}
			initNode(t, n, 0, []string{"ip_vs_sed: loaded " + root, "ip_vs_sed.ko" + ending + "\n", "ip_vs: there"}, args...)
			if !isLoaded(t, "ip_vs_sed") {
				t.Error("ip_vs_sed is not loaded")
			}
			initNode(t, n, 0, []string{"ip_vs_sed: there"}, args...)
		})
	}
}

// wantProblem: a problem says all parts; there may be others.
func (f findings) wantProblem(t *testing.T, parts ...string) {
	t.Helper()
	if len(f.of("problem", parts...)) == 0 || f.exit != 1 {
		t.Errorf("want a problem that says %q and exit status 1; exit status %d:\n%s", parts, f.exit, strings.Join(f.lines, "\n"))
	}
}

// B43: on a kernel without IPVS, without what nftables needs, and without br_netfilter, init loads all of it,
// each module after those that it needs; then the agent serves.
func TestB43InitLoadsWhatIsMissing(t *testing.T) {
	s := newStage(t)
	n := s.w.Node(1)
	if !ownMachine() {
		initNode(t, n, 0, []string{"ip_vs: ", "nft_reject_inet: "})
		return
	}
	files := map[string][]string{"ip_vs": {"nf_conntrack"}, "nf_conntrack": nil, "ip_vs_rr": {"ip_vs", "nf_conntrack"}, "br_netfilter": {"bridge"}, "bridge": nil,
		"nft_reject": {"nf_tables"}, "nf_tables": nil, "nft_reject_inet": {"nft_reject", "nf_tables"}}
	root := modulesRoot(t, ".xz", files)
	gone := []string{"nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_reject", "br_netfilter"}
	for line := range strings.Lines(readFile(t, "/proc/modules")) {
		if m, _, _ := strings.Cut(line, " "); strings.HasPrefix(m, "ip_vs_") { // newer kernels have more schedulers
			gone = append(gone, m)
		}
	}
	unload(t, append(gone, "ip_vs")...)
	f := check(t, n)
	f.wantProblem(t, "module ip_vs is missing")
	f.wantProblem(t, "br_netfilter is not loaded", "bridge cni0", "modprobe br_netfilter")
	_, stderr, exit := n.Command(t, 0, "run", "--source-dir", s.cluster.Dir, "--hostname-override", n.Name)
	if exit != 1 || !strings.Contains(stderr, "modprobe ip_vs") {
		t.Errorf("run without IPVS: exit status %d:\n%s", exit, stderr)
	}
	initNode(t, n, 0, []string{"ip_vs: loaded " + root, "nft_reject_inet: loaded " + root, "nft_reject.ko.xz, " + root,
		"ip_vs_rr: loaded " + root, "br_netfilter: loaded " + root}, "--modules-root="+root)
	for _, m := range []string{"ip_vs", "ip_vs_rr", "nft_reject", "nft_reject_inet", "br_netfilter"} {
		if !isLoaded(t, m) {
			t.Errorf("module %s was not loaded", m)
		}
	}
	s.w.StartAgent(t, n, s.cluster)
	svc := web(43)
	s.apply(svc, s.w.Pod("pod-b"))
	each(t, func(t *testing.T, family int) {
		answers(t, n.Host, at(svc, family, 80))
		answers(t, s.w.Pod("pod-a").Host, at(svc, family, 80))
	})
}
