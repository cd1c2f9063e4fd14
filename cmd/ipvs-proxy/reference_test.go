package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the references in docs anew")

const commandsDoc = "../../docs/commands.md"

const commandsFront = `# Commands

<!-- Written by: go test ./cmd/ipvs-proxy -run TestReference -update -->

Called as ` + "`kube-proxy`" + `, or with a flag as its first argument, the program does what ` + "`run`" + ` does: so the command of a DaemonSet
that was made for kube-proxy stays as it is. Flags of kube-proxy that have no effect are accepted and not listed
here; [the keys that they stand for](configuration.md) are.
`

// transcript is what a command prints, made by a test of its own.
type transcript struct{ what, called, file string }

var transcripts = map[string][]transcript{
	"diff": {{"On a node that kube-proxy serves in mode `ipvs`, with four Services (`go test ./pkg/preview -update` makes this):", "diff", "../../pkg/preview/testdata/kube-proxy.txt"}},
	"explain": {
		{"On the same node, once the agent is at work:", "explain shop/edge", "../../pkg/preview/testdata/explain-edge.txt"},
		{"A client from outside, where source ranges and a Local policy hold:", "explain 198.51.100.7 to 203.0.113.81:80", "../../pkg/preview/testdata/packet-outside.txt"},
		{"And a port that the Service does not have:", "explain 198.51.100.7 to 203.0.113.81:443", "../../pkg/preview/testdata/packet-no-port.txt"},
	},
	"show": {{"On a node with a Service of every kind (`go test ./cmd/ipvs-proxy -update` makes this):", "show", "testdata/show.txt"}},
}

// TestReference keeps docs/commands.md: each command's description and flags, as its --help has them.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString(commandsFront)
	for _, c := range newCommand().Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" {
			describe(t, &b, c)
		}
	}
	if *update {
		if err := os.WriteFile(commandsDoc, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if text, err := os.ReadFile(commandsDoc); err != nil || string(text) != b.String() {
		t.Errorf("%s is out of date: go test ./cmd/ipvs-proxy -run TestReference -update (%v)", commandsDoc, err)
	}
}

func describe(t *testing.T, b *strings.Builder, c *cobra.Command) {
	t.Helper()
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	if c.Short == "" {
		t.Errorf("%s says nothing of itself", c.Name())
	}
	fmt.Fprintf(b, "\n## ipvs-proxy %s\n\n%s\n", c.Name(), text)
	if c.Example != "" {
		fmt.Fprintf(b, "\n```\n%s\n```\n", c.Example)
	}
	for _, of := range transcripts[c.Name()] {
		printed, err := os.ReadFile(of.file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(b, "\n%s\n\n```\n$ ipvs-proxy %s\n%s```\n", of.what, of.called, printed)
	}
	if flags := c.NonInheritedFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(b, "\n```\n%s```\n", flags)
	}
}
