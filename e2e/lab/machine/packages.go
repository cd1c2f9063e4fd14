package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tool is a program and the Debian package that has it.
type tool struct{ program, pkg string }

var (
	qemuTool = tool{"qemu-system-x86_64", "qemu-system-x86"}
	zstdTool = tool{"zstd", "zstd"}
	// guestTool is what a person at a shell of the virtual machine expects; natively there is the machine's own.
	guestTool = tool{"busybox", "busybox"}
	testTools = []tool{ // what a person or a test looks with
		{"nft", "nftables"},
		{"ipvsadm", "ipvsadm"},
		{"ip", "iproute2"},
		{"conntrack", "conntrack"},
		{"sh", "dash"},
	}
)

// applets of guestTool. Not all: among the others are an ip of its own, and a modprobe that the kernel would call.
var applets = strings.Fields(`ash awk basename cat chmod clear cp cut date diff dirname dmesg env find grep head hostname id kill less
	ls mkdir more mv nc nproc ps pwd readlink reset rm sed seq sleep sort stty tail tee time timeout top touch tr tty uname uniq uptime
	vi watch wc which xargs`)

// findTool is LookPath that also finds an administrator's tools when the
// caller's PATH leaves them out.
func findTool(program string) (string, error) {
	if p, err := exec.LookPath(program); err == nil {
		return filepath.Abs(p)
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", program, exec.ErrNotFound)
}

// missing are the packages of the tools that are not here.
func missing(tools []tool) []string {
	var pkgs []string
	for _, t := range tools {
		if _, err := findTool(t.program); err != nil && !slices.Contains(pkgs, t.pkg) {
			pkgs = append(pkgs, t.pkg)
		}
	}
	return pkgs
}

// ensure installs the packages of those tools that are missing.
func ensure(ctx context.Context, cache string, log io.Writer, tools ...tool) error {
	return installed(ctx, cache, log, func() []string { return missing(tools) })
}

// EnsureCompiler installs a C compiler with its headers where there is none: go test -race wants one.
func EnsureCompiler(ctx context.Context, log io.Writer) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	return installed(ctx, cache, log, func() []string {
		cmd := exec.CommandContext(ctx, "gcc", "-E", "-")
		cmd.Stdin = strings.NewReader("#include <stdlib.h>\n")
		if cmd.Run() == nil {
			return nil
		}
		return []string{"gcc", "libc6-dev"}
	})
}

// EnsurePackages installs those of the Debian packages that are not here.
func EnsurePackages(ctx context.Context, log io.Writer, packages ...string) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	return installed(ctx, cache, log, func() []string {
		return slices.DeleteFunc(slices.Clone(packages), func(p string) bool {
			out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Abbrev}", p).Output()
			return err == nil && strings.HasPrefix(string(out), "ii")
		})
	})
}

// EnsureGit installs git where there is none: what makes releases asks it for the commit and for what changed.
func EnsureGit(ctx context.Context, log io.Writer) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	return installed(ctx, cache, log, func() []string {
		if _, err := exec.LookPath("git"); err == nil {
			return nil
		}
		return []string{"git"}
	})
}

// installed has apt install the packages that lack as long as there are any.
func installed(ctx context.Context, cache string, log io.Writer, lack func() []string) error {
	if len(lack()) == 0 {
		return nil
	}
	return locked(cache, "install", func() error {
		pkgs := lack() // another run may just have installed them
		if len(pkgs) == 0 {
			return nil
		}
		help := fmt.Sprintf("the lab needs the Debian packages %s; install them by hand, or run as root or with password-less sudo on Debian",
			strings.Join(pkgs, " "))
		if _, err := exec.LookPath("apt-get"); err != nil {
			return fmt.Errorf("%s: %w", help, err)
		}
		as, err := asRoot()
		if err != nil {
			return fmt.Errorf("%s: %w", help, err)
		}
		fmt.Fprintf(log, "lab: installing %s\n", strings.Join(pkgs, " "))
		if err := install(ctx, as, pkgs); err != nil {
			return fmt.Errorf("%s: %w", help, err)
		}
		if left := lack(); len(left) > 0 {
			return fmt.Errorf("installed %v, and still cannot find what is in %v", pkgs, left)
		}
		return nil
	})
}

func install(ctx context.Context, as, pkgs []string) error {
	get := append(slices.Clone(as), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=600")
	add := append(slices.Clone(get), append([]string{"install", "-y", "--no-install-recommends"}, pkgs...)...)
	first := quiet(ctx, add)
	if first == nil {
		return nil
	}
	// A fresh machine has no package lists, an old one has old ones.
	if err := quiet(ctx, append(slices.Clone(get), "update")); err != nil {
		return errors.Join(first, err)
	}
	return quiet(ctx, add)
}

// asRoot is what to put before a command so that it runs as root.
func asRoot() ([]string, error) {
	if os.Geteuid() == 0 {
		return nil, nil
	}
	if err := exec.Command("sudo", "-n", "true").Run(); err != nil {
		return nil, fmt.Errorf("neither root nor able to become it (sudo -n: %w)", err)
	}
	return []string{"sudo", "-n"}, nil
}

// quiet runs a command and shows its output only in its error.
func quiet(ctx context.Context, args []string) error {
	_, err := output(ctx, "", args...)
	return err
}

// output runs a command in a directory and returns its standard output.
func output(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, all bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &all
	if err := cmd.Run(); err != nil {
		all.Write(out.Bytes())
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, tail(all.Bytes(), 20))
	}
	return out.Bytes(), nil
}

// tail is the last n lines of b.
func tail(b []byte, n int) string {
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
