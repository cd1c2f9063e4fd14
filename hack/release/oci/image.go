// Package oci makes the image of a release: one for each platform below one name, and beside them what they are made of.
package oci

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/agent"
)

// Where the program is, and the name under which kubeadm's DaemonSet starts it.
const (
	binDir = "usr/local/bin"
	alias  = "kube-proxy"
)

// Image is the image of one platform: one layer, with the program and its second name. There are no
// certificates in it: the API server's come with the kubeconfig or the service account, and the agent talks to
// nobody else.
func Image(file, version string, p v1.Platform, created time.Time) (v1.Image, error) {
	content, err := layerTar(file, created)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(9))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{
		CreatedBy: "hack/release with " + runtime.Version(), Created: v1.Time{Time: created}}}); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant, config.Created = p.OS, p.Architecture, p.Variant, v1.Time{Time: created}
	config.Config = v1.Config{Entrypoint: []string{"/" + binDir + "/" + agent.Name}, User: "0:0", WorkingDir: "/", Labels: annotations(version)}
	return mutate.ConfigFile(img, config)
}

// annotations are those of the OCI image specification that registries and scanners read.
func annotations(version string) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       agent.Name,
		"org.opencontainers.image.description": "A Kubernetes service proxy on Linux IPVS",
		"org.opencontainers.image.version":     version,
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.source":      "https://github.com/ipvs-proxy/ipvs-proxy",
	}
}

// layerTar is the image's only layer.
func layerTar(file string, created time.Time) ([]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []tar.Header{
		{Name: "usr/", Typeflag: tar.TypeDir},
		{Name: "usr/local/", Typeflag: tar.TypeDir},
		{Name: binDir + "/", Typeflag: tar.TypeDir},
		{Name: binDir + "/" + agent.Name, Typeflag: tar.TypeReg, Size: int64(len(content))},
		{Name: binDir + "/" + alias, Typeflag: tar.TypeSymlink, Linkname: agent.Name},
	} {
		h.Mode, h.ModTime, h.Format = 0o755, created, tar.FormatUSTAR
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("layer, %s: %w", h.Name, err)
		}
		if h.Size > 0 {
			if _, err := w.Write(content); err != nil {
				return nil, fmt.Errorf("layer, %s: %w", h.Name, err)
			}
		}
	}
	return out.Bytes(), w.Close()
}

// Index puts the images of all platforms under one name.
func Index(images []v1.Image, version string) (v1.ImageIndex, error) {
	index := v1.ImageIndex(empty.Index)
	for _, img := range images {
		config, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: config.Platform()}})
	}
	return mutate.Annotations(index, annotations(version)).(v1.ImageIndex), nil
}

// WriteLayout makes the directory anew: what another build left there is no part of this one.
func WriteLayout(dir string, index v1.ImageIndex, version string, attached ...v1.Image) error {
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err == nil {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove the last build's layout: %w", err)
		}
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("write layout %s: %w", dir, err)
	}
	// The first is for OCI tools; the second is the name under which containerd's ctr imports it.
	names := map[string]string{refName: version, "io.containerd.image.name": "ipvs-proxy.io/ipvs-proxy:" + version}
	if err := p.AppendIndex(index, layout.WithAnnotations(names)); err != nil {
		return fmt.Errorf("write layout %s: %w", dir, err)
	}
	for _, a := range attached { // without a name: they are found by their subject
		if err := p.AppendImage(a); err != nil {
			return fmt.Errorf("write layout %s: %w", dir, err)
		}
	}
	return nil
}

// refName is the annotation that names an image in a layout.
const refName = "org.opencontainers.image.ref.name"

// WriteArchive packs a layout; WalkDir's order is lexical, so that it is the same each time.
func WriteArchive(to io.Writer, dir string) error {
	w := tar.NewWriter(to)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		h := tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, Size: int64(len(content)), Format: tar.FormatUSTAR, ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// WriteRootfs writes what a container of the image sees below /, as a tar file.
func WriteRootfs(w io.Writer, img v1.Image) error {
	tree := mutate.Extract(img)
	defer tree.Close()
	_, err := io.Copy(w, tree)
	return err
}
