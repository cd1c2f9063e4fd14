package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// keepResults writes what the kernel tests came to where the conformance page finds it, in the kernel's file. After a
// run of some tests only, the file keeps what it had of the others, if they ran on the same kernel.
func keepResults(o testOptions, r *recorder, report machine.Report, took time.Duration) error {
	if o.results == "" || report.Kernel == "" {
		return nil
	}
	f := results.File{Kernel: report.Kernel, Tests: map[string]map[string]string{}}
	file := filepath.Join(o.results, f.Series()+".json")
	if o.run == "" {
		f.Seconds = int(took.Seconds())
	} else if b, err := os.ReadFile(file); err == nil {
		var before results.File
		if err := json.Unmarshal(b, &before); err != nil {
			return fmt.Errorf("results so far in %s: %w", file, err)
		}
		if before.Kernel == f.Kernel {
			f = before
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ran := r.verdicts()
	for pkg, tests := range ran {
		if f.Tests[pkg] == nil {
			f.Tests[pkg] = map[string]string{}
		}
		for name := range f.Tests[pkg] { // subtests that there are no more
			top, _, _ := strings.Cut(name, "/")
			if slices.ContainsFunc(slices.Collect(maps.Keys(tests)), func(n string) bool { t, _, _ := strings.Cut(n, "/"); return t == top }) {
				delete(f.Tests[pkg], name)
			}
		}
		maps.Copy(f.Tests[pkg], tests)
	}
	return f.Write(file)
}

// verdicts are those of tests without subtests, and of tests that failed by themselves, by package.
func (r *recorder) verdicts() map[string]map[string]string {
	all := map[string]map[string]string{}
	for _, o := range r.order {
		if o.id.test == "" || o.id.pkg == "" || o.parent && (o.action != "fail" || o.hidden) {
			continue
		}
		pkg := short(o.id.pkg)
		if all[pkg] == nil {
			all[pkg] = map[string]string{}
		}
		all[pkg][o.id.test] = o.action
	}
	return all
}
