// Package faults is the table of faults that the agent survives: what happens, what must come of it, and the tests that
// hold it; and what their long forms came to, which go run ./e2e/faults/run keeps. docs/reliability.md has both as people
// read them.
package faults

import (
	_ "embed" // for the table
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Row is a fault.
type Row struct {
	// ID is F and a number; it never becomes another fault's. e2e/behaviour.yaml has it, too.
	ID string `json:"id"`
	// Fault is what happens, Must what has to come of it.
	Fault string `json:"fault"`
	Must  string `json:"must"`
	// Tests hold it.
	Tests []Test `json:"tests,omitempty"`
	// Open is what of it no test does; empty: nothing.
	Open string `json:"open,omitempty"`
}

// Test is a test of a row.
type Test struct {
	// Name is its package and its name, as e2e/upstream.yaml names them.
	Name string `json:"test"`
	// Did is what it does: rate, duration, size.
	Did string `json:"did"`
	// Long is what its long form does; empty: it has none.
	Long string `json:"long,omitempty"`
}

// Package and Func are the two parts of a test's name.
func (t Test) Package() string { pkg, _, _ := strings.Cut(t.Name, " "); return pkg }

// Func is the test's function.
func (t Test) Func() string { _, f, _ := strings.Cut(t.Name, " "); return f }

//go:embed faults.yaml
var table []byte

// Rows are all faults, in the order of the table.
func Rows() (rows []Row, err error) {
	if err := yaml.UnmarshalStrict(table, &rows); err != nil {
		return nil, fmt.Errorf("faults.yaml: %w", err)
	}
	return rows, nil
}

// Variable is the environment's word for a test's form; Long asks for the long one.
const (
	Variable = "FAULTS"
	Long     = "long"
)

// Result is what one form of a test came to.
type Result struct {
	Verdict string `json:"verdict"` // as in the results of kernels
	// Kernel is uname -r of the kernel that it ran on; empty for tests that need none of the lab's.
	Kernel string `json:"kernel,omitempty"`
	Day    string `json:"day"` // as 2006-01-02
	// Seconds it took, building and booting included.
	Seconds int `json:"seconds"`
	// Inputs is a print of what it was made of: the agent, the lab and the test's own file.
	Inputs string `json:"inputs"`
	// Figures are what it measured, by what was counted; those of subtests with their names before.
	Figures map[string]int `json:"figures,omitempty"`
}

// Results are those of all forms that were run by themselves, by [Test.Key].
type Results map[string]Result

// Key names a form of a test among the results.
func (t Test) Key(long bool) string {
	if long {
		return t.Name + ", long"
	}
	return t.Name
}

const resultsFile = "e2e/faults/results.json"

// ReadResults reads those of the repository; none are there before the first run.
func ReadResults(root string) (Results, error) {
	all := Results{}
	b, err := os.ReadFile(filepath.Join(root, resultsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", resultsFile, err)
	}
	return all, nil
}

// Write writes them so that a changed figure is a changed line.
func (r Results) Write(root string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, resultsFile), append(b, '\n'), 0o644)
}
