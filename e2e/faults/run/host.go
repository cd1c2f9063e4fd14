package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// runHost runs a test of the agent's own code.
func (f form) runHost(ctx context.Context) (faults.Result, error) {
	r := faults.Result{Verdict: results.Fail, Figures: map[string]int{}}
	cmd := exec.CommandContext(ctx, goCommand(), "test", "-json", "-count=1", "-timeout", longest.String(), "-run", "^"+f.Func()+"$", "./"+f.Package())
	if cmd.Env = os.Environ(); f.long {
		cmd.Env = append(cmd.Env, faults.Variable+"="+faults.Long)
	}
	out, runErr := cmd.Output()
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Test == "" {
			continue
		}
		if name, value, ok := lab.ParseFigure(e.Output); ok {
			r.Figures[results.FigureName(f.Func(), e.Test, name)] = value
		}
		if e.Test == f.Func() && slices.Contains([]string{results.Pass, results.Fail, results.Skip}, e.Action) {
			r.Verdict = e.Action
		}
		if e.Action == "fail" || runErr != nil && e.Action == "output" {
			fmt.Print(e.Output)
		}
	}
	return r, runErr
}

// goCommand is the go command that the Makefile found.
func goCommand() string {
	if g := os.Getenv("GO"); g != "" {
		return g
	}
	return "go"
}

// inputsOf is a print of what a test's result is made of: the agent, the lab, and the file that the test is in.
func inputsOf(root string, t faults.Test, sources []results.Source) (string, error) {
	sum, names := sha256.New(), []string{"go.mod", "go.sum"}
	for _, top := range []string{"cmd", "pkg", "e2e/lab"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
				rel, _ := filepath.Rel(root, name)
				names = append(names, rel)
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	i := slices.IndexFunc(sources, func(s results.Source) bool { return s.Package == t.Package() && s.Name == t.Func() })
	if i < 0 {
		return "", fmt.Errorf("there is no test %s", t.Name)
	}
	names = append(names, filepath.Join(sources[i].Package, sources[i].File))
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n", name, len(b))
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}
