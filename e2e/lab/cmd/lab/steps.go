package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/format"
	"io"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// goCommand is a go command that ends with ctx, and all that it started too.
func goCommand(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, machine.GoTool(), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// goRun runs a go command and returns its output, also in the error.
func goRun(ctx context.Context, env []string, args ...string) (string, error) {
	out, err := goCommand(ctx, env, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// checks are gofmt and go vet.
func checks(ctx context.Context, r *recorder) {
	fmt.Fprintln(r.w, "== gofmt, go vet")
	bad, err := unformatted(".")
	if err != nil {
		r.failed("gofmt", err.Error())
	}
	if len(bad) > 0 {
		r.failed("gofmt", "run gofmt -w on\n"+strings.Join(bad, "\n"))
	}
	if out, err := goRun(ctx, nil, "vet", "./..."); err != nil {
		r.failed("go vet", out)
	}
}

// unformatted lists the Go files that gofmt would change. It asks no version
// control: a source archive has none.
func unformatted(root string) ([]string, error) {
	var bad []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(d.Name(), ".") && p != root
		if d.IsDir() && (hidden || d.Name() == "testdata" || d.Name() == "vendor") {
			return fs.SkipDir
		}
		if d.IsDir() || hidden || !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if want, err := format.Source(src); err != nil || !bytes.Equal(src, want) {
			bad = append(bad, p)
		}
		return nil
	})
	return bad, err
}

// goPackage is what go list says of a package.
type goPackage struct {
	ImportPath   string
	Dir          string
	Name         string
	TestGoFiles  []string
	XTestGoFiles []string
}

func (p goPackage) hasTests() bool { return len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 }

// listPackages lists packages; -e keeps one that is broken from hiding others.
func listPackages(ctx context.Context, patterns ...string) ([]goPackage, error) {
	return listIn(ctx, "", patterns...)
}

// listIn lists packages of the module to which a directory belongs.
func listIn(ctx context.Context, dir string, patterns ...string) ([]goPackage, error) {
	cmd := goCommand(ctx, nil, append([]string{"list", "-e", "-json=ImportPath,Dir,Name,TestGoFiles,XTestGoFiles"}, patterns...)...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if err == io.EOF {
			return pkgs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		pkgs = append(pkgs, p)
	}
}

// hostTests runs the tests of all packages but those that only make sense on
// the lab, with the race detector.
func hostTests(ctx context.Context, o testOptions, r *recorder) {
	fmt.Fprintln(r.w, "== host tests (go test -race)")
	if err := machine.EnsureCompiler(ctx, r.w); err != nil {
		r.failed("C compiler for go test -race", err.Error())
		return
	}
	pkgs, err := listPackages(ctx, "./...")
	if err != nil {
		r.failed("host tests", err.Error())
		return
	}
	pkgs = slices.DeleteFunc(pkgs, func(p goPackage) bool {
		return slices.ContainsFunc(append(slices.Clone(kernelPackages), planePackage), func(k kernelPackage) bool {
			return !k.host && importPath(k.dir) == p.ImportPath
		})
	})
	args := []string{"test", "-race", "-json", "-timeout", o.timeout.String(), "-skip", anyOf(unraced.tests)}
	if o.run != "" {
		args = append(args, "-run", o.run)
	}
	for _, p := range pkgs {
		args = append(args, p.ImportPath)
	}
	cmd := goCommand(ctx, []string{"CGO_ENABLED=1"}, args...)
	err = record(cmd, r)
	for _, p := range pkgs {
		r.endPackage(p.ImportPath, nil, p.hasTests() && o.run == "")
	}
	if err != nil && r.count().failed == 0 { // trouble of go test itself
		r.failed("go test", err.Error())
	}
}

// unraced are tests that are long and of one goroutine: the detector would make them several times as long and find
// nothing. It has TestModel in a short form, for the walks that run side by side.
var unraced = struct {
	dir           string
	tests, shorts []string
}{"./pkg/sync", []string{"TestOneChangeRunsTheSame", "TestB93AuditCounts", "TestAnyOrderOfEvents", "TestB90RangesAreInNobodysWay",
	"TestB93GoneIsBounded", "TestB90SlicesOfWork", "TestB90EndpointsThatAreVirtualIPs", "TestAuditDuringAStart"}, []string{"TestModel"}}

// unracedTests run beside the others.
func unracedTests(ctx context.Context, o testOptions, r *recorder) {
	tests := slices.DeleteFunc(slices.Concat(unraced.tests, unraced.shorts), func(test string) bool {
		wanted, err := regexp.MatchString(o.run, test)
		return err != nil || !wanted
	})
	if len(tests) == 0 {
		return
	}
	before := r.count().failed
	err := record(goCommand(ctx, nil, "test", "-json", "-timeout", o.timeout.String(), "-run", anyOf(tests), unraced.dir), r)
	r.endPackage(importPath(unraced.dir), nil, true)
	if err != nil && r.count().failed == before {
		r.failed("go test of "+unraced.dir+" without -race", err.Error())
	}
}

// lowPriority is that of what may wait, and yet has to end within its time on a machine that has other work.
const lowPriority = 5

// record runs a command that prints events.
func record(cmd *exec.Cmd, r *recorder) error { return recordAs(cmd, r, 0) }

// recordAs is record at a priority, 0 for the usual one: that of the command's process group.
func recordAs(cmd *exec.Cmd, r *recorder, priority int) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return err
	}
	if priority != 0 {
		// What it starts later has it, too. One that is gone already needs none.
		_ = syscall.Setpriority(syscall.PRIO_PGRP, cmd.Process.Pid, priority)
	}
	rerr := r.read(out)
	err = cmd.Wait()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, errs.Bytes())
	}
	return errors.Join(rerr, err)
}

func importPath(dir string) string { return path.Join(module, dir) }

// newLines yields lines of any length, without their ends.
func newLines(src io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		br := bufio.NewReaderSize(src, 64<<10)
		for {
			line, err := br.ReadBytes('\n')
			if len(line) > 0 && !yield(bytes.TrimRight(line, "\n"), nil) {
				return
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}
