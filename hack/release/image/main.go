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
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/spf13/pflag"
)

// options of the command line.
type options struct {
	source    string   // the root of the repository
	version   string   // of the release, shown by `ipvs-proxy version`
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
	f.StringVar(&o.source, "source", ".", "root of the repository")
	f.StringVar(&o.version, "version", "development", "version of the release")
	f.StringSliceVar(&o.platforms, "platform", []string{"linux/amd64", "linux/arm64"}, "platforms to build for")
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
	created, err := sourceDate()
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "ipvs-proxy-image-")
	if err != nil {
		return fmt.Errorf("make a directory for the programs: %w", err)
	}
	defer os.RemoveAll(tmp)
	var images []v1.Image
	var programs []string
	for _, p := range o.platforms {
		platform, err := v1.ParsePlatform(p)
		if err != nil {
			return fmt.Errorf("--platform=%s: want something like linux/arm64: %w", p, err)
		}
		program := filepath.Join(tmp, strings.ReplaceAll(p, "/", "-"))
		if err := build(ctx, o.source, program, o.version, platform); err != nil {
			return err
		}
		img, err := newImage(program, o.version, *platform, created)
		if err != nil {
			return fmt.Errorf("image of %s: %w", p, err)
		}
		images, programs = append(images, img), append(programs, program)
	}
	if o.sbom != "" {
		if err := writeSBOM(o.sbom, o.version, programs); err != nil {
			return err
		}
	}
	if o.rootfs != "" {
		if err := writeRootfs(o.rootfs, images[0]); err != nil {
			return err
		}
	}
	index, err := newIndex(images, o.version)
	if err != nil {
		return err
	}
	if o.layout != "" {
		if err := writeLayout(o.layout, index, o.version); err != nil {
			return err
		}
	}
	if o.archive != "" {
		if err := writeArchive(o.archive, o.layout); err != nil {
			return err
		}
	}
	return report(out, index, images, o)
}

// sourceDate is the time of all that is in the image: SOURCE_DATE_EPOCH (reproducible-builds.org), in seconds
// since 1970, or else 1970.
func sourceDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// report prints what a registry will show.
func report(out io.Writer, index v1.ImageIndex, images []v1.Image, o options) error {
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	for i, img := range images {
		layers, err := img.Layers()
		if err != nil {
			return err
		}
		packed, err := layers[0].Size()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %.1f MB to download\n", o.platforms[i], float64(packed)/1e6)
	}
	fmt.Fprintf(out, "%s %s\n", o.version, digest)
	return nil
}

// writeRootfs writes what a container of the image sees below /.
func writeRootfs(file string, img v1.Image) error {
	tree := mutate.Extract(img)
	defer tree.Close()
	return writeFile(file, func(w io.Writer) error {
		_, err := io.Copy(w, tree)
		return err
	})
}

// writeFile makes a file, or none when write fails.
func writeFile(file string, write func(io.Writer) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", file, err), os.Remove(file))
	}
	return nil
}
