// Command pictures draws docs/proof.svg from what tests measured (e2e/results), and with --scheduling the pictures of
// docs/scheduling.md (from e2e/pictures/measured): nothing in them is written by hand but the words.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
)

// picture is the file that is written, below the repository's root.
const picture = "docs/proof.svg"

func main() {
	scheduling := flag.Bool("scheduling", false, "draw the pictures of docs/scheduling.md")
	flag.Parse()
	draw := run
	if *scheduling {
		draw = writeScheduling
	}
	if err := draw("."); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	text, err := proof(filepath.Join(root, "e2e", "results"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, picture), []byte(text), 0o644)
}

// proof is the picture of the newest kernel that has all figures which it is made of.
func proof(dir string) (string, error) {
	kernels, err := results.Read(dir)
	if err != nil {
		return "", fmt.Errorf("what tests measured: %w", err)
	}
	var lacks []string
	for _, k := range slices.Backward(kernels) {
		m := measured{figures: k.Figures}
		panels := m.panels()
		if len(m.missing) == 0 {
			return draw(panels, "Measured by the project's own tests on Linux "+k.Series()+", in an emulated machine, on "+k.Day), nil
		}
		lacks = append(lacks, fmt.Sprintf("%s lacks %s", k.Series(), strings.Join(m.missing, ", ")))
	}
	return "", fmt.Errorf("no kernel's results have all figures: %s", strings.Join(lacks, "; "))
}

// measured are a kernel's figures, and those that were asked for and are not there.
type measured struct {
	figures map[string]map[string]int
	missing []string
}

func (m *measured) of(test, name string) int {
	v, ok := m.figures["e2e/traffic "+test][name]
	if !ok {
		m.missing = append(m.missing, test+": "+name)
	}
	return v
}

// sum adds up a figure of all subtests that a name begins and ends.
func (m *measured) sum(test, end, name string) (sum int) {
	found := false
	for of, figures := range m.figures {
		if v, ok := figures[name]; ok && strings.HasPrefix(of, "e2e/traffic "+test+"/") && strings.HasSuffix(of, end) {
			sum, found = sum+v, true
		}
	}
	if !found {
		m.missing = append(m.missing, test+": "+name)
	}
	return sum
}

// panels are what the picture shows, by figures.
func (m *measured) panels() []panel {
	const roll, take, size = "TestB33RollingUpdate", "TestB54TakeOver", "TestProportion/%d_Services"
	ours, theirs := "ipvs-proxy, requests ", "deleted at once, requests "
	writes := func(n int) bar {
		v := m.of(fmt.Sprintf(size, n), "endpoint on another node added, writes")
		return bar{label: fmt.Sprintf("among %d Services", n), value: v, text: fmt.Sprint(v), good: true}
	}
	lost := func(label, by string, good bool) bar {
		v := m.of(roll, by+"lost")
		return bar{label: label, value: v, text: fmt.Sprintf("%d of %d", v, m.of(roll, by+"sent")), good: good}
	}
	taken := m.sum(take, "keep_false", "lost")
	return []panel{
		{title: "Rolling update under load: requests lost", bars: []bar{
			lost("ipvs-proxy", ours, true), lost("real servers deleted at once", theirs, false)}},
		{title: "One endpoint more: writes to the kernel", bars: []bar{writes(10), writes(1000)}},
		{title: "Nodes taken over with all that kube-proxy left on them: lost", bars: []bar{{label: "connections and datagrams", value: taken, good: taken == 0,
			text: fmt.Sprintf("%d of %d", taken, m.sum(take, "keep_false", "new connections, kept connections and datagrams"))}}},
	}
}
