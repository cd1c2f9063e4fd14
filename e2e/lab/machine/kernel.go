package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Kernel is one of Debian's that the virtual machine can boot.
type Kernel struct {
	Suite    string // Debian's name of the release
	Series   string // kernel version, for people
	Package  string // the meta package that names the newest one
	Compress string // of the base image: none or gzip or zstd
	SMP      int    // processors under software emulation
}

// DefaultKernel is the one that a job gets which names none.
const DefaultKernel = "bookworm"

// Booting, unpacking included, takes 4 s with any compression (tried with 6.1
// under QEMU 7.2), so none it is, wherever nothing else is needed. One
// processor: two were no faster on a free host of two, twice as slow on a
// busy one, and crashed newer kernels.
var kernels = []Kernel{
	{Suite: "bullseye", Series: "5.10", Package: "linux-image-cloud-amd64", Compress: "none", SMP: 1},
	{Suite: "bookworm", Series: "6.1", Package: "linux-image-cloud-amd64", Compress: "none", SMP: 1},
	{Suite: "trixie", Series: "6.12", Package: "linux-image-cloud-amd64", Compress: "none", SMP: 1},
	{Suite: "sid", Series: "7.2", Package: "linux-image-cloud-amd64", Compress: "none", SMP: 1},
}

// Kernels are all of them, older ones first.
func Kernels() []Kernel { return slices.Clone(kernels) }

func kernelOf(suite string) (Kernel, error) {
	var have []string
	for _, k := range kernels {
		if k.Suite == suite || suite == "" && k.Suite == DefaultKernel {
			return k, nil
		}
		have = append(have, k.Suite)
	}
	return Kernel{}, fmt.Errorf("no kernel called %q, the lab knows %s", suite, strings.Join(have, ", "))
}

// unpacked is a kernel in the cache. Vmlinuz and Modules are below the cache
// directory, which may move.
type unpacked struct {
	Version string `json:"version"` // of the packages
	Release string `json:"release"` // uname -r
	Vmlinuz string `json:"vmlinuz"`
	Modules string `json:"modules"`
}

// fetch returns a kernel from the cache, after getting it there if need be. A
// kernel stays as it is until the cache is removed, so that runs compare.
func (k Kernel) fetch(ctx context.Context, cache string, log io.Writer) (unpacked, error) {
	var u unpacked
	dir := filepath.Join(cache, "kernel-"+k.Suite)
	err := locked(cache, "kernel-"+k.Suite, func() error {
		if b, err := os.ReadFile(filepath.Join(dir, "kernel.json")); err == nil {
			return json.Unmarshal(b, &u)
		}
		if err := ensure(ctx, cache, log, tool{"apt-get", "apt"}, tool{"dpkg", "dpkg"}); err != nil {
			return err
		}
		fmt.Fprintf(log, "lab: getting the kernel of Debian %s (%s)\n", k.Suite, k.Series)
		return into(dir, func(tmp string) (err error) {
			u, err = k.download(ctx, cache, tmp)
			return err
		})
	})
	if err != nil {
		return u, fmt.Errorf("kernel of Debian %s: %w", k.Suite, err)
	}
	u.Vmlinuz, u.Modules = filepath.Join(dir, u.Vmlinuz), filepath.Join(dir, u.Modules)
	return u, nil
}

