package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// applied gives the files that a mutant changes, as they are with it.
func applied(m mutant, root string) (map[string]string, error) {
	text, err := os.ReadFile(m.path)
	if err != nil {
		return nil, err
	}
	patches, err := parsePatches(string(text))
	if err != nil {
		return nil, fmt.Errorf("mutant %s: %w", m.name, err)
	}
	if len(patches) == 0 {
		return nil, fmt.Errorf("mutant %s changes no file", m.name)
	}
	changed := map[string]string{}
	for _, p := range patches {
		content, known := changed[p.file]
		if !known {
			b, err := os.ReadFile(filepath.Join(root, p.file))
			if err != nil {
				return nil, fmt.Errorf("mutant %s: %w", m.name, err)
			}
			content = string(b)
		}
		if changed[p.file], err = p.apply(content); err != nil {
			return nil, fmt.Errorf("mutant %s no longer applies: %w", m.name, err)
		}
	}
	return changed, nil
}

// mutate writes what a mutant changes and an overlay, with which go builds the tree as if it were patched. The tree
// itself is not touched.
func mutate(m mutant, tmp string) (overlay string, err error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	changed, err := applied(m, root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, content := range changed {
		to := filepath.Join(tmp, "tree-"+m.name, file)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(to, []byte(content), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = to
	}
	overlay = filepath.Join(tmp, m.name+".json")
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	return overlay, os.WriteFile(overlay, b, 0o644)
}

// patched makes a tree of its own for a mutant, of which mutate has written what it changes. A test that builds what it
// tests once more does so there: go's coverage counts in the files as they are, whatever an overlay says (1.26).
func patched(m mutant, tmp string) (tree string, err error) {
	tree = filepath.Join(tmp, "tree-"+m.name)
	return tree, filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(tree, file), 0o755)
		case !d.Type().IsRegular() || exists(filepath.Join(tree, file)):
			return nil
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(tree, file), b, 0o644)
	})
}

func goTool(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, machine.GoTool(), args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// static: what runs in the lab finds no C library there.
var static = []string{"CGO_ENABLED=0", "GOOS=linux"}

func build(ctx context.Context, overlay, pkg, out string) error {
	_, err := goTool(ctx, static, "build", "-trimpath", "-ldflags=-s -w", "-overlay="+overlay, "-o", out, pkg)
	return err
}

func buildTest(ctx context.Context, overlay, pkg, out string) error {
	_, err := goTool(ctx, static, "test", "-c", "-trimpath", "-ldflags=-s -w", "-overlay="+overlay, "-o", out, pkg)
	return err
}

// buildTestHere builds the tests of a package as go test does, without what a debugger needs.
func buildTestHere(ctx context.Context, overlay, pkg, out string) error {
	_, err := goTool(ctx, nil, "test", "-c", "-ldflags=-s -w", "-overlay="+overlay, "-o", out, pkg)
	return err
}
