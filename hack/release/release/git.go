package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// versionForm is a semantic version with a v before it. There is no + in it: tags of images have none.
var versionForm = regexp.MustCompile(`^v(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?$`)

func checkVersion(version string) error {
	if !versionForm.MatchString(version) {
		return fmt.Errorf("VERSION=%s: want a version such as v1.2.3 or v1.2.3-rc.1", version)
	}
	return nil
}

// git asks a work tree.
type git struct{ dir string }

func (g git) ask(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = g.dir
	out, err := cmd.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		err = fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(failed.Stderr)))
	}
	return strings.TrimSpace(string(out)), err
}

// fromGit fills in what the work tree knows: the commit, its time, and what changed. A release is made of what is
// committed, and where its tag is there already, of that commit.
func (o *options) fromGit(ctx context.Context, g git, dirty bool) error {
	revision, err := g.ask(ctx, "rev-parse", "HEAD")
	if err != nil {
		return err
	}
	changed, err := g.ask(ctx, "status", "--porcelain")
	switch {
	case err != nil:
		return err
	case changed != "" && !dirty:
		return fmt.Errorf("a release is made of what is committed, and there is more:\n%s", changed)
	case changed != "":
		revision += "-dirty"
	}
	if tagged, err := g.ask(ctx, "rev-parse", "--verify", "--quiet", "refs/tags/"+o.source.Version+"^{commit}"); err == nil && tagged != strings.TrimSuffix(revision, "-dirty") {
		return fmt.Errorf("the tag %s is at %s, and the work tree at %s: check the tag out, or choose another version", o.source.Version, tagged, revision)
	}
	at, err := g.ask(ctx, "log", "-1", "--format=%ct")
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return fmt.Errorf("time of the commit %s: %w", revision, err)
	}
	o.source.Revision, o.created = revision, time.Unix(seconds, 0).UTC()
	o.changes, err = g.changes(ctx, o.source.Version, o.created)
	return err
}

// separator is a byte that no subject and no file name has.
const separator = "\x1e"

// changes says what is new since the release before, which is the last tag with a version's form that leads here: the
// subjects of commits, newest first. What changed nothing of the program or of what is installed is only counted.
func (g git) changes(ctx context.Context, version string, at time.Time) (string, error) {
	var out strings.Builder
	fmt.Fprintf(&out, "# ipvs-proxy %s\n\n%s\n\n", version, at.Format(time.DateOnly))
	before, err := g.before(ctx, version)
	if err != nil {
		return "", err
	}
	if before == "" {
		out.WriteString("The first release.\n")
		return out.String(), nil
	}
	text, err := g.ask(ctx, "log", "--no-merges", "--name-only", "--format="+separator+"%s", before+"..HEAD")
	if err != nil {
		return "", err
	}
	agents, installed, rest := sortChanges(strings.Split(text, separator)[1:])
	fmt.Fprintf(&out, "Changes since %s:\n", before)
	for _, part := range []struct {
		title string
		list  []string
	}{{"The agent", agents}, {"What is installed, and documents", installed}} {
		if len(part.list) > 0 {
			fmt.Fprintf(&out, "\n## %s\n\n- %s\n", part.title, strings.Join(part.list, "\n- "))
		}
	}
	if rest > 0 {
		fmt.Fprintf(&out, "\nCommits on tests and tools: %d.\n", rest)
	}
	return out.String(), nil
}

// before is the last release's tag; empty: there was none. Before a release there may be candidates, which are not what
// its users had.
func (g git) before(ctx context.Context, version string) (string, error) {
	tags, err := g.ask(ctx, "-c", "versionsort.suffix=-", "tag", "--merged", "HEAD", "--sort=-version:refname")
	if err != nil {
		return "", err
	}
	list := strings.Fields(tags)
	candidate := strings.Contains(version, "-")
	i := slices.IndexFunc(list, func(t string) bool {
		return t != version && versionForm.MatchString(t) && (candidate || !strings.Contains(t, "-"))
	})
	if i < 0 {
		return "", nil
	}
	return list[i], nil
}

// sortChanges puts commits, each a subject and the files that it changed, into the part of the text that they belong to.
func sortChanges(commits []string) (agents, installed []string, rest int) {
	for _, c := range commits {
		subject, names, _ := strings.Cut(c, "\n")
		changed := strings.Fields(names)
		touches := func(tops ...string) bool {
			return slices.ContainsFunc(changed, func(name string) bool {
				top, _, _ := strings.Cut(name, "/")
				return slices.Contains(tops, top) && !strings.HasSuffix(name, "_test.go") && !strings.Contains(name, "/testdata/")
			})
		}
		switch {
		case touches("cmd", "pkg", "go.mod"):
			agents = append(agents, subject)
		case touches("manifests", "docs", "README.md", "examples"):
			installed = append(installed, subject)
		default:
			rest++
		}
	}
	return agents, installed, rest
}
