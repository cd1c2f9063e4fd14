package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ipvs-proxy/ipvs-proxy/hack/release/agent"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/build"
	"github.com/ipvs-proxy/ipvs-proxy/hack/release/files"
)

// completions are where shells look for them below /usr/local or /usr, by the name that the program has for the shell.
var completions = []struct{ shell, file string }{
	{"bash", "share/bash-completion/completions/" + agent.Name},
	{"zsh", "share/zsh/site-functions/_" + agent.Name},
	{"fish", "share/fish/vendor_completions.d/" + agent.Name + ".fish"},
}

// manuals writes an archive of the man pages and of the completions, which is to be unpacked below /usr/local: they are for all
// platforms. Tmp is for a program that can be run here.
func (d *dist) manuals(ctx context.Context, b *build.Built, o options, tmp string) error {
	pages, err := filepath.Glob(filepath.Join(o.source.Dir, "docs", "man", "*.1")) // in the order of their names
	if err != nil || len(pages) == 0 {
		return fmt.Errorf("no man pages below %s (%v)", o.source.Dir, err)
	}
	var entries []files.Entry
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		entries = append(entries, files.Entry{Name: "share/man/man1/" + filepath.Base(page), Content: text, Mode: 0o644})
	}
	program, err := runnable(ctx, b, o.source, tmp)
	if err != nil {
		return err
	}
	for _, c := range completions {
		script, err := exec.CommandContext(ctx, program, "completion", c.shell).Output()
		if err != nil {
			return fmt.Errorf("completion for %s: %w", c.shell, err)
		}
		entries = append(entries, files.Entry{Name: c.file, Content: script, Mode: 0o644})
	}
	var archive bytes.Buffer
	if err := files.TarGz(&archive, o.created, entries); err != nil {
		return err
	}
	return d.write(manualsName(o.source.Version), archive.Bytes())
}

// runnable is the program for this machine: one of the release, or another one, which is not released.
func runnable(ctx context.Context, b *build.Built, s agent.Source, tmp string) (program string, err error) {
	here := v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	for _, p := range b.Platforms {
		if p.OS == here.OS && p.Architecture == here.Architecture {
			return p.Program, nil
		}
	}
	program = filepath.Join(tmp, "here")
	return program, s.Build(ctx, program, &here)
}

func manualsName(version string) string { return stem(version) + "-man-completions.tar.gz" }
