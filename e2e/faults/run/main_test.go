package main

import (
	"slices"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
)

// TestWanted: what make test keeps is not run again, each form is run once, and what is named alone is run alone.
func TestWanted(t *testing.T) {
	rows := []faults.Row{
		{ID: "F1", Tests: []faults.Test{{Name: "e2e/traffic TestA", Long: "l"}, {Name: "pkg/sync TestB"}, {Name: "pkg/sync TestCOnKernel"}}},
		{ID: "F10", Tests: []faults.Test{{Name: "pkg/sync TestB"}, {Name: "pkg/x TestD", Long: "l"}}},
	}
	for _, c := range []struct{ only, want []string }{
		{nil, []string{"e2e/traffic TestA, long", "pkg/sync TestB", "pkg/x TestD", "pkg/x TestD, long"}},
		{[]string{"F1"}, []string{"e2e/traffic TestA, long", "pkg/sync TestB"}},
		{[]string{"TestD"}, []string{"pkg/x TestD", "pkg/x TestD, long"}},
	} {
		var got []string
		for _, f := range wanted(rows, c.only) {
			got = append(got, f.Key(f.long))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.only, got, c.want)
		}
	}
}

// TestOfKernel: one subtest that failed is a failure, and none that ran is no pass.
func TestOfKernel(t *testing.T) {
	k := results.File{Kernel: "6.1.0", Tests: map[string]map[string]string{"p": {"TestA/x": results.Pass, "TestA/y": results.Fail, "TestB/x": results.Pass, "TestC": results.Skip}}}
	for name, want := range map[string]string{"TestA": results.Fail, "TestB": results.Pass, "TestC": results.Skip, "TestGone": results.Skip} {
		if got := ofKernel(k, faults.Test{Name: "p " + name}); got.Verdict != want || got.Kernel != k.Kernel {
			t.Errorf("%s: %+v, want %s", name, got, want)
		}
	}
}

// TestInputs: the print of a test's inputs is that of its own file, and there is none of a test that does not exist.
func TestInputs(t *testing.T) {
	const root = "../../.."
	sources, err := results.Sources(root)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := inputsOf(root, faults.Test{Name: "e2e/traffic TestHealsTable"}, sources)
	b, errB := inputsOf(root, faults.Test{Name: "e2e/traffic TestHealsInterface"}, sources)
	c, errC := inputsOf(root, faults.Test{Name: "e2e/traffic TestStopAndStart"}, sources)
	if errA != nil || errB != nil || errC != nil || a != b || a == c {
		t.Errorf("%s and %s of one file, %s of another: %v %v %v", a, b, c, errA, errB, errC)
	}
	if _, err := inputsOf(root, faults.Test{Name: "e2e/traffic TestGone"}, sources); err == nil {
		t.Error("a test that does not exist has inputs")
	}
}
