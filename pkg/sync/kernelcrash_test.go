package sync

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// doAndDie writes until the process dies: nothing is written after that.
func (h *realNode) doAndDie(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	return ipvs.Execute(ctx, plan, func(ctx context.Context, steps []ipvs.Step) []ipvs.Outcome {
		out := make([]ipvs.Outcome, len(steps))
		for i, s := range steps {
			if h.left == 0 {
				out[i] = ipvs.Outcome{Err: errDead, Unknown: true}
				continue
			}
			h.left--
			out[i] = h.real.Do(ctx, ipvs.Plan{s})[0]
		}
		return out
	})
}

// F41: on the real kernel a process that starts with other objects than those that are programmed dies after each single
// write. No state is one that it must not die in, and the next process comes to the same end as one that never died. The
// control: the write that opens a frontend, alone and first, is such a state.
func TestF41CrashPointsOnKernel(t *testing.T) {
	inNamespace(t)
	h := newRealNode(t)
	names := slices.Sorted(maps.Keys(shapes()))
	var pairs [][2]string
	for i := range names {
		pairs = append(pairs, [2]string{names[i], names[(i+1)%len(names)]}, [2]string{names[(i+5)%len(names)], names[i]})
	}
	if !longForm() {
		pairs = pairs[:2]
	}
	points := 0
	for _, p := range pairs {
		n := h.dieAtEach(shapes()[p[0]], shapes()[p[1]])
		if points += n; t.Failed() {
			t.Fatalf("%s, then %s", p[0], p[1])
		}
	}
	figure(t, "scenarios", len(pairs))
	figure(t, "crash points", points)
	if points < 5*len(pairs) {
		t.Errorf("only %d crash points in %d scenarios", points, len(pairs))
	}
	h.control()
}

// dieAtEach goes from one set of objects to another, dying after each single write, and counts the points.
func (h *realNode) dieAtEach(before, after []any) (points int) {
	h.t.Helper()
	foreign := map[ipvs.Key]ipvs.Server{}
	for k, s := range h.snapshot().Servers {
		if k.Addr == foreignAddr {
			foreign[k] = s
		}
	}
	for n := 0; ; n++ {
		h.startWith(before...)
		h.pass(restTime)
		if diffs := h.differencesFrom(before...); len(diffs) > 0 {
			h.t.Errorf("before: %s", strings.Join(diffs, "; "))
		}
		known := hazards(h.snapshot(), foreign)
		h.dies, h.left = true, n
		h.startWith(after...)
		h.pass(0)
		died := h.left == 0
		for hazard := range hazards(h.snapshot(), foreign) {
			// An address that goes is off before its frontend closes: nobody gets there any more.
			if !known[hazard] && hazard.what != tooFar && hazard.what != notBound {
				h.t.Errorf("dead after %d writes: %s", n, hazard)
			}
		}
		h.dies = false
		h.startWith(after...)
		h.pass(restTime)
		if diffs := h.differencesFrom(after...); len(diffs) > 0 {
			h.t.Errorf("dead after %d writes and started anew: %s", n, strings.Join(diffs, "; "))
		}
		if points++; !died || h.t.Failed() || n > 200 {
			return points
		}
	}
}

// control makes by hand a state that is looked for.
func (h *realNode) control() {
	h.t.Helper()
	before := hazards(h.snapshot(), nil)
	if o := h.other.Do(context.Background(), ipvs.Plan{{Op: ipvs.Element{Set: ipvs.SetOpen, Key: ipvs.Key{Addr: webKey.Addr, Port: 4711, Proto: ipvs.TCP}}}}); o[0].Err != nil {
		h.t.Fatal(o[0].Err)
	}
	after := hazards(h.snapshot(), nil)
	if len(after) <= len(before) {
		h.t.Errorf("the control: an open frontend without a virtual server is not found: %v", after)
	}
}
