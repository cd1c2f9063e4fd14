package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/attacks"
)

var update = flag.Bool("update", false, "write the table of docs/security.md anew")

// TestSecurityPage: the table of attacks is what its rows say, and each names a test that exists.
func TestSecurityPage(t *testing.T) {
	in, err := read(root)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := attacks.Rows()
	if err != nil {
		t.Fatal(err)
	}
	if err := in.attacksAgree(rows); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := in.writeSecurity(root); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(filepath.Join(root, securityPage))
	if err != nil {
		t.Fatal(err)
	}
	if want, err := withAttacks(string(have), rows); err != nil || want != string(have) {
		t.Errorf("%s is not what attacks.yaml says (%v): go test ./e2e/conformance -run TestSecurityPage -update", securityPage, err)
	}
}

// TestAttacksAgree: each way in which the table of attacks can be wrong is found.
func TestAttacksAgree(t *testing.T) {
	in := input{tests: []source{{pkg: "p", name: "TestA"}}}
	whole := []attacks.Row{{ID: "A1", Who: "w", Tries: "t", Here: "kept: h", KubeProxy: "taken", Test: "p TestA"}, {ID: "A2", Who: "w", Tries: "t", Here: "h", Test: "p TestA"}}
	if err := in.attacksAgree(whole); err != nil {
		t.Errorf("the control: %v", err)
	}
	for want, spoil := range map[string]func(*attacks.Row){
		"no such test":     func(r *attacks.Row) { r.Test = "p TestGone" },
		"is held by \"\"":  func(r *attacks.Row) { r.Test = "" },
		"is A7, want A1":   func(r *attacks.Row) { r.ID = "A7" },
		"who, tries or":    func(r *attacks.Row) { r.Tries = "" },
		"does not begin":   func(r *attacks.Row) { r.Here = "all is well" },
		"A1 is tried by p": func(r *attacks.Row) { r.KubeProxy = "perhaps: yes" },
	} {
		rows := slices.Clone(whole)
		spoil(&rows[0])
		if err := in.attacksAgree(rows); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	if _, err := withAttacks("no table", whole); err == nil {
		t.Error("a page without a place for the table is taken")
	}
}
