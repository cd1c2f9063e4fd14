package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/attacks"
)

// securityPage has the table of attacks between two lines, and people's text around it.
const (
	securityPage = "docs/security.md"
	tableBegins  = "<!-- The table is written from e2e/attacks/attacks.yaml: go test ./e2e/conformance -run TestSecurityPage -update -->\n"
	tableEnds    = "<!-- end of the table -->\n"
)

// attacksAgree finds rows of the table that say nothing, that name a test which does not exist, or that are numbered
// otherwise than in order.
func (in input) attacksAgree(rows []attacks.Row) error {
	var errs []error
	say := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("attacks.yaml: "+format, args...))
	}
	have := in.named()
	words := map[string]bool{attacks.Kept: true, attacks.Taken: true, attacks.Cut: true, attacks.Chance: true}
	for i, r := range rows {
		if want := fmt.Sprintf("A%d", i+1); r.ID != want {
			say("row %d is %s, want %s", i+1, r.ID, want)
		}
		if r.Who == "" || r.Tries == "" || r.Here == "" {
			say("%s: who, tries or here is missing", r.ID)
		}
		if !have[r.Test] {
			say("%s is held by %q, and there is no such test", r.ID, r.Test)
		}
		if r.KubeProxy != "" && (!words[attacks.Word(r.KubeProxy)] && r.KubeProxy != attacks.NotTried || !words[attacks.Word(r.Here)]) {
			say("%s is tried by packets, and does not begin with what comes of it", r.ID)
		}
	}
	return errors.Join(errs...)
}

// attackTable is the table as docs/security.md has it.
func attackTable(rows []attacks.Row) string {
	var b strings.Builder
	b.WriteString("| | who | tries | gets here | gets from kube-proxy | held by |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, r := range rows {
		theirs := r.KubeProxy
		if theirs == "" {
			theirs = attacks.NotTried
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.ID, r.Who, r.Tries, r.Here, theirs, strings.TrimPrefix(r.Test, "e2e/traffic "))
	}
	return b.String()
}

// withAttacks is a page with its table written anew.
func withAttacks(text string, rows []attacks.Row) (string, error) {
	before, rest, found := strings.Cut(text, tableBegins)
	_, after, ended := strings.Cut(rest, tableEnds)
	if !found || !ended {
		return "", fmt.Errorf("%s has no place for the table of attacks", securityPage)
	}
	return before + tableBegins + attackTable(rows) + tableEnds + after, nil
}

// writeSecurity writes the table of attacks into its page.
func (in input) writeSecurity(root string) error {
	rows, err := attacks.Rows()
	if err != nil {
		return err
	}
	if err := in.attacksAgree(rows); err != nil {
		return err
	}
	file := filepath.Join(root, securityPage)
	have, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	want, err := withAttacks(string(have), rows)
	if err != nil || want == string(have) {
		return err
	}
	return os.WriteFile(file, []byte(want), 0o644)
}
