package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/performance.md anew")

// TestPerformancePage: the page is what the result comes to.
func TestPerformancePage(t *testing.T) {
	var b bytes.Buffer
	if err := page(&b, "result.json"); err != nil {
		t.Fatal(err)
	}
	const doc = "../../docs/performance.md"
	if *update {
		if err := os.WriteFile(doc, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != b.String() {
		t.Errorf("%s is not what e2e/bench/result.json comes to: go test ./e2e/bench -run TestPerformancePage -update", doc)
	}
}

// TestKeepResult: what a run printed goes into the file as the page reads it, and nothing does without a result.
func TestKeepResult(t *testing.T) {
	r := result{Kernel: "6.1", Packets: []way{{Contender: "no proxy", Counts: map[string][2]int64{cases[2].name: {1000, 2000}}}, {Contender: "agent", Services: 7,
		Binding: "address", Counts: map[string][2]int64{cases[0].name: {4000, 5000}}}}}
	var printed bytes.Buffer
	printed.WriteString("some words\n")
	if err := r.print(&printed); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "result.json")
	if err := writeResult(&printed, file); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := page(&b, file); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| | no proxy | 7 Services, address |", "| connect, pod to ClusterIP | | 4.0 |", "costs 3.0 thousand"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page has no %q:\n%s", want, b.String())
		}
	}
	keepsOthers(t, file)
	if err := writeResult(strings.NewReader("some words\n"), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("an output without a result is kept")
	}
}

// keepsOthers: a run that measures something else leaves what was measured before, and takes the place of what was of its own.
func keepsOthers(t *testing.T, file string) {
	t.Helper()
	for _, mean := range []int64{2_000_000, 3_000_000} {
		var printed bytes.Buffer
		is := result{Asking: &asking{Services: 10000, Costs: []askedCost{{Question: askShow, Answer: 1_500_000, Mean: mean, Command: 60_000_000, Most: 50_000_000}}}}
		if err := is.print(&printed); err != nil {
			t.Fatal(err)
		}
		if err := writeResult(&printed, file); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := page(&b, file); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| connect, pod to ClusterIP | | 4.0 |", "| " + askShow + " | 1.5 | 3.0 | 50.0 | 60.0 |", "agent with 10000 Services"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page has no %q:\n%s", want, b.String())
		}
	}
}

// What costs more than it may is named, and makes the run fail; on a clock that does not count nothing does.
func TestAskingLimits(t *testing.T) {
	is := &asking{Costs: []askedCost{{Question: askShow, Mean: 49_000_000, Most: 50_000_000}, {Question: askMetrics, Mean: 273_000_000, Most: 272_000_000}}}
	var b bytes.Buffer
	if err := is.limits(&b); err != nil || b.Len() > 0 {
		t.Errorf("by a clock that does not count: %v, %s", err, &b)
	}
	t.Setenv("LAB_ICOUNT", "1")
	if err := is.limits(&b); err == nil || strings.Count(b.String(), "BROKEN") != 1 || !strings.Contains(b.String(), "at most 272: BROKEN") {
		t.Errorf("%v, %s", err, &b)
	}
	is.Costs = is.Costs[:1]
	if err := is.limits(&b); err != nil {
		t.Error(err)
	}
	is.Costs[0].Command = 51_000_000
	if err := is.limits(&b); err == nil {
		t.Error("a command may cost more than an answer")
	}
}
