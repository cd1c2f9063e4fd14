package machine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// The two ways to a kernel with IPVS.
const (
	Native = "native"
	VM     = "vm"
)

// Way is how this machine comes to a kernel with IPVS.
type Way struct {
	Mode   string   // Native or VM
	Why    string   // in one line
	Loaded []string // kernel modules that were loaded to find out, and stay loaded
}

// String says it to a person: in a line, and the modules in lines of their own.
func (w Way) String() string {
	if w.Mode == VM {
		return "in a virtual machine: " + w.Why
	}
	text := "on this machine's own kernel, in namespaces that end with the lab: " + w.Why
	if len(w.Loaded) > 0 {
		text += "\nlab: loaded kernel modules, which stay:" + wrapped(w.Loaded)
	}
	return text
}

// wrapped lays words out in lines that a terminal of 100 columns shows.
func wrapped(words []string) string {
	var b strings.Builder
	column := 100
	for _, w := range words {
		if column += 1 + len(w); column > 98 {
			b.WriteString("\nlab:  ")
			column = 6 + 1 + len(w)
		}
		b.WriteString(" " + w)
	}
	return b.String()
}

// Choose says which way to a kernel this machine offers. It asks the kernel for all that the lab needs, and loads
// modules where that is allowed. The environment variable LAB forces a way; the native one, where it cannot be had,
// is an error that names everything missing.
func Choose(ctx context.Context) (Way, error) {
	forced := os.Getenv("LAB")
	switch forced {
	case VM:
		return Way{Mode: VM, Why: "LAB=vm"}, nil
	case Native, "":
	default:
		return Way{}, fmt.Errorf("LAB=%s: want %s or %s", forced, VM, Native)
	}
	found, err := probed(ctx)
	switch {
	case err != nil:
		return Way{}, err
	case len(found.Lacks) == 0 && forced == Native:
		return Way{Mode: Native, Why: "LAB=native", Loaded: found.Loaded}, nil
	case len(found.Lacks) == 0:
		return Way{Mode: Native, Why: "it has all that the lab needs", Loaded: found.Loaded}, nil
	case forced == Native:
		return Way{}, fmt.Errorf("LAB=native, and this machine lacks:\n  %s\nwithout LAB a virtual machine is taken", strings.Join(found.Lacks, "\n  "))
	}
	why := "this machine lacks " + found.Lacks[0]
	if n := len(found.Lacks) - 1; n > 0 {
		why += fmt.Sprintf(" (and %d more; LAB=native lists all)", n)
	}
	return Way{Mode: VM, Why: why, Loaded: found.Loaded}, nil
}

// probed asks this machine's kernel once: a second time it would have nothing left to load, and say so.
var probed = onceGood(probe)

// onceGood is f until it had no error, then its answer.
func onceGood[T any](f func(context.Context) (T, error)) func(context.Context) (T, error) {
	var mu sync.Mutex
	var have *T
	return func(ctx context.Context) (T, error) {
		mu.Lock()
		defer mu.Unlock()
		if have != nil {
			return *have, nil
		}
		v, err := f(ctx)
		if err == nil {
			have = &v
		}
		return v, err
	}
}

// probeTime is far more than it takes: a machine that is busy, and modules from a slow disk.
const probeTime = 5 * time.Minute

// probe has the guest try what the lab needs, in throw-away namespaces. What the guest itself cannot do is lacking,
// too; an error is the lab's own.
func probe(ctx context.Context) (wire.Probe, error) { return probeAs(ctx, asRoot) }

func probeAs(ctx context.Context, root func() ([]string, error)) (wire.Probe, error) {
	as, err := root()
	if err != nil {
		return wire.Probe{Lacks: []string{"the right to make namespaces: " + err.Error()}}, nil
	}
	dir, err := os.MkdirTemp("", "ipvs-proxy-lab-")
	if err != nil {
		return wire.Probe{}, err
	}
	defer os.RemoveAll(dir)
	guest, err := BuildGuest(ctx, dir)
	if err != nil {
		return wire.Probe{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	args := append(append([]string{}, as...), guest, "probe")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var found wire.Probe
	if err = cmd.Run(); err == nil {
		err = json.Unmarshal(out.Bytes(), &found)
	}
	if ctx.Err() != nil {
		return found, fmt.Errorf("probe of this machine's kernel: %w", context.Cause(ctx))
	}
	if err != nil {
		first, _, _ := strings.Cut(strings.TrimPrefix(errs.String(), "lab guest: "), "\n")
		found.Lacks = append(found.Lacks, "a way to try its kernel: "+cmp.Or(first, err.Error()))
	}
	return found, nil
}
