package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

// agentFile is the agent among the job's files; LAB_AGENT names it to tests.
const agentFile = "ipvs-proxy"

// buildFlags: nobody debugs in there, and every byte is unpacked by a slow
// processor.
var buildFlags = []string{"-trimpath", "-buildvcs=false", "-ldflags=-s -w"}

var static = []string{"CGO_ENABLED=0", "GOOS=linux"}

// kernelWork is what the lab runs, built.
type kernelWork struct {
	job   machine.Job
	loads []load
	at    int    // machines at a time
	conv  string // test2json
	ends  []func()
}

// remove takes away what was built.
func (k *kernelWork) remove() {
	for _, end := range slices.Backward(k.ends) {
		end()
	}
}

// run runs it in one boot, or shares it between machines.
func (k *kernelWork) run(ctx context.Context, o testOptions, r *recorder) machine.Report {
	if len(k.loads) == 0 {
		return machine.Report{} // why is recorded
	}
	fmt.Fprintln(r.w, "== kernel tests: run")
	return side(ctx, r, k.at, k.loads, func(r *recorder, l load) machine.Report {
		return runKernelTests(ctx, o, r, l.only(k.job), l.programs, l.others, k.conv)
	})
}

// buildKernelTests builds what the lab runs. Without loads nothing of it could be, and why is recorded.
func buildKernelTests(ctx context.Context, o testOptions, r *recorder) *kernelWork {
	k := &kernelWork{job: machine.Job{Files: map[string]string{}, Kernel: o.kernel, KubeProxy: true}} // tests put what it leaves
	dir, err := os.MkdirTemp("", "ipvs-proxy-test-")
	if err != nil {
		r.failed("lab", err.Error())
		return k
	}
	k.ends = append(k.ends, func() { os.RemoveAll(dir) })
	fmt.Fprintln(r.w, "== kernel tests: build")
	if err := addAgent(ctx, &k.job, dir); err != nil {
		r.failed("build of the agent", err.Error())
	}
	if err := addKubeProxy(ctx, &k.job, cmp.Or(o.kubeProxy, programs.Default)); err != nil { // its tests are for whoever has compiled it
		r.failed("kube-proxy", err.Error())
	}
	if err := addImage(ctx, o, &k.job, dir); err != nil {
		r.failed("build of the image", err.Error())
	}
	programs := kernelBinaries(ctx, o, r, &k.job, dir, kernelPackages...)
	if len(programs) == 0 {
		r.failed("kernel tests", "none of their packages could be built")
		return k
	}
	shell, end, err := addShellTests(ctx, o, &k.job, dir)
	if err != nil {
		r.failed("e2e/demo (build)", err.Error())
	} else {
		k.ends = append(k.ends, end)
	}
	if err := addNative(ctx, o, &k.job, dir); err != nil {
		r.failed("e2e/native (build)", err.Error())
	}
	if k.conv, err = buildConverter(ctx, dir); err != nil {
		r.failed("build of test2json", err.Error())
		return k
	}
	if k.at, err = machines(ctx, o); err != nil {
		r.failed("lab", err.Error())
		return k
	}
	loads := []load{{programs, shell}}
	if k.at > 1 {
		if loads, err = share(ctx, programs, shell); err != nil {
			r.failed("lab", err.Error())
			return k
		}
	}
	k.loads = loads
	return k
}

// only is the job with the files that a load needs: all are unpacked at each boot, by a slow processor.
func (l load) only(job machine.Job) machine.Job {
	needs := func(name string) bool {
		for _, p := range l.programs {
			if name == p.file || strings.HasPrefix(name, p.rel+"/testdata") || p.rel == nativePackage || (name == imageFile || name == programs.KubeProxy) && p.rel == trafficPackage {
				return true
			}
		}
		return name == agentFile || len(l.others) > 0 && (name == "demo" || name == "examples")
	}
	files := map[string]string{}
	for name, from := range job.Files {
		if needs(name) {
			files[name] = from
		}
	}
	job.Files = files
	return job
}

func addAgent(ctx context.Context, job *machine.Job, dir string) error {
	out := filepath.Join(dir, agentFile)
	if _, err := goRun(ctx, static, slices.Concat([]string{"build", "-o", out}, buildFlags, []string{"./cmd/ipvs-proxy"})...); err != nil {
		return err
	}
	job.Files[agentFile] = out
	return nil
}

