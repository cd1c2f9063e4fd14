package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMutantsApply: every mutant applies to the tree as it is, and changes it. One that does not takes nothing out and
// proves nothing.
func TestMutantsApply(t *testing.T) {
	mutants, err := load(".", nil)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join("..", "..")
	for _, m := range mutants {
		changed, err := applied(m, root)
		if err != nil {
			t.Error(err)
		}
		for file, content := range changed {
			if before, err := os.ReadFile(filepath.Join(root, file)); err != nil || string(before) == content {
				t.Errorf("mutant %s leaves %s as it is (%v)", m.name, file, err)
			}
		}
	}
	t.Logf("%d mutants", len(mutants))
}

const aFile = "a\nb\nc\nd\ne\nf\ng\n"

// TestApply: what a patch becomes on a file that has changed around it, and which patches are refused.
func TestApply(t *testing.T) {
	for _, c := range []struct{ name, patch, content, want string }{
		{"as it is", "@@ -2,5 +2,5 @@\n b\n c\n-d\n+D\n e\n f\n", aFile, "a\nb\nc\nD\ne\nf\ng\n"},
		{"lines moved", "@@ -2,5 +2,5 @@\n b\n c\n-d\n+D\n e\n f\n", "1\n2\n" + aFile, "1\n2\na\nb\nc\nD\ne\nf\ng\n"},
		{"outer context changed", "@@ -2,5 +2,5 @@\n b\n c\n-d\n+D\n e\n f\n", "a\nx\nc\nd\ne\ny\n", "a\nx\nc\nD\ne\ny\n"},
		{"a line before it changed", "@@ -2,5 +2,5 @@\n b\n c\n-d\n+D\n e\n f\n", "a\nb\nx\nd\ne\nf\n", ""},
		{"a line after it changed", "@@ -2,5 +2,5 @@\n b\n c\n-d\n+D\n e\n f\n", "a\nb\nc\nd\nx\nf\n", ""},
		{"the line itself changed", "@@ -2,5 +2,5 @@\n b\n c\n-d\n+D\n e\n f\n", "a\nb\nc\nx\ne\nf\n", ""},
		{"of two places that with more context", "@@ -2,5 +2,5 @@\n b\n c\n-d\n+D\n e\n f\n", "x\nc\nd\ne\ny\nz\n" + aFile, "x\nc\nd\ne\ny\nz\na\nb\nc\nD\ne\nf\ng\n"},
		{"of two places the nearer", "@@ -5,3 +5,3 @@\n c\n-d\n+D\n e\n", "c\nd\ne\n\nc\nd\ne\n", "c\nd\ne\n\nc\nD\ne\n"},
		{"two hunks, the second moved by the first", "@@ -1,2 +1,4 @@\n a\n+1\n+2\n b\n@@ -3,3 +5,2 @@\n c\n-d\n e\n", aFile, "a\n1\n2\nb\nc\ne\nf\ng\n"},
		{"only lines that come", "@@ -3,2 +3,3 @@\n c\n+new\n d\n", aFile, "a\nb\nc\nnew\nd\ne\nf\ng\n"},
		{"the head promises more", "@@ -3,5 +3,5 @@\n c\n-d\n+D\n e\n", aFile, ""},
		{"a line of no kind", "@@ -3,3 +3,3 @@\n c\n*d\n+D\n e\n", aFile, ""},
		{"it changes nothing", "@@ -3,2 +3,2 @@\n c\n d\n", aFile, ""},
		{"no hunk", "", aFile, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ""
			ps, err := parsePatches("Row: B0\n\n--- a/x.go\n+++ b/x.go\n" + c.patch)
			if err == nil && len(ps) == 1 {
				got, err = ps[0].apply(c.content)
			}
			if got != c.want || (err != nil) != (c.want == "") {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// TestRotten: a mutant whose file, or whose line, is gone is named.
func TestRotten(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ file, line, want string }{
		{"there.go", "func gone()", "not there"},
		{"gone.go", "func there()", "gone.go"},
	} {
		text := "--- a/" + c.file + "\n+++ b/" + c.file + "\n@@ -1,1 +1,1 @@\n-" + c.line + "\n+x\n"
		for file, content := range map[string]string{"B0-x.patch": text, "there.go": "func there()\n"} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		_, err := applied(mutant{name: "B0-x", path: filepath.Join(dir, "B0-x.patch")}, dir)
		if err == nil || !strings.Contains(err.Error(), "mutant B0-x") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want the mutant's name and %q", c.file, err, c.want)
		}
	}
}
