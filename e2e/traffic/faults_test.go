package traffic

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/faults"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// formOf is the size of a test: make faults asks for long ones (e2e/faults).
func formOf[T any](short, long T) T {
	if os.Getenv(faults.Variable) == faults.Long {
		return long
	}
	return short
}

// usage is what a process holds.
type usage struct {
	memory      int // resident, kB
	descriptors int
	threads     int
}

// usageOf reads it of a running agent.
func usageOf(t testing.TB, a *lab.Agent) (u usage) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(a.Pid()))
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &u.memory)
		_, _ = fmt.Sscanf(line, "Threads: %d", &u.threads)
	}
	open, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil || u.memory == 0 {
		t.Fatalf("what %s holds: %+v, %v", a, u, err)
	}
	u.descriptors = len(open)
	return u
}

// figures keeps what was held before and after a fault.
func (u usage) figures(t testing.TB, when string) {
	t.Helper()
	lab.Figure(t, "memory "+when+", kB", u.memory)
	lab.Figure(t, "descriptors "+when, u.descriptors)
}

// times keeps how long something took, in ms: the median and the worst.
func times(t testing.TB, what string, took []time.Duration) {
	t.Helper()
	slices.Sort(took)
	if len(took) > 1 {
		lab.Figure(t, what+", p50, ms", int(took[len(took)/2].Milliseconds()))
	}
	lab.Figure(t, what+", worst, ms", int(took[len(took)-1].Milliseconds()))
}

// hold stops an agent where it stands, and lets it go on.
func hold(t testing.TB, a *lab.Agent, still bool) {
	t.Helper()
	sig := syscall.SIGCONT
	if still {
		sig = syscall.SIGSTOP
	}
	if err := a.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// said is what a command printed on a node.
func said(t testing.TB, n *lab.Node, line string) (text string) {
	t.Helper()
	words := strings.Fields(line)
	if err := n.Do(func() error {
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		if text = string(out); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return text
}
