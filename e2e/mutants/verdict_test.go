package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
)

const (
	passing = "=== RUN   TestX\n--- PASS: TestX (0.10s)\nPASS\n"
	failing = "=== RUN   TestX\n    x_test.go:9: no answer\n--- FAIL: TestX (0.10s)\nFAIL\n"
)

// TestVerdict: only a test that failed itself kills.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name   string
		exit   int
		output string
		want   string
	}{
		{"it failed", 1, failing, killed},
		{"it failed, first of all", 1, "--- FAIL: TestX (0.10s)\nFAIL\n", killed},
		{"it passed", 0, passing, survived},
		{"it was skipped", 0, "--- SKIP: TestX (0.00s)\nPASS\n", broken},
		{"no such test", 0, "testing: warning: no tests to run\nPASS\n", broken},
		{"another failed", 1, "--- FAIL: TestXY (0.10s)\nFAIL\n", broken},
		{"it took too long", 2, "panic: test timed out after 4m0s\n", broken},
		{"it failed and then took too long", 1, failing + "panic: test timed out after 4m0s\n", broken},
		{"it crashed", 2, "--- FAIL: TestX (0.10s)\npanic: nil\n", broken},
		{"the machine ended", -1, failing, broken},
		{"it exits 1 without a word", 1, "", broken},
	} {
		if got := verdict(c.exit, c.output, "TestX"); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestJudge: without a control that passes, and without a build, a failure proves nothing.
func TestJudge(t *testing.T) {
	m := mutant{name: "B0-x", pkg: "./e2e/traffic", test: "TestX"}
	control := controlOf(m)
	for _, c := range []struct {
		name          string
		before, after string
		exits         []int // of the control, and of the mutant where there is one
		unbuilt       error
		want          string
	}{
		{"as it should be", passing, failing, []int{0, 1}, nil, killed},
		{"nobody noticed", passing, passing, []int{0, 0}, nil, survived},
		{"it fails anyway", failing, failing, []int{1, 1}, nil, unproven},
		{"the machine ended in the control", "", "", []int{-1, -1}, nil, unproven},
		{"the machine ended with the mutant", passing, failing, []int{0, -1}, nil, broken},
		{"the mutant was not run", passing, "", []int{0}, nil, broken},
		{"nothing was run", "", "", nil, nil, unproven},
		{"it does not build", passing, "", []int{0}, errors.New("syntax error"), broken},
	} {
		r := kernelRun{exits: map[string]int{}, unbuilt: map[string]error{}, outputs: map[string]*bytes.Buffer{
			control: bytes.NewBufferString(c.before), m.name: bytes.NewBufferString(c.after)}}
		if c.unbuilt != nil {
			r.unbuilt[m.name] = c.unbuilt
		}
		for i, exit := range c.exits {
			r.exits[[]string{control, m.name}[i]] = exit
		}
		if got := r.judge(m).verdict; got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestDeal: each mutant is dealt once, with those of its test, and to a machine as it needs.
func TestDeal(t *testing.T) {
	var ms []mutant
	for i := range 40 {
		ms = append(ms, mutant{name: fmt.Sprintf("B%02d", i), pkg: "./e2e/traffic", test: fmt.Sprintf("Test%d", i%9)})
	}
	ms = append(ms, mutant{name: "B90", pkg: "./e2e/traffic", test: "Test0", kernel: "sid"},
		mutant{name: "B91", pkg: plane.Package, test: "TestPlane"})
	seen, home := map[string]int{}, map[string]int{}
	batches := deal(ms, 10)
	for i, b := range batches {
		if len(b.mutants) == 0 || len(b.mutants) > 10 {
			t.Errorf("batch %d has %d mutants", i, len(b.mutants))
		}
		for _, m := range b.mutants {
			seen[m.name]++
			if m.kernel != b.kernel || (m.pkg == plane.Package) != b.plane {
				t.Errorf("%s of kernel %q is in a batch of kernel %q, plane %v", m.name, m.kernel, b.kernel, b.plane)
			}
			if at, ok := home[m.kernel+m.test]; ok && at != i {
				t.Errorf("%s is in two batches", m.test)
			}
			home[m.kernel+m.test] = i
		}
	}
	for _, m := range ms {
		if seen[m.name] != 1 {
			t.Errorf("%s was dealt %d times", m.name, seen[m.name])
		}
	}
	if len(batches) > 8 {
		t.Errorf("%d batches of %d mutants", len(batches), len(ms))
	}
}

// TestHere: a test on this machine, as it is and with a mutant. The tests of this package stand for those of any.
func TestHere(t *testing.T) {
	t.Chdir("../..")
	tmp := t.TempDir()
	h := &here{tmp: tmp, built: map[string]string{}, fared: map[string]string{}}
	m := mutant{name: "B0-x", pkg: "./e2e/mutants", test: "TestApply"}
	if got, err := h.control(t.Context(), m); err != nil || got != passed {
		t.Fatalf("as it is: %s, %v", got, err)
	}
	const head = "--- a/e2e/mutants/apply.go\n+++ b/e2e/mutants/apply.go\n@@ -143,1 +143,1 @@\n-" + line + "\n+"
	for put, want := range map[string]string{
		"func distance(a, b int) int { return 0 * max(a-b, b-a) }": killed,
		"func distance(a, b int) int { return max(b-a, a-b) }":     survived,
		"func distance(a, b int) int { return max(a-b, ":           broken,
	} {
		m.path = filepath.Join(tmp, m.name+".patch")
		err := os.WriteFile(m.path, []byte(head+put+"\n"), 0o644)
		if err == nil {
			m.overlay, err = mutate(m, tmp)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := h.try(t.Context(), m); err != nil || got.verdict != want {
			t.Errorf("%s: %s, %v; want %s\n%s", put, got.verdict, err, want, got.output)
		}
	}
}

// TestPatched: a mutant's own tree has all of this one, with what the mutant changes.
func TestPatched(t *testing.T) {
	t.Chdir("../..")
	m := mutant{name: "B0-x", path: filepath.Join(t.TempDir(), "B0-x.patch")}
	if err := os.WriteFile(m.path, []byte("--- a/e2e/mutants/apply.go\n+++ b/e2e/mutants/apply.go\n@@ -143,1 +143,1 @@\n-"+line+"\n+changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	if _, err := mutate(m, tmp); err != nil {
		t.Fatal(err)
	}
	tree, err := patched(m, tmp)
	if err != nil {
		t.Fatal(err)
	}
	for file, same := range map[string]bool{"go.mod": true, "pkg/ipvs/diff.go": true, "e2e/mutants/apply.go": false} {
		here, err := os.ReadFile(file)
		there, err2 := os.ReadFile(filepath.Join(tree, file))
		if err != nil || err2 != nil || bytes.Equal(here, there) != same {
			t.Errorf("%s: the same %t, want %t (%v, %v)", file, !same, same, err, err2)
		}
	}
}

// line is one of ours that TestApply notices.
const line = "func distance(a, b int) int { return max(a-b, b-a) }"
