package oci

import (
	"bytes"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// SBOMType is the media type of a list of what an image is made of (CycloneDX).
const SBOMType = "application/vnd.cyclonedx+json"

// emptyType is the media type of a configuration that says nothing (OCI image specification 1.1).
const emptyType = "application/vnd.oci.empty.v1+json"

// artifact is a file that a registry keeps beside an image. It is a manifest with the image as its subject, by which
// registries list it among the image's referrers.
type artifact struct {
	manifest []byte
	content  v1.Layer
}

// Attach makes a file into an artifact that belongs to an image, or to the index of several.
func Attach(subject partial.Describable, fileType, title string, file []byte) (v1.Image, error) {
	of, err := partial.Descriptor(subject)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", title, err)
	}
	content := static.NewLayer(file, types.MediaType(fileType))
	layer, err := partial.Descriptor(content)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", title, err)
	}
	layer.Annotations = map[string]string{"org.opencontainers.image.title": title}
	none, size, err := v1.SHA256(bytes.NewReader([]byte("{}")))
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", title, err)
	}
	manifest, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: fileType,
		Config: v1.Descriptor{MediaType: emptyType, Digest: none, Size: size}, Layers: []v1.Descriptor{*layer},
		Subject: &v1.Descriptor{MediaType: of.MediaType, Digest: of.Digest, Size: of.Size}})
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", title, err)
	}
	return partial.CompressedToImage(&artifact{manifest, content})
}

func (a *artifact) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a *artifact) RawConfigFile() ([]byte, error)      { return []byte("{}"), nil }
func (a *artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (a *artifact) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if d, err := a.content.Digest(); err != nil || d != h {
		return nil, fmt.Errorf("the artifact has no layer %s", h)
	}
	return a.content, nil
}
