package main

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
)

// verdict is what a test came to on a kernel.
type verdict int

const (
	notRun verdict = iota // or skipped: neither has passed
	passed
	failed
)

func (v verdict) String() string { return [...]string{"not run", "pass", "**fail**"}[v] }

// on gives the verdict of a test with all its subtests.
func on(k results.File, pkg, test string) verdict {
	all := k.Of(pkg, test)
	v := notRun
	for _, one := range all {
		switch one {
		case results.Fail:
			return failed
		case results.Pass:
			v = passed
		}
	}
	if slices.Contains(slices.Collect(maps.Values(all)), results.Skip) {
		return notRun
	}
	return v
}

var familyPart = regexp.MustCompile(`(?:^|/)IPv([46])(?:#[0-9]+)?(?:/|$)`)

// families are those for which a test has subtests that passed, in words.
func families(k results.File, pkg, test string) (list []int) {
	for name, v := range k.Of(pkg, test) {
		m := familyPart.FindStringSubmatch(name)
		if m == nil || v != results.Pass {
			continue
		}
		if f := int(m[1][0] - '0'); !slices.Contains(list, f) {
			list = append(list, f)
		}
	}
	slices.Sort(list)
	return list
}

// held are the families in which an upstream test is held on a kernel; none where its test did not pass.
func (u upstream) held(k results.File) []int {
	pkg, test := u.holder()
	if u.Test == "" || on(k, pkg, test) != passed {
		return nil
	}
	list := u.Inside
	if list == nil {
		list = families(k, pkg, test)
	}
	if u.Only == nil {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(f int) bool { return !slices.Contains(u.Only, f) })
}

func words(list []int) string {
	var out []string
	for _, f := range list {
		out = append(out, fmt.Sprintf("IPv%d", f))
	}
	return strings.Join(out, ", ")
}

// page prints everything.
func (in input) page() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Conformance

Written by `+"`make conformance`"+`, never by hand, from what the tests came to on each kernel (`+"`e2e/results`, renewed by\n`make test-kernels`"+`).
A test that was skipped or did not run has not passed. The tests send packets through the kernel that is named. A dash:
nothing is asked there; the tests with a control plane run on one kernel. The command that
writes the page refuses results that are older than the tests that they speak of.

