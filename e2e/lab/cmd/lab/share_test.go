package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// Each test runs on one of the machines, also where the name of one begins like that of another.
func TestDeal(t *testing.T) {
	names := []string{"TestA", "TestAB", "TestB"}
	for i := range 40 {
		names = append(names, fmt.Sprintf("Test%d", i))
	}
	dealt := deal(names)
	for _, name := range names {
		var ran []int
		for i, list := range dealt {
			if regexp.MustCompile(anyOf(list)).MatchString(name) {
				ran = append(ran, i)
			}
		}
		if len(ran) != 1 {
			t.Errorf("%s runs on machines %v", name, ran)
		}
	}
	if len(dealt[1])*2 < len(dealt[0]) {
		t.Errorf("%d tests for one machine, %d for the other", len(dealt[0]), len(dealt[1]))
	}
}

// What two machines did counts as if one had done it: a package of which a part has ended goes on elsewhere, and a part
// that dies fails it.
func TestBoth(t *testing.T) {
	var out strings.Builder
	r := newRecorder(&out, "kernel")
	over := make(chan struct{})
	said := func(r *recorder, action, name string) {
		r.event(event{Action: action, Package: module + "/p", Test: name})
	}
	report := both(r, [2]func(*recorder) machine.Report{
		func(r *recorder) machine.Report {
			said(r, "run", "TestA")
			said(r, "pass", "TestA")
			r.endPackage(module+"/p", nil, true)
			close(over)
			return machine.Report{Kernel: "one"}
		},
		func(r *recorder) machine.Report {
			said(r, "run", "TestB")
			<-over
			said(r, "pass", "TestB")
			said(r, "run", "TestC")
			r.endPackage(module+"/p", nil, true)
			return machine.Report{Kernel: "other"}
		},
	})
	if got, want := r.count(), (counts{2, 1, 0}); got != want {
		t.Errorf("%v, want %v\n%s", got, want, out.String())
	}
	var names []string
	for name := range r.verdicts()["p"] {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"TestA", "TestB", "TestC"}; !slices.Equal(names, want) {
		t.Errorf("verdicts of %v, want %v", names, want)
	}
	if report.Kernel != "one" {
		t.Errorf("report of %q", report.Kernel)
	}
}
