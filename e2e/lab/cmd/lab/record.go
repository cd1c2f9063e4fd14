package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// event is a line of go test -json, see go doc test2json.
type event struct {
	Action     string
	Package    string
	Test       string
	Elapsed    float64
	Output     string
	ImportPath string
}

type testID struct{ pkg, test string }

// outcome of one test, or with an empty test name of a package or a check.
type outcome struct {
	id     testID
	action string // pass, fail, skip; empty while it runs
	took   time.Duration
	output strings.Builder
	parent bool // has subtests
	hidden bool // a failure that subtests already count
}

// recorder collects outcomes and prints each as it is known.
type recorder struct {
	mu    sync.Mutex
	w     io.Writer
	where string
	tests map[testID]*outcome
	order []*outcome // tests and failed checks
	pkgs  map[string]*outcome

	verbose bool                        // show what passing tests say, too
	built   map[string]*strings.Builder // output of the compiler
}

func newRecorder(w io.Writer, where string) *recorder {
	return &recorder{
		w: w, where: where,
		tests: map[testID]*outcome{}, pkgs: map[string]*outcome{}, built: map[string]*strings.Builder{},
	}
}

// read records a stream of events. A line that is none is shown as it is.
func (r *recorder) read(src io.Reader) error {
	dec := newLines(src)
	for line, err := range dec {
		if err != nil {
			return err
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			fmt.Fprintf(r.w, "%s\n", line)
			continue
		}
		r.event(e)
	}
	return nil
}

func (r *recorder) event(e event) {
	r.mu.Lock() // the programs' converters all say hello at once
	defer r.mu.Unlock()
	switch e.Action {
	case "build-output":
		pkg, _, _ := strings.Cut(e.ImportPath, " ") // "pkg [pkg.test]"
		if r.built[pkg] == nil {
			r.built[pkg] = &strings.Builder{}
		}
		r.built[pkg].WriteString(e.Output)
		return
	case "build-fail":
		return
	}
	o := r.at(testID{e.Package, e.Test})
	switch e.Action {
	case "output":
		if !frame(e.Output) {
			o.output.WriteString(e.Output)
		}
	case "pass", "fail", "skip":
		o.action, o.took = e.Action, time.Duration(e.Elapsed*float64(time.Second))
		if e.Test != "" {
			r.show(o)
		}
	}
}

// frame says that a line is go test's own, which our lines replace.
func frame(s string) bool {
	s = strings.TrimLeft(s, " ")
	for _, p := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME ", "--- PASS: ", "--- FAIL: ", "--- SKIP: "} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// at finds or makes the record of a test, and notes that its parents are some.
func (r *recorder) at(id testID) *outcome {
	if id.test == "" {
		if r.pkgs[id.pkg] == nil {
			r.pkgs[id.pkg] = &outcome{id: id}
		}
		return r.pkgs[id.pkg]
	}
	if o := r.tests[id]; o != nil {
		return o
	}
	o := &outcome{id: id}
	r.tests[id] = o
	r.order = append(r.order, o)
	if i := strings.LastIndexByte(id.test, '/'); i > 0 {
		r.at(testID{id.pkg, id.test[:i]}).parent = true
	}
	return o
}

// show prints a test that ended. Subtests end before their parents.
func (r *recorder) show(o *outcome) {
	switch {
	case o.action == "fail" && o.parent && r.childFailed(o):
		o.hidden = true
	case o.parent && o.action != "fail":
		return
	}
	name := short(o.id.pkg) + " " + o.id.test
	switch o.action {
	case "fail":
		if o.hidden && strings.TrimSpace(o.output.String()) == "" {
			return
		}
		fmt.Fprintf(r.w, "FAIL  %s %s (%.2fs)\n%s", r.where, name, o.took.Seconds(), indent(o.output.String()))
	case "skip":
		fmt.Fprintf(r.w, "skip  %s %s (%s)\n", r.where, name, reason(o))
	default:
		fmt.Fprintf(r.w, "ok    %s %s (%.2fs)\n", r.where, name, o.took.Seconds())
		if r.verbose {
			fmt.Fprint(r.w, indent(o.output.String()))
		}
	}
}

func (r *recorder) childFailed(o *outcome) bool {
	return slices.ContainsFunc(r.order, func(c *outcome) bool {
		return c.action == "fail" && c.id.pkg == o.id.pkg && strings.HasPrefix(c.id.test, o.id.test+"/")
	})
}

// failed records a check that is no test.
func (r *recorder) failed(check, output string) {
	o := &outcome{id: testID{test: check}, action: "fail"}
	r.order = append(r.order, o)
	fmt.Fprintf(r.w, "FAIL  %s %s\n%s", r.where, check, indent(output))
}

// endPackage settles a package when its test program has ended: tests that
// never ended failed, and failing or testing nothing needs a reason in a test.
func (r *recorder) endPackage(pkg string, exit error, wantTests bool) {
	var ran, failed int
	for _, o := range r.order {
		if o.id.pkg != pkg {
			continue
		}
		ran++
		if o.action == "" {
			o.action = "fail"
			o.output.WriteString("did not end\n")
			r.show(o)
		}
		if o.action == "fail" {
			failed++
		}
	}
	p := r.at(testID{pkg: pkg})
	switch {
	case exit != nil && failed == 0, p.action == "fail" && failed == 0:
		text := p.output.String()
		if b := r.built[pkg]; b != nil {
			text = b.String() + text
		}
		if exit != nil {
			text += exit.Error() + "\n"
		}
		r.failed(short(pkg)+" (package)", text)
	case wantTests && ran == 0:
		r.failed(short(pkg)+" (package)", "it has test files and ran no test\n"+p.output.String())
	}
}

// forgetSkips drops tests that skipped themselves here and ran there.
func (r *recorder) forgetSkips(there *recorder) {
	r.order = slices.DeleteFunc(r.order, func(o *outcome) bool {
		return o.action == "skip" && there.tests[o.id] != nil
	})
}

// absorb takes over what another one recorded.
func (r *recorder) absorb(other *recorder) {
	r.order = append(r.order, other.order...)
	maps.Copy(r.tests, other.tests)
	maps.Copy(r.pkgs, other.pkgs)
}

type counts struct{ passed, failed, skipped int }

func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

func (r *recorder) count() counts {
	var c counts
	for _, o := range r.order {
		switch {
		case o.action == "fail" && !o.hidden:
			c.failed++
		case o.parent:
		case o.action == "pass":
			c.passed++
		case o.action == "skip":
			c.skipped++
		}
	}
	return c
}

func (r *recorder) listFailures() {
	for _, o := range r.order {
		if o.action == "fail" && !o.hidden {
			fmt.Fprintf(r.w, "FAIL  %s %s %s\n", r.where, short(o.id.pkg), o.id.test)
		}
	}
}

func (r *recorder) listSkips() {
	for _, o := range r.order {
		if o.action == "skip" && !o.parent {
			fmt.Fprintf(r.w, "skip  %s %s %s (%s)\n", r.where, short(o.id.pkg), o.id.test, reason(o))
		}
	}
}

// reason is the last line that a skipped test printed.
func reason(o *outcome) string {
	text := strings.TrimSpace(o.output.String())
	return strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
}

const module = "github.com/ipvs-proxy/ipvs-proxy"

// short is a package as it is called within the repository.
func short(pkg string) string {
	return strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
}

func indent(s string) string {
	if s == "" {
		return ""
	}
	return "      " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n      ") + "\n"
}