`)
	in.kernelTable(&b)
	in.behaviourTable(&b)
	in.upstreamTables(&b)
	in.notHeld(&b)
	return b.String()
}

func (in input) head(b *strings.Builder, columns ...string) {
	for _, k := range in.kernels {
		columns = append(columns, k.Series())
	}
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat(" --- |", len(columns)))
}

func (in input) kernelTable(b *strings.Builder) {
	b.WriteString("## Kernels\n\n| kernel | passed | failed | skipped | last whole run | it took | what it lacks |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, k := range in.kernels {
		n := map[string]int{}
		for _, tests := range k.Tests {
			for _, v := range tests {
				n[v]++
			}
		}
		took := "-"
		if k.Seconds > 0 {
			took = fmt.Sprintf("%d min %02d s", k.Seconds/60, k.Seconds%60)
		}
		fmt.Fprintf(b, "| %s | %d | %d | %d | %s | %s | %s |\n", k.Kernel, n[results.Pass], n[results.Fail], n[results.Skip], cmp.Or(k.Day, "-"), took, lacks(k))
	}
	b.WriteString("\nVirtual machines with one emulated processor.\n\n")
}

// lacks says what the test that asks a kernel for everything found missing.
func lacks(k results.File) string {
	if on(k, "e2e/traffic", "TestWhatThisKernelLacks") != passed {
		return "not asked"
	}
	return cmp.Or(strings.Join(k.Lacks, "; "), "nothing that the agent can make use of")
}

// testsOf are the tests of a row that run on kernels, and those that run on the host.
func (in input) testsOf(row string) (kernel, host []source) {
	seen := map[string]bool{}
	add := func(s source) {
		if key := s.pkg + " " + s.name; !seen[key] {
			seen[key] = true
			if in.onKernels(s.pkg, s.name) {
				kernel = append(kernel, s)
			} else {
				host = append(host, s)
			}
		}
	}
	for _, s := range in.tests {
		if slices.Contains(s.rows, row) {
			add(s)
		}
	}
	for _, s := range in.faults[row] {
		add(s)
	}
	for _, m := range in.mutants {
		if top, _, _ := strings.Cut(m.test, "/"); m.row == row {
			add(source{pkg: m.pkg, name: top})
		}
	}
	order := func(a, b source) int { return cmp.Compare(a.pkg+" "+a.name, b.pkg+" "+b.name) }
	slices.SortFunc(kernel, order)
	slices.SortFunc(host, order)
	return kernel, host
}

// onKernels: the traffic tests do, and of the others those that ran there.
func (in input) onKernels(pkg, test string) bool {
	return pkg == "e2e/traffic" || slices.ContainsFunc(in.kernels, func(k results.File) bool { return len(k.Of(pkg, test)) > 0 })
}

func (in input) behaviourTable(b *strings.Builder) {
	b.WriteString("## Behaviour\n\nEach row is held by tests that must pass, and by mutants: patches that take the behaviour out, with which the named test must fail.\n\n")
	in.head(b, "row", "behaviour", "tests on kernels", "on the host", "mutants", "families")
	rows := slices.SortedFunc(maps.Keys(in.rows), func(a, b string) int { return number(a) - number(b) })
	for _, row := range rows {
		kernel, host := in.testsOf(row)
		mutants := 0
		for _, m := range in.mutants {
			if m.row == row {
				mutants++
			}
		}
		line := []string{row, in.rows[row], namesOf(kernel), namesOf(host), fmt.Sprint(mutants), ""}
		found := map[int]bool{}
		for _, k := range in.kernels {
			line = append(line, sumOn(k, kernel))
			for _, s := range kernel {
				for _, f := range families(k, s.pkg, s.name) {
					found[f] = true
				}
			}
		}
		line[5] = words(slices.Sorted(maps.Keys(found)))
		fmt.Fprintf(b, "| %s |\n", strings.Join(line, " | "))
	}
	b.WriteString("\n")
}

// planePackage holds the tests with a real control plane, which run on one kernel.
const planePackage = "e2e/controlplane"

// sumOn says what the tests of a row came to on a kernel together.
func sumOn(k results.File, tests []source) string {
	ran, missing, asked := false, false, false
	for _, s := range tests {
		if s.pkg == planePackage && len(k.Tests[s.pkg]) == 0 {
			continue
		}
		asked = true
		switch on(k, s.pkg, s.name) {
		case failed:
			return failed.String()
		case passed:
			ran = true
		default:
			missing = true
		}
	}
	if !asked {
		return "-"
	}
	if missing || !ran {
		return notRun.String()
	}
	return passed.String()
}

// namesOf leaves the package of the traffic tests out.
func namesOf(tests []source) string {
	var out []string
	for _, s := range tests {
		out = append(out, strings.TrimPrefix(s.pkg+" "+s.name, "e2e/traffic "))
	}
	return strings.Join(out, "<br>")
}

func (in input) upstreamTables(b *strings.Builder) {
	fmt.Fprintf(b, "## Kubernetes' own network suite\n\nWhat `test/e2e/network` of %s asks of a service proxy, test by test (`e2e/upstream.yaml`).\n\n", in.kubernetes)
	in.head(b, "tests", "number", "have a test of ours", "held in both families on all kernels")
	for _, class := range []struct{ name, title string }{
		{"N", "asked with namespaces as pods"}, {"K", "wants the real control plane"}, {"X", "not asked of this proxy"},
	} {
		var all, have, both int
		each := make([]int, len(in.kernels))
		for _, u := range in.upstream {
			if u.Class != class.name {
				continue
			}
			all++
			have += count(u.Test != "")
			full := len(in.kernels) > 0
			for i, k := range in.kernels {
				held := u.held(k)
				each[i] += count(len(held) > 0)
				full = full && len(held) == 2
			}
			both += count(full)
		}
		fmt.Fprintf(b, "| %s: %s | %d | %d | %d |", class.name, class.title, all, have, both)
		for _, n := range each {
			fmt.Fprintf(b, " %d |", n)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	in.head(b, "id", "class", "asks", "test of ours")
	for _, u := range in.upstream {
		line := []string{u.ID, u.Class, u.Asks, cmp.Or(strings.TrimPrefix(u.Test, "e2e/traffic "), "-")}
		pkg, test := u.holder()
		for _, k := range in.kernels {
			cell := "-"
			if u.Test != "" && (pkg != planePackage || len(k.Tests[pkg]) > 0) {
				cell = on(k, pkg, test).String()
				if held := u.held(k); held != nil {
					cell = words(held)
				}
			}
			line = append(line, cell)
		}
		fmt.Fprintf(b, "| %s |\n", strings.Join(line, " | "))
	}
	b.WriteString("\n")
}

func (in input) notHeld(b *strings.Builder) {
	b.WriteString("## What is not held, and why\n\n| id | asks | why |\n| --- | --- | --- |\n")
	for _, u := range in.upstream {
		switch {
		case u.Open != "":
			fmt.Fprintf(b, "| %s | %s | open: %s |\n", u.ID, u.Asks, u.Open)
		case u.None != "":
			fmt.Fprintf(b, "| %s | %s | cannot be: %s |\n", u.ID, u.Asks, u.None)
		case u.Only != nil:
			fmt.Fprintf(b, "| %s | %s | only %s: %s |\n", u.ID, u.Asks, words(u.Only), u.Gap)
		case u.Gap != "":
			fmt.Fprintf(b, "| %s | %s | %s |\n", u.ID, u.Asks, u.Gap)
		}
	}
}
