// Package attacks is the table of attacks: who may write what, what that gets him here and from kube-proxy, and the test that
// holds it. docs/security.md has it as people read it.
package attacks

import (
	_ "embed" // for the table
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// Row is an attack.
type Row struct {
	// ID is A and a number; it never becomes another attack's.
	ID string `json:"id"`
	// Who is who can try it, by what he may write or reach.
	Who string `json:"who"`
	// Tries is what he tries.
	Tries string `json:"tries"`
	// Here is what he gets here: a word, see [Word], and more after a colon.
	Here string `json:"here"`
	// KubeProxy is what he gets from kube-proxy, likewise; empty: not tried.
	KubeProxy string `json:"kubeProxy,omitempty"`
	// Test holds what he gets here: a package and a test, as e2e/upstream.yaml names them.
	Test string `json:"test"`
}

// What comes of an attack that is tried by packets.
const (
	Kept  = "kept"  // whoever had the address has it, or nobody
	Taken = "taken" // the attacker has it, or gets to what he was not to reach
	Cut   = "cut"   // nobody has it any more
	// Chance is Kept or Taken, now this and now that.
	Chance = "by chance"
)

// NotTried is in the place of what an attacker gets from kube-proxy, where that was not tried.
const NotTried = "not tried"

// Word is the word that a cell begins with.
func Word(cell string) string {
	word, _, _ := strings.Cut(cell, ":")
	return word
}

//go:embed attacks.yaml
var table []byte

// Rows are all attacks, in the order of the table.
func Rows() (rows []Row, err error) {
	if err := yaml.UnmarshalStrict(table, &rows); err != nil {
		return nil, fmt.Errorf("attacks.yaml: %w", err)
	}
	return rows, nil
}