// download fills dir with a kernel and its description.
func (k Kernel) download(ctx context.Context, cache, dir string) (unpacked, error) {
	a, pkgs, err := k.find(ctx, cache)
	if err != nil {
		return unpacked{}, err
	}
	args := append(slices.Clone(a.opts), "download")
	for _, p := range pkgs {
		args = append(args, p.name+"="+p.version)
	}
	if _, err := output(ctx, dir, append([]string{"apt-get"}, args...)...); err != nil {
		return unpacked{}, err
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	for _, d := range debs {
		if err := quiet(ctx, []string{"dpkg", "-x", d, dir}); err != nil {
			return unpacked{}, err
		}
		if err := os.Remove(d); err != nil {
			return unpacked{}, err
		}
	}
	u, err := survey(dir)
	if err != nil {
		return u, err
	}
	u.Version = pkgs[0].version
	b, err := json.MarshalIndent(u, "", "\t")
	if err != nil {
		return u, err
	}
	return u, os.WriteFile(filepath.Join(dir, "kernel.json"), b, 0o600)
}

// survey finds the parts of an unpacked kernel. Since 7.x the image is in the
// directory of its modules, before that in /boot; and /lib may be /usr/lib.
func survey(dir string) (unpacked, error) {
	var images []string
	for _, pattern := range []string{"boot/vmlinuz-*", "lib/modules/*/vmlinuz", "usr/lib/modules/*/vmlinuz"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		images = append(images, found...)
	}
	if len(images) != 1 {
		return unpacked{}, fmt.Errorf("want one kernel image in the packages, have %q", images)
	}
	var u unpacked
	u.Vmlinuz, _ = filepath.Rel(dir, images[0])
	var hasVersion bool
	if u.Release, hasVersion = strings.CutPrefix(filepath.Base(images[0]), "vmlinuz-"); !hasVersion {
		u.Release = filepath.Base(filepath.Dir(images[0]))
	}
	for _, lib := range []string{"lib", "usr/lib"} {
		u.Modules = filepath.Join(lib, "modules", u.Release)
		if fi, err := os.Stat(filepath.Join(dir, u.Modules, "kernel")); err == nil && fi.IsDir() {
			return u, nil
		}
	}
	return u, fmt.Errorf("no modules for kernel %s in the packages", u.Release)
}

// find names the packages of the newest kernel, first in the machine's own
// package lists, then, if it is another Debian or has none, in lists of ours.
func (k Kernel) find(ctx context.Context, cache string) (apt, []pkg, error) {
	var first error
	if codename() == k.Suite {
		pkgs, err := apt{}.kernelPackages(ctx, k.Package)
		if err == nil {
			return apt{}, pkgs, nil
		}
		first = err
	}
	a, err := foreign(ctx, filepath.Join(cache, "apt-"+k.Suite), k.Suite)
	if err != nil {
		if first != nil {
			err = fmt.Errorf("%w\nbefore that: %w", err, first)
		}
		return a, nil, err
	}
	pkgs, err := a.kernelPackages(ctx, k.Package)
	return a, pkgs, err
}

// apt is apt with options that point it at lists of our own.
type apt struct{ opts []string }

type pkg struct{ name, version string }

// foreign makes package lists of another suite, from the machine's own
// mirrors. The machine's own sources stay as they are; no root is needed.
func foreign(ctx context.Context, dir, suite string) (apt, error) {
	main, security, err := archives()
	if err != nil {
		return apt{}, err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return apt{}, err
		}
	}
	list := filepath.Join(dir, "sources.list")
	a := apt{opts: []string{
		"-o", "Dir::Etc::sourcelist=" + list, "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "Acquire::Languages=none",
		// The cache is private, apt's sandbox user could not write to it.
		"-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1",
	}}
	// A mirror that has no security archive of the suite still has a kernel.
	for _, text := range []string{suiteList(main, security, suite), suiteList(main, nil, suite)} {
		if err = os.WriteFile(list, []byte(text), 0o600); err != nil {
			return a, err
		}
		if err = quiet(ctx, append(append([]string{"apt-get"}, a.opts...), "-q", "update")); err == nil {
			return a, nil
		}
	}
	return a, err
}

// kernelPart matches the packages that hold a kernel and the lists that belong to it; the rest of what it
// depends on is for installing it.
var kernelPart = regexp.MustCompile(`^linux-(image|binary|modules|base)-[0-9]`)

// kernelPackages follows the meta package to the packages that hold files.
func (a apt) kernelPackages(ctx context.Context, meta string) ([]pkg, error) {
	var out []pkg
	queue, seen := []string{meta}, map[string]bool{meta: true}
	for ; len(queue) > 0; queue = queue[1:] {
		args := append(append([]string{"apt-cache"}, a.opts...), "show", "--no-all-versions", queue[0])
		b, err := output(ctx, "", args...)
		if err != nil {
			return nil, err
		}
		version, deps := parsePackage(string(b))
		if queue[0] != meta {
			out = append(out, pkg{queue[0], version})
		}
		for _, d := range deps {
			if kernelPart.MatchString(d) && !seen[d] {
				seen[d] = true
				queue = append(queue, d)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("package %s depends on no kernel", meta)
	}
	return out, nil
}

// parsePackage reads version and dependencies out of apt-cache's answer.
func parsePackage(text string) (version string, deps []string) {
	for line := range strings.Lines(text) {
		switch key, val, _ := strings.Cut(strings.TrimSpace(line), ": "); key {
		case "Version":
			version = val
		case "Depends", "Pre-Depends":
			for d := range strings.FieldsFuncSeq(val, func(r rune) bool { return r == ',' || r == '|' }) {
				name, _, _ := strings.Cut(strings.TrimSpace(d), " ")
				deps = append(deps, name)
			}
		}
	}
	return version, deps
}

// codename is the Debian release of this machine, empty elsewhere.
func codename() string {
	b, _ := os.ReadFile("/etc/os-release")
	values := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[k] = strings.Trim(v, `"'`)
	}
	if values["ID"] != "debian" {
		return ""
	}
	return values["VERSION_CODENAME"]
}
