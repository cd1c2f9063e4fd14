// Package chart packs the Helm chart of a release.
package chart

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/kustomize/kyaml/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/files"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/install"
)

// name is the chart's, and that of the directory in its archive.
const name = "ipvs-proxy"

// Version is a chart's version, which has no v before it.
func Version(release string) string { return strings.TrimPrefix(release, "v") }

// FileName is how Helm calls the archive.
func FileName(release string) string { return name + "-" + Version(release) + ".tgz" }

// Pack writes the archive of the chart in a directory, as it is for a release: with its version, and with its image as the
// default.
func Pack(w io.Writer, dir string, image install.Image, at time.Time) error {
	entries, err := read(dir)
	if err != nil {
		return err
	}
	for i, e := range entries {
		switch e.Name {
		case "Chart.yaml":
			entries[i].Content, err = set(e.Content, change{[]string{"version"}, Version(image.Tag)}, change{[]string{"appVersion"}, image.Tag})
		case "values.yaml":
			entries[i].Content, err = set(e.Content, change{[]string{"image", "repository"}, image.Repository}, change{[]string{"image", "digest"}, image.Digest})
		}
		if err != nil {
			return fmt.Errorf("chart, %s: %w", e.Name, err)
		}
		entries[i].Name = name + "/" + e.Name
	}
	return files.TarGz(w, at, entries)
}

// Sum tells one state of a chart's files from another.
func Sum(dir string) (string, error) {
	entries, err := read(dir)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, e := range entries {
		fmt.Fprintf(h, "%s %d\n%s", e.Name, len(e.Content), e.Content)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// read reads a chart's files, Chart.yaml first as in Helm's own archives: others want it there.
func read(dir string) (entries []files.Entry, err error) {
	add := func(rel string) error {
		content, err := os.ReadFile(filepath.Join(dir, rel))
		if err == nil {
			entries = append(entries, files.Entry{Name: filepath.ToSlash(rel), Content: content, Mode: 0o644})
		}
		return err
	}
	if err := add("Chart.yaml"); err != nil {
		return nil, err
	}
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil || rel == "Chart.yaml" {
			return err
		}
		return add(rel)
	})
	return entries, err
}

// change is a value at a path.
type change struct {
	path  []string
	value string
}

// set sets values that are there, and leaves comments alone.
func set(text []byte, changes ...change) ([]byte, error) {
	root, err := yaml.Parse(string(text))
	if err != nil {
		return nil, err
	}
	for _, c := range changes {
		node, err := root.Pipe(yaml.Lookup(c.path...))
		if err == nil && node == nil {
			err = errors.New("it is not there")
		}
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", strings.Join(c.path, "."), err)
		}
		n := node.YNode()
		n.Value, n.Style, n.Tag = c.value, yaml.DoubleQuotedStyle, yaml.NodeTagString
	}
	out, err := root.String()
	return []byte(out), err
}
