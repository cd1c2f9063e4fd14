package sync

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

// B73: what a rehearsal says is what a start then writes, in the same order, on random clusters and kernels in random
// states: as an agent left it, tampered with, and as another proxy left it. The rehearsal writes nothing, and after the
// start another one has nothing to say.
func TestB73RehearsalIsTheStart(t *testing.T) {
	n := 400
	if testing.Short() {
		n = 150
	}
	steps, unlike := 0, map[string]int{}
	for i := range n {
		r := rand.New(rand.NewPCG(uint64(i), 73))
		w, state := unsettled(r)
		if w.fault != "" {
			t.Fatalf("seed %d: %s", i, w.fault)
		}
		before, written := dumpOf(w.kernel), len(w.kernel.Log)
		said := w.rehearse(t)
		if after := dumpOf(w.kernel); after != before || len(w.kernel.Log) != written {
			t.Fatalf("seed %d, %s: the rehearsal wrote:\n%s\nwas:\n%s", i, state, after, before)
		}
		left := w.leftovers()
		if !slices.Equal(left, said.Left) || len(left) > 0 && len(said.Stays) != 1 {
			t.Fatalf("seed %d: another proxy left %q, of which it says that it takes out %q", i, left, said.Left)
		}
		did, set := w.startAnew()
		if left := w.leftovers(); len(left) > 0 {
			t.Fatalf("seed %d: the start did not take out %q", i, left)
		}
		got, want := linesOf(said), lines(did)
		if len(said.Failing) > 0 { // tries are repeated at random times, and so come the weights that grow meanwhile
			grows := func(line string) bool { return strings.HasPrefix(line, "ipvsadm -e ") }
			got, want = slices.DeleteFunc(got, grows), slices.DeleteFunc(want, grows)
			slices.Sort(got)
			slices.Sort(want)
		}
		if !slices.Equal(got, want) || !slices.Equal(said.Base.Wrote, set) {
			t.Fatalf("seed %d, %s: said\n  %s\nand then did\n  %s", i, state, strings.Join(append(said.Base.Wrote, got...), "\n  "), strings.Join(append(set, want...), "\n  "))
		}
		if again := w.rehearse(t); len(again.Steps)+len(again.Base.Wrote)+len(again.Left) > 0 {
			t.Fatalf("seed %d, %s: after the start it still says\n  %s", i, state, strings.Join(append(again.Base.Wrote, linesOf(again)...), "\n  "))
		}
		steps += len(did)
		if len(did) > 0 {
			unlike[state]++
		}
	}
	t.Logf("%d clusters, %d writes; clusters with something to write by state: %v", n, steps, unlike)
	for _, state := range kernelStates {
		if unlike[state] < n/100 {
			t.Errorf("of kernels %s only %d had something to write: the test shows little", state, unlike[state])
		}
	}
}

// kernelStates are the states in which a kernel is found.
var kernelStates = []string{"as an agent left them", "tampered with", "as another proxy left them", "without the interface", "without the scheduler"}

// unsettled is a node on which much happened, and then more that no agent has seen.
func unsettled(r *rand.Rand) (w *walker, state string) {
	w = walk(sequence(r.Uint64()), nil)
	quiet := []string{"service", "service", "slice", "slice", "delete service", "delete slice", "node", "addresses", "connections"}
	state = pick(r, kernelStates)
	if state == "tampered with" {
		quiet = append(quiet, "tamper", "tamper", "foreign")
	}
	for range 1 + r.IntN(6) {
		w.happen(event{kind: pick(r, quiet), seed: r.Uint64()})
	}
	switch state {
	case "as another proxy left them":
		w.kernel.DropTable()
		w.opt.Proxies = &otherProxy{left: []string{"rules", "chains", "sets"}, stays: []string{"the kubelet's"}}
	case "without the interface":
		w.kernel.DropLink()
	case "without the scheduler":
		w.opt.Desk.Scheduler = "wlc"
		w.kernel.Schedulers = []string{"rr"}
	}
	w.opt.DrainPoll = time.Hour // what has drained is no part of the start
	return w, state
}

// leftovers is what another proxy has in the kernel.
func (w *walker) leftovers() []string {
	if o, is := w.opt.Proxies.(*otherProxy); is {
		return slices.Clone(o.left)
	}
	return nil
}

func (w *walker) rehearse(t *testing.T) *Rehearsal {
	t.Helper()
	m := newModel(w.objects()...)
	m.SetSynced()
	m.SetComplete()
	opt := w.opt
	opt.Now = func() time.Time { return w.now }
	said, err := Rehearse(context.Background(), w.kernel.Look(), m, opt)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// startAnew starts an agent and gives what it writes, but for what it forgets of connection tracking, and what it sets up. That
// endpoints get more weight as their time comes is no part of a start.
func (w *walker) startAnew() (did []ipvs.Op, set []string) {
	w.kernel.Log = nil
	link, table := w.kernel.Link, w.kernel.Table
	w.begin(true)
	w.pass(rehearsalTime)
	if !link {
		set = append(set, "ip link add kube-ipvs0 type dummy")
	}
	if !table {
		set = append(set, "nft add table inet ipvs-proxy")
	}
	grown := map[ipvs.Op]bool{}
	for i := range w.loop.diary.kept {
		if step := w.loop.diary.at(i); step.why == WhySlowStart {
			grown[step.op] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(w.kernel.Log), func(op ipvs.Op) bool { return op.Effect().Table == ipvs.TableConntrack || grown[op] }), set
}

func linesOf(r *Rehearsal) (out []string) {
	for _, s := range r.Steps {
		out = append(out, s.Op.String())
	}
	return out
}

// B73: where the kernel cannot be read, or the cluster is not all known, a rehearsal says so and nothing else.
func TestB73RehearsalSaysWhatItCannotSee(t *testing.T) {
	k := fake.New()
	m := newModel()
	m.SetSynced()
	if _, err := Rehearse(context.Background(), k.Look(), m, Options{}); !errors.Is(err, ErrIncomplete) {
		t.Errorf("of a cluster that is not all known: %v", err)
	}
	m.SetComplete()
	reads := 0
	for fails := range 3 {
		reads = 0
		k.FailRead = func() error {
			if reads++; reads == fails+1 {
				return syscall.EPERM
			}
			return nil
		}
		if _, err := Rehearse(context.Background(), k.Look(), m, Options{}); !errors.Is(err, syscall.EPERM) {
			t.Errorf("read %d fails: %v", fails, err)
		}
	}
}

// B73: what is not an agent's stays foreign, and what another proxy left on the interface is taken over.
func TestB73RehearsalKnowsWhoseItIs(t *testing.T) {
	s := newStepper()
	leftovers(s)
	foreign := ipvs.Key{Addr: foreignAddr, Port: 80, Proto: ipvs.TCP}
	s.kernel.Servers[foreign] = foreignServer
	m := cluster.NewModel(cluster.Options{NodeName: thisNode})
	m.SetSynced()
	m.SetComplete()
	r, err := Rehearse(context.Background(), s.kernel.Look(), m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Adopted || r.Ours(foreign) {
		t.Errorf("adopted %t, the foreign server ours %t", r.Adopted, r.Ours(foreign))
	}
	gone := 0
	for _, step := range r.Steps {
		if is := step.Op.Effect(); is.Gone && is.OfServer() {
			gone++
		}
		if strings.Contains(fmt.Sprint(step.Op), foreignAddr.String()) {
			t.Errorf("%s", step.Op)
		}
	}
	if want := len(s.kernel.Servers) - 1; gone != want || want == 0 {
		t.Errorf("%d virtual servers would go, want %d", gone, want)
	}
}
