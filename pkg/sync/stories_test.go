package sync

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"golang.org/x/tools/txtar"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

var updateStories = flag.Bool("update", false, "write what the kernels hold into testdata/stories instead of comparing")

// TestStories tells what users do, and what a node's kernel then holds: YAML in, the lines that a person would
// type out. A story is a txtar file of steps, numbered from 1:
//
//	1/story           what happens, for the reader
//	1/in/FILE.yaml    what kubectl prints, in a directory that the agents follow; a later step's replaces it
//	2/delete/FILE     takes a file away again
//	1/addresses/NODE  the addresses of the node's other interfaces from now on
//	2/wait            how long the step lasts, "1s" where it is not said; drains end only with time
//	1/out/NODE        all that the node's kernel holds at the end of the step, by address and port
//	2/writes/NODE     what the step wrote, in its order
//
// Each node that the story names has an agent of its own, from the reader of the directory to the kernel.
// To write the outputs anew: go test ./pkg/sync -run TestStories -update
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/stories/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			tell(t, file)
		})
	}
}

func tell(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	steps, names, err := parseStory(archive)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	dir := t.TempDir()
	nodes := map[string]*storyNode{}
	for i, step := range steps {
		if err := step.play(dir, i+1); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if i == 0 {
				nodes[name] = startNode(t, name, dir)
			}
			if addrs, ok := step.addresses[name]; ok {
				nodes[name].kernel.SetNode(ipvs.Local{Addrs: addrs})
			}
			nodes[name].read(i + 1)
			nodes[name].kernel.Log = nil
			nodes[name].pass(step.wait)
		}
		for _, out := range step.outputs {
			out.compare(t, nodes[out.node])
		}
	}
	for _, name := range names {
		nodes[name].leavesNoTrace(dir, len(steps))
	}
	if *updateStories {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// storyStep is one step of a story.
type storyStep struct {
	write   map[string][]byte
	delete  []string
	wait    time.Duration
	outputs []*storyOutput
	// addresses are those that nodes have from this step on.
	addresses map[string][]netip.Addr
}

// storyOutput is a file of a story that says what a node's kernel holds, or what was written to it.
type storyOutput struct {
	file   *txtar.File
	node   string
	writes bool
}

// compare compares it with the node's kernel, or takes it from there.
func (o *storyOutput) compare(t *testing.T, n *storyNode) {
	t.Helper()
	got := kernelText(n.kernel)
	if o.writes {
		got = asText(lines(n.kernel.Log))
	}
	if *updateStories {
		o.file.Data = []byte(got)
	} else if diff := diffLines(string(o.file.Data), got); diff != "" {
		t.Errorf("%s (- as the story tells it, + as it is):\n%s", o.file.Name, diff)
	}
}

// parseStory reads the steps, and the nodes that they name.
func parseStory(a *txtar.Archive) (steps []*storyStep, nodes []string, err error) {
	for i := range a.Files {
		f := &a.Files[i]
		number, rest, _ := strings.Cut(f.Name, "/")
		n, err := strconv.Atoi(number)
		switch {
		case err != nil || n < 1:
			return nil, nil, fmt.Errorf("%s belongs to no step", f.Name)
		case n > len(steps)+1 || n < len(steps):
			return nil, nil, fmt.Errorf("%s comes after step %d", f.Name, len(steps))
		case n > len(steps):
			steps = append(steps, &storyStep{write: map[string][]byte{}, addresses: map[string][]netip.Addr{}, wait: time.Second})
		}
		if err := steps[n-1].add(f, rest); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	for i, s := range steps {
		if len(s.outputs) == 0 {
			return nil, nil, fmt.Errorf("step %d shows no kernel", i+1)
		}
		for _, o := range s.outputs {
			nodes = append(nodes, o.node)
		}
	}
	if len(steps) == 0 {
		return nil, nil, errors.New("no steps")
	}
	slices.Sort(nodes)
	return steps, slices.Compact(nodes), nil
}

// add takes a file of the step.
func (s *storyStep) add(f *txtar.File, name string) (err error) {
	dir, base := path.Split(name)
	switch {
	case name == "story":
	case name == "wait":
		s.wait, err = time.ParseDuration(strings.TrimSpace(string(f.Data)))
	case dir == "in/" && strings.HasSuffix(base, ".yaml"):
		s.write[base] = f.Data
	case dir == "delete/" && len(f.Data) == 0:
		s.delete = append(s.delete, base)
	case dir == "addresses/":
		var addrs []netip.Addr
		for _, text := range strings.Fields(string(f.Data)) {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return err
			}
			addrs = append(addrs, a)
		}
		s.addresses[base] = ipvs.SortAddrs(addrs)
	case dir == "out/":
		s.outputs = append(s.outputs, &storyOutput{file: f, node: base})
	case dir == "writes/":
		s.outputs = append(s.outputs, &storyOutput{file: f, node: base, writes: true})
	default:
		err = errors.New("stories have no such file")
	}
	return err
}

// play brings the directory to what it holds in this step.
func (s *storyStep) play(dir string, number int) error {
	for _, name := range s.delete {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("step %d: %w", number, err)
		}
	}
	for name, data := range s.write {
		if err := putFile(dir, name, data); err != nil {
			return err
		}
	}
	// Last: who has read it has read the rest.
	return putFile(dir, markFile, fmt.Appendf(nil, "apiVersion: stories/v1\nkind: %s\n", stepMark(number)))
}

