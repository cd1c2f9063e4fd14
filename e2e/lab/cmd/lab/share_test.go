package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

// Each test is of one load, also where the name of one begins like that of another, and the loads are about as big.
func TestDeal(t *testing.T) {
	names := []string{"TestA", "TestAB", "TestB"}
	for i := range 40 {
		names = append(names, fmt.Sprintf("Test%d", i))
	}
	dealt := deal(names, 4)
	for _, name := range names {
		var ran []int
		for i, list := range dealt {
			if regexp.MustCompile(anyOf(list)).MatchString(name) {
				ran = append(ran, i)
			}
		}
		if len(ran) != 1 {
			t.Errorf("%s runs in loads %v", name, ran)
		}
	}
	for i, list := range dealt {
		if len(list) < len(names)/4 {
			t.Errorf("load %d has %d tests of %d", i, len(list), len(names))
		}
	}
	if few := deal(names[:2], 4); len(few) != 2 {
		t.Errorf("two tests make %d loads", len(few))
	}
}

// A load takes what it runs along, and nothing else.
func TestLoadTakesItsFiles(t *testing.T) {
	job := machine.Job{Files: map[string]string{agentFile: "1", imageFile: "2", "demo": "3", "examples": "4", "guest": "5",
		"e2e/traffic/traffic.test": "6", "pkg/x/x.test": "7", "pkg/x/testdata": "8"}}
	traffic := program{rel: trafficPackage, file: "e2e/traffic/traffic.test"}
	small := program{rel: "pkg/x", file: "pkg/x/x.test"}
	for want, l := range map[string]load{
		"126": {programs: []program{traffic}}, "178": {programs: []program{small}}, "13478": {programs: []program{small}, others: []*commandTest{{}}},
		"12345678": {programs: []program{{rel: nativePackage}}},
	} {
		if got := strings.Join(slices.Sorted(maps.Values(l.only(job).Files)), ""); got != want {
			t.Errorf("%+v takes %s, want %s", l, got, want)
		}
	}
}

// What several machines did counts as if one had done it: a package of which a part has ended goes on elsewhere, and a
// part that dies fails it. No more than so many run at a time.
func TestSide(t *testing.T) {
	var out strings.Builder
	r := newRecorder(&out, "kernel")
	said := func(r *recorder, action, name string) {
		r.event(event{Action: action, Package: module + "/p", Test: name})
	}
	over, both := make(chan struct{}), make(chan struct{})
	var running, most atomic.Int32
	loads := []load{{programs: []program{{run: "A"}}}, {programs: []program{{run: "B"}}}, {programs: []program{{run: "none"}}}}
	report := side(t.Context(), r, 2, loads, func(r *recorder, l load) machine.Report {
		defer running.Add(-1)
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		switch l.programs[0].run {
		case "A":
			<-both
			said(r, "run", "TestA")
			said(r, "pass", "TestA")
			r.endPackage(module+"/p", nil, true)
			close(over)
			return machine.Report{} // its machine did not boot
		case "B":
			close(both)
			said(r, "run", "TestB")
			<-over
			said(r, "pass", "TestB")
			said(r, "run", "TestC")
			r.endPackage(module+"/p", nil, true)
		}
		return machine.Report{Kernel: "other"}
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
	if report.Kernel != "other" || most.Load() != 2 {
		t.Errorf("report of %q, %d at a time", report.Kernel, most.Load())
	}
}
