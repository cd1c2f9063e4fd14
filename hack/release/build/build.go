// Package build joins the programs of all platforms to one image, with what they are made of attached.
package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/agent"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/oci"
)

// Platforms are those of a release.
var Platforms = []string{"linux/amd64", "linux/arm64"}

// Platform is what there is for one.
type Platform struct {
	*v1.Platform
	Program string // a file
	Image   v1.Image
}

// Built is an image with all that belongs to it.
type Built struct {
	Platforms []Platform
	Index     v1.ImageIndex
	Attached  []v1.Image // an SBOM for each platform's image, and one of all for the index
	SBOM      []byte     // of all
	Licences  map[string]agent.Licences
}

// Build compiles a source for some platforms (os/architecture) into a directory, and makes the image of what it compiled.
// Created is the time of all that is in it.
func Build(ctx context.Context, s agent.Source, platforms []string, dir string, created time.Time) (*Built, error) {
	b := &Built{Licences: map[string]agent.Licences{}}
	for _, name := range platforms {
		p, err := b.add(ctx, s, name, dir, created)
		if err != nil {
			return nil, err
		}
		b.Platforms = append(b.Platforms, p)
	}
	var images []v1.Image
	var programs []string
	for _, p := range b.Platforms {
		images, programs = append(images, p.Image), append(programs, p.Program)
	}
	var err error
	if b.Index, err = oci.Index(images, s.Version); err != nil {
		return nil, err
	}
	for _, p := range b.Platforms {
		if _, err := b.attach(s, p.Image, strings.ReplaceAll(p.String(), "/", "-"), p.Program); err != nil {
			return nil, err
		}
	}
	b.SBOM, err = b.attach(s, b.Index, "all", programs...)
	return b, err
}

// add makes what there is for one platform.
func (b *Built) add(ctx context.Context, s agent.Source, name, dir string, created time.Time) (Platform, error) {
	p, err := v1.ParsePlatform(name)
	if err != nil {
		return Platform{}, fmt.Errorf("platform %s: want something like linux/arm64: %w", name, err)
	}
	program := filepath.Join(dir, strings.ReplaceAll(name, "/", "-"))
	if err := s.Build(ctx, program, p); err != nil {
		return Platform{}, err
	}
	licences, err := s.Licences(ctx, p)
	if err != nil {
		return Platform{}, err
	}
	maps.Copy(b.Licences, licences)
	img, err := oci.Image(program, s.Version, *p, created)
	if err != nil {
		return Platform{}, fmt.Errorf("image of %s: %w", name, err)
	}
	return Platform{Platform: p, Program: program, Image: img}, nil
}

// attach makes an SBOM of programs and attaches it to the image that has them.
func (b *Built) attach(s agent.Source, to partial.Describable, name string, programs ...string) ([]byte, error) {
	var sbom bytes.Buffer
	if err := s.WriteSBOM(&sbom, b.Licences, programs...); err != nil {
		return nil, err
	}
	a, err := oci.Attach(to, oci.SBOMType, agent.Name+"-"+name+".cdx.json", sbom.Bytes())
	if err != nil {
		return nil, err
	}
	b.Attached = append(b.Attached, a)
	return sbom.Bytes(), nil
}

// Report prints how much a node downloads.
func (b *Built) Report(out io.Writer) error {
	for _, p := range b.Platforms {
		layers, err := p.Image.Layers()
		if err != nil {
			return err
		}
		packed, err := layers[0].Size()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %.1f MB to download\n", p, float64(packed)/1e6)
	}
	return nil
}
