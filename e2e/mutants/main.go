// Command mutants proves that the behaviour tests can fail: each patch beside it takes one behaviour out of
// the agent, and the test that the patch names must fail with it and pass without it.
//
// A patch begins with header lines, then the diff as git prints it:
//
//	Row: B15
//	Test: ./e2e/traffic TestB15NoEndpointsRefused
//	Takes out: the guard's refusal of frontends without endpoints
//
// A fourth line "Kernel: trixie" names the Debian suite whose kernel the test needs to notice it, where others bear it.
//
// Tests below e2e run in the lab, with the control plane where they need one, and so do those of other packages that
// are skipped on this machine; the rest run here.
package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, "e2e/mutants", os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// mutant is one patch.
type mutant struct {
	name     string // of the file, without its ending
	row      string
	pkg      string // of the test
	test     string
	takesOut string
	kernel   string // Debian suite; empty: whichever the lab takes
	path     string
	agent    string // the built agent, for tests that run one
	tests    string // the built tests of a package of the agent's, for a kernel
}

// runsAgent reports whether the mutant's test starts the agent, in the lab. Others test the packages they are in.
func (m mutant) runsAgent() bool { return strings.HasPrefix(m.pkg, "./e2e/") }

// run tries the mutants whose names begin with one of only; all without.
func run(ctx context.Context, dir string, only []string) error {
	mutants, err := load(dir, only)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "ipvs-proxy-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	verdicts := map[string]string{}
	kernel := map[string][]mutant{}
	for i := range mutants {
		m := &mutants[i]
		overlay, err := mutate(*m, tmp)
		if err != nil {
			return err
		}
		if m.runsAgent() {
			m.agent = filepath.Join(tmp, "ipvs-proxy-"+m.name)
			err = build(ctx, overlay, "./cmd/ipvs-proxy", m.agent)
		} else if verdicts[m.name], err = hostTest(ctx, *m, overlay); errors.Is(err, errSkipped) {
			m.tests = filepath.Join(tmp, m.name+".test")
			err = buildTest(ctx, overlay, m.pkg, m.tests)
		}
		if err != nil {
			return fmt.Errorf("mutant %s: %w", m.name, err)
		}
		if m.agent != "" || m.tests != "" {
			kernel[m.kernel] = append(kernel[m.kernel], *m)
		}
	}
	for _, suite := range slices.Sorted(maps.Keys(kernel)) {
		if err := kernelTests(ctx, suite, kernel[suite], tmp, verdicts); err != nil {
			return err
		}
	}
	return report(mutants, verdicts)
}

const killed = "killed"

func report(mutants []mutant, verdicts map[string]string) error {
	survivors := 0
	for _, m := range mutants {
		v := verdicts[m.name]
		if v != killed {
			survivors++
		}
		fmt.Printf("%-9s %-26s %-60s %s\n", v, m.name, strings.TrimPrefix(m.pkg, "./")+" "+m.test, m.takesOut)
	}
	fmt.Printf("mutants: %d killed, %d survived\n", len(mutants)-survivors, survivors)
	if survivors > 0 {
		return fmt.Errorf("%d of %d mutants were not noticed by their test", survivors, len(mutants))
	}
	return nil
}

var header = regexp.MustCompile(`(?m)^(Row|Test|Takes out|Kernel): (.+)$`)

func load(dir string, only []string) (out []mutant, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		m := mutant{name: strings.TrimSuffix(filepath.Base(f), ".patch"), path: f}
		if !chosen(m.name, only) {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		head, _, _ := strings.Cut(string(text), "\n--- ")
		for _, h := range header.FindAllStringSubmatch(head, -1) {
			switch h[1] {
			case "Row":
				m.row = h[2]
			case "Test":
				m.pkg, m.test, _ = strings.Cut(h[2], " ")
			case "Kernel":
				m.kernel = h[2]
			default:
				m.takesOut = h[2]
			}
		}
		if m.row == "" || m.test == "" || m.takesOut == "" || !strings.HasPrefix(m.name, m.row) {
			return nil, fmt.Errorf("%s: the header must give Row (as in the file's name), Test (package and name) and Takes out", f)
		}
		out = append(out, m)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no mutant in %s fits %q", dir, only)
	}
	return out, nil
}

func chosen(name string, only []string) bool {
	for _, o := range only {
		if strings.HasPrefix(name, o) {
			return true
		}
	}
	return len(only) == 0
}
