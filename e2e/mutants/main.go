// Command mutants proves that the behaviour tests can fail: each patch beside it takes one behaviour out of
// the agent, and the test that the patch names must fail with it and pass without it.
//
// A patch begins with header lines, then the diff as git prints it:
//
//	Row: B15
//	Test: ./e2e/traffic TestB15NoEndpointsRefused
//	Takes out: the guard's refusal of frontends without endpoints
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
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
	path     string
	agent    string // the built agent, for kernel tests
}

// inLab reports whether the mutant's test needs a kernel with IPVS.
func (m mutant) inLab() bool { return strings.HasPrefix(m.pkg, "./e2e/") }

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
	var kernel []mutant
	for i := range mutants {
		m := &mutants[i]
		overlay, err := mutate(ctx, *m, tmp)
		if err != nil {
			return err
		}
		if m.inLab() {
			m.agent = filepath.Join(tmp, "ipvs-proxy-"+m.name)
			if err := build(ctx, overlay, "./cmd/ipvs-proxy", m.agent); err != nil {
				return fmt.Errorf("mutant %s does not build: %w", m.name, err)
			}
			kernel = append(kernel, *m)
			continue
		}
		if verdicts[m.name], err = hostTest(ctx, *m, overlay); err != nil {
			return err
		}
	}
	if err := kernelTests(ctx, kernel, tmp, verdicts); err != nil {
		return err
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

var header = regexp.MustCompile(`(?m)^(Row|Test|Takes out): (.+)$`)

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

// kernelTests boots once, and there runs each test first with the agent as it is, then with its mutant.
func kernelTests(ctx context.Context, mutants []mutant, tmp string, verdicts map[string]string) (err error) {
	if len(mutants) == 0 {
		return nil
	}
	whole := filepath.Join(tmp, "ipvs-proxy")
	if err := build(ctx, "", "./cmd/ipvs-proxy", whole); err != nil {
		return err
	}
	job := machine.Job{Files: map[string]string{"ipvs-proxy": whole}, Timeout: 5*time.Minute + time.Duration(len(mutants))*2*time.Minute,
		Memory: 2048 + 32*len(mutants), Output: io.Discard}
	controls, outputs := map[string]bool{}, map[string]*bytes.Buffer{}
	add := func(name string, m mutant, agent string) error {
		prog := filepath.Base(m.pkg) + ".test"
		if job.Files[prog] == "" {
			job.Files[prog] = filepath.Join(tmp, prog)
			if err := buildTest(ctx, m.pkg, job.Files[prog]); err != nil {
				return err
			}
		}
		job.Files[filepath.Base(agent)] = agent
		if err := addImage(ctx, m, &job, tmp); err != nil {
			return err
		}
		outputs[name] = &bytes.Buffer{}
		job.Commands = append(job.Commands, machine.Command{Name: name, Output: outputs[name], Timeout: 5 * time.Minute,
			Args: []string{prog, "-test.v", "-test.timeout=4m", "-test.failfast", "-test.run=^" + m.test + "$"},
			Env: []string{"IPVS_PROXY_LAB=1", "LAB_AGENT=$LAB_DIR/" + filepath.Base(agent),
				"LAB_IMAGE=$LAB_DIR/" + imageFile, "LAB_IMAGE_PROGRAM=$LAB_DIR/" + filepath.Base(agent)}})
		return nil
	}
	for _, m := range mutants {
		if control := "control " + m.pkg + " " + m.test; !controls[control] {
			controls[control] = true
			if err := add(control, m, whole); err != nil {
				return err
			}
		}
	}
	for _, m := range mutants {
		if err := add(m.name, m, m.agent); err != nil {
			return err
		}
	}
	if needPlane(mutants) {
		p, err := plane.ForLab(ctx, filepath.Join(tmp, "plane"), "", os.Stdout)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Stop()) }()
		if err := p.Equip(&job); err != nil {
			return err
		}
	}
	job.OnResult = func(r machine.Result) {
		fmt.Printf("%-70s exit %d after %s\n", r.Command, r.Exit, r.Took.Round(time.Second/10))
	}
	report, err := machine.Run(ctx, job)
	if err != nil {
		return err
	}
	fmt.Printf("ran on %s, %s\n", report.Kernel, report.Mode)
	for _, r := range report.Results {
		text := outputs[r.Command].String()
		if strings.HasPrefix(r.Command, "control ") {
			if r.Exit != 0 || !strings.Contains(text, "\n--- PASS") && !strings.HasPrefix(text, "--- PASS") {
				return fmt.Errorf("%s does not pass with the agent as it is:\n%s", r.Command, text)
			}
			continue
		}
		verdicts[r.Command] = verdict(r.Exit, text)
	}
	return nil
}

// needPlane: one of the tests needs a control plane.
func needPlane(mutants []mutant) bool {
	return slices.ContainsFunc(mutants, func(m mutant) bool { return m.pkg == plane.Package })
}

// verdict: killed means that the test itself failed, not that it could not run.
func verdict(exit int, output string) string {
	if exit == 1 && strings.Contains(output, "--- FAIL: ") && !strings.Contains(output, "panic: test timed out") {
		return killed
	}
	if exit == 0 {
		return "SURVIVED"
	}
	return "BROKEN"
}
