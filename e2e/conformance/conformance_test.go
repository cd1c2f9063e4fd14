package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
)

const root = "../.."

// The files name only tests, rows and mutants that exist, and the page says what they say.
func TestPageAgrees(t *testing.T) {
	in, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.agree(); err != nil {
		t.Error(err)
	}
	have, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != in.page() {
		t.Errorf("%s is not what the tests came to: run make conformance", page)
	}
}

// Every test of upstream's that concerns a proxy has its id: rows that name several, as many.
func TestEveryUpstreamID(t *testing.T) {
	in, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"svc": 51, "service-cidrs-1": 0, "service-cidrs-2": 2, "dual-stack-1": 8, "dual-stack-2": 14, "endpointslice-1": 5,
		"endpointslicemirroring-1": 5, "conntrack-1": 0, "conntrack-2": 3, "conntrack-3": 0, "conntrack-4": 0, "conntrack-5": 0,
		"kube-proxy-1": 0, "kube-proxy-2": 0, "networking-1": 21, "networking-2": 0, "networking-3": 0, "hostport-1": 0,
		"traffic-distribution-1": 6, "topology-hints-1": 0, "pod-lifecycle-1": 3, "no-snat-1": 0, "service-latency-1": 0, "proxy-1": 6,
		"loadbalancer-1": 2, "loadbalancer-2": 0, "loadbalancer-3": 4, "loadbalancer-4": 0, "loadbalancer-5": 0, "loadbalancer-6": 2,
		"loadbalancer-7": 2, "loadbalancer-8": 4}
	got := map[string]int{}
	for _, u := range in.upstream {
		row, _, several := strings.Cut(u.ID, "/")
		if strings.HasPrefix(row, "svc-") {
			row, several = "svc", true
		}
		got[row] += count(several)
	}
	for row, n := range want {
		if have, ok := got[row]; !ok || have != n {
			t.Errorf("row %s names %d tests, upstream.yaml has %d (at all: %t)", row, n, have, ok)
		}
		delete(got, row)
	}
	if len(got) > 0 {
		t.Errorf("upstream.yaml has rows that nobody knows: %v", got)
	}
}

// What did not run, was skipped or failed is not held, and a name holds no more than its own subtests.
func TestHeld(t *testing.T) {
	k := results.File{Kernel: "6.1.0", Tests: map[string]map[string]string{"p": {
		"TestA/IPv4": results.Pass, "TestA/IPv6": results.Pass, "TestAB/IPv4": results.Fail,
		"TestB/IPv4": results.Pass, "TestB/IPv6": results.Fail, "TestC/IPv4": results.Pass, "TestC/IPv6": results.Skip,
		"TestD/x/IPv4#01": results.Pass, "TestE": results.Pass,
	}}}
	for _, c := range []struct {
		u    upstream
		want []int
	}{
		{upstream{Test: "p TestA"}, []int{4, 6}},
		{upstream{Test: "p TestA", Only: []int{4}}, []int{4}},
		{upstream{Test: "p TestB"}, nil},
		{upstream{Test: "p TestB/IPv4"}, []int{4}},
		{upstream{Test: "p TestC"}, nil},
		{upstream{Test: "p TestD"}, []int{4}},
		{upstream{Test: "p TestE"}, nil},
		{upstream{Test: "p TestE", Inside: []int{4, 6}}, []int{4, 6}},
		{upstream{Test: "p TestGone", Inside: []int{4, 6}}, nil},
		{upstream{Test: "q TestA"}, nil},
		{upstream{Open: "x"}, nil},
	} {
		if got := c.u.held(k); !slices.Equal(got, c.want) {
			t.Errorf("%+v is held in %v, want %v", c.u, got, c.want)
		}
	}
}