// putFile puts a file in its place at once, so that no reader sees half of it.
func putFile(dir, name string, data []byte) error {
	unfinished := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(unfinished, data, 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, filepath.Join(dir, name))
}

// markFile holds an object of a kind that nobody knows. The reader of the directory says so, and thereby that
// it has read all of the step.
const markFile = "step.yaml"

func stepMark(step int) string { return fmt.Sprintf("Step%d", step) }

// storyNode is a node with its agent and its kernel.
type storyNode struct {
	t    *testing.T
	name string
	*stepper
	marks chan string
}

// startNode starts an agent on an empty kernel.
func startNode(t *testing.T, name, dir string) *storyNode {
	n := &storyNode{t: t, name: name, stepper: newStepper()}
	n.restart(dir)
	return n
}

// restart starts an agent that knows nothing of what was before.
func (n *storyNode) restart(dir string) {
	n.model = cluster.NewModel(cluster.Options{NodeName: n.name})
	n.opt.Now = func() time.Time { return n.now }
	n.loop = New(n.door, sortedModel{n.model}, zap.NewNop(), n.opt)
	marks := make(chan string, 100)
	n.marks = marks
	source := cluster.NewDirectory(dir, n.model, func(err error) {
		var trouble cluster.Trouble
		if errors.As(err, &trouble) && trouble.File == markFile && trouble.Note() {
			kind, _, _ := strings.Cut(trouble.Object, " ")
			marks <- kind
			return
		}
		n.t.Errorf("the story's YAML: %v", err)
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := source.Run(ctx); err != nil {
			n.t.Errorf("the story's directory: %v", err)
		}
	}()
	n.t.Cleanup(func() { cancel(); <-done })
}

// read waits until the agent has read all of a step. A story has no bad data: what it says must count.
func (n *storyNode) read(step int) {
	n.t.Helper()
	limit := time.After(30 * time.Second)
	for got := ""; got != stepMark(step); {
		select {
		case got = <-n.marks:
		case <-limit:
			n.t.Fatalf("step %d was not read", step)
		}
	}
	for !n.model.Complete() { // said a moment later, the first time
		select {
		case <-n.model.Changed():
		case <-limit:
			n.t.Fatal("the model is not complete")
		}
	}
	for _, id := range n.model.Services() {
		for _, p := range n.model.Problems(id) {
			if p.Reason != cluster.ReasonSourceRanges { // which a story may want: it lets nobody in
				n.t.Errorf("step %d: %v", step, p)
			}
		}
	}
	if n.stuck {
		n.t.Errorf("step %d: the loop does not come to rest", step)
	}
}

// leavesNoTrace: once nothing drains any more, the kernel holds what one would that has seen the last step only,
// and a new agent finds nothing to write.
func (n *storyNode) leavesNoTrace(dir string, last int) {
	n.t.Helper()
	n.pass(time.Minute)
	n.kernel.Log = nil
	n.restart(dir)
	n.read(last)
	n.pass(time.Second)
	again := slices.DeleteFunc(n.kernel.Log, func(op ipvs.Op) bool { _, ok := op.(ipvs.Forget); return ok })
	if len(again) > 0 {
		n.t.Errorf("%s: a new agent writes\n%s", n.name, asText(lines(again)))
	}
	fresh := startNode(n.t, n.name, dir)
	fresh.kernel.SetNode(n.kernel.Node)
	fresh.read(last)
	fresh.pass(time.Second)
	if diff := diffLines(kernelText(fresh.kernel), kernelText(n.kernel)); diff != "" {
		n.t.Errorf("%s at the end (- as a fresh kernel, + after all steps):\n%s", n.name, diff)
	}
	if n.stuck || fresh.stuck {
		n.t.Errorf("%s: the loop does not come to rest", n.name)
	}
}

// sortedModel tells of changed Services in one order, however many looks at the directory a step took.
type sortedModel struct{ *cluster.Model }

func (m sortedModel) Take() (dirty []cluster.ID, nodeChanged, synced bool) {
	dirty, nodeChanged, synced = m.Model.Take()
	slices.SortFunc(dirty, cluster.ID.Compare)
	return dirty, nodeChanged, synced
}

// kernelText prints all that a kernel holds as the lines that bring an empty one there, by address and port.
// The record that the first start is over, which every kernel has, is left out.
func kernelText(k *fake.Kernel) string {
	var ops []ipvs.Op
	// A fake that is not told to fail does not.
	_ = k.Scan(context.Background(), func(key ipvs.Key, o ipvs.Observed) {
		if key != ipvs.Adopted {
			ops = append(ops, ipvs.Diff(key, nil, o.Have)...)
		}
	})
	return asText(lines(ops))
}

func asText(lines []string) string {
	var b bytes.Buffer
	for _, l := range lines {
		fmt.Fprintln(&b, l)
	}
	return b.String()
}

func diffLines(want, got string) string {
	return cmp.Diff(strings.SplitAfter(want, "\n"), strings.SplitAfter(got, "\n"))
}