// kernelBinaries builds the test programs and adds them to the job, with
// their testdata where they look for it. It returns them in order.
func kernelBinaries(ctx context.Context, o testOptions, r *recorder, job *machine.Job, dir string, from ...kernelPackage) []program {
	var programs []program
	for _, k := range from {
		if _, err := os.Stat(k.dir); err != nil {
			fmt.Fprintf(r.w, "note: there is no %s yet\n", k.dir)
			continue
		}
		list, err := listPackages(ctx, k.dir)
		if err != nil || len(list) != 1 || !list[0].hasTests() {
			fmt.Fprintf(r.w, "note: %s has no tests yet\n", k.dir)
			continue
		}
		rel := path.Clean(k.dir)
		file := path.Join(rel, path.Base(rel)+".test")
		out := filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		if text, err := goRun(ctx, static, slices.Concat([]string{"test", "-c", "-o", out}, buildFlags, []string{k.dir})...); err != nil {
			r.failed(rel+" (build)", text)
			continue
		}
		job.Files[file] = out
		if data := filepath.Join(rel, "testdata"); exists(data) {
			job.Files[path.Join(rel, "testdata")] = data
		}
		programs = append(programs, program{goPackage: list[0], kernelPackage: k, rel: rel, file: file, host: out})
	}
	return programs
}

func (p program) command(o testOptions) machine.Command {
	args := []string{p.file, "-test.v=test2json", "-test.paniconexit0", "-test.timeout=" + o.timeout.String()}
	if run := cmp.Or(p.run, o.run, p.only); run != "" {
		args = append(args, "-test.run="+run)
	}
	if o.skip != "" {
		args = append(args, "-test.skip="+o.skip)
	}
	return machine.Command{
		Name: p.rel, Args: args, Dir: p.rel,
		Env:     append([]string{"IPVS_PROXY_LAB=1", "LAB_AGENT=$LAB_DIR/" + agentFile, "LAB_IMAGE=$LAB_DIR/" + imageFile}, o.env...),
		Timeout: o.timeout + time.Minute, // the program's own time-out tells more
	}
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// runKernelTests runs the test programs and then the others, in one boot with
// the job's files. Each program's output goes through test2json, whose events
// we record as those of the host tests; conv is that program.
func runKernelTests(ctx context.Context, o testOptions, r *recorder, job machine.Job, programs []program, others []*commandTest, conv string) machine.Report {
	var converters []*converter
	for _, p := range programs {
		c, err := convert(conv, p.ImportPath, r)
		if err != nil {
			r.failed("test2json", err.Error())
			return machine.Report{}
		}
		converters = append(converters, c)
		cmd := p.command(o)
		cmd.Output = c.in
		job.Commands = append(job.Commands, cmd)
	}
	for _, t := range others {
		job.Commands = append(job.Commands, t.cmd)
	}
	job.Timeout = 5 * time.Minute
	for _, c := range job.Commands {
		job.Timeout += c.Timeout + time.Minute
	}
	n := 0
	job.OnResult = func(res machine.Result) {
		defer func() { n++ }()
		if n >= len(programs) {
			others[n-len(programs)].ended(r, res)
			return
		}
		exit := converters[n].end()
		if exit == nil {
			exit = exitOf(res)
		}
		r.endPackage(programs[n].ImportPath, exit, o.run == "")
	}
	report, err := machine.Run(ctx, job)
	for ; n < len(converters); n++ { // never started
		_ = converters[n].end()
	}
	if err != nil {
		r.failed("lab", err.Error())
	}
	return report
}

func exitOf(res machine.Result) error {
	if res.Err != "" {
		return fmt.Errorf("%s: %s", res.Command, res.Err)
	}
	if res.Exit != 0 {
		return fmt.Errorf("%s: exit status %d", res.Command, res.Exit)
	}
	return nil
}

func buildConverter(ctx context.Context, dir string) (prog string, err error) {
	prog = filepath.Join(dir, "test2json")
	_, err = goRun(ctx, nil, "build", "-o", prog, "cmd/test2json")
	return prog, err
}

// converter is a test2json that feeds a recorder.
type converter struct {
	in   io.WriteCloser
	done chan error
}

func convert(prog, pkg string, r *recorder) (*converter, error) {
	cmd := exec.Command(prog, "-t", "-p", pkg)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	c := &converter{in, make(chan error, 1)}
	go func() { c.done <- record(cmd, r) }()
	return c, nil
}

// end waits until all that the program printed is recorded.
func (c *converter) end() error {
	_ = c.in.Close()
	return <-c.done
}
