package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The pages whose own code blocks are run.
const (
	guideFile   = "docs/replace-kube-proxy.md"
	installFile = "docs/install.md"
)

// blocks are the code blocks below a heading of a page, up to the next heading of its rank.
func blocks(page, heading string) ([]string, error) {
	rank := heading[:strings.Index(heading, " ")+1]
	_, text, ok := strings.Cut("\n"+page, "\n"+heading+"\n")
	if !ok {
		return nil, fmt.Errorf("no heading %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n"+rank)
	var out []string
	for i, part := range strings.Split("\n"+text, "\n```") {
		if i%2 == 1 {
			_, code, _ := strings.Cut(part, "\n") // without the language
			out = append(out, code)
		}
	}
	return out, nil
}

// guide are the code blocks of a page below a heading, of which there have to be so many.
func (c *cluster) guide(file, heading string, want int) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(c.root, file))
	if err != nil {
		return nil, err
	}
	found, err := blocks(string(b), heading)
	if err == nil && len(found) != want {
		err = fmt.Errorf("%d code blocks below %q, want %d: a step has come or gone", len(found), heading, want)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return found, nil
}

// follow runs a code block of a page in a shell as the administrator has it, in the directory of the release.
// Placeholders stand for words of this cluster.
func (c *cluster) follow(ctx context.Context, block string, placeholders ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-eu")
	cmd.Dir, cmd.Env = c.dist(), c.environment()
	cmd.Stdin = strings.NewReader(strings.NewReplacer(placeholders...).Replace(block))
	out, err := run(cmd)
	if err != nil {
		err = fmt.Errorf("the page's\n%s\n%w", block, err)
	}
	return string(out), err
}

// onEveryNode runs one of the release's Jobs as the page says, and returns what it printed on each.
func (c *cluster) onEveryNode(ctx context.Context, job, label string) (map[string]string, error) {
	steps, err := c.guide(installFile, "## Once on every node", 2)
	if err != nil {
		return nil, err
	}
	if _, err := c.follow(ctx, steps[0], "job-check-replace-kube-proxy.yaml", job); err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(strings.TrimSpace(steps[1]), "\n")
	if len(lines) != 3 {
		return nil, fmt.Errorf("%s: want the three commands that list the Jobs, print what they said, and remove them; have %q", installFile, lines)
	}
	said, failed := map[string]string{}, error(nil)
	err = until(ctx, soon, "the Jobs "+label+" have ended", func() error {
		out, err := c.kubectl(ctx, c.dist(), "-n", "kube-system", "get", "jobs", "-l", "app.kubernetes.io/name="+label,
			"-o", `jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.status=="True")].type}{"\n"}{end}`)
		if err != nil {
			return err
		}
		failed = nil
		ended := 0
		for line := range strings.Lines(out) {
			switch {
			case strings.Contains(line, "Failed"):
				failed = errors.Join(failed, fmt.Errorf("job %s", strings.TrimSpace(line)))
				ended++
			case strings.Contains(line, "Complete"):
				ended++
			}
		}
		if ended != len(nodes) {
			return fmt.Errorf("%d of %d have ended:\n%s", ended, len(nodes), out)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out, err := c.follow(ctx, lines[1], "ipvs-proxy-check", label)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		for _, n := range nodes {
			if strings.Contains(line, n) {
				_, text, _ := strings.Cut(line, "] ")
				said[n] += text
			}
		}
	}
	_, err = c.follow(ctx, lines[2], "ipvs-proxy-check", label)
	return said, errors.Join(failed, err)
}
