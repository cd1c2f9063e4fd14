package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// procSys is a directory in the place of /proc/sys.
func procSys(t *testing.T, values map[string]string) (root string) {
	t.Helper()
	root = t.TempDir() + "/"
	for name, value := range values {
		must(t, os.MkdirAll(filepath.Dir(root+name), 0o755))
		must(t, os.WriteFile(root+name, []byte(value+"\n"), 0o644))
	}
	return root
}

func valueOf(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(root + name)
	must(t, err)
	return strings.TrimSpace(string(b))
}

// TestEnsureSettings: only what is wrong is written, and what cannot be is said with all that one needs to know.
func TestEnsureSettings(t *testing.T) {
	root := procSys(t, map[string]string{"net/right": "1", "net/wrong": "0"})
	wrote, warnings := ensureSettings(root, []Setting{
		{Name: "net/right", Want: "1", Else: "a"},
		{Name: "net/wrong", Want: "1", Else: "b"},
		{Name: "net/missing", Want: "1", Else: "pigs fly"},
		{Name: "net/ipv6/conf/all/forwarding", Want: "1", Else: "IPv6 is off and nobody minds"},
	})
	if len(wrote) != 1 || wrote[0] != "sysctl -w net/wrong=1" {
		t.Errorf("wrote %q", wrote)
	}
	// A kernel file is written as a whole; here, what was longer would stay.
	if have := valueOf(t, root, "net/wrong"); have != "1" {
		t.Errorf("net/wrong is %q", have)
	}
	if len(warnings) != 1 {
		t.Fatalf("warnings: %v", warnings)
	}
	for _, want := range []string{"sysctl net/missing", "should be 1", "no such file", "pigs fly"} {
		if !strings.Contains(warnings[0].Error(), want) {
			t.Errorf("%q does not say %q", warnings[0], want)
		}
	}
	if wrote, warnings := ensureSettings(root, []Setting{{Name: "net/wrong", Want: "1"}}); len(wrote)+len(warnings) > 0 {
		t.Errorf("the second time: %q, %v", wrote, warnings)
	}
}

// TestSettings: what is left alone, and what strictARP adds.
func TestSettings(t *testing.T) {
	values := func(cfg Config) map[string]string {
		m := map[string]string{}
		for _, s := range Settings(cfg) {
			if s.Else == "" || strings.Contains(s.Name, "route_localnet") || strings.Contains(s.Name, "conn_reuse_mode") {
				t.Errorf("setting %+v", s)
			}
			m[s.Name] = s.Want
		}
		return m
	}
	loose, strict := values(Config{}), values(Config{StrictARP: true})
	if strict["net/ipv4/conf/all/arp_ignore"] != "1" || strict["net/ipv4/conf/all/arp_announce"] != "2" {
		t.Errorf("strict: %v", strict)
	}
	for name := range loose {
		if strings.Contains(name, "arp") || strict[name] != loose[name] {
			t.Errorf("%s: %q without strictARP, %q with it", name, loose[name], strict[name])
		}
	}
}
