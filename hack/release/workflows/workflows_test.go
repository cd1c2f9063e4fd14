// Package workflows tests what stands in /.github/workflows, by the linter that is made for such files.
package workflows

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rhysd/actionlint"
)

const root = "../../.."

func files(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, ".github", "workflows", "*.yaml"))
	if err != nil || len(found) != 2 {
		t.Fatalf("workflows %q, %v; want CI and release", found, err)
	}
	return found
}

func TestLint(t *testing.T) {
	linter, err := actionlint.NewLinter(io.Discard, &actionlint.LinterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found, err := linter.LintFiles(files(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range found {
		t.Error(e)
	}
}

// The linter finds what is wrong.
func TestLintIsAwake(t *testing.T) {
	linter, err := actionlint.NewLinter(io.Discard, &actionlint.LinterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found, err := linter.Lint("wrong.yaml", []byte("on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - run: echo ${{ github.nonsense }}\n"), nil)
	if err != nil || len(found) != 1 {
		t.Errorf("found %v, %v; want one", found, err)
	}
}

// Targets that workflows make are in the Makefile; what they take from others is a commit, which nobody can exchange.
func TestWhatTheyUse(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	pinned, target := regexp.MustCompile(`@[0-9a-f]{40} # v[0-9.]+$`), regexp.MustCompile(`\bmake ([a-z-]+)`)
	for _, file := range files(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if _, uses, found := strings.Cut(line, "uses: "); found && !pinned.MatchString(uses) {
				t.Errorf("%s: %s is no commit", filepath.Base(file), uses)
			}
			if strings.HasPrefix(line, "#") {
				continue
			}
			if m := target.FindStringSubmatch(line); m != nil && !strings.Contains(string(makefile), "\n"+m[1]+":") {
				t.Errorf("%s: there is no %s", filepath.Base(file), m[0])
			}
		}
	}
}
