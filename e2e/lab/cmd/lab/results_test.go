package main

import (
	"io"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// recorded is a recorder that heard how tests ended, "action name".
func recorded(t *testing.T, events ...string) *recorder {
	t.Helper()
	r := newRecorder(io.Discard, "kernel")
	var b strings.Builder
	for _, e := range events {
		action, name, _ := strings.Cut(e, " ")
		b.WriteString(`{"Action":"` + action + `","Package":"` + module + `/p","Test":"` + name + `"}` + "\n")
	}
	if err := r.read(strings.NewReader(b.String())); err != nil {
		t.Fatal(err)
	}
	return r
}

// A whole run replaces the file. A run of some tests replaces those, with subtests that are no more, and keeps the
// others, but not those of another kernel.
func TestKeepResults(t *testing.T) {
	dir := t.TempDir()
	keep := func(kernel, run string, events ...string) results.File {
		t.Helper()
		if err := keepResults(testOptions{results: dir, run: run}, recorded(t, events...), machine.Report{Kernel: kernel}, 0); err != nil {
			t.Fatal(err)
		}
		all, err := results.Read(dir)
		if err != nil || len(all) != 1 {
			t.Fatalf("%d files, %v", len(all), err)
		}
		return all[0]
	}
	for _, step := range []struct {
		kernel, run string
		events      []string
		want        map[string]string
	}{
		{"6.1.0-1", "", []string{"pass TestA/x", "fail TestA/y", "fail TestA", "pass TestB", "skip TestC"},
			map[string]string{"TestA/x": "pass", "TestA/y": "fail", "TestB": "pass", "TestC": "skip"}},
		{"6.1.0-1", "TestA", []string{"pass TestA/x", "pass TestA/z", "pass TestA"},
			map[string]string{"TestA/x": "pass", "TestA/z": "pass", "TestB": "pass", "TestC": "skip"}},
		{"6.1.0-1", "TestA", []string{"pass TestA/x", "fail TestA"}, // by itself
			map[string]string{"TestA": "fail", "TestA/x": "pass", "TestB": "pass", "TestC": "skip"}},
		{"6.1.0-2", "TestB", []string{"pass TestB"}, map[string]string{"TestB": "pass"}},
		{"6.1.0-2", "", []string{"pass TestD"}, map[string]string{"TestD": "pass"}},
	} {
		if f := keep(step.kernel, step.run, step.events...); !reflect.DeepEqual(f.Tests["p"], step.want) || f.Kernel != step.kernel {
			t.Errorf("after %q of %q: %+v, want %v", step.events, step.run, f, step.want)
		}
	}
	r := recorded(t)
	id := testID{importPath(trafficPackage), lackTest}
	for _, e := range []event{{Action: "output", Output: "    kernel_test.go:1: lacks: scheduler ovf\n"}, {Action: "pass"}} {
		e.Package, e.Test = id.pkg, id.test
		r.event(e)
	}
	if list, ok := r.lacks(); !ok || !reflect.DeepEqual(list, []string{"scheduler ovf"}) {
		t.Errorf("lacks %q, %t", list, ok)
	}
	if err := keepResults(testOptions{results: filepath.Join(dir, "none")}, recorded(t), machine.Report{}, 0); err != nil {
		t.Errorf("a machine that never ran: %v", err)
	}
}

// Figures are kept and replaced with the tests that measured them: of a test that ran and fails now, or has another subtest,
// none of the old is left, nor after a whole run of one that is no more.
func TestKeepFigures(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		run    string
		events []event
		want   map[string]map[string]int
	}{
		{"", []event{{Test: "TestA/x", Output: "    a_test.go:1: figure: lost = 1\n"}, {Test: "TestA/x", Action: "pass"},
			{Test: "TestB", Output: "    b_test.go:1: figure: lost = 2\n"}, {Test: "TestB", Action: "pass"}},
			map[string]map[string]int{"p TestA/x": {"lost": 1}, "p TestB": {"lost": 2}}},
		{"TestA", []event{{Test: "TestA/y", Output: "    a_test.go:1: figure: lost = 3\n"}, {Test: "TestA/y", Action: "pass"}},
			map[string]map[string]int{"p TestA/y": {"lost": 3}, "p TestB": {"lost": 2}}},
		{"TestA", []event{{Test: "TestA/y", Output: "    a_test.go:1: figure: lost = 4\n"}, {Test: "TestA/y", Action: "fail"}},
			map[string]map[string]int{"p TestB": {"lost": 2}}},
		{"", []event{{Test: "TestC", Action: "pass"}}, map[string]map[string]int{}},
	} {
		r := recorded(t)
		for _, e := range step.events {
			if e.Package = module + "/p"; e.Action == "" {
				e.Action = "output"
			}
			r.event(e)
		}
		if err := keepResults(testOptions{results: dir, run: step.run}, r, machine.Report{Kernel: "6.1.0-1"}, 0); err != nil {
			t.Fatal(err)
		}
		all, err := results.Read(dir)
		if err != nil || len(all) != 1 {
			t.Fatalf("%d files, %v", len(all), err)
		}
		if got := all[0].Figures; len(got)+len(step.want) > 0 && !reflect.DeepEqual(got, step.want) {
			t.Errorf("figures %v, want %v", got, step.want)
		}
	}
}

func TestSayFailed(t *testing.T) {
	var out strings.Builder
	if err := sayFailed(&out, []string{"a", "b"}, nil); err != nil {
		t.Error(err)
	}
	if err := sayFailed(&out, []string{"a", "b"}, []string{"b"}); err == nil || !strings.Contains(out.String(), "cannot be had: b") {
		t.Errorf("error %v, said %s", err, out.String())
	}
}
