package main

import (
	"cmp"
	"context"
	"runtime"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
	"github.com/ipvs-proxy/ipvs-proxy/e2e/plane"
)

// batch is what one boot of the lab runs: mutants that need the same machine.
type batch struct {
	kernel  string // Debian suite; empty: whichever the lab takes
	plane   bool   // it needs a control plane
	mutants []mutant
}

// batchSize is how many mutants one boot runs at most. Each has its own agent of 23 MB in the machine's memory, and while
// one batch runs the next is built.
const batchSize = 6

// deal makes batches. Mutants of one test stay together, for each batch runs a test once with the agent as it is.
func deal(mutants []mutant, size int) (out []batch) {
	type room struct {
		kernel string
		plane  bool
	}
	tests := map[room][][]mutant{}
	for _, m := range mutants {
		r := room{m.kernel, m.pkg == plane.Package}
		of := func(ms []mutant) bool { return ms[0].pkg == m.pkg && ms[0].test == m.test }
		if i := slices.IndexFunc(tests[r], of); i >= 0 {
			tests[r][i] = append(tests[r][i], m)
		} else {
			tests[r] = append(tests[r], []mutant{m})
		}
	}
	for r, of := range tests {
		b := batch{kernel: r.kernel, plane: r.plane}
		for _, ms := range of {
			if len(b.mutants) > 0 && len(b.mutants)+len(ms) > size {
				out, b.mutants = append(out, b), nil
			}
			b.mutants = append(b.mutants, ms...)
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b batch) int { return cmp.Compare(a.mutants[0].name, b.mutants[0].name) })
	return out
}

// machines is how many run at a time, and whether they are emulated: then each takes a processor. A kernel that is at hand
// is one.
func machines(ctx context.Context) (at int, emulated bool, err error) {
	way, err := machine.Choose(ctx)
	if err != nil || way.Mode != machine.VM {
		return 1, false, err
	}
	return min(runtime.NumCPU(), 2), true, nil
}
