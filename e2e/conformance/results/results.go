// Package results is the form in which the outcome of the kernel tests is kept: one file a kernel, in e2e/results.
package results

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The verdicts of a test. One that is not in the file did not run, which is no pass either.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip"
)

// File is what one kernel's tests came to.
type File struct {
	Kernel  string   `json:"kernel"`            // uname -r
	Seconds int      `json:"seconds,omitempty"` // of the last complete run, building and booting included
	Day     string   `json:"day,omitempty"`     // of that run, as 2006-01-02
	Lacks   []string `json:"lacks,omitempty"`   // what the agent's check finds that this kernel lacks
	// Tests are the verdicts by package, below the repository's root, and by name. A test with subtests is there
	// as its subtests, and by itself only if it failed although none of them did.
	Tests map[string]map[string]string `json:"tests"`
	// Figures are what tests measured, by the test's package and name and by what was counted.
	Figures map[string]map[string]int `json:"figures,omitempty"`
	// Prints are those of the tests' text when they ran, by package and by name.
	Prints map[string]map[string]string `json:"prints"`
}

// Series is the kernel's version of two numbers.
func (f File) Series() string {
	var major, minor int
	if _, err := fmt.Sscanf(f.Kernel, "%d.%d", &major, &minor); err != nil {
		return f.Kernel
	}
	return fmt.Sprintf("%d.%d", major, minor)
}

// Write writes the file so that a changed verdict is a changed line.
func (f File) Write(name string) error {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(f); err != nil {
		return fmt.Errorf("results of kernel %s: %w", f.Kernel, err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, out.Bytes(), 0o644)
}

// Read reads the files of a directory, older kernels first.
func Read(dir string) ([]File, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []File
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var f File
		if err := json.Unmarshal(b, &f); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if want := f.Series() + ".json"; filepath.Base(name) != want {
			return nil, fmt.Errorf("%s holds results of kernel %s, which belong into %s", name, f.Kernel, want)
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b File) int {
		var am, an, bm, bn int
		_, _ = fmt.Sscanf(a.Kernel, "%d.%d", &am, &an)
		_, _ = fmt.Sscanf(b.Kernel, "%d.%d", &bm, &bn)
		return (am-bm)*1000 + an - bn
	})
	return all, nil
}

// Of are the verdicts of a test of a package: its own, or those of its subtests.
func (f File) Of(pkg, test string) map[string]string {
	found := map[string]string{}
	for name, verdict := range f.Tests[pkg] {
		if name == test || strings.HasPrefix(name, test+"/") {
			found[name] = verdict
		}
	}
	return found
}

// FiguresOf are what a test and its subtests measured, by [FigureName]; nil: nothing.
func (f File) FiguresOf(pkg, test string) map[string]int {
	var found map[string]int
	for id, figures := range f.Figures {
		of, name, _ := strings.Cut(id, " ")
		if of != pkg || name != test && !strings.HasPrefix(name, test+"/") {
			continue
		}
		if found == nil {
			found = map[string]int{}
		}
		for what, value := range figures {
			found[FigureName(test, name, what)] = value
		}
	}
	return found
}

// FigureName is what was counted, with the name of the subtest that did before it.
func FigureName(test, by, what string) string {
	if sub := strings.TrimPrefix(by, test+"/"); sub != by {
		return strings.ReplaceAll(sub, "_", " ") + ": " + what
	}
	return what
}
