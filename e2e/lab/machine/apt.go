package machine

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// source is one archive of apt's configuration, with the suites of it that
// are in use.
type source struct {
	uri        string
	suites     []string
	components []string
	signedBy   string
	options    []string // carried over to a list of our own
}

// aptSources reads the machine's own list of archives: it knows which mirror
// can be reached from here, so we need to know none.
func aptSources(dir string) ([]source, error) {
	var out []source
	files, _ := filepath.Glob(filepath.Join(dir, "sources.list.d", "*"))
	for _, f := range append([]string{filepath.Join(dir, "sources.list")}, files...) {
		parse := parseOneLine
		switch filepath.Ext(f) {
		case ".sources":
			parse = parseDeb822
		case ".list":
		default:
			continue
		}
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, parse(string(b))...)
	}
	return out, nil
}

// parseOneLine reads "deb [signed-by=K] URI SUITE COMPONENT...".
func parseOneLine(text string) []source {
	var out []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		opts := ""
		if i, j := strings.Index(line, "["), strings.Index(line, "]"); i >= 0 && j > i {
			opts = line[i+1 : j]
			line = line[:i] + line[j+1:]
		}
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "deb" {
			continue
		}
		s := source{uri: f[1], suites: f[2:3], components: f[3:]}
		for o := range strings.FieldsSeq(opts) {
			s.option(strings.Cut(o, "="))
		}
		out = append(out, s)
	}
	return out
}

// parseDeb822 reads the paragraphs of a .sources file.
func parseDeb822(text string) []source {
	var out []source
	fields := map[string]string{}
	flush := func() {
		if slices.Contains(strings.Fields(fields["types"]), "deb") && strings.ToLower(fields["enabled"]) != "no" {
			for uri := range strings.FieldsSeq(fields["uris"]) {
				s := source{uri: uri, suites: strings.Fields(fields["suites"]), components: strings.Fields(fields["components"])}
				for _, k := range []string{"signed-by", "check-valid-until", "trusted"} {
					s.option(k, fields[k], fields[k] != "")
				}
				out = append(out, s)
			}
		}
		fields = map[string]string{}
	}
	key := ""
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		line := sc.Text()
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " "), strings.HasPrefix(line, "\t"):
			fields[key] += "\n" + strings.TrimSpace(line)
		default:
			k, v, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(k))
			fields[key] = strings.TrimSpace(v)
		}
	}
	flush()
	return out
}

func (s *source) option(key, value string, ok bool) {
	if !ok {
		return
	}
	switch key {
	case "signed-by":
		// A key given in full cannot stand in a one-line list; apt's own
		// trusted keys have to do then.
		if !strings.Contains(value, "\n") && !strings.Contains(value, "BEGIN PGP") {
			s.signedBy = value
		}
	case "check-valid-until", "trusted":
		s.options = append(s.options, key+"="+value)
	}
}

// debianSuites are names under which a Debian archive may be in use.
var debianSuites = []string{"stable", "oldstable", "testing", "unstable", "sid", "bullseye", "bookworm", "trixie", "forky", "duke"}

// debianArchives picks the mirror of Debian itself and that of its security
// updates out of all sources. Others use the same suite names, so what looks
// most like Debian wins.
func debianArchives(all []source) (main, security *source, err error) {
	best, bestSec := 0, 0
	for i := range all {
		s := &all[i]
		if strings.HasPrefix(s.uri, "cdrom:") || !slices.Contains(s.components, "main") {
			continue
		}
		for _, suite := range s.suites {
			base, kind, _ := strings.Cut(strings.ReplaceAll(suite, "/", "-"), "-")
			if !slices.Contains(debianSuites, base) {
				continue
			}
			switch {
			case (kind == "security" || kind == "updates" && isSecurity(s.uri)) && score(s) > bestSec:
				security, bestSec = s, score(s)
			case kind == "" && score(s) > best:
				main, best = s, score(s)
			}
		}
	}
	if main == nil {
		return nil, nil, fmt.Errorf("no Debian archive among apt's %d sources", len(all))
	}
	return main, security, nil
}

func isSecurity(uri string) bool { return strings.Contains(uri, "security") }

// score says how much a source looks like Debian's own. Third parties bring a
// key of their own; Debian's need not be named.
func score(s *source) int {
	n := 1
	switch {
	case strings.Contains(s.signedBy, "debian-archive"):
		n += 4
	case s.signedBy == "":
		n += 3
	}
	if len(s.suites) > 1 { // bookworm bookworm-updates
		n += 2
	}
	if slices.Contains(strings.Split(strings.Trim(s.uri, "/"), "/"), "debian") {
		n++
	}
	return n
}

// suiteList is an apt sources list for another suite from the same mirrors.
// Suites that are not released have no security archive.
func suiteList(main, security *source, suite string) string {
	var b strings.Builder
	b.WriteString(listLine(main, suite))
	if security != nil && suite != "sid" {
		b.WriteString(listLine(security, suite+"-security"))
	}
	return b.String()
}

func listLine(s *source, suite string) string {
	opts := append([]string{"arch=amd64"}, s.options...)
	if s.signedBy != "" {
		opts = append(opts, "signed-by="+s.signedBy)
	}
	return fmt.Sprintf("deb [%s] %s %s main\n", strings.Join(opts, " "), s.uri, suite)
}

// SourceList is the text of an apt sources list for a suite of Debian, from the mirrors that this machine uses.
func SourceList(suite string) (string, error) {
	main, security, err := archives()
	if err != nil {
		return "", err
	}
	return suiteList(main, security, suite), nil
}

// archives are the mirrors of Debian that this machine uses.
func archives() (main, security *source, err error) {
	all, err := aptSources("/etc/apt")
	if err != nil {
		return nil, nil, err
	}
	return debianArchives(all)
}
