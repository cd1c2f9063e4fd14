package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const root = "../../.."

// Two builds from two directories give the same
// image, bit for bit.
func TestReproducible(t *testing.T) {
	copied := t.TempDir()
	for _, name := range []string{"cmd", "pkg", "go.mod", "go.sum"} {
		copyTree(t, filepath.Join(root, name), filepath.Join(copied, name))
	}
	var said []string
	var archives, sboms [][]byte
	for _, source := range []string{root, copied} {
		dir := t.TempDir()
		o := options{source: source, version: "v1.2.3", platforms: []string{"linux/" + runtime.GOARCH},
			layout: filepath.Join(dir, "layout"), archive: filepath.Join(dir, "archive.tar"), sbom: filepath.Join(dir, "sbom.json")}
		var out bytes.Buffer
		if err := run(t.Context(), o, &out); err != nil {
			t.Fatal(err)
		}
		archive, err := os.ReadFile(o.archive)
		if err != nil {
			t.Fatal(err)
		}
		sbom, err := os.ReadFile(o.sbom)
		if err != nil {
			t.Fatal(err)
		}
		said, archives, sboms = append(said, out.String()), append(archives, archive), append(sboms, sbom)
	}
	if said[0] != said[1] || !strings.Contains(said[0], "v1.2.3 sha256:") {
		t.Errorf("two builds say\n%s\n%s", said[0], said[1])
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Errorf("two builds give two archives, of %d and %d bytes", len(archives[0]), len(archives[1]))
	}
	if !bytes.Equal(sboms[0], sboms[1]) {
		t.Errorf("two builds are made of\n%s\n%s", sboms[0], sboms[1])
	}
	for _, want := range []string{`"purl": "pkg:golang/github.com/spf13/cobra@v`, `"purl": "pkg:golang/std@go1.`, `"specVersion": "1.6"`} {
		if !strings.Contains(string(sboms[0]), want) {
			t.Errorf("the list of what is in it has no %s:\n%s", want, sboms[0])
		}
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if info, err := os.Stat(from); err == nil && info.IsDir() {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		return
	}
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What is in the image: the program once, under two names, and nothing else; one index for both platforms.
func TestContents(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "program")
	if err := os.WriteFile(file, []byte("a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	var images []v1.Image
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := newImage(file, "v1.2.3", v1.Platform{OS: "linux", Architecture: arch}, time.Unix(0, 0).UTC())
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	index, err := newIndex(images, "v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "layout")
	for range 2 { // the second replaces the first
		if err := writeLayout(to, index, "v1.2.3"); err != nil {
			t.Fatal(err)
		}
	}
	checkLayout(t, to)
	rootfs := filepath.Join(dir, "rootfs.tar")
	if err := writeRootfs(rootfs, images[1]); err != nil {
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
	if err != nil || len(top.Manifests) != 1 || top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1.2.3" {
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

func TestSourceDate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	if at, err := sourceDate(); err != nil || at.Unix() != 86400 {
		t.Errorf("%s, %v", at, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := sourceDate(); err == nil {
		t.Error("yesterday is no time")
	}
}
