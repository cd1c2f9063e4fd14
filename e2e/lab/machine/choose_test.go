package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// guestThat makes a program that answers a probe as it is told to.
func guestThat(t *testing.T, script string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv(GuestVariable, file)
	before := probed
	probed = onceGood(probe)
	t.Cleanup(func() { probed = before })
}

// The way follows from what the kernel was found to have; the native one, forced, names all that is missing.
func TestChoose(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Setenv("PATH", fakeSudo(t)+":"+os.Getenv("PATH"))
	}
	able, twoMissing := `echo '{"loaded":["br_netfilter"]}'`, `echo '{"lacks":["IPVS: kernel 9 has none","veth links: not supported"]}'`
	denied := "echo 'lab guest: make namespaces: not permitted' >&2; exit 1"
	for _, c := range []struct {
		lab, guest string
		mode       string
		says       []string // the way or the error
		fails      bool
	}{
		{"", able, Native, []string{"it has all", "modules, which stay:\nlab:   br_netfilter"}, false},
		{"native", able, Native, []string{"LAB=native"}, false},
		{"vm", able, VM, []string{"LAB=vm"}, false},
		{"", twoMissing, VM, []string{"lacks IPVS: kernel 9 has none (and 1 more"}, false},
		{"native", twoMissing, "", []string{"IPVS: kernel 9 has none", "veth links: not supported"}, true},
		{"", denied, VM, []string{"make namespaces: not permitted"}, false},
		{"native", denied, "", []string{"make namespaces: not permitted"}, true},
		{"", "exit 3", VM, []string{"exit status 3"}, false},
		{"", "echo nonsense", VM, []string{"a way to try its kernel"}, false},
		{"cloud", able, "", []string{"LAB=cloud"}, true},
	} {
		t.Run(fmt.Sprintf("LAB=%s %s", c.lab, c.guest), func(t *testing.T) {
			guestThat(t, c.guest)
			t.Setenv("LAB", c.lab)
			way, err := Choose(t.Context())
			said := way.String()
			if err != nil {
				said = err.Error()
			}
			if way.Mode != c.mode || (err != nil) != c.fails {
				t.Errorf("way %q, error %v", way.Mode, err)
			}
			for _, s := range c.says {
				if !strings.Contains(said, s) {
					t.Errorf("says %q, want %q in it", said, s)
				}
			}
			if why := (Way{Mode: way.Mode, Why: way.Why}).String(); strings.Contains(why, "\n") {
				t.Errorf("the reason takes more than a line: %q", why)
			}
		})
	}
}

// fakeSudo makes a directory with a sudo that lets everything be done, as nobody in particular.
func fakeSudo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sudo"), []byte("#!/bin/sh\nshift\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Whoever can neither be root nor become it is told so.
func TestChooseWithoutRights(t *testing.T) {
	found, err := probeAs(t.Context(), func() ([]string, error) { return nil, errors.New("no sudo") })
	if err != nil || len(found.Lacks) != 1 || !strings.Contains(found.Lacks[0], "no sudo") {
		t.Errorf("%+v, %v", found, err)
	}
}

// A kernel is asked once, and again only after an error of the lab's own.
func TestOnceGood(t *testing.T) {
	n := 0
	f := onceGood(func(context.Context) (wire.Probe, error) {
		if n++; n == 1 {
			return wire.Probe{}, errors.New("first")
		}
		return wire.Probe{Loaded: []string{fmt.Sprint(n)}}, nil
	})
	if _, err := f(t.Context()); err == nil {
		t.Error("no error")
	}
	for range 2 {
		if got, err := f(t.Context()); err != nil || got.Loaded[0] != "2" {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// Many modules take several lines, none of them too long for a terminal, and none is left out.
func TestWayWraps(t *testing.T) {
	way := Way{Mode: Native}
	for i := range 60 {
		way.Loaded = append(way.Loaded, fmt.Sprintf("module_%d", i))
	}
	lines := strings.Split(way.String(), "\n")
	for _, l := range lines[1:] {
		if len(l) > 100 || !strings.HasPrefix(l, "lab: ") {
			t.Errorf("%d columns: %q", len(l), l)
		}
	}
	if n := len(strings.Fields(strings.Join(lines[2:], " "))) - len(lines[2:]); n != 60 {
		t.Errorf("%d modules are named", n)
	}
}
