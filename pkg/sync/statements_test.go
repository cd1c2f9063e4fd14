package sync

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime/coverage"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOneChangeRunsTheSame: whether a node has 10 Services or 10,000, an event runs the very same statements
// as many times each, from the moment it is heard until the node is at rest again. So it touches as many map
// entries: a statement touches the same number of them every time, and where it walks, what it does to each
// entry is a statement that is counted.
//
// A start costs in proportion to the number of Services, one of which has the virtual IPs of all others as its endpoints.
//
// What the standard library walks through by itself (maps.Clone, copy) is not counted; that shows in the
// time and the allocations of TestOneChangeCostsTheSame.
func TestOneChangeRunsTheSame(t *testing.T) {
	dir := t.TempDir()
	countElsewhere(t, dir)
	decoder := filepath.Join(dir, "covdata")
	run(t, "go", "build", "-o", decoder, "cmd/covdata")
	seen := map[string]bool{}
	for i, e := range eventsToCount() {
		fewest := readCounts(t, decoder, countsDir(dir, countedSizes[0], i))
		for b := range fewest {
			seen[path.Dir(b.file)] = true
		}
		sums := []int{fewest.statements()}
		for _, n := range countedSizes[1:] {
			got := readCounts(t, decoder, countsDir(dir, n, i))
			sums = append(sums, got.statements())
			differences := got.differences(fewest)
			if e.walks && len(differences) == 0 {
				t.Errorf("%d Services, %s: the same counts as with %d, so they count nothing", n, e.name, countedSizes[0])
			}
			if !e.walks && len(differences) > 0 {
				t.Errorf("%d Services, %s: other counts than with %d\n  %s", n, e.name, countedSizes[0], strings.Join(differences, "\n  "))
			}
		}
		t.Logf("%-40s %v statements with %v Services", e.name+":", sums, countedSizes)
	}
	var starts []int
	for _, n := range countedSizes {
		starts = append(starts, readCounts(t, decoder, startDir(dir, n)).statements()/n)
	}
	t.Logf("%-40s %v statements for each of %v Services", "a start:", starts, countedSizes)
	// What is sorted is compared more often.
	if last := len(starts) - 1; starts[last] > 2*starts[1] {
		t.Errorf("a start runs %d statements for each of %d Services, and %d for each of %d", starts[last], countedSizes[last], starts[1], countedSizes[1])
	}
	for _, pkg := range countedPackages {
		if !seen[pkg] {
			t.Errorf("no statement of %s was counted", pkg)
		}
	}
}

// countInto names the directory into which this test program, built to count, is to write the counts.
const countInto = "IPVS_PROXY_COUNT_INTO"

const ownModule = "github.com/ipvs-proxy/ipvs-proxy/"

var (
	countedSizes    = []int{10, 1000, 10_000}
	countedPackages = []string{ownModule + "pkg/sync", ownModule + "pkg/sync/desk", ownModule + "pkg/sync/mirror", ownModule + "pkg/cluster", ownModule + "pkg/healthz", ownModule + "pkg/ipvs", ownModule + "pkg/ipvs/fake"}
)

// countedEvent is one of the events whose statements are counted.
type countedEvent struct {
	name  string
	do    func(*stepper)
	walks bool // the control: it must not cost the same
}

func eventsToCount() (es []countedEvent) {
	_, changes := changesAtRest()
	for _, c := range changes {
		es = append(es, countedEvent{name: c.name, do: c.do}, countedEvent{name: c.name + ", taken back", do: c.undo})
	}
	onEndpoint := service("onendpoint", "10.95.0.9", 80)
	es = append(es,
		countedEvent{name: "an endpoint's address becomes a virtual IP", do: func(s *stepper) { give(s.model, onEndpoint) }},
		countedEvent{name: "and is none any more", do: func(s *stepper) { s.model.DeleteService("default", "onendpoint") }})
	thief, pod := balancer("thief", "10.95.0.8", "10.244.9.9", 1, 80), slice(service("extra", "10.95.0.2", 80), "10.244.9.9")
	foreign := service("foreign", "10.244.9.9", 80)
	foreign.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "another"}
	es = append(es,
		countedEvent{name: "a load balancer's address comes", do: func(s *stepper) { give(s.model, thief) }},
		countedEvent{name: "and becomes a pod's", do: func(s *stepper) { give(s.model, pod) }},
		countedEvent{name: "and is none any more", do: func(s *stepper) { s.model.DeleteSlice("default", "extra-1") }},
		countedEvent{name: "and becomes another proxy's ClusterIP", do: func(s *stepper) { give(s.model, foreign) }},
		countedEvent{name: "and is none any more, again", do: func(s *stepper) { s.model.DeleteService("default", "foreign") }})
	return append(es, countedEvent{name: "a walk through all Services", walks: true, do: func(s *stepper) {
		for _, id := range s.model.Services() {
			s.model.Get(id)
		}
	}})
}

