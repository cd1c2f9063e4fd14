package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// here runs tests that need no lab. It remembers how they fare with the agent as it is, and builds each package once.
type here struct {
	tmp   string
	built map[string]string // package -> its tests
	fared map[string]string // package and test -> passed, skipped, or what it said instead
}

const (
	passed  = "passed"
	skipped = "skipped"
)

// control says how a mutant's test fares without it: passed, skipped, or what went wrong.
func (h *here) control(ctx context.Context, m mutant) (string, error) {
	name := m.pkg + " " + m.test
	if h.fared[name] != "" {
		return h.fared[name], nil
	}
	file := h.built[m.pkg]
	if file == "" {
		file = filepath.Join(h.tmp, "here-"+strings.ReplaceAll(filepath.Clean(m.pkg), "/", "-")+".test")
		if err := buildTestHere(ctx, "", m.pkg, file); err != nil {
			return "", err
		}
		h.built[m.pkg] = file
	}
	exit, out, err := runHere(ctx, m, file, ".")
	if err != nil {
		return "", err
	}
	switch {
	case exit == 0 && strings.Contains(out, "--- SKIP: "+m.test+" "):
		h.fared[name] = skipped
	case passes(exit, out, m.test):
		h.fared[name] = passed
	default:
		h.fared[name] = fmt.Sprintf("exit %d\n%s", exit, out)
	}
	return h.fared[name], nil
}

// part tells the mutants whose tests run here from those that need the lab: tests below e2e, and those that are skipped
// here. Of a test that fails as it is nothing can be said.
func (h *here) part(ctx context.Context, mutants []mutant, v *verdicts) (onHost, inLab []mutant, err error) {
	for _, m := range mutants {
		if m.runsAgent() {
			inLab = append(inLab, m)
			continue
		}
		fares, err := h.control(ctx, m)
		switch {
		case err != nil:
			return nil, nil, err
		case fares == passed:
			onHost = append(onHost, m)
		case fares == skipped:
			inLab = append(inLab, m)
		default:
			err = v.say(m, outcome{verdict: unproven, output: fares})
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return onHost, inLab, nil
}

func (h *here) all(ctx context.Context, mutants []mutant, v *verdicts) error {
	for _, m := range mutants {
		o, err := h.try(ctx, m)
		if err == nil {
			err = v.say(m, o)
		}
		if err != nil {
			return fmt.Errorf("mutant %s: %w", m.name, err)
		}
	}
	return nil
}

// try runs a mutant's test with it.
func (h *here) try(ctx context.Context, m mutant) (outcome, error) {
	file := filepath.Join(h.tmp, "here-"+m.name+".test")
	defer os.Remove(file)
	if err := buildTestHere(ctx, m.overlay, m.pkg, file); err != nil {
		return outcome{verdict: broken, output: err.Error()}, ctx.Err()
	}
	tree, err := patched(m, h.tmp)
	if err != nil {
		return outcome{}, err
	}
	defer os.RemoveAll(tree)
	begun := time.Now()
	exit, out, err := runHere(ctx, m, file, tree)
	return outcome{verdict: verdict(exit, out, m.test), output: out, took: time.Since(begun)}, err
}

// runHere runs a mutant's test in a tree, in the directory of its package, as go test does.
func runHere(ctx context.Context, m mutant, file, tree string) (exit int, output string, err error) {
	cmd := exec.CommandContext(ctx, file, testArgs(m.test)...)
	cmd.Dir = filepath.Join(tree, m.pkg)
	b, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ctx.Err() == nil {
		return ended.ExitCode(), string(b), nil
	}
	return 0, string(b), err
}
