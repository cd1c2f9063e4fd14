package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/agent"
)

const (
	root     = "../../.."
	revision = "0123456789abcdef0123456789abcdef01234567"
)

// Two releases of the same sources, from two directories, are the same, byte for byte. What is in one says version,
// revision and digest as they are.
func TestRelease(t *testing.T) {
	copied := t.TempDir()
	for _, name := range []string{"cmd", "pkg", "manifests", "go.mod", "go.sum", "LICENSE", "docs/man"} {
		copyTree(t, filepath.Join(root, name), filepath.Join(copied, name))
	}
	dist := filepath.Join(t.TempDir(), "dist") // the second replaces the first
	var all []map[string][]byte
	var said []string
	for _, source := range []string{root, copied} {
		o := options{source: agent.Source{Dir: source, Version: "v1.2.3", Revision: revision}, image: "registry.example.com/ipvs-proxy",
			platforms: []string{"linux/" + runtime.GOARCH}, out: dist, created: time.Unix(86400, 0).UTC(), changes: "None.\n"}
		var out bytes.Buffer
		if err := release(t.Context(), o, &out); err != nil {
			t.Fatal(err)
		}
		said, all = append(said, out.String()), append(all, readAll(t, o.out))
	}
	if said[0] != said[1] {
		t.Errorf("two releases say\n%s\n%s", said[0], said[1])
	}
	names := func(files map[string][]byte) (list []string) {
		for name := range files {
			list = append(list, name)
		}
		slices.Sort(list)
		return list
	}
	want := []string{"NOTICES.txt", "SHA256SUMS", "changes.md", "image.txt", "install-fresh.yaml", "install-replace-kube-proxy.yaml", "ipvs-proxy-1.2.3.tgz",
		"ipvs-proxy-v1.2.3-image.tar", "ipvs-proxy-v1.2.3-linux-" + runtime.GOARCH + ".tar.gz", "ipvs-proxy-v1.2.3-man-completions.tar.gz", "ipvs-proxy-v1.2.3.cdx.json", "job-check-fresh.yaml",
		"job-check-replace-kube-proxy.yaml", "job-cleanup.yaml", "job-diff-fresh.yaml", "job-diff-replace-kube-proxy.yaml", "job-way-back.yaml", "kubeproxydaemonset.yaml", "monitoring.yaml"}
	if got := names(all[0]); !slices.Equal(got, want) {
		t.Errorf("a release has\n%q, want\n%q", got, want)
	}
	for name, content := range all[0] {
		if !bytes.Equal(content, all[1][name]) {
			t.Errorf("%s is not the same twice: %d and %d bytes", name, len(content), len(all[1][name]))
		}
	}
	sums(t, all[0])
	image := strings.TrimSpace(string(all[0]["image.txt"]))
	if !strings.HasPrefix(image, "registry.example.com/ipvs-proxy:v1.2.3@sha256:") || !strings.Contains(said[0], image) {
		t.Errorf("the image is %s; it said\n%s", image, said[0])
	}
	named(t, all[0], image)
	program(t, all[0]["ipvs-proxy-v1.2.3-linux-"+runtime.GOARCH+".tar.gz"])
	manuals(t, all[0]["ipvs-proxy-v1.2.3-man-completions.tar.gz"], all[0]["ipvs-proxy-v1.2.3-linux-"+runtime.GOARCH+".tar.gz"])
	for _, want := range []string{`"purl": "pkg:golang/github.com/spf13/cobra@v`, `"purl": "pkg:golang/std@go1.`, `"specVersion": "1.6"`, `"id": "Apache-2.0"`, `"expression": "Apache-2.0 AND BSD-3-Clause"`} {
		if !strings.Contains(string(all[0]["ipvs-proxy-v1.2.3.cdx.json"]), want) {
			t.Errorf("the list of what is in it has no %s", want)
		}
	}
}

// sums checks the checksums, and that there is one for each file.
func sums(t *testing.T, files map[string][]byte) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(string(files["SHA256SUMS"])), "\n")
	if len(lines) != len(files)-1 {
		t.Errorf("%d checksums of %d files", len(lines), len(files))
	}
	for _, line := range lines {
		sum, name, _ := strings.Cut(line, "  ")
		if got := fmt.Sprintf("%x", sha256.Sum256(files[name])); got != sum {
			t.Errorf("%s: %s, its checksum says %s", name, got, sum)
		}
	}
}

// named: whatever is installed names the image with its digest, and nothing else in its place.
func named(t *testing.T, files map[string][]byte, image string) {
	t.Helper()
	for name, content := range files {
		if !strings.HasSuffix(name, ".yaml") || name == "monitoring.yaml" { // which runs nothing
			continue
		}
		images := 0
		for line := range strings.Lines(string(content)) {
			if _, of, found := strings.Cut(strings.TrimSpace(line), "image: "); found {
				images++
				if of != image {
					t.Errorf("%s has the image %s, want %s", name, of, image)
				}
			}
		}
		if images == 0 {
			t.Errorf("%s has no image", name)
		}
	}
	chart := untar(t, files["ipvs-proxy-1.2.3.tgz"])
	_, digest, _ := strings.Cut(image, "@")
	for name, want := range map[string]string{
		"ipvs-proxy/Chart.yaml":  "version: \"1.2.3\"\nappVersion: \"v1.2.3\"\n",
		"ipvs-proxy/values.yaml": "digest: \"" + digest + "\"",
	} {
		if !strings.Contains(string(chart[name]), want) {
			t.Errorf("the chart's %s does not say %q:\n%s", name, want, chart[name])
		}
	}
}

// program: the released program says which it is, and its licences come along.
func program(t *testing.T, archive []byte) {
	t.Helper()
	files := untar(t, archive)
	file := filepath.Join(t.TempDir(), "ipvs-proxy")
	if err := os.WriteFile(file, files["ipvs-proxy"], 0o700); err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command(file, "version").CombinedOutput()
	if want := "ipvs-proxy v1.2.3 (revision " + revision + ", " + runtime.Version() + ")\n"; err != nil || string(said) != want {
		t.Errorf("it says %q, %v; want %q", said, err, want)
	}
	if len(files["LICENSE"]) == 0 || !bytes.Contains(files["NOTICES.txt"], []byte("\ngithub.com/spf13/cobra: Apache-2.0\n")) {
		t.Error("the archive has no licences")
	}
}

func readAll(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err == nil {
			files[h.Name], err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
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

// A directory that no release made stays as it is.
func TestDistIsNobodyElses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newDist(dir); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis.txt")); err != nil {
		t.Error(err)
	}
}

func TestBadOptions(t *testing.T) {
	for _, version := range []string{"", "1.2.3", "v1.2", "v01.2.3", "v1.2.3+b", "v1.2.3-"} {
		if err := checkVersion(version); err == nil {
			t.Errorf("%q is no version", version)
		}
	}
	for _, version := range []string{"v1.2.3", "v0.0.0-rc.1"} {
		if err := checkVersion(version); err != nil {
			t.Error(err)
		}
	}
	for _, image := range []string{"", "ipvs-proxy", "registry.example.com/ipvs-proxy:v1", "registry.example.com/IPVS"} {
		if err := release(t.Context(), options{image: image}, io.Discard); err == nil || !strings.HasPrefix(err.Error(), "IMAGE="+image+": want a repository") {
			t.Errorf("%q: %v", image, err)
		}
	}
}