// liars are a Service with a virtual IP of each of so many others as its endpoint (see crowd), and one with an endpoint on
// an address that is yet to become one.
func liars(n int) (objs []any) {
	many, one := service("liar", "10.95.1.1", 80), service("early", "10.95.1.2", 80)
	objs = slicesOf(many, 1000, 0, n-1, func(i int) string { return fmt.Sprintf("10.96.%d.%d@node1", i/250, i%250+1) })
	return append(objs, many, one, slice(one, "10.244.2.20", "10.95.0.9"))
}

func countsDir(dir string, services, event int) string {
	return filepath.Join(dir, fmt.Sprintf("%d-%d", services, event))
}

func startDir(dir string, services int) string {
	return filepath.Join(dir, fmt.Sprintf("%d-start", services))
}

// countElsewhere runs this package's test program once more, built so that it counts statements.
func countElsewhere(t *testing.T, dir string) {
	t.Helper()
	args := []string{"test", "-count=1", "-run=^$", "-covermode=atomic", "-coverpkg=" + strings.Join(countedPackages, ",")}
	if raceDetector() {
		args = append(args, "-race") // what both are built of is there then
	}
	t.Setenv(countInto, dir)
	run(t, "go", append(args, ".")...)
}

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

func raceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// TestMain counts after the tests: in a test program package coverage does nothing before these have ended.
func TestMain(m *testing.M) {
	code := m.Run()
	if dir := os.Getenv(countInto); dir != "" && code == 0 {
		if err := countStatements(dir); err != nil {
			fmt.Fprintln(os.Stderr, "counting statements:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// countStatements writes how often each statement runs in each event.
func countStatements(dir string) error {
	there, _ := changesAtRest()
	for _, n := range countedSizes {
		var s *stepper
		if err := count(startDir(dir, n), func() { s = crowded(n, append(there, liars(n)...)...) }); err != nil {
			return err
		}
		for i, e := range eventsToCount() {
			if err := count(countsDir(dir, n, i), func() {
				e.do(s)
				s.pass(6 * time.Second) // what was taken back drains
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// count writes into a new directory how often each statement runs.
func count(into string, do func()) error {
	if err := os.Mkdir(into, 0o755); err != nil {
		return err
	}
	if err := coverage.ClearCounters(); err != nil {
		return err
	}
	do()
	if err := coverage.WriteCountersDir(into); err != nil {
		return err
	}
	return coverage.WriteMetaDir(into)
}

// block is a run of statements without a branch.
type block struct {
	file  string // with its import path
	lines string // "from line.column,to line.column"
	size  int    // in statements
}

// counts say how often each block ran; those that did not are left out.
type counts map[block]int

// readCounts reads what countStatements wrote of an event.
func readCounts(t *testing.T, decoder, dir string) counts {
	t.Helper()
	out := filepath.Join(dir, "text")
	run(t, decoder, "textfmt", "-i="+dir, "-o="+out)
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	cs := counts{}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range lines[1:] { // the first is the mode
		var place string
		var size, n int
		if _, err := fmt.Sscan(line, &place, &size, &n); err != nil {
			t.Fatalf("%s: %q: %v", out, line, err)
		}
		file, where, _ := strings.Cut(place, ":")
		if n > 0 {
			cs[block{file, where, size}] = n
		}
	}
	return cs
}

// statements adds up how many ran.
func (cs counts) statements() (sum int) {
	for b, n := range cs {
		sum += b.size * n
	}
	return sum
}

// differences names the blocks that ran another number of times.
func (cs counts) differences(fewest counts) (lines []string) {
	all := maps.Clone(cs)
	maps.Copy(all, fewest)
	for b := range all {
		if cs[b] != fewest[b] {
			line, _, _ := strings.Cut(b.lines, ".")
			lines = append(lines, fmt.Sprintf("%s:%s ran %d times, not %d", strings.TrimPrefix(b.file, ownModule), line, cs[b], fewest[b]))
		}
	}
	slices.Sort(lines)
	return lines
}
