package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
)

// upstream is one test of Kubernetes' suite, see the head of e2e/upstream.yaml.
type upstream struct {
	ID     string `json:"id"`
	Class  string `json:"class"`
	File   string `json:"file"`
	Asks   string `json:"asks"`
	Test   string `json:"test,omitempty"`
	Inside []int  `json:"inside,omitempty"`
	Only   []int  `json:"only,omitempty"`
	Gap    string `json:"gap,omitempty"`
	Open   string `json:"open,omitempty"`
	None   string `json:"none,omitempty"`
}

// holder is the test that holds it: package and name.
func (u upstream) holder() (pkg, test string) {
	pkg, test, _ = strings.Cut(u.Test, " ")
	return pkg, test
}

// mutant is the header of a patch in e2e/mutants.
type mutant struct{ name, row, pkg, test string }

// source is a test function.
type source struct {
	pkg, name string
	print     string   // of its text
	rows      []string // that its name or its comment cites
}

type input struct {
	kubernetes string
	upstream   []upstream
	rows       map[string]string // of behaviour: number to title
	mutants    []mutant
	tests      []source
	kernels    []results.File
	faults     map[string][]source // tests by row of e2e/faults
}

func read(root string) (in input, err error) {
	var suite struct {
		Kubernetes string     `json:"kubernetes"`
		Tests      []upstream `json:"tests"`
	}
	if err := readYAML(filepath.Join(root, "e2e/upstream.yaml"), &suite); err != nil {
		return in, err
	}
	in.kubernetes, in.upstream = suite.Kubernetes, suite.Tests
	if err := readYAML(filepath.Join(root, "e2e/behaviour.yaml"), &in.rows); err != nil {
		return in, err
	}
	if in.mutants, err = readMutants(filepath.Join(root, "e2e/mutants")); err != nil {
		return in, err
	}
	if in.tests, err = readTests(root); err != nil {
		return in, err
	}
	rows, err := faults.Rows()
	if err != nil {
		return in, err
	}
	in.faults = testsOfFault(rows)
	in.kernels, err = results.Read(filepath.Join(root, "e2e/results"))
	return in, err
}

