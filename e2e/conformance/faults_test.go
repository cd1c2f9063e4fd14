package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
)

// TestReliabilityPage: the page of faults is what its rows say and their tests came to, and each names a test that exists.
func TestReliabilityPage(t *testing.T) {
	in, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := in.writeReliability(root); err != nil {
			t.Fatal(err)
		}
	}
	rows, came, err := in.readFaults(root)
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(filepath.Join(root, reliabilityPage))
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != in.reliability(rows, came) {
		t.Errorf("%s is not what the tests came to: go test ./e2e/conformance -run TestReliabilityPage -update", reliabilityPage)
	}
}

// TestFaultsAgree: each way in which the table of faults can be wrong is found.
func TestFaultsAgree(t *testing.T) {
	in := input{tests: []source{{pkg: "p", name: "TestA"}}, rows: map[string]string{"F1": "x", "B1": "y"}}
	whole := []faults.Row{{ID: "F1", Fault: "f", Must: "m", Tests: []faults.Test{{Name: "p TestA", Did: "d", Long: "l"}}}}
	came := faults.Results{"p TestA, long": {Verdict: results.Pass}}
	if err := in.faultsAgree(whole, came); err != nil {
		t.Errorf("the control: %v", err)
	}
	for want, spoil := range map[string]func([]faults.Row) []faults.Row{
		"no such test":             func(r []faults.Row) []faults.Row { r[0].Tests[0].Name = "p TestGone"; return r },
		"does is missing":          func(r []faults.Row) []faults.Row { r[0].Tests[0].Did = ""; return r },
		"has no row F2":            func(r []faults.Row) []faults.Row { r[0].ID = "F2"; return r },
		"F1 is missing":            func(r []faults.Row) []faults.Row { return nil },
		"fault or must is missing": func(r []faults.Row) []faults.Row { r[0].Must = ""; return r },
		"is there twice":           func(r []faults.Row) []faults.Row { return append(r, r[0]) },
		"which no row has":         func(r []faults.Row) []faults.Row { r[0].Tests[0].Long = ""; return r },
	} {
		rows := slices.Clone(whole)
		rows[0].Tests = slices.Clone(rows[0].Tests)
		if err := in.faultsAgree(spoil(rows), came); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

// TestFaultLines: a form that did not run is not one that passed, and figures stand with the form that measured them.
func TestFaultLines(t *testing.T) {
	in := input{kernels: []results.File{
		{Kernel: "6.1.0", Tests: map[string]map[string]string{"e2e/traffic": {"TestA/x": results.Pass}}, Figures: map[string]map[string]int{"e2e/traffic TestA/x_y": {"lost": 0}, "e2e/traffic TestAB": {"lost": 7}}},
		{Kernel: "7.2.0", Tests: map[string]map[string]string{"e2e/traffic": {"TestA": results.Fail}}},
	}}
	came := faults.Results{"p TestH": {Verdict: results.Pass, Day: "2026-01-02", Figures: map[string]int{"b": 2, "a": 1}}, "p TestK, long": {Verdict: results.Pass, Kernel: "6.1.0", Day: "2026-01-02"}}
	for _, c := range []struct {
		test faults.Test
		want [][4]string
	}{
		{faults.Test{Name: "e2e/traffic TestA", Did: "d", Long: "l"}, [][4]string{{"TestA", "d", "6.1 pass, 7.2 **fail**", "x y: lost: 0"}, {"TestA, long", "l", "not run", ""}}},
		{faults.Test{Name: "p TestH", Did: "d"}, [][4]string{{"p TestH", "d", "pass, 2026-01-02", "a: 1<br>b: 2"}}},
		{faults.Test{Name: "p TestK", Did: "d", Long: "l"}, [][4]string{{"p TestK", "d", "not run", ""}, {"p TestK, long", "l", "pass on 6.1.0, 2026-01-02", ""}}},
		{faults.Test{Name: "p TestNever", Did: "d"}, [][4]string{{"p TestNever", "d", "not run", ""}}},
	} {
		if got := in.faultLines(c.test, came); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.test.Name, got, c.want)
		}
	}
}
