package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
)

// reliabilityPage has the table of faults, below the repository's root.
const reliabilityPage = "docs/reliability.md"

// faultsAgree finds rows of the table of faults that say nothing, that name a test which does not exist, or that are not
// those of behaviour.yaml; and results of tests that the table does not have.
func (in input) faultsAgree(rows []faults.Row, came faults.Results) error {
	var errs []error
	say := func(format string, args ...any) { errs = append(errs, fmt.Errorf("faults.yaml: "+format, args...)) }
	have, ids, keys := in.named(), map[string]bool{}, map[string]bool{}
	for _, r := range rows {
		if ids[r.ID] {
			say("%s is there twice", r.ID)
		}
		ids[r.ID] = true
		if in.rows[r.ID] == "" {
			say("behaviour.yaml has no row %s", r.ID)
		}
		if r.Fault == "" || r.Must == "" {
			say("%s: fault or must is missing", r.ID)
		}
		for _, t := range r.Tests {
			if !have[t.Name] {
				say("%s is held by %q, and there is no such test", r.ID, t.Name)
			}
			if t.Did == "" {
				say("%s: what %s does is missing", r.ID, t.Name)
			}
			keys[t.Key(false)], keys[t.Key(true)] = true, t.Long != ""
		}
	}
	for id := range in.rows {
		if id[0] == 'F' && !ids[id] {
			say("%s is missing", id)
		}
	}
	for key := range came {
		if !keys[key] {
			say("there are results of %q, which no row has", key)
		}
	}
	return errors.Join(errs...)
}

// reliability prints the page of faults.
func (in input) reliability(rows []faults.Row, came faults.Results) string {
	var b strings.Builder
	b.WriteString(`# What it survives

Written by ` + "`make conformance`" + `, never by hand, from e2e/faults/faults.yaml and from what the tests came to: those of ` + "`make test`" + `
on each kernel (` + "`e2e/results`" + `), their long forms and the tests of the agent's own code by ` + "`make faults`" + ` (` + "`e2e/faults`" + `). A test that
did not run has not passed. A test that wants nothing lost has a control in the same run that loses, and a limit in seconds
one that says how long the machine takes for something else: the kernels run in virtual machines with one emulated
processor, often beside others.

`)
	for _, r := range rows {
		fmt.Fprintf(&b, "## %s: %s\n\nMust: %s.\n\n", r.ID, r.Fault, r.Must)
		if len(r.Tests) == 0 {
			b.WriteString("Not tried.\n\n")
			continue
		}
		b.WriteString("| test | does | came to | figures |\n| --- | --- | --- | --- |\n")
		for _, t := range r.Tests {
			for _, l := range in.faultLines(t, came) {
				fmt.Fprintf(&b, "| %s |\n", strings.Join(l[:], " | "))
			}
		}
		b.WriteString("\n")
		if r.Open != "" {
			fmt.Fprintf(&b, "Not tried: %s.\n\n", r.Open)
		}
	}
	return b.String()
}

// faultLines are the lines of a test: one a form.
func (in input) faultLines(t faults.Test, came faults.Results) (lines [][4]string) {
	name := strings.TrimPrefix(t.Name, "e2e/traffic ")
	short := [4]string{name, t.Did, notRun.String(), ""}
	if in.onKernels(t.Package(), t.Func()) {
		short[2], short[3] = in.onEach(t)
	} else if r, ran := came[t.Key(false)]; ran {
		short[2], short[3] = lineOf(r)
	}
	lines = append(lines, short)
	if t.Long != "" {
		long := [4]string{name + ", long", t.Long, notRun.String(), ""}
		if r, ran := came[t.Key(true)]; ran {
			long[2], long[3] = lineOf(r)
		}
		lines = append(lines, long)
	}
	return lines
}

// lineOf is what a form that was run by itself came to.
func lineOf(r faults.Result) (verdict, figures string) {
	verdict = cmp.Or(r.Verdict, notRun.String())
	if r.Kernel != "" {
		verdict += " on " + r.Kernel
	}
	return verdict + ", " + r.Day, figuresOf(r.Figures)
}

// onEach is what a test came to on each kernel, and what it measured on the one that is taken by default.
func (in input) onEach(t faults.Test) (verdicts, figures string) {
	var said []string
	for _, k := range in.kernels {
		if t.Package() == planePackage && len(k.Tests[t.Package()]) == 0 {
			continue
		}
		said = append(said, k.Series()+" "+on(k, t.Package(), t.Func()).String())
		if k.Series() == figuresFrom {
			figures = figuresOf(k.FiguresOf(t.Package(), t.Func()))
		}
	}
	return strings.Join(said, ", "), figures
}

// figuresFrom is the kernel whose figures the page has where a test runs on all.
const figuresFrom = "6.1"

func figuresOf(all map[string]int) string {
	var out []string
	for _, what := range slices.Sorted(maps.Keys(all)) {
		out = append(out, fmt.Sprintf("%s: %d", what, all[what]))
	}
	return strings.Join(out, "<br>")
}

// readFaults reads the table of faults and what its tests came to, and checks both.
func (in input) readFaults(root string) (rows []faults.Row, came faults.Results, err error) {
	if rows, err = faults.Rows(); err != nil {
		return nil, nil, err
	}
	if came, err = faults.ReadResults(root); err != nil {
		return nil, nil, err
	}
	return rows, came, in.faultsAgree(rows, came)
}

// writeReliability writes the page of faults.
func (in input) writeReliability(root string) error {
	rows, came, err := in.readFaults(root)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, reliabilityPage), []byte(in.reliability(rows, came)), 0o644)
}

// testsOfFault are the tests that the table of faults has for a row of behaviour.
func testsOfFault(rows []faults.Row) map[string][]source {
	all := map[string][]source{}
	for _, r := range rows {
		for _, t := range r.Tests {
			all[r.ID] = append(all[r.ID], source{pkg: t.Package(), name: t.Func()})
		}
	}
	return all
}
