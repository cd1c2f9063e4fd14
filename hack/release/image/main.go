// Command image builds the agent for several platforms and packs it into one OCI image with nothing else in it.
// The same sources, version and Go give the same digest, wherever and whenever it runs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/agent"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/build"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/files"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/oci"
)

// options of the command line.
type options struct {
	source    agent.Source
	platforms []string // os/architecture
	layout    string   // directory for the OCI layout; none if empty
	archive   string   // file for the same layout as a tar archive; none if empty
	rootfs    string   // file for the first platform's root file system as a tar archive; none if empty
	sbom      string   // file for the list of what the programs are made of; none if empty
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	f := pflag.NewFlagSet("image", pflag.ExitOnError)
	f.StringVar(&o.source.Dir, "source", ".", "root of the repository")
	f.StringVar(&o.source.Version, "version", "development", "version of the release")
	f.StringVar(&o.source.Revision, "revision", "", "commit that is built")
	f.StringSliceVar(&o.platforms, "platform", build.Platforms, "platforms to build for")
	f.StringVar(&o.layout, "layout", "", "directory to make, for the image as OCI layout")
	f.StringVar(&o.archive, "archive", "", "file for the image as OCI archive, which is the layout in a tar file")
	f.StringVar(&o.rootfs, "rootfs", "", "file for the first platform's root file system, as a container would see it, as a tar file")
	f.StringVar(&o.sbom, "sbom", "", "file for the list of modules in the programs, as CycloneDX JSON")
	_ = f.Parse(os.Args[1:]) // it exits
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run builds the image and prints its digest and sizes.
func run(ctx context.Context, o options, out io.Writer) error {
	if o.archive != "" && o.layout == "" {
		return errors.New("--archive wants --layout: it is made of it")
	}
	created, err := files.SourceDate()
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "ipvs-proxy-image-")
	if err != nil {
		return fmt.Errorf("make a directory for the programs: %w", err)
	}
	defer os.RemoveAll(tmp)
	b, err := build.Build(ctx, o.source, o.platforms, tmp, created)
	if err != nil {
		return err
	}
	if o.sbom != "" {
		if err := os.WriteFile(o.sbom, b.SBOM, 0o644); err != nil {
			return err
		}
	}
	if o.rootfs != "" {
		if err := files.Write(o.rootfs, func(w io.Writer) error { return oci.WriteRootfs(w, b.Platforms[0].Image) }); err != nil {
			return err
		}
	}
	if o.layout != "" {
		if err := oci.WriteLayout(o.layout, b.Index, o.source.Version, b.Attached...); err != nil {
			return err
		}
	}
	if o.archive != "" {
		if err := files.Write(o.archive, func(w io.Writer) error { return oci.WriteArchive(w, o.layout) }); err != nil {
			return err
		}
	}
	digest, err := b.Index.Digest()
	if err == nil {
		err = b.Report(out)
	}
	if err == nil {
		fmt.Fprintln(out, o.source.Version, digest)
	}
	return err
}