func readYAML(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(b, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

var header = regexp.MustCompile(`(?m)^(Row|Test): (.+)$`)

func readMutants(dir string) (list []mutant, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		head, _, _ := strings.Cut(string(b), "\n--- ")
		m := mutant{name: strings.TrimSuffix(filepath.Base(f), ".patch")}
		for _, h := range header.FindAllStringSubmatch(head, -1) {
			if h[1] == "Row" {
				m.row = h[2]
				continue
			}
			m.pkg, m.test, _ = strings.Cut(strings.TrimPrefix(h[2], "./"), " ")
		}
		list = append(list, m)
	}
	return list, nil
}

var citedRow = regexp.MustCompile(`\bB([1-9][0-9]?)\b`)

// namedRow is the row in a test's name; TestB1WhichServices is for B1.
var namedRow = regexp.MustCompile(`^Test([BF][1-9][0-9]?)(?:[^0-9]|$)`)

// readTests finds all test functions of the repository.
func readTests(root string) (list []source, err error) {
	all, err := results.Sources(root)
	for _, f := range all {
		s := source{pkg: f.Package, name: f.Name, print: f.Print}
		if m := namedRow.FindStringSubmatch(s.name); m != nil {
			s.rows = append(s.rows, m[1])
		}
		for _, m := range citedRow.FindAllString(f.Doc, -1) {
			if !slices.Contains(s.rows, m) {
				s.rows = append(s.rows, m)
			}
		}
		list = append(list, s)
	}
	return list, err
}

// named are all tests, each by its package and name.
func (in input) named() map[string]bool {
	have := map[string]bool{}
	for _, s := range in.tests {
		have[s.pkg+" "+s.name] = true
	}
	return have
}

// agree finds what the files say of each other that is not so.
func (in input) agree() error {
	var errs []error
	say := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	have := in.named()
	exists := func(pkg, test string) bool {
		top, _, _ := strings.Cut(test, "/")
		return have[pkg+" "+top]
	}
	ids := map[string]bool{}
	for _, u := range in.upstream {
		if ids[u.ID] {
			say("upstream.yaml: %s is there twice", u.ID)
		}
		ids[u.ID] = true
		if n := count(u.Test != "", u.Open != "", u.None != ""); n != 1 {
			say("upstream.yaml: %s: want one of test, open and none, has %d", u.ID, n)
		}
		if !slices.Contains([]string{"N", "K", "X"}, u.Class) || u.File == "" || u.Asks == "" {
			say("upstream.yaml: %s: class, file or asks is missing", u.ID)
		}
		if u.Only != nil && u.Gap == "" {
			say("upstream.yaml: %s: only wants a gap that says why", u.ID)
		}
		if pkg, test := u.holder(); u.Test != "" && !exists(pkg, test) {
			say("upstream.yaml: %s is held by %s, and there is no such test", u.ID, u.Test)
		} else if u.Test != "" {
			errs = append(errs, in.subtestRan(u.ID, pkg, test))
		}
	}
	for _, m := range in.mutants {
		if in.rows[m.row] == "" {
			say("e2e/mutants/%s.patch: there is no row %q", m.name, m.row)
		}
		if !exists(m.pkg, m.test) {
			say("e2e/mutants/%s.patch: there is no test %s %s", m.name, m.pkg, m.test)
		}
	}
	for _, s := range in.tests {
		for _, r := range s.rows {
			if in.rows[r] == "" {
				say("%s %s is for %s, and there is no such row", s.pkg, s.name, r)
			}
		}
	}
	for _, k := range in.kernels {
		for pkg, tests := range k.Tests {
			for name := range tests {
				if !exists(pkg, name) && pkg != "e2e/demo" { // whose tests are commands
					say("e2e/results/%s.json has %s %s, and there is no such test", k.Series(), pkg, name)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// current finds results that are older than the tests that they speak of.
func (in input) current() error {
	var errs []error
	for _, k := range in.kernels {
		if old := in.newerThan(k); len(old) > 0 {
			errs = append(errs, fmt.Errorf("the results of %s are older than %d tests: %s", k.Series(), len(old), named(old)))
		}
	}
	return errors.Join(errs...)
}

// newerThan lists tests that did not run on a kernel, or had another text when they did. The tests with a control plane
// run on one kernel.
func (in input) newerThan(k results.File) (list []string) {
	for _, s := range in.tests {
		if !in.onKernels(s.pkg, s.name) || s.pkg == planePackage && len(k.Tests[s.pkg]) == 0 {
			continue
		}
		switch ran := len(k.Of(s.pkg, s.name)) > 0; {
		case !ran:
			list = append(list, s.pkg+" "+s.name+" (did not run)")
		case k.Prints[s.pkg][s.name] != s.print:
			list = append(list, s.pkg+" "+s.name+" (changed since it ran)")
		}
	}
	return list
}

// subtestRan: subtests are known only once they ran. Where their test ran, they have to be among its own.
func (in input) subtestRan(id, pkg, test string) error {
	top, sub, _ := strings.Cut(test, "/")
	if sub == "" {
		return nil
	}
	for _, k := range in.kernels {
		if len(k.Of(pkg, top)) > 0 && len(k.Of(pkg, test)) == 0 {
			return fmt.Errorf("upstream.yaml: %s is held by %s %s, which is no subtest that ran on %s", id, pkg, test, k.Series())
		}
	}
	return nil
}

func count(is ...bool) (n int) {
	for _, b := range is {
		if b {
			n++
		}
	}
	return n
}

// number is that of a row.
func number(row string) int {
	n, _ := strconv.Atoi(row[1:])
	if row[0] == 'F' { // faults, after behaviour
		n += 100
	}
	return n
}

// mostNamed is how many tests a message names.
const mostNamed = 10

// named are the first tests of a list, and the number of the others.
func named(tests []string) string {
	if more := len(tests) - mostNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(tests[:mostNamed], ", "), more)
	}
	return strings.Join(tests, ", ")
}
