package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// record is what the cluster came to, kept in a file as soon as it is known.
type record struct {
	file string

	Day      string     `json:"day"`
	Machines string     `json:"machines"` // how their processors are had
	Versions []version  `json:"versions"`
	Steps    []stepTime `json:"steps"`
	Stories  []verdict  `json:"stories"`
}

// version is of what a node has.
type version struct {
	What    string `json:"what"`
	Version string `json:"version"`
}

type stepTime struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
}

// verdict is what a story came to.
type verdict struct {
	Name    string   `json:"name"`
	What    string   `json:"what"`
	Passed  bool     `json:"passed"`
	Failure string   `json:"failure,omitempty"`
	Seconds float64  `json:"seconds"`
	Figures []string `json:"figures,omitempty"`
	Key     string   `json:"key"` // of what it was had with
}

func readRecord(file string) (*record, error) {
	r := &record{file: file}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read results %s: %w", file, err)
	}
	return r, nil
}

func (r *record) write() error {
	r.Day = time.Now().UTC().Format(time.DateOnly)
	b, err := json.MarshalIndent(r, "", " ")
	if err == nil {
		err = os.WriteFile(r.file, append(b, '\n'), 0o644)
	}
	return err
}

// step notes how long a step took.
func (r *record) step(what string, took time.Duration) error {
	s := stepTime{what, float64(took.Round(100*time.Millisecond)) / float64(time.Second)}
	i := slices.IndexFunc(r.Steps, func(o stepTime) bool { return o.What == what })
	if i < 0 {
		r.Steps = append(r.Steps, s)
	} else {
		r.Steps[i] = s
	}
	return r.write()
}

// has reports whether a story passed with what there is now.
func (r *record) has(name, key string) bool {
	return slices.ContainsFunc(r.Stories, func(v verdict) bool { return v.Name == name && v.Key == key && v.Passed })
}

func (r *record) story(v verdict) error {
	i := slices.IndexFunc(r.Stories, func(o verdict) bool { return o.Name == v.Name })
	if i < 0 {
		r.Stories = append(r.Stories, v)
	} else {
		r.Stories[i] = v
	}
	return r.write()
}

// key tells what a result was had with: the release, this package's sources, and the guide.
func (c *cluster) key() (string, error) {
	files, err := filepath.Glob(filepath.Join(c.root, here, "*"))
	if err != nil {
		return "", err
	}
	files = append(files, filepath.Join(c.dist(), "image.txt"), filepath.Join(c.root, guideFile), filepath.Join(c.root, installFile))
	sum := sha256.New()
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return "", err
		}
		if info.IsDir() || strings.HasSuffix(f, ".json") {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", filepath.Base(f), len(b), b)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}
