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
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	outputs := flag.String("outputs", "", "keep what each mutant's test said in this directory")
	flag.Parse()
	if err := run(ctx, "e2e/mutants", flag.Args(), *outputs); err != nil {
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
	overlay  string // with which go builds the tree as if it were patched
	agent    string // the built agent, for tests that run one
	tests    string // the built tests of a package of the agent's, for a kernel
}

// runsAgent reports whether the mutant's test starts the agent, in the lab. Others test the packages they are in.
func (m mutant) runsAgent() bool { return strings.HasPrefix(m.pkg, "./e2e/") }

// run tries the mutants whose names begin with one of only; all without.
func run(ctx context.Context, dir string, only []string, outputs string) error {
	mutants, err := load(dir, only)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "ipvs-proxy-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if outputs != "" {
		if err := os.MkdirAll(outputs, 0o755); err != nil {
			return err
		}
	}
	for i := range mutants {
		if mutants[i].overlay, err = mutate(mutants[i], tmp); err != nil {
			return err
		}
	}
	v := &verdicts{of: map[string]string{}, outputs: outputs}
	h := &here{tmp: tmp, built: map[string]string{}, fared: map[string]string{}}
	onHost, inLab, err := h.part(ctx, mutants, v)
	if err != nil {
		return err
	}
	var host, lab error
	var wg sync.WaitGroup
	wg.Go(func() { host = h.all(ctx, onHost, v) })
	wg.Go(func() { lab = labTests(ctx, deal(inLab, batchSize), tmp, v) })
	wg.Wait()
	return errors.Join(host, lab, v.sum(mutants))
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
