package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const modulesDep = `kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/net/netfilter/nf_conntrack.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/net/netfilter/ipvs/ip_vs_sed.ko.xz: kernel/net/netfilter/ipvs/ip_vs.ko.xz kernel/net/netfilter/nf_conntrack.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/net/netfilter/nf_conntrack.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/net/bridge/br-netfilter.ko:
`

// testLoader has a directory of modules, and notes which it is asked to load.
func testLoader(t *testing.T, dep string, there ...string) (l loader, inserted *[]string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules/6.1.0-test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"modules.dep": dep, "modules.builtin": "kernel/drivers/net/dummy.ko\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	inserted = &[]string{}
	return loader{root: root, release: "6.1.0-test",
		there: func() map[string]bool {
			names := map[string]bool{}
			for _, n := range there {
				names[n] = true
			}
			return names
		},
		insert: func(file string) error {
			if !strings.HasPrefix(file, dir+"/kernel/") {
				t.Errorf("loads %s", file)
			}
			*inserted = append(*inserted, moduleName(file))
			return nil
		}}, inserted
}

func TestLoadOrder(t *testing.T) {
	for _, c := range []struct {
		name  string
		there []string
		want  []string
	}{
		{"ip_vs_sed", nil, []string{"libcrc32c", "nf_conntrack", "ip_vs", "ip_vs_sed"}},
		{"ip_vs_sed", []string{"ip_vs", "nf_conntrack", "libcrc32c", "not_in_modules_dep"}, []string{"ip_vs_sed"}},
		{"br_netfilter", nil, []string{"br_netfilter"}}, // the file has a dash
		{"ip_vs", []string{"ip_vs", "nf_conntrack", "libcrc32c"}, nil},
	} {
		l, inserted := testLoader(t, modulesDep, c.there...)
		files, err := l.load(c.name)
		if err != nil || !slices.Equal(*inserted, c.want) || len(files) != len(c.want) {
			t.Errorf("load %s beside %q: %q, says %q, %v; want %q", c.name, c.there, *inserted, files, err, c.want)
		}
	}
}

// TestLoadErrors: what is wrong, with which file, and what to do.
func TestLoadErrors(t *testing.T) {
	says := func(what string, err error, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if err == nil || !strings.Contains(err.Error(), p) {
				t.Errorf("%s: %v does not say %q", what, err, p)
			}
		}
	}
	l, _ := testLoader(t, modulesDep)
	_, err := l.load("ip_vs_mh")
	says("no such module", err, "module ip_vs_mh of kernel 6.1.0-test", "lib/modules")
	_, err = l.load("dummy")
	says("built in", err, "module dummy is built into kernel 6.1.0-test")
	// A node whose kernel was updated, and not booted since.
	l.release = "6.1.0-older"
	_, err = l.load("ip_vs")
	says("no files", err, "kernel 6.1.0-older", "mount the node's /lib/modules", "modules.dep")
	l, _ = testLoader(t, modulesDep+"cut short")
	_, err = l.load("ip_vs")
	says("broken modules.dep", err, "line 6", "cut short", "depmod -a")
	for errno, part := range map[error]string{unix.EPERM: "CAP_SYS_MODULE", unix.EKEYREJECTED: "signed", unix.ENOKEY: "signed", unix.ENOEXEC: "another kernel", unix.ENOENT: "no such file"} {
		l, _ = testLoader(t, modulesDep)
		insert := l.insert
		l.insert = func(file string) error {
			if moduleName(file) == "nf_conntrack" {
				return errno
			}
			return insert(file)
		}
		files, err := l.load("ip_vs")
		says(errno.Error(), err, "nf_conntrack.ko.xz", part)
		if len(files) != 1 || !errors.Is(err, errno) {
			t.Errorf("%v: loaded %q before, %v", errno, files, err)
		}
	}
}

func TestModuleName(t *testing.T) {
	for file, want := range map[string]string{"/lib/modules/6.1/kernel/net/bridge/br-netfilter.ko.zst": "br_netfilter", "ip_vs.ko": "ip_vs",
		"x/nf_tables.ko.xz": "nf_tables", "nft_ct.ko.gz": "nft_ct"} {
		if got := moduleName(file); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
}
