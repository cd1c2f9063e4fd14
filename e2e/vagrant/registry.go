package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// hostAddress is where the machines reach this one: its end of their network.
const hostAddress = "172.28.128.1:8088"

// image is one that the nodes ask for, in whichever registry they believe it to be.
type image struct {
	name    string // with tag, without registry
	file    string // program
	path    string // of the program in the image
	base    string // file of a layer below it, a tar; none if empty
	command []string
}

// serveFiles serves images to the machines as a registry does, and what is in the directory programs under /bin, until the
// end of ctx. Images that are pushed stay in the directory blobs.
func serveFiles(ctx context.Context, programs, blobs string) error {
	l, err := net.Listen("tcp", hostAddress)
	if err != nil {
		return fmt.Errorf("serve images: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v2/", registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)), registry.Logger(log.New(io.Discard, "", 0))))
	mux.Handle("/bin/", http.StripPrefix("/bin/", http.FileServer(http.Dir(programs))))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { s.Close() })
	go s.Serve(l)
	return nil
}

// push makes an image and puts it into the registry.
func (i image) push(ctx context.Context) error {
	img, err := i.build()
	if err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	to, err := name.ParseReference(hostAddress+"/"+i.name, name.Insecure)
	if err == nil {
		err = remote.Write(to, img, remote.WithContext(ctx))
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	return nil
}

func (i image) build() (v1.Image, error) {
	var layers []v1.Layer
	if i.base != "" {
		base, err := os.ReadFile(i.base)
		if err != nil {
			return nil, err
		}
		links, err := iptablesLinks()
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer(base), layer(links))
	}
	program, err := programTar(i.file, i.path)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, append(layers, layer(program))...); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: i.command, WorkingDir: "/",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	return mutate.ConfigFile(img, config)
}

// layer is not compressed: an emulated processor takes longer to expand than to read.
func layer(tar []byte) v1.Layer { return static.NewLayer(tar, types.OCIUncompressedLayer) }

// iptablesLinks are the names that Debian's alternatives give iptables, in its nftables variant.
func iptablesLinks() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"", "-save", "-restore"} {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/sbin/" + program + what, Linkname: "xtables-nft-multi", Mode: 0o777}); err != nil {
				return nil, err
			}
		}
	}
	return out.Bytes(), w.Close()
}

func programTar(file, to string) ([]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(to)[1:], Mode: 0o755, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write(content)
	}
	return out.Bytes(), errors.Join(err, w.Close())
}
