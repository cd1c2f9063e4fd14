package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// What is in the image: the program once, under two names, and nothing else; one index for both platforms.
func TestContents(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "program")
	if err := os.WriteFile(file, []byte("a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	var images []v1.Image
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := Image(file, "v1.2.3", v1.Platform{OS: "linux", Architecture: arch}, time.Unix(0, 0).UTC())
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	index, err := Index(images, "v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	attached, err := Attach(index, SBOMType, "sbom.json", []byte("a list"))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "layout")
	for range 2 { // the second replaces the first
		if err := WriteLayout(to, index, "v1.2.3", attached); err != nil {
			t.Fatal(err)
		}
	}
	checkLayout(t, to)
	rootfs := filepath.Join(dir, "rootfs.tar")
	f, err := os.Create(rootfs)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(WriteRootfs(f, images[1]), f.Close()); err != nil {
		t.Fatal(err)
	}
	want := []string{"drwxr-xr-x usr", "drwxr-xr-x usr/local", "drwxr-xr-x usr/local/bin", "-rwxr-xr-x usr/local/bin/ipvs-proxy a program",
		"Lrwxr-xr-x usr/local/bin/kube-proxy -> ipvs-proxy"}
	if got := list(t, rootfs); !slices.Equal(got, want) {
		t.Errorf("the image holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func checkLayout(t *testing.T, dir string) {
	t.Helper()
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(outer); err != nil {
		t.Error(err)
	}
	top, err := outer.IndexManifest()
	if err != nil || len(top.Manifests) != 2 || top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1.2.3" {
		t.Fatalf("the layout's index: %+v, %v", top, err)
	}
	index, err := outer.ImageIndex(top.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || manifest.MediaType != types.OCIImageIndex {
		t.Fatalf("the image's index: %+v, %v", manifest, err)
	}
	var platforms []string
	for _, m := range manifest.Manifests {
		platforms = append(platforms, m.Platform.String())
		img, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil || m.MediaType != types.OCIManifestSchema1 || config.Platform().String() != m.Platform.String() ||
			!slices.Equal(config.Config.Entrypoint, []string{"/usr/local/bin/ipvs-proxy"}) || !config.Created.Equal(time.Unix(0, 0)) {
			t.Errorf("%s: %s, %+v, %v", m.Platform, m.MediaType, config, err)
		}
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(platforms, want) {
		t.Errorf("platforms %q, want %q", platforms, want)
	}
}

// list says what is in a tar file. All of it belongs to root.
func list(t *testing.T, file string) (out []string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s: of %d:%d, %v", h.Name, h.Uid, h.Gid, err)
		}
		line := fmt.Sprintf("%s %s", h.FileInfo().Mode(), strings.TrimSuffix(h.Name, "/"))
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(content) > 0 {
			line += " " + string(content)
		}
		out = append(out, line)
	}
}

// An archive comes to a registry as it is: the image below its tag, and the SBOM among the referrers of what it is attached
// to. What is there already is not exchanged.
func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	to, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://") + "/ipvs-proxy")
	if err != nil {
		t.Fatal(err)
	}
	push := func(program string) (v1.Hash, v1.Hash, error) {
		t.Helper()
		index, img, dir := archived(t, program)
		digest, err := Push(t.Context(), dir, to)
		if of, _ := index.Digest(); err == nil && digest != of {
			t.Errorf("pushed %s, which is not %s", digest, of)
		}
		sub, _ := img.Digest()
		return digest, sub, err
	}
	digest, platform, err := push("a program")
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(to.Tag("v1.2.3"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	for of, want := range map[v1.Hash]string{digest: "of all", platform: "of one"} {
		list, err := remote.Referrers(to.Digest(of.String()))
		if err != nil {
			t.Fatal(err)
		}
		m, err := list.IndexManifest()
		if err != nil || len(m.Manifests) != 1 {
			t.Fatalf("referrers of %s: %+v, %v", of, m, err)
		}
		img, err := remote.Image(to.Digest(m.Manifests[0].Digest.String()))
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := img.Manifest()
		if err != nil || manifest.ArtifactType != SBOMType || manifest.Subject.Digest != of {
			t.Fatalf("attached to %s: %+v, %v", of, manifest, err)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		r, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(r); err != nil || string(text) != want {
			t.Errorf("attached to %s: %q, %v; want %q", of, text, err, want)
		}
	}
	if again, _, err := push("a program"); err != nil || again != digest {
		t.Errorf("the same once more: %s, %v", again, err)
	}
	if _, _, err := push("another program"); err == nil || !strings.Contains(err.Error(), "ipvs-proxy:v1.2.3 is there already") {
		t.Errorf("another image with the same tag: %v", err)
	}
}

// archived packs an image of a program with what is attached to it, and unpacks it again.
func archived(t *testing.T, program string) (v1.ImageIndex, v1.Image, string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "program")
	err := os.WriteFile(file, []byte(program), 0o600)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	img, err := Image(file, "v1.2.3", v1.Platform{OS: "linux", Architecture: "amd64"}, time.Unix(0, 0).UTC())
	must(err)
	index, err := Index([]v1.Image{img}, "v1.2.3")
	must(err)
	one, err := Attach(img, SBOMType, "one.json", []byte("of one"))
	must(err)
	all, err := Attach(index, SBOMType, "all.json", []byte("of all"))
	must(err)
	must(WriteLayout(filepath.Join(dir, "layout"), index, "v1.2.3", one, all))
	var archive bytes.Buffer
	must(WriteArchive(&archive, filepath.Join(dir, "layout")))
	must(ReadArchive(&archive, filepath.Join(dir, "unpacked")))
	return index, img, filepath.Join(dir, "unpacked")
}

// Nothing is written outside of the directory.
func TestReadArchiveEscapes(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "../escaped", Typeflag: tar.TypeReg}), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := ReadArchive(&archive, t.TempDir()); err == nil {
		t.Error("a file beside the directory is taken")
	}
}
