package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
)

// kernelRun is one boot of the lab. There each test runs first with the agent as it is, then with its mutants.
type kernelRun struct {
	tmp     string
	job     machine.Job
	outputs map[string]*bytes.Buffer // of the commands
}

// kernelTests runs the tests of mutants on the kernel of a Debian suite, or where that is empty on the lab's choice.
func kernelTests(ctx context.Context, suite string, mutants []mutant, tmp string, verdicts map[string]string) (err error) {
	r := &kernelRun{tmp: tmp, outputs: map[string]*bytes.Buffer{}, job: machine.Job{Files: map[string]string{}, Kernel: suite, KubeProxy: true,
		Timeout: 5*time.Minute + time.Duration(len(mutants))*2*time.Minute, Memory: 2048 + 32*len(mutants), Output: io.Discard}}
	whole := filepath.Join(tmp, "ipvs-proxy")
	if err := build(ctx, "", "./cmd/ipvs-proxy", whole); err != nil {
		return err
	}
	for _, m := range mutants {
		control := mutant{pkg: m.pkg, test: m.test, agent: whole}
		if name := "control " + m.pkg + " " + m.test; r.outputs[name] == nil {
			if err := r.add(ctx, name, control); err != nil {
				return err
			}
		}
	}
	for _, m := range mutants {
		if err := r.add(ctx, m.name, m); err != nil {
			return err
		}
	}
	if needPlane(mutants) {
		p, err := plane.ForLab(ctx, filepath.Join(tmp, "plane"), "", os.Stdout)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Stop()) }()
		if err := p.Equip(&r.job); err != nil {
			return err
		}
	}
	return r.run(ctx, verdicts)
}

// add adds the test of a mutant, or of none, to what the lab runs.
func (r *kernelRun) add(ctx context.Context, name string, m mutant) error {
	dir, file := path.Clean(m.pkg), m.tests
	if file == "" {
		file = filepath.Join(r.tmp, path.Base(dir)+".test")
	}
	prog := path.Join(dir, filepath.Base(file)) // it looks for its testdata beside it
	if r.job.Files[prog] == "" {
		if m.tests == "" {
			if err := buildTest(ctx, "", m.pkg, file); err != nil {
				return err
			}
		}
		r.job.Files[prog] = file
		if data := path.Join(dir, "testdata"); exists(data) {
			r.job.Files[data] = data
		}
	}
	env := []string{"IPVS_PROXY_LAB=1"}
	if m.agent != "" {
		agent := filepath.Base(m.agent)
		r.job.Files[agent] = m.agent
		env = append(env, "LAB_AGENT=$LAB_DIR/"+agent, "LAB_IMAGE=$LAB_DIR/"+imageFile, "LAB_IMAGE_PROGRAM=$LAB_DIR/"+agent)
	}
	if err := addImage(ctx, m, &r.job, r.tmp); err != nil {
		return err
	}
	r.outputs[name] = &bytes.Buffer{}
	r.job.Commands = append(r.job.Commands, machine.Command{Name: name, Output: r.outputs[name], Timeout: 5 * time.Minute, Dir: dir, Env: env,
		Args: []string{prog, "-test.v", "-test.timeout=4m", "-test.failfast", "-test.run=^" + m.test + "$"}})
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// run boots, and says what became of each mutant.
func (r *kernelRun) run(ctx context.Context, verdicts map[string]string) error {
	r.job.OnResult = func(res machine.Result) {
		fmt.Printf("%-70s exit %d after %s\n", res.Command, res.Exit, res.Took.Round(time.Second/10))
	}
	report, err := machine.Run(ctx, r.job)
	if err != nil {
		return err
	}
	fmt.Printf("ran on %s, %s\n", report.Kernel, report.Mode)
	for _, res := range report.Results {
		text := r.outputs[res.Command].String()
		if strings.HasPrefix(res.Command, "control ") {
			if res.Exit != 0 || !strings.Contains(text, "\n--- PASS") && !strings.HasPrefix(text, "--- PASS") {
				return fmt.Errorf("%s does not pass with the agent as it is:\n%s", res.Command, text)
			}
			continue
		}
		verdicts[res.Command] = verdict(res.Exit, text)
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
