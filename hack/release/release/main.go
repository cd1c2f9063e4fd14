// Command release writes everything that a release needs into a directory: the image for all platforms with what it is
// made of attached, programs, their man pages and completions, what is installed, the chart, the changes since the last
// release, and checksums of all. The same commit, version and Go give the same bytes.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/pflag"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/agent"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/build"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/chart"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/files"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/install"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/oci"
)

// options of a release.
type options struct {
	source    agent.Source
	image     string   // repository of the image, without a tag
	platforms []string // os/architecture
	out       string   // directory to make
	created   time.Time
	changes   string // text
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{platforms: build.Platforms}
	var dirty bool
	f := pflag.NewFlagSet("release", pflag.ExitOnError)
	f.StringVar(&o.source.Dir, "source", ".", "root of the repository, which is a git work tree")
	f.StringVar(&o.source.Version, "version", "", "version of the release: v1.2.3")
	f.StringVar(&o.image, "image", "", "the image's repository: registry.example.com/ipvs-proxy")
	f.StringVar(&o.out, "out", "dist", "directory to make")
	f.BoolVar(&dirty, "dirty", false, "take files that are not committed, to try a release out; the revision then says so")
	_ = f.Parse(os.Args[1:]) // it exits
	err := checkVersion(o.source.Version)
	if err == nil {
		err = o.fromGit(ctx, git{dir: o.source.Dir}, dirty)
	}
	if err == nil {
		err = release(ctx, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// release makes the directory, and prints the image's name, digest and sizes.
func release(ctx context.Context, o options, out io.Writer) error {
	repository, err := name.NewRepository(o.image, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("IMAGE=%s: want a repository without tag, such as registry.example.com/ipvs-proxy: %w", o.image, err)
	}
	tmp, err := os.MkdirTemp("", "ipvs-proxy-release-")
	if err != nil {
		return fmt.Errorf("make a directory for the programs: %w", err)
	}
	defer os.RemoveAll(tmp)
	b, err := build.Build(ctx, o.source, o.platforms, tmp, o.created)
	if err != nil {
		return err
	}
	digest, err := b.Index.Digest()
	if err != nil {
		return err
	}
	d, err := newDist(o.out)
	if err != nil {
		return err
	}
	image := install.Image{Repository: repository.Name(), Tag: o.source.Version, Digest: digest.String()}
	for _, write := range []func() error{
		func() error { return d.image(b, o.source.Version, filepath.Join(tmp, "layout")) },
		func() error { return d.programs(b, o) },
		func() error { return d.manuals(ctx, b, o, tmp) },
		func() error { return d.installs(o, image) },
		func() error { return d.chart(o, image) },
		func() error { return d.write("image.txt", []byte(image.String()+"\n")) },
		func() error { return d.write("changes.md", []byte(o.changes)) },
		d.sums,
	} {
		if err := write(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, image)
	return b.Report(out)
}

// dist is the directory of a release.
type dist struct{ dir string }

// newDist makes it anew. Only what was a release before is replaced.
func newDist(dir string) (*dist, error) {
	if _, err := os.Stat(filepath.Join(dir, sumsName)); err == nil {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove the last release: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty, and was not made by a release, which would have left %s (%v)", dir, sumsName, err)
	}
	return &dist{dir}, nil
}

func (d *dist) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(d.dir, name), content, 0o644)
}

// image writes the OCI archive, and apart from it what the image is made of.
func (d *dist) image(b *build.Built, version, layout string) error {
	if err := oci.WriteLayout(layout, b.Index, version, b.Attached...); err != nil {
		return err
	}
	archive := filepath.Join(d.dir, stem(version)+"-image.tar")
	if err := files.Write(archive, func(w io.Writer) error { return oci.WriteArchive(w, layout) }); err != nil {
		return err
	}
	return d.write(stem(version)+".cdx.json", b.SBOM)
}

// programs writes an archive a platform: the program and its licences.
func (d *dist) programs(b *build.Built, o options) error {
	licence, err := os.ReadFile(filepath.Join(o.source.Dir, "LICENSE"))
	if err != nil {
		return err
	}
	notices := []byte(agent.Notices(b.Licences))
	for _, p := range b.Platforms {
		program, err := os.ReadFile(p.Program)
		if err != nil {
			return err
		}
		var archive bytes.Buffer
		if err := files.TarGz(&archive, o.created, []files.Entry{{Name: agent.Name, Content: program, Mode: 0o755},
			{Name: "LICENSE", Content: licence, Mode: 0o644}, {Name: noticesName, Content: notices, Mode: 0o644}}); err != nil {
			return fmt.Errorf("archive of %s: %w", p, err)
		}
		if err := d.write(fmt.Sprintf("%s-%s-%s.tar.gz", stem(o.source.Version), p.OS, p.Architecture), archive.Bytes()); err != nil {
			return err
		}
	}
	return d.write(noticesName, notices)
}

// installs writes what an administrator applies.
func (d *dist) installs(o options, image install.Image) error {
	all, err := install.Files(filepath.Join(o.source.Dir, "manifests"), image)
	if err != nil {
		return err
	}
	for _, f := range all {
		if err := d.write(f.Name, f.Content); err != nil {
			return err
		}
	}
	return nil
}

// chart writes the Helm chart.
func (d *dist) chart(o options, image install.Image) error {
	return files.Write(filepath.Join(d.dir, chart.FileName(o.source.Version)), func(w io.Writer) error {
		return chart.Pack(w, filepath.Join(o.source.Dir, "manifests", "chart"), image, o.created)
	})
}

// Names in the directory.
const (
	noticesName = "NOTICES.txt"
	sumsName    = "SHA256SUMS"
)

func stem(version string) string { return agent.Name + "-" + version }
