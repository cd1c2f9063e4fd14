package machine

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// image collects the files of a cpio archive.
type image struct{ files map[string]cpio.Record }

func newImage() image { return image{map[string]cpio.Record{}} }

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (im image) put(r cpio.Record) { im.files[r.Name] = r }

func (im image) data(name string, mode uint64, b []byte) {
	im.put(cpio.StaticFile(clean(name), string(b), mode))
}

func (im image) link(name, target string) { im.put(cpio.Symlink(clean(name), target)) }

// file adds a file of the host, following links.
func (im image) file(name, host string) error {
	b, err := os.ReadFile(host)
	if err != nil {
		return err
	}
	fi, err := os.Stat(host)
	if err != nil {
		return err
	}
	im.data(name, uint64(fi.Mode().Perm()), b)
	return nil
}

// tree adds a file of the host, or a directory with all in it.
func (im image) tree(name, host string) error {
	return walkFiles(host, func(file, rel string, fi fs.FileInfo) error {
		in := path.Join(name, filepath.ToSlash(rel))
		if fi.IsDir() {
			im.put(cpio.Directory(clean(in), 0o755))
			return nil
		}
		return im.file(in, file)
	})
}

// write writes the archive in a fixed order, directories before their files.
func (im image) write(w io.Writer) error {
	for name := range im.files {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			if _, ok := im.files[d]; !ok {
				im.files[d] = cpio.Directory(d, 0o755)
			}
		}
	}
	names := make([]string, 0, len(im.files))
	for n := range im.files {
		names = append(names, n)
	}
	slices.Sort(names)
	rw := cpio.Newc.Writer(w)
	for _, n := range names {
		if err := rw.WriteRecord(cpio.MakeReproducible(im.files[n])); err != nil {
			return fmt.Errorf("initramfs: %s: %w", n, err)
		}
	}
	return cpio.WriteTrailer(rw)
}

// recipe changes when the base image is made differently from same parts.
const recipe = "1"

// baseImage returns the part of the initramfs that stays the same from run to
// run: modules and tools. Its name says all that went into it.
func baseImage(ctx context.Context, cache string, k Kernel, u unpacked, job Job) (string, error) {
	im := newImage()
	for name, target := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		im.link(name, target)
	}
	if err := addTools(ctx, im, job.tools()); err != nil {
		return "", err
	}
	want := wantModules
	if job.KubeProxy {
		want = slices.Concat(want, kubeProxyModules)
		if err := addKubeProxy(ctx, im); err != nil {
			return "", err
		}
	}
	sum := sha256.New()
	fmt.Fprintln(sum, recipe, k, u.Version, want, skipModules)
	if err := im.write(sum); err != nil {
		return "", err
	}
	out := filepath.Join(cache, "base-"+u.Release+"-"+hex.EncodeToString(sum.Sum(nil)[:8]))
	err := locked(cache, "base", func() error {
		if _, err := os.Stat(out); err == nil {
			return nil
		}
		if err := addModules(im, u, want); err != nil {
			return err
		}
		return writeBase(ctx, out, im, k.Compress)
	})
	return out, err
}

func writeBase(ctx context.Context, out string, im image, compress string) error {
	var raw bytes.Buffer
	if err := im.write(&raw); err != nil {
		return err
	}
	b := raw.Bytes()
	switch compress {
	case "gzip":
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(b); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		b = z.Bytes()
	case "zstd":
		cmd := exec.CommandContext(ctx, "zstd", "-qc")
		cmd.Stdin = &raw
		var err error
		if b, err = cmd.Output(); err != nil {
			return fmt.Errorf("compress base image: %w", err)
		}
	}
	tmp := out + ".tmp" // we hold the lock
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}

func addModules(im image, u unpacked, want []string) error {
	mods, builtin, err := readModules(u.Modules)
	if err != nil {
		return err
	}
	order, err := closure(mods, builtin, want, skipModules)
	if err != nil {
		return fmt.Errorf("kernel %s: %w", u.Release, err)
	}
	var list strings.Builder
	for _, m := range order {
		b, err := moduleBytes(m.path)
		if err != nil {
			return err
		}
		name := "/lib/modules/" + m.name + ".ko"
		im.data(usr(name), 0o644, b)
		fmt.Fprintln(&list, name)
	}
	im.data(usr(wire.ModuleOrder), 0o644, []byte(list.String()))
	return nil
}

// usr puts a path where it is on a system whose /bin and /lib are links.
func usr(name string) string {
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(name, d) {
			return "/usr" + name
		}
	}
	return name
}

func addTools(ctx context.Context, im image, tools []tool) error {
	for _, t := range append([]tool{guestTool}, tools...) {
		p, err := findTool(t.program)
		if err != nil {
			return err
		}
		if err := im.file("/usr/sbin/"+t.program, p); err != nil {
			return err
		}
		if err := im.librariesOf(ctx, p); err != nil {
			return err
		}
	}
	im.link("/usr/bin/sh", "../sbin/sh") // #!/bin/sh
	for _, a := range applets {
		im.link("/usr/bin/"+a, "../sbin/"+guestTool.program)
	}
	im.data("/etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	im.data("/etc/passwd", 0o644, []byte("root:x:0:0:root:/tmp:/bin/sh\n"))
	im.data("/etc/group", 0o644, []byte("root:x:0:\n"))
	for _, f := range []string{"/etc/protocols", "/etc/services", "/etc/iproute2", "/usr/share/iproute2"} {
		if _, err := os.Stat(f); err == nil { // names are a comfort only
			if err := im.tree(f, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// librariesOf adds the shared libraries of a program or library.
func (im image) librariesOf(ctx context.Context, file string) error {
	libs, err := libraries(ctx, file)
	if err != nil {
		return err
	}
	for _, l := range libs {
		if err := im.file(usr(l), l); err != nil {
			return err
		}
	}
	return nil
}

var libraryLine = regexp.MustCompile(`(?m)(/\S+) \(0x[0-9a-f]+\)$`)

// libraries are the shared libraries of a program, and its loader.
func libraries(ctx context.Context, program string) ([]string, error) {
	out, err := output(ctx, "", "ldd", program)
	if err != nil {
		return nil, err
	}
	var libs []string
	for _, m := range libraryLine.FindAllSubmatch(out, -1) {
		libs = append(libs, string(m[1]))
	}
	return libs, nil
}

// jobImage writes the initramfs of one run: what is new, then the base. The
// kernel unpacks archives one after another, compressed or not.
func jobImage(out, base, guest string, spec []byte, files map[string]string) error {
	im := newImage()
	if err := im.file("/init", guest); err != nil {
		return err
	}
	im.data(wire.SpecFile, 0o600, spec)
	im.put(cpio.Directory(clean(guestDir), 0o755))
	for name, host := range files {
		if err := im.tree(path.Join(guestDir, clean(name)), host); err != nil {
			return fmt.Errorf("file %s of the job: %w", name, err)
		}
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := im.write(f); err != nil {
		return err
	}
	if err := pad(f); err != nil {
		return err
	}
	b, err := os.Open(base)
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := io.Copy(f, b); err != nil {
		return err
	}
	return f.Close()
}

// pad fills up to a multiple of 512: the kernel wants the next archive at a
// multiple of 4, and skips zeros.
func pad(f *os.File) error {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, (512-at%512)%512))
	return err
}
