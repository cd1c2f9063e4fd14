// Command vuln asks the Go vulnerability database about the agent and about what builds its image, with govulncheck, and
// fails on a finding. Where the database's host cannot be reached it reads the module golang.org/x/vulndb, which comes
// from the module proxy as any other, and has the same entries. It says which of them it used, and of which day that is.
//
// Not asked about are the programs of others that tests run (e2e/programs): none of them is in a release.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

const (
	govulncheck = "golang.org/x/vuln/cmd/govulncheck@v1.9.0"
	host        = "https://vuln.go.dev"
	vulndb      = "golang.org/x/vulndb"
	// known is taken where the proxy does not say which version is the latest.
	known = "v0.0.0-20261105234957-e22db6528018"
)

// modules are those whose packages are looked at: directories, from the root of the repository.
var modules = []string{".", "hack/release"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "vuln:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	db, err := choose(ctx, host, download)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, db)
	tmp, err := os.MkdirTemp("", "ipvs-proxy-vuln-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	install := goCommand(ctx, "install", govulncheck)
	install.Env = append(install.Env, "GOBIN="+tmp)
	if said, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("install %s: %w\n%s", govulncheck, err, said)
	}
	var errs []error
	for _, dir := range modules {
		errs = append(errs, check(ctx, filepath.Join(tmp, "govulncheck"), db.url, dir, out))
	}
	return errors.Join(errs...)
}

// check looks at all packages of a module. An error is a finding, which is an entry whose functions are called, or that
// there was no looking. Entries of what is not called are counted and are no error.
func check(ctx context.Context, program, db, dir string, out io.Writer) error {
	version := goCommand(ctx, "env", "GOVERSION")
	version.Dir = dir
	said, err := version.Output()
	if err != nil {
		return fmt.Errorf("%s: ask Go for its version: %w", dir, err)
	}
	fmt.Fprintf(out, "\n== %s, with %s", dir, said)
	cmd := exec.CommandContext(ctx, program, "-db", db, "./...")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, environment(), out, out // its own -C leaves it with another Go
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() == 3: // govulncheck's word for a finding
		return fmt.Errorf("%s: known vulnerabilities, see above", dir)
	}
	return fmt.Errorf("%s: govulncheck could not look: %w", dir, err)
}

// database is what govulncheck is to ask.
type database struct {
	url, name string
	date      time.Time // of its newest change
	why       string    // it is not the host's; empty: it is
}

func (d database) String() string {
	s := fmt.Sprintf("Data of %s, from %s.", d.date.Format(time.DateOnly), d.name)
	if d.why != "" {
		s += fmt.Sprintf("\nThe database itself cannot be reached: %s", d.why)
	}
	return s
}

// choose takes the database's host where it answers, and else its module, of which fetch gets a version.
func choose(ctx context.Context, host string, fetch func(ctx context.Context, version string) (module, error)) (database, error) {
	date, refused := modified(ctx, host)
	if refused == nil {
		return database{host, host, date, ""}, nil
	}
	m, err := fetch(ctx, "latest")
	if err != nil {
		var again error
		if m, again = fetch(ctx, known); again != nil {
			return database{}, fmt.Errorf("no vulnerability database: %w", errors.Join(refused, err, again))
		}
	}
	if date, err = dateOf(m.Version); err != nil {
		return database{}, err
	}
	entries := filepath.Join(m.Dir, "data", "osv")
	if found, err := filepath.Glob(filepath.Join(entries, "GO-*.json")); err != nil || len(found) < 1000 {
		return database{}, fmt.Errorf("%s %s has %d entries in %s: it cannot be whole (%w)", vulndb, m.Version, len(found), entries, err)
	}
	// Govulncheck makes the index by itself for a directory that has none.
	return database{"file://" + entries, "the module " + vulndb + " " + m.Version, date, refused.Error()}, nil
}

// modified asks the host when its newest entry changed, which also says whether it can be reached.
func modified(ctx context.Context, host string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/index/db.json.gz", nil)
	if err != nil {
		return time.Time{}, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return time.Time{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return time.Time{}, fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	text, err := gzip.NewReader(resp.Body)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", req.URL, err)
	}
	var meta struct{ Modified time.Time }
	if err := json.NewDecoder(text).Decode(&meta); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", req.URL, err)
	}
	return meta.Modified, nil
}

// module is a version in the module cache.
type module struct{ Version, Dir, Error string }

func download(ctx context.Context, version string) (m module, err error) {
	cmd := goCommand(ctx, "mod", "download", "-json", vulndb+"@"+version)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if json.Unmarshal(out, &m) == nil && m.Error != "" {
		err = errors.New(m.Error)
	}
	if err != nil {
		return m, fmt.Errorf("download %s@%s: %w\n%s", vulndb, version, err, said.Bytes())
	}
	return m, nil
}

var pseudoVersion = regexp.MustCompile(`[-.](\d{14})-[0-9a-f]{12}$`)

// dateOf is the time of the commit that a pseudo-version names.
func dateOf(version string) (time.Time, error) {
	found := pseudoVersion.FindStringSubmatch(version)
	if found == nil {
		return time.Time{}, fmt.Errorf("%s %s: want a version with a date in it", vulndb, version)
	}
	return time.Parse("20060102150405", found[1])
}

// goCommand runs the Go that the Makefile found, outside of any module.
func goCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, goTool(), args...)
	cmd.Dir, cmd.Env = os.TempDir(), environment()
	return cmd
}

func goTool() string {
	if tool := os.Getenv("GO"); tool != "" {
		return tool
	}
	return "go"
}

// environment has Go where govulncheck looks for it. The toolchain is the one that go.mod names, for it builds the
// release: its standard library is what may have a finding.
func environment() []string {
	env := append(os.Environ(), "GOTOOLCHAIN=auto", "GOWORK=off")
	if tool := goTool(); filepath.IsAbs(tool) {
		env = append(env, "PATH="+filepath.Dir(tool)+string(os.PathListSeparator)+os.Getenv("PATH"))
	}
	return env
}
