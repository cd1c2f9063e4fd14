package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// ReadArchive unpacks an OCI archive into an empty directory, which is a layout then.
func ReadArchive(archive io.Reader, dir string) error {
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		if !filepath.IsLocal(h.Name) || h.Typeflag != tar.TypeReg {
			return fmt.Errorf("read the archive: %q is no file of a layout", h.Name)
		}
		file := filepath.Join(dir, h.Name)
		content, err := io.ReadAll(r)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(file), 0o755)
		}
		if err == nil {
			err = os.WriteFile(file, content, 0o644)
		}
		if err != nil {
			return fmt.Errorf("unpack %s of the archive: %w", h.Name, err)
		}
	}
}

// Push hands a layout's image on to a registry, under the name that it has there as a tag, and then what is attached to
// it. A tag that names another image already stays as it is, which is an error: what was released does not change.
func Push(ctx context.Context, dir string, to name.Repository, options ...remote.Option) (v1.Hash, error) {
	options = append(options, remote.WithContext(ctx))
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("read layout %s: %w", dir, err)
	}
	top, err := outer.IndexManifest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("read layout %s: %w", dir, err)
	}
	var pushed v1.Hash
	for _, m := range top.Manifests {
		version := m.Annotations[refName]
		if version == "" {
			continue
		}
		tag := to.Tag(version)
		if err := free(tag, m.Digest, options); err != nil {
			return v1.Hash{}, err
		}
		index, err := outer.ImageIndex(m.Digest)
		if err == nil {
			err = remote.WriteIndex(tag, index, options...)
		}
		if err != nil {
			return v1.Hash{}, fmt.Errorf("push %s: %w", tag, err)
		}
		pushed = m.Digest
	}
	if pushed == (v1.Hash{}) {
		return v1.Hash{}, fmt.Errorf("layout %s has no image with a name", dir)
	}
	for _, m := range top.Manifests {
		if m.Annotations[refName] != "" {
			continue
		}
		img, err := outer.Image(m.Digest)
		if err == nil {
			err = remote.Write(to.Digest(m.Digest.String()), img, options...)
		}
		if err != nil {
			return v1.Hash{}, fmt.Errorf("push what is attached to the image, %s: %w", m.Digest, err)
		}
	}
	return pushed, nil
}

// free is nil where a tag is not there, or names this image.
func free(tag name.Tag, digest v1.Hash, options []remote.Option) error {
	have, err := remote.Head(tag, options...)
	if failed := (*transport.Error)(nil); errors.As(err, &failed) && failed.StatusCode == http.StatusNotFound {
		return nil
	}
	if err != nil {
		return fmt.Errorf("see whether %s is there already: %w", tag, err)
	}
	if have.Digest != digest {
		return fmt.Errorf("%s is there already and is another image, %s: a release does not change, give it a new version", tag, have.Digest)
	}
	return nil
}
