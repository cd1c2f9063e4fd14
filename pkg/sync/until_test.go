package sync

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// A wish that ends to hold is asked for again at that time, and what it is by then is written, without anything being
// heard meanwhile.
func TestWishUntil(t *testing.T) {
	s := newStepper()
	web := service("web", "10.96.0.1", 80)
	key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: ipvs.TCP}
	s.start(completeModel(web, slice(web, "10.244.2.10")))
	later := s.now.Add(7 * time.Second)
	// The desk as it is, but for a weight that changes with time.
	ask := s.loop.want
	parts := s.loop.shared
	parts.want = func(k ipvs.Key) desk.Wish {
		w := ask(k)
		if k == key && w.Frontend != nil {
			weight := uint16(2)
			if s.now.Before(later) {
				weight, w.Until = 1, later
			}
			fe := *w.Frontend
			fe.Server.Reals = []ipvs.Real{{Addr: fe.Server.Reals[0].Addr, Weight: weight}}
			w.Frontend = &fe
		}
		return w
	}
	s.loop = newLoop(parts, s.door, s.model)
	weight := func() uint16 { return s.kernel.Servers[key].Reals[0].Weight }
	s.pass(6 * time.Second)
	if weight() != 1 {
		t.Errorf("weight %d before its time, want 1", weight())
	}
	s.pass(time.Second)
	if weight() != 2 {
		t.Errorf("weight %d when it is time, want 2", weight())
	}
}
