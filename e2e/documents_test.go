package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// open is what stands in a text for something that is to come: a word for it, or a table's cell that names a figure in place
// of giving it.
var open = regexp.MustCompile(`\b(TODO|TBD|FIXME|XXX)\b|\|\s*[A-Z]{2,}\d{1,2}\s*\|`)

// TestNothingIsLeftOpen: no document waits for a figure.
func TestNothingIsLeftOpen(t *testing.T) {
	for _, said := range []string{"| a start, s | 22.5 | NFT1 |", "TODO: say when"} {
		if !open.MatchString(said) {
			t.Errorf("%q is taken for a text that is whole", said)
		}
	}
	files := []string{"../README.md"}
	if err := filepath.WalkDir("../docs", func(name string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(name, ".md") {
			files = append(files, name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d documents were found", len(files))
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if found := open.FindString(line); found != "" {
				t.Errorf("%s:%d: %q is left open", name, i+1, found)
			}
		}
	}
}
