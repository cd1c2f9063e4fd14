package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// keepResults writes what tests on a kernel came to where the conformance page finds it, in the kernel's file. The file
// keeps what it had of other packages, and after a run of some tests only of the others, if that was the same kernel.
func keepResults(o testOptions, r *recorder, report machine.Report, took time.Duration) error {
	if o.results == "" || report.Kernel == "" {
		return nil
	}
	f := results.File{Kernel: report.Kernel, Tests: map[string]map[string]string{}}
	file := filepath.Join(o.results, f.Series()+".json")
	b, err := os.ReadFile(file)
	if err == nil {
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
	if o.run == "" && !o.beside {
		f.Seconds, f.Day = int(took.Seconds()), time.Now().UTC().Format(time.DateOnly)
	}
	prints, err := printsOf(".")
	if err != nil {
		return err
	}
	if f.Prints == nil {
		f.Prints = map[string]map[string]string{}
	}
	for pkg, tests := range r.verdicts() {
		if o.run == "" || f.Tests[pkg] == nil {
			f.Tests[pkg], f.Prints[pkg] = map[string]string{}, map[string]string{}
		}
		if f.Prints[pkg] == nil { // of an older form
			f.Prints[pkg] = map[string]string{}
		}
		ran := map[string]bool{}
		for name := range tests {
			ran[topOf(name)] = true
		}
		maps.DeleteFunc(f.Tests[pkg], func(name, _ string) bool { return ran[topOf(name)] }) // also subtests that are no more
		maps.DeleteFunc(f.Figures, func(test string, _ map[string]int) bool {
			of, name, _ := strings.Cut(test, " ")
			return of == pkg && (o.run == "" || ran[topOf(name)])
		})
		maps.Copy(f.Tests[pkg], tests)
		for top := range ran {
			if print := prints[pkg][top]; print != "" {
				f.Prints[pkg][top] = print
			}
		}
	}
	if lacks, ok := r.lacks(); ok {
		f.Lacks = lacks
	}
	for test, figures := range r.figures() {
		if f.Figures == nil {
			f.Figures = map[string]map[string]int{}
		}
		f.Figures[test] = figures
	}
	return f.Write(file)
}

// printsOf are the prints of all tests below the repository's root, by package and name.
func printsOf(root string) (map[string]map[string]string, error) {
	sources, err := results.Sources(root)
	if err != nil {
		return nil, fmt.Errorf("texts of the tests: %w", err)
	}
	all := map[string]map[string]string{}
	for _, s := range sources {
		if all[s.Package] == nil {
			all[s.Package] = map[string]string{}
		}
		all[s.Package][s.Name] = s.Print
	}
	return all, nil
}

func topOf(test string) string {
	top, _, _ := strings.Cut(test, "/")
	return top
}

// lackTest logs a line for each thing that the kernel lacks.
const lackTest, lackWord = "TestWhatThisKernelLacks", "lacks: "

// lacks are these things, if the test ran.
func (r *recorder) lacks() (list []string, ran bool) {
	o := r.tests[testID{importPath(trafficPackage), lackTest}]
	if o == nil || o.action != "pass" {
		return nil, false
	}
	for line := range strings.Lines(o.output.String()) {
		if _, what, ok := strings.Cut(line, lackWord); ok {
			list = append(list, strings.TrimSpace(what))
		}
	}
	return list, true
}

// figures are what the tests that passed measured, by their packages and names.
func (r *recorder) figures() map[string]map[string]int {
	all := map[string]map[string]int{}
	for _, o := range r.order {
		if o.action != "pass" {
			continue
		}
		for line := range strings.Lines(o.output.String()) {
			name, value, ok := lab.ParseFigure(line)
			if !ok {
				continue
			}
			test := short(o.id.pkg) + " " + o.id.test
			if all[test] == nil {
				all[test] = map[string]int{}
			}
			all[test][name] = value
		}
	}
	return all
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
