// Package agent compiles the agent for a release, and says what is in the program: modules, licences, their texts.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Name is the program's.
const Name = "ipvs-proxy"

// mainPackage is the program's, below the root of the repository.
const mainPackage = "./cmd/ipvs-proxy"

// Source is what is released.
type Source struct {
	Dir      string // the root of the repository
	Version  string // of the release, as `ipvs-proxy version` says it
	Revision string // the commit; empty: not known, which `ipvs-proxy version` says
}

// Build compiles the agent for a platform. What could make two builds differ is pinned: directories (-trimpath),
// version control (-buildvcs; the revision is handed over), and the environment's say in the instruction set and in
// flags.
func (s Source) Build(ctx context.Context, program string, p *v1.Platform) error {
	program, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	flags := "-ldflags=-s -w -buildid= -X main.version=" + s.Version
	if s.Revision != "" {
		flags += " -X main.commit=" + s.Revision
	}
	if _, err := s.goCommand(ctx, p, "build", "-trimpath", "-buildvcs=false", flags, "-o", program, mainPackage); err != nil {
		return fmt.Errorf("build for %s: %w", p, err)
	}
	return nil
}

// goCommand runs Go in the source, for a platform, and returns what it prints.
func (s Source) goCommand(ctx context.Context, p *v1.Platform, args ...string) ([]byte, error) {
	goTool := os.Getenv("GO")
	if goTool == "" {
		goTool = "go"
	}
	cmd := exec.CommandContext(ctx, goTool, args...)
	cmd.Dir = s.Dir
	cmd.Env = slices.Concat(os.Environ(), []string{"CGO_ENABLED=0", "GOOS=" + p.OS, "GOARCH=" + p.Architecture, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=-mod=readonly", "GOEXPERIMENT=", "GODEBUG=", "GOWORK=off"})
	out, err := cmd.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return nil, fmt.Errorf("go %s: %w\n%s", args[0], err, failed.Stderr)
	}
	return out, err
}