// The sum of a row is no better than its worst test; tests with a control plane count where there was one.
func TestSum(t *testing.T) {
	k := results.File{Tests: map[string]map[string]string{"p": {"TestA": results.Pass, "TestB": results.Fail, "TestC": results.Skip}}}
	of := func(pkg string, names ...string) (list []source) {
		for _, n := range names {
			list = append(list, source{pkg: pkg, name: n})
		}
		return list
	}
	for _, c := range []struct {
		tests []source
		want  string
	}{
		{nil, "-"},
		{of("p", "TestA"), "pass"},
		{of("p", "TestA", "TestB"), "**fail**"},
		{of("p", "TestA", "TestC"), "not run"},
		{of("p", "TestC", "TestB"), "**fail**"},
		{of("p", "TestA", "TestGone"), "not run"},
		{append(of(planePackage, "TestP"), of("p", "TestA")...), "pass"},
		{of(planePackage, "TestP"), "-"},
	} {
		if got := sumOn(k, c.tests); got != c.want {
			t.Errorf("%v: %s, want %s", c.tests, got, c.want)
		}
	}
	k.Tests[planePackage] = map[string]string{"TestQ": results.Pass}
	if got := sumOn(k, append(of(planePackage, "TestP"), of("p", "TestA")...)); got != "not run" {
		t.Errorf("one of the tests with a control plane did not run where others did: %s", got)
	}
}

// Each way in which the files can disagree is found.
func TestAgree(t *testing.T) {
	whole := func() input {
		return input{
			upstream: []upstream{{ID: "a", Class: "N", File: "f", Asks: "x", Test: "p TestA/one"}},
			rows:     map[string]string{"B1": "x"},
			mutants:  []mutant{{"B1-x", "B1", "p", "TestA"}},
			tests:    []source{{pkg: "p", name: "TestA", rows: []string{"B1"}}},
			kernels:  []results.File{{Kernel: "6.1.0", Tests: map[string]map[string]string{"p": {"TestA/one": results.Pass}}}},
		}
	}
	if err := whole().agree(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*input){
		"there is no such test":    func(in *input) { in.upstream[0].Test = "p TestZ" },
		"no subtest that ran":      func(in *input) { in.upstream[0].Test = "p TestA/two" },
		"want one of":              func(in *input) { in.upstream[0].Open = "x" },
		"is there twice":           func(in *input) { in.upstream = append(in.upstream, in.upstream[0]) },
		"is missing":               func(in *input) { in.upstream[0].Class = "" },
		"only wants a gap":         func(in *input) { in.upstream[0].Only = []int{4} },
		"there is no row":          func(in *input) { in.mutants[0].row = "B99" },
		"there is no test p TestZ": func(in *input) { in.mutants[0].test = "TestZ" },
		"there is no such row":     func(in *input) { in.tests[0].rows = []string{"B98"} },
		"6.1.json has p TestY":     func(in *input) { in.kernels[0].Tests["p"]["TestY"] = results.Pass },
	} {
		in := whole()
		spoil(&in)
		if err := in.agree(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// Results that are older than the tests that they speak of are found: a new test, a changed one, on each kernel.
func TestCurrent(t *testing.T) {
	const traffic = "e2e/traffic"
	whole := func() input {
		return input{
			tests: []source{{pkg: traffic, name: "TestA", print: "1"}, {pkg: planePackage, name: "TestP", print: "2"}, {pkg: "pkg/x", name: "TestHost", print: "3"}},
			kernels: []results.File{
				{Kernel: "6.1.0", Tests: map[string]map[string]string{traffic: {"TestA/x": results.Pass}, planePackage: {"TestP": results.Pass}},
					Prints: map[string]map[string]string{traffic: {"TestA": "1"}, planePackage: {"TestP": "2"}}},
				{Kernel: "7.2.0", Tests: map[string]map[string]string{traffic: {"TestA": results.Pass}}, Prints: map[string]map[string]string{traffic: {"TestA": "1"}}},
			},
		}
	}
	if err := whole().current(); err != nil {
		t.Fatal(err)
	}
	for want, age := range map[string]func(*input){
		"of 7.2 are older than 1 tests: e2e/traffic TestA (changed": func(in *input) { in.kernels[1].Prints[traffic]["TestA"] = "0" },
		"of 6.1 are older than 1 tests: e2e/traffic TestA (did not": func(in *input) { delete(in.kernels[0].Tests[traffic], "TestA/x") },
		"e2e/controlplane TestP (changed":                           func(in *input) { in.tests[1].print = "9" },
		"e2e/traffic TestNew (did not run)":                         func(in *input) { in.tests = append(in.tests, source{pkg: traffic, name: "TestNew"}) },
		"e2e/traffic TestA (changed since it ran)":                  func(in *input) { in.kernels[0].Prints = nil },
	} {
		in := whole()
		age(&in)
		if err := in.current(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
