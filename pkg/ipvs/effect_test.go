package ipvs

import (
	"net/netip"
	"testing"
)

// TestEffects: what each kind of operation does, in words.
func TestEffects(t *testing.T) {
	k := Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Proto: TCP}
	real := netip.MustParseAddrPort("10.244.1.1:8080")
	element := func(s Set, remove bool) Element { return Element{Set: s, Key: k, Remove: remove} }
	kinds := map[Kind]bool{}
	for _, c := range []struct {
		op   Op
		want string
	}{
		{AddServer{Key: k, Scheduler: "rr"}, "ipvs makes server rr"},
		{SetServer{Key: k, Scheduler: "rr"}, "ipvs server rr"},
		{DelServer{k}, "ipvs takes server removes"},
		{AddReal{k, Real{Addr: real, Weight: 1}}, "ipvs makes real serves"},
		{AddReal{k, Real{Addr: real}}, "ipvs makes real"},
		{SetReal{k, Real{Addr: real, Weight: 1}}, "ipvs real"},
		{SetReal{k, Real{Addr: real}}, "ipvs real removes"},
		{DelReal{k, real}, "ipvs takes real removes"},
		{Bind{k.Addr}, "interface makes shared"},
		{Unbind{k.Addr}, "interface takes shared removes"},
		{element(SetOwned, false), "sets makes"},
		{element(SetOpen, true), "sets takes removes"},
		{element(SetVIPs, false), "sets makes shared"},
		{element(SetHairpin, true), "sets takes shared removes"},
		{element(SetDropped, false), "sets makes removes"}, // it bars clients
		{element(SetDropped, true), "sets takes"},
		{Forget{Key: k}, "conntrack"},
	} {
		is := c.op.Effect()
		kinds[is.Kind] = true
		got := []string{"ipvs", "interface", "sets", "conntrack"}[is.Table]
		for _, w := range []struct {
			word string
			is   bool
		}{{"makes", is.Made}, {"takes", is.Gone}, {"server", is.OfServer()}, {is.Scheduler, is.Scheduler != ""}, {"real", is.Real == real}, {"serves", is.Serves},
			{"shared", is.Fact.Addr == k.Addr}, {"removes", is.Removes}} {
			if w.is {
				got += " " + w.word
			}
		}
		if got != c.want {
			t.Errorf("%s: %s; want %s", c.op, got, c.want)
		}
	}
	if len(kinds) != int(KindForget)+1 {
		t.Errorf("%d kinds of operations, want %d", len(kinds), KindForget+1)
	}
}
