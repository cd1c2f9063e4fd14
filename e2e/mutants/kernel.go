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
	"sync"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// kernelRun is one boot of the lab. There each test runs first with the agent as it is, then with its mutants.
type kernelRun struct {
	tmp     string
	batch   batch
	job     machine.Job
	outputs map[string]*bytes.Buffer // of the commands
	exits   map[string]int           // of the commands that came to an end, or were cut off: -1
	unbuilt map[string]error         // mutants that did not build
}

// labTests runs batches on as many machines as this one bears, and builds what comes next meanwhile.
func labTests(ctx context.Context, batches []batch, tmp string, v *verdicts) error {
	if len(batches) == 0 {
		return nil
	}
	at, emulated, err := machines(ctx)
	if err != nil {
		return err
	}
	whole := filepath.Join(tmp, "ipvs-proxy")
	if err := build(ctx, "", "./cmd/ipvs-proxy", whole); err != nil {
		return err
	}
	ready, errs := make(chan *kernelRun), make([]error, at+1)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(ready)
		for _, b := range batches {
			r, err := prepare(ctx, b, tmp, whole)
			if err != nil {
				errs[at] = err
				return
			}
			// On a clock that counts instructions no test fails because this machine is busy, and what waits waits for
			// nothing. A control plane outside goes by another clock.
			r.job.Icount = emulated && !b.plane
			ready <- r
		}
	})
	for i := range at {
		wg.Go(func() {
			for r := range ready {
				errs[i] = errors.Join(errs[i], r.run(ctx, v))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// prepare builds what a batch needs.
func prepare(ctx context.Context, b batch, tmp, whole string) (*kernelRun, error) {
	r := &kernelRun{tmp: tmp, batch: b, outputs: map[string]*bytes.Buffer{}, exits: map[string]int{}, unbuilt: map[string]error{},
		job: machine.Job{Files: map[string]string{}, Kernel: b.kernel, KubeProxy: true,
			Timeout: 5*time.Minute + time.Duration(len(b.mutants))*testTime, Memory: 2048 + 32*len(b.mutants), Output: io.Discard}}
	for i := range b.mutants {
		m := &b.mutants[i]
		if err := buildMutant(ctx, m, tmp); ctx.Err() != nil {
			return nil, context.Cause(ctx)
		} else if err != nil {
			r.unbuilt[m.name] = err
			continue
		}
		if name := controlOf(*m); r.outputs[name] == nil {
			if err := r.add(ctx, name, mutant{pkg: m.pkg, test: m.test, agent: whole}); err != nil {
				return nil, err
			}
		}
		if err := r.add(ctx, m.name, *m); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func buildMutant(ctx context.Context, m *mutant, tmp string) error {
	if m.runsAgent() {
		m.agent = filepath.Join(tmp, "ipvs-proxy-"+m.name)
		return build(ctx, m.overlay, "./cmd/ipvs-proxy", m.agent)
	}
	m.tests = filepath.Join(tmp, m.name+".test")
	return buildTest(ctx, m.overlay, m.pkg, m.tests)
}

// controlOf names the run of a mutant's test with the agent as it is.
func controlOf(m mutant) string { return "control " + m.pkg + " " + m.test }

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
	r.job.Commands = append(r.job.Commands, machine.Command{Name: name, Output: r.outputs[name], Timeout: testTime, Dir: dir, Env: env,
		Args: append([]string{prog}, testArgs(m.test)...)})
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// run boots, and says what became of each mutant. That a machine failed costs the mutants that it had to run their
// verdict, not the others theirs.
func (r *kernelRun) run(ctx context.Context, v *verdicts) (err error) {
	defer r.drop()
	if r.batch.plane {
		p, err := plane.ForLab(ctx, programs.Default, filepath.Join(r.tmp, "plane"), "", os.Stdout)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Stop()) }()
		if err := p.Equip(&r.job); err != nil {
			return err
		}
	}
	r.job.OnResult = func(res machine.Result) {
		if ctx.Err() == nil { // else it says nothing
			err = errors.Join(err, r.take(res, v))
		}
	}
	if berr := r.boot(ctx); berr != nil {
		return errors.Join(err, berr)
	}
	for _, m := range r.batch.mutants {
		if _, ran := r.exits[m.name]; !ran {
			err = errors.Join(err, v.say(m, r.judge(m)))
		}
	}
	return err
}

// take notes how a command ended, and what that says of its mutant.
func (r *kernelRun) take(res machine.Result, v *verdicts) error {
	r.exits[res.Command] = res.Exit
	for _, m := range r.batch.mutants {
		if m.name == res.Command {
			o := r.judge(m)
			o.took = res.Took
			return v.say(m, o)
		}
	}
	fmt.Printf("%-70s exit %d after %s\n", res.Command, res.Exit, res.Took.Round(time.Second/10))
	return nil
}

// boot runs the commands. What a machine that failed did not come to says nothing of the mutants.
func (r *kernelRun) boot(ctx context.Context) error {
	if len(r.job.Commands) == 0 {
		return nil
	}
	report, err := machine.Run(ctx, r.job)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	fmt.Printf("ran on %s, %s\n", report.Kernel, report.Mode)
	if err != nil {
		fmt.Fprintf(os.Stderr, "mutants: the machine failed: %v\n", err)
	}
	return nil
}

// judge takes what a mutant's test said for what it is worth.
func (r *kernelRun) judge(m mutant) outcome {
	if err := r.unbuilt[m.name]; err != nil {
		return outcome{verdict: broken, output: err.Error()}
	}
	of := func(name string) (exit int, text string) {
		if exit, ran := r.exits[name]; ran {
			return exit, r.outputs[name].String()
		}
		return -1, ""
	}
	if exit, text := of(controlOf(m)); !passes(exit, text, m.test) {
		return outcome{verdict: unproven, output: text}
	}
	exit, text := of(m.name)
	return outcome{verdict: verdict(exit, text, m.test), output: text}
}

// drop removes the mutants' programs: many of them are much.
func (r *kernelRun) drop() {
	for _, m := range r.batch.mutants {
		for _, file := range []string{m.agent, m.tests} {
			if file != "" {
				_ = os.Remove(file)
			}
		}
	}
}
