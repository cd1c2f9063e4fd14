package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree is a git work tree for a test.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T) tree {
	w := tree{t, t.TempDir()}
	for _, v := range []string{"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"} { // of a hook that runs the tests
		t.Setenv(v, "")
		os.Unsetenv(v)
	}
	t.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
	w.git("init", "--quiet", "--initial-branch=main")
	return w
}

func (w tree) git(args ...string) string {
	w.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=A", "-c", "user.email=a@example.com"}, args...)...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE=1970-01-02T00:00:00Z", "GIT_COMMITTER_DATE=1970-01-02T00:00:00Z")
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (w tree) commit(subject string, files ...string) {
	w.t.Helper()
	for _, name := range files {
		name = filepath.Join(w.dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(subject), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	w.git("add", "-A")
	w.git("commit", "--quiet", "-m", subject, "-m", "A body\nthat is not told.")
}

func (w tree) options(version string, dirty bool) (options, error) {
	o := options{}
	o.source.Version = version
	err := o.fromGit(w.t.Context(), git{w.dir}, dirty)
	return o, err
}

func TestFirstRelease(t *testing.T) {
	w := newTree(t)
	w.commit("All of it", "cmd/main.go")
	o, err := w.options("v1.0.0", false)
	if err != nil {
		t.Fatal(err)
	}
	if want := "# ipvs-proxy v1.0.0\n\n1970-01-02\n\nThe first release.\n"; o.changes != want {
		t.Errorf("%q, want %q", o.changes, want)
	}
	if !o.created.Equal(time.Unix(86400, 0)) || o.source.Revision != w.git("rev-parse", "HEAD") {
		t.Errorf("of %s, revision %s", o.created, o.source.Revision)
	}
}

// What changed since the last release, sorted by whom it concerns. A candidate is told since the last candidate, a
// release since the last release.
func TestChanges(t *testing.T) {
	w := newTree(t)
	w.commit("All of it", "cmd/main.go")
	w.git("tag", "v1.9.0")
	w.commit("Ten", "pkg/a.go")
	w.git("tag", "v1.10.0")
	w.git("tag", "nightly")
	w.commit("Serves faster", "pkg/a.go", "docs/a.md")
	w.commit("More rights", "manifests/a.yaml")
	w.git("tag", "v1.11.0-rc.1")
	w.commit("A test", "pkg/a_test.go", "e2e/a.go")
	w.commit("A fix after the candidate", "go.mod")
	const want = `# ipvs-proxy v1.11.0

1970-01-02

Changes since v1.10.0:

## The agent

- A fix after the candidate
- Serves faster

## What is installed, and documents

- More rights

Commits on tests and tools: 1.
`
	o, err := w.options("v1.11.0", false)
	if err != nil || o.changes != want {
		t.Errorf("%v\n%s\nwant\n%s", err, o.changes, want)
	}
	o, err = w.options("v1.11.0-rc.2", false)
	if err != nil || !strings.Contains(o.changes, "Changes since v1.11.0-rc.1:") || strings.Contains(o.changes, "More rights") {
		t.Errorf("%v\n%s", err, o.changes)
	}
	w.git("tag", "v1.11.0") // made before the release, as a forge does
	if o, err = w.options("v1.11.0", false); err != nil || o.changes != want {
		t.Errorf("with the tag: %v\n%s", err, o.changes)
	}
}

// A release is of a commit, and of the one that its tag names.
func TestNotCommitted(t *testing.T) {
	w := newTree(t)
	w.commit("All of it", "cmd/main.go")
	w.git("tag", "v1.0.0")
	if err := os.WriteFile(filepath.Join(w.dir, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := w.options("v1.0.0", false); err == nil || !strings.Contains(err.Error(), "?? new") {
		t.Errorf("a file is not committed: %v", err)
	}
	if o, err := w.options("v1.0.0", true); err != nil || o.source.Revision != w.git("rev-parse", "HEAD")+"-dirty" {
		t.Errorf("revision %s, %v", o.source.Revision, err)
	}
	w.commit("More", "cmd/main.go")
	if _, err := w.options("v1.0.0", false); err == nil || !strings.Contains(err.Error(), "the tag v1.0.0 is at ") {
		t.Errorf("the tag is at another commit: %v", err)
	}
	if _, err := w.options("v1.0.1", false); err != nil {
		t.Error(err)
	}
}
