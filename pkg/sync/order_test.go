package sync

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// Whatever order events of different objects come in, the end is the same (F7): what the kernel holds, and
// what is said about the Services. Events of one object keep their order, as the API server keeps it.
func TestAnyOrderOfEvents(t *testing.T) {
	for seed := range uint64(500) {
		var kernel, said, order string
		for try := range 8 {
			h := history(seed)
			names := shuffled(h, rand.New(rand.NewPCG(seed, uint64(try))))
			k, p := replay(h, names, rand.New(rand.NewPCG(seed, uint64(100+try))))
			if try == 0 {
				kernel, said, order = k, p, fmt.Sprint(names)
				continue
			}
			if k != kernel || p != said {
				t.Fatalf("seed %d: %s ends with\n%s%s\n%v ends with\n%s%s", seed, order, kernel, said, names, k, p)
			}
		}
	}
}

// history is a list of things that happen to each of some objects.
func history(seed uint64) map[string][]func(*walker) {
	r := rand.New(rand.NewPCG(seed, 7))
	w := &walker{world: newWorld()}
	h := map[string][]func(*walker){}
	for range 6 + r.IntN(8) {
		switch r.IntN(12) {
		case 0:
			name := pick(r, serviceNames)
			delete(w.services, name)
			h[name] = append(h[name], func(w *walker) { w.model.DeleteService("default", name) })
		case 1:
			name := pick(r, sliceNames)
			delete(w.slices, name)
			h[name] = append(h[name], func(w *walker) { w.model.DeleteSlice("default", name) })
		case 2:
			if n := randomNode(r); n != nil {
				h["node"] = append(h["node"], func(w *walker) { w.model.SetNode(n) })
			} else {
				h["node"] = append(h["node"], func(w *walker) { w.model.DeleteNode(thisNode) })
			}
		case 3, 4, 5, 6:
			s := w.randomService(r)
			w.services[s.Name] = s
			h[s.Name] = append(h[s.Name], func(w *walker) { w.model.SetService(s) })
		default:
			s := w.randomSlice(r)
			w.slices[s.Name] = s
			h[s.Name] = append(h[s.Name], func(w *walker) { w.model.SetSlice(s) })
		}
	}
	return h
}

// shuffled says whose turn it is, in a random order.
func shuffled(h map[string][]func(*walker), r *rand.Rand) (names []string) {
	for _, name := range append(append([]string{"node"}, serviceNames...), sliceNames...) {
		for range h[name] {
			names = append(names, name)
		}
	}
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

// replay lets things happen in an order, the loop having a turn now and then, and gives what the kernel
// holds and what was said in the end.
func replay(h map[string][]func(*walker), names []string, r *rand.Rand) (kernel, said string) {
	h = maps.Clone(h)
	w := &walker{stepper: newStepper(), world: newWorld()}
	m := newModel()
	w.start(m)
	synced := r.IntN(len(names) + 1)
	for i, name := range names {
		if i == synced {
			m.SetSynced()
			m.SetComplete()
		}
		h[name][0](w)
		h[name] = h[name][1:]
		if r.IntN(2) == 0 {
			w.settle()
		}
		if r.IntN(8) == 0 {
			w.pass(3 * time.Second)
		}
	}
	m.SetSynced()
	m.SetComplete()
	w.pass(restTime)
	var b strings.Builder
	for _, name := range serviceNames {
		for id, text := range w.loop.tell.told {
			if id.Name == name {
				fmt.Fprintf(&b, "%s: %s\n", name, text)
			}
		}
		fmt.Fprintf(&b, "%v\n", m.Problems(idOf(name)))
	}
	return dumpOf(w.kernel), b.String()
}
