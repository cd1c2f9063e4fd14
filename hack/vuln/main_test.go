package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The host is asked where it answers; else the latest module, else the one that is known; and always it is said of
// which day the data are.
func TestChoose(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/index/db.json.gz" {
			http.NotFound(w, r)
			return
		}
		z := gzip.NewWriter(w)
		fmt.Fprint(z, `{"modified":"2026-11-27T10:00:00Z"}`)
		z.Close()
	}))
	defer up.Close()
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	down := httptest.NewServer(nil)
	down.Close()

	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "data", "osv"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(dir, "data", "osv", fmt.Sprintf("GO-2026-%04d.json", i)), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	latest := module{Version: "v0.0.0-20261126010203-0123456789ab", Dir: dir}
	has := map[string]module{"latest": latest, known: {Version: known, Dir: dir}}
	without := func(refused ...string) func(context.Context, string) (module, error) {
		return func(_ context.Context, version string) (module, error) {
			for _, r := range refused {
				if r == version {
					return module{}, errors.New("refused: " + version)
				}
			}
			return has[version], nil
		}
	}
	for _, c := range []struct {
		name, host string
		fetch      func(context.Context, string) (module, error)
		url, says  string
	}{
		{"host", up.URL, without("latest", known), up.URL, "Data of 2026-11-27, from " + up.URL + "."},
		{"no host", down.URL, without(), "file://" + dir + "/data/osv", "Data of 2026-11-26, from the module golang.org/x/vulndb " + latest.Version},
		{"a host that is another", broken.URL, without(), "file://" + dir + "/data/osv", "answers 404 Not Found"},
		{"no host and no latest", down.URL, without("latest"), "file://" + dir + "/data/osv", "Data of 2026-11-05, from the module golang.org/x/vulndb " + known},
	} {
		db, err := choose(t.Context(), c.host, c.fetch)
		if err != nil || db.url != c.url || !strings.Contains(db.String(), c.says) {
			t.Errorf("%s: %q, %q, %v; want %q, %q", c.name, db.url, db, err, c.url, c.says)
		}
	}
	if _, err := choose(t.Context(), down.URL, without("latest", known)); err == nil || !strings.Contains(err.Error(), "refused: "+known) {
		t.Errorf("with nothing to be had: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
		t.Fatal(err)
	}
	if db, err := choose(t.Context(), down.URL, without()); err == nil {
		t.Errorf("a module without entries is taken: %v", db)
	}
}

// A finding fails, and so does a look that failed.
func TestCheck(t *testing.T) {
	for code, want := range map[int]string{0: "", 1: ".: govulncheck could not look: exit status 1", 3: ".: known vulnerabilities, see above"} {
		program := filepath.Join(t.TempDir(), "govulncheck")
		if err := os.WriteFile(program, fmt.Appendf(nil, "#!/bin/sh\necho \"$@\"\nexit %d\n", code), 0o755); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := check(t.Context(), program, "file:///db", ".", &out)
		if got := fmt.Sprint(err); err == nil && want != "" || err != nil && got != want {
			t.Errorf("status %d: %v, want %q", code, err, want)
		}
		if !strings.HasPrefix(out.String(), "\n== ., with go1.") || !strings.Contains(out.String(), "-db file:///db ./...") {
			t.Errorf("it says %q", out.String())
		}
	}
}
