package kernel

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	would, warnings := ensureSettings(root, []Setting{{Name: "net/right", Want: "1"}, {Name: "net/wrong", Want: "1"}}, true)
	if len(would) != 1 || would[0] != "sysctl -w net/wrong=1" || len(warnings) > 0 || valueOf(t, root, "net/wrong") != "0" {
		t.Errorf("asked what it would write: %q, %v, and then it is %q", would, warnings, valueOf(t, root, "net/wrong"))
	}
	wrote, warnings := ensureSettings(root, []Setting{
		{Name: "net/right", Want: "1", Else: "a"},
		{Name: "net/wrong", Want: "1", Else: "b"},
		{Name: "net/missing", Want: "1", Else: "pigs fly"},
		{Name: "net/ipv6/conf/all/forwarding", Want: "1", Else: "IPv6 is off and nobody minds"},
	}, false)
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
	if wrote, warnings := ensureSettings(root, []Setting{{Name: "net/wrong", Want: "1"}}, false); len(wrote)+len(warnings) > 0 {
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

// A node whose IPv6 default route comes from router advertisements would lose it by forwarding: the setting is left
// alone and said, until the interface's accept_ra is 2.
func TestForwardingKeepsTheDefaultRoute(t *testing.T) {
	needsIPVS(t)
	inNetns(t)
	up := dummy(t, "up0")
	addNodeAddr(t, up, "fd00:7::5/64")
	accept := func(value string) {
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/up0/accept_ra", []byte(value), 0))
	}
	accept("1")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP("fd00:7::1"), Protocol: unix.RTPROT_RA}))
	settings := []Setting{{Name: forwarding6, Want: "1", Else: "IPv6 stops here"}}
	value := func() string {
		have, _, err := settings[0].Read()
		must(t, err)
		return have
	}
	wrote, warnings := EnsureSettings(settings)
	if len(wrote) > 0 || len(warnings) != 1 || value() != "0" {
		t.Errorf("wrote %q, warned %v, forwarding is %s; want it left alone", wrote, warnings, value())
	} else if text := warnings[0].Error(); !strings.Contains(text, "up0") || !strings.Contains(text, "accept_ra") || !strings.Contains(text, "IPv6 stops here") {
		t.Errorf("the warning says %q", text)
	}
	accept("2")
	if wrote, warnings := EnsureSettings(settings); len(wrote) != 1 || len(warnings) > 0 || value() != "1" {
		t.Errorf("accept_ra 2: wrote %q, warned %v, forwarding is %s", wrote, warnings, value())
	}
}
