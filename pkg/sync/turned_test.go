package sync

import (
	"fmt"
	"slices"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// B89: the first real servers of a frontend come in another order on every node, as often one as another, and all of them;
// with a scheduler that goes by a hash in one order everywhere. What comes later comes as it is.
func TestB89FirstOrder(t *testing.T) {
	web := service("web", "10.96.0.10", 80)
	three := slice(web, "10.244.2.10", "10.244.2.11", "10.244.2.12")
	order := func(node, scheduler string, steps ...any) (list []string) {
		s := newStepper()
		s.opt.Desk.Scheduler, s.kernel.Schedulers = scheduler, append(s.kernel.Schedulers, "dh")
		model := cluster.NewModel(cluster.Options{NodeName: node})
		model.SetSynced()
		model.SetComplete()
		s.start(model)
		for _, step := range steps {
			s.kernel.Log = nil
			give(s.model, step)
			s.pass(0)
		}
		for _, op := range s.kernel.Log {
			if add, is := op.(ipvs.AddReal); is {
				list = append(list, add.Real.Addr.String())
			}
		}
		return list
	}
	canonical := []string{"10.244.2.10:8080", "10.244.2.11:8080", "10.244.2.12:8080"}
	first := map[string]int{}
	for i := range 30 {
		node := fmt.Sprintf("node%d", i)
		got := order(node, "rr", web, three)
		first[got[0]]++
		if !slices.Equal(slices.Sorted(slices.Values(got)), canonical) {
			t.Errorf("%s: %v", node, got)
		}
		for _, scheduler := range hashing {
			if got := order(node, scheduler, web, three); !slices.Equal(got, canonical) {
				t.Errorf("%s, %s: %v", node, scheduler, got)
			}
		}
		if got := order(node, "rr", web, slice(web, "10.244.2.9"), slice(web, "10.244.2.9", "10.244.2.10", "10.244.2.11", "10.244.2.12")); !slices.Equal(got, canonical) {
			t.Errorf("%s, three more: %v", node, got)
		}
	}
	for _, addr := range canonical {
		if n := first[addr]; n < 5 {
			t.Errorf("%d of 30 nodes begin with %s: %v", n, addr, first)
		}
	}
}
