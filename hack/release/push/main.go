// Command push hands a release's image on to a registry, with what is attached to it. It logs in as docker does: by
// ~/.docker/config.json.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/pflag"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/oci"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	f := pflag.NewFlagSet("push", pflag.ExitOnError)
	archive := f.String("archive", "", "OCI archive of the image")
	image := f.String("image", "", "the image's repository: registry.example.com/ipvs-proxy")
	_ = f.Parse(os.Args[1:]) // it exits
	if err := push(ctx, *archive, *image, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "push:", err)
		os.Exit(1)
	}
}

func push(ctx context.Context, archive, image string, out io.Writer) error {
	to, err := name.NewRepository(image, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("IMAGE=%s: want a repository without tag, such as registry.example.com/ipvs-proxy: %w", image, err)
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	dir, err := os.MkdirTemp("", "ipvs-proxy-push-")
	if err != nil {
		return fmt.Errorf("make a directory for the archive: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := oci.ReadArchive(f, dir); err != nil {
		return err
	}
	digest, err := oci.Push(ctx, dir, to, remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err == nil {
		fmt.Fprintln(out, to.Digest(digest.String()))
	}
	return err
}
