package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// patch is what a unified diff changes in one file.
type patch struct {
	file  string // from the top of the tree
	hunks []hunk
}

// hunk is one change of some lines. Old and new both begin with before lines and end with after lines of context.
type hunk struct {
	at            int // the place of the first old line as the diff gives it, from 0
	old, new      []string
	before, after int
}

var (
	fileLine = regexp.MustCompile(`^--- a/(\S+)$`)
	hunkLine = regexp.MustCompile(`^@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@`)
)

// parsePatches reads the diffs of a text; what stands before the first one is not looked at. Files are changed, never
// made or removed.
func parsePatches(text string) (ps []patch, err error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for len(lines) > 0 {
		line := lines[0]
		lines = lines[1:]
		switch f, h := fileLine.FindStringSubmatch(line), hunkLine.FindStringSubmatch(line); {
		case f != nil:
			if len(lines) == 0 || lines[0] != "+++ b/"+f[1] {
				return nil, fmt.Errorf("%q is not followed by the same file's +++ line", line)
			}
			ps, lines = append(ps, patch{file: f[1]}), lines[1:]
		case h != nil && len(ps) > 0:
			var is hunk
			if is, lines, err = parseHunk(h, lines); err != nil {
				return nil, fmt.Errorf("%s: %q: %w", ps[len(ps)-1].file, line, err)
			}
			ps[len(ps)-1].hunks = append(ps[len(ps)-1].hunks, is)
		case len(ps) > 0 && line != "" && !strings.HasPrefix(line, "diff "):
			return nil, fmt.Errorf("%s: %q belongs to no hunk", ps[len(ps)-1].file, line)
		}
	}
	for _, p := range ps {
		if len(p.hunks) == 0 {
			return nil, fmt.Errorf("%s: no hunk", p.file)
		}
	}
	return ps, nil
}

// parseHunk reads as many lines as the head of a hunk promises.
func parseHunk(head, lines []string) (h hunk, rest []string, err error) {
	count := func(s string) int {
		if s == "" {
			return 1
		}
		n, _ := strconv.Atoi(s)
		return n
	}
	olds, news, changed := count(head[2]), count(head[3]), false
	h.at = count(head[1]) - 1
	for len(h.old) < olds || len(h.new) < news {
		if len(lines) == 0 {
			return h, nil, fmt.Errorf("ends after %d old and %d new lines, not %d and %d", len(h.old), len(h.new), olds, news)
		}
		line := lines[0]
		lines = lines[1:]
		if line == "" {
			line = " " // an empty line of context whose blank was lost
		}
		switch line[0] {
		case ' ':
			h.old, h.new = append(h.old, line[1:]), append(h.new, line[1:])
			if !changed {
				h.before++
			}
			h.after++
		case '-':
			h.old, changed, h.after = append(h.old, line[1:]), true, 0
		case '+':
			h.new, changed, h.after = append(h.new, line[1:]), true, 0
		default:
			return h, nil, fmt.Errorf("%q is no line of a hunk", line)
		}
	}
	if !changed || len(h.old) != olds || len(h.new) != news {
		return h, nil, fmt.Errorf("it has %d old and %d new lines, not %d and %d, or changes nothing", len(h.old), len(h.new), olds, news)
	}
	return h, lines, nil
}

// apply applies a patch to the content of its file. Lines may have moved; of the context at least one line on each side
// must be as it was, where the patch has any. More of it decides between several places, and then the nearest.
func (p patch) apply(content string) (string, error) {
	lines := strings.Split(content, "\n")
	moved := 0
	for i, h := range p.hunks {
		at, cut, ok := h.find(lines, h.at+moved)
		if !ok {
			return "", fmt.Errorf("%s: hunk %d, at line %d: its lines are not there", p.file, i+1, h.at+1)
		}
		old, new := cut.old, cut.new
		moved = at - cut.at + len(new) - len(old)
		lines = slices.Concat(lines[:at], new, lines[at+len(old):])
	}
	return strings.Join(lines, "\n"), nil
}

// find is where a hunk fits, and as much of the hunk as does.
func (h hunk) find(lines []string, near int) (at int, fits hunk, ok bool) {
	for context := max(h.before, h.after, 1); context >= 1; context-- {
		cut := h.cut(context)
		expected := near + cut.at - h.at
		best := -1
		for i := 0; i+len(cut.old) <= len(lines); i++ {
			if slices.Equal(lines[i:i+len(cut.old)], cut.old) && (best < 0 || distance(i, expected) < distance(best, expected)) {
				best = i
			}
		}
		if best >= 0 {
			return best, cut, true
		}
	}
	return 0, hunk{}, false
}

// cut leaves so much context on each side.
func (h hunk) cut(context int) hunk {
	first, last := max(h.before-context, 0), max(h.after-context, 0)
	return hunk{at: h.at + first, old: h.old[first : len(h.old)-last], new: h.new[first : len(h.new)-last],
		before: h.before - first, after: h.after - last}
}

func distance(a, b int) int { return max(a-b, b-a) }
