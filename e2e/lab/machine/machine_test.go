package machine

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestVirtFlag(t *testing.T) {
	for text, want := range map[string]bool{
		"processor\t: 0\nflags\t\t: fpu vme svm sse\n": true,
		"flags\t\t: fpu vmx\n":                         true,
		"flags\t\t: fpu avx\nvmx flags\t: vnmi\n":      false,
		"model name\t: a vmx processor\n":              false,
		"":                                             false,
	} {
		if got := virtFlag(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestParsePackage(t *testing.T) {
	version, deps := parsePackage("Package: linux-image-cloud-amd64\nVersion: 6.1.9-1\n" +
		"Depends: linux-image-6.1.0-5-cloud-amd64 (= 6.1.9-1), kmod | linux-tool\nDescription: x\n")
	if version != "6.1.9-1" {
		t.Errorf("version %q", version)
	}
	if want := []string{"linux-image-6.1.0-5-cloud-amd64", "kmod", "linux-tool"}; !reflect.DeepEqual(deps, want) {
		t.Errorf("deps %q, want %q", deps, want)
	}
	for name, want := range map[string]bool{
		"linux-image-6.1.0-5-cloud-amd64": true, "linux-modules-7.2-amd64": true, "linux-base": false, "linux-base-7.2-cloud-amd64": true, "linux-image-amd64": false,
	} {
		if kernelPart.MatchString(name) != want {
			t.Errorf("%s holds a kernel: %v", name, !want)
		}
	}
}

func TestSurvey(t *testing.T) {
	for name, files := range map[string][]string{
		"boot/vmlinuz-6.1":          {"boot/vmlinuz-6.1", "lib/modules/6.1/kernel/"},
		"usr/lib/modules/7/vmlinuz": {"usr/lib/modules/7/vmlinuz", "usr/lib/modules/7/kernel/"},
		"":                          {"boot/vmlinuz-6.1", "boot/vmlinuz-6.2", "lib/modules/6.1/kernel/"},
		"no modules":                {"usr/lib/modules/7/vmlinuz"},
	} {
		dir := t.TempDir()
		for _, f := range files {
			isDir := strings.HasSuffix(f, "/")
			f = filepath.Join(dir, f)
			if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
				t.Fatal(err)
			}
			if isDir {
				if err := os.Mkdir(f, 0o700); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := os.WriteFile(f, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		u, err := survey(dir)
		if failed := err != nil; failed != !strings.Contains(name, "/") {
			t.Errorf("%q: error %v", name, err)
		} else if !failed && (u.Vmlinuz != name || !strings.HasSuffix(u.Modules, u.Release)) {
			t.Errorf("%q: %+v", name, u)
		}
	}
}

func TestQemuArgs(t *testing.T) {
	k := Kernel{SMP: 1}
	args := qemuArgs(Job{Memory: 512}, k, unpacked{Vmlinuz: "/k"}, "/i", "/c", false)
	if i := slices.Index(args, "-cpu"); i < 0 || args[i+1] != "Haswell,-cx16,-erms" {
		t.Errorf("software emulation without its processor: %q", args)
	}
	args = qemuArgs(Job{Memory: 512, CPUs: 3}, k, unpacked{Vmlinuz: "/k"}, "/i", "/c", true)
	if i := slices.Index(args, "-smp"); i < 0 || args[i+1] != "3" {
		t.Errorf("job's processors ignored: %q", args)
	}
	args = qemuArgs(Job{Memory: 512, CPUs: 3, Icount: true}, k, unpacked{Vmlinuz: "/k"}, "/i", "/c", true)
	if line := strings.Join(args, " "); !strings.Contains(line, "-smp 1 ") || !strings.Contains(line, "-accel tcg,thread=single -icount shift=0,sleep=off -cpu Haswell,-cx16") || strings.Contains(line, "erms") {
		t.Errorf("does not count instructions: %s", line)
	}
}

func TestFillUp(t *testing.T) {
	s := newSession(Job{Commands: []Command{{Name: "a"}, {Name: "b"}, {Name: "c"}}})
	s.isUp = true
	s.result(Result{Exit: 0})
	s.fillUp(errTime)
	var got []int
	for _, r := range s.report.Results {
		got = append(got, r.Exit)
	}
	if want := []int{0, -1, -1}; !reflect.DeepEqual(got, want) {
		t.Errorf("exits %v, want %v", got, want)
	}
}

func TestUsr(t *testing.T) {
	for in, want := range map[string]string{
		"/lib64/ld.so": "/usr/lib64/ld.so", "/usr/lib/x": "/usr/lib/x", "/library/x": "/library/x",
	} {
		if got := usr(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
