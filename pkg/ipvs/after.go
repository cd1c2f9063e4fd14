package ipvs

import (
	"net/netip"
	"slices"
)

// After is what the kernel holds for a Key once operations on it took place, in their order. What the Key shares with
// others is left out: that is known by its facts.
func After(have *Frontend, ops []Op) *Frontend {
	a := after{reals: map[netip.AddrPort]Real{}, ranges: map[Range]bool{}}
	if have != nil {
		a.f = Frontend{Server: have.Server, Guard: have.Guard.Own()}
	}
	for _, op := range ops {
		op.change(&a)
	}
	return a.frontend()
}

// after collects what operations change of a Key. Each of many real servers and ranges put into its place at once
// would cost their square.
type after struct {
	f      Frontend
	reals  map[netip.AddrPort]Real // those that came or changed, and zero ones for those that went
	ranges map[Range]bool          // those that came, and false for those that went
}

// frontend puts it together.
func (a *after) frontend() *Frontend {
	s, g := &a.f.Server, &a.f.Guard
	if len(a.reals) > 0 {
		all := slices.DeleteFunc(slices.Clone(s.Reals), func(r Real) bool { _, other := a.reals[r.Addr]; return other })
		for _, r := range a.reals {
			if r.Addr.IsValid() {
				all = append(all, r)
			}
		}
		s.Reals = SortReals(all)
	}
	if len(a.ranges) > 0 {
		all := slices.DeleteFunc(slices.Clone(g.Ranges), func(r Range) bool { _, other := a.ranges[r]; return other })
		for r, there := range a.ranges {
			if there {
				all = append(all, r)
			}
		}
		slices.SortFunc(all, Range.Compare)
		g.Ranges = all
	}
	return &a.f
}

func (o AddServer) change(a *after) {
	a.f.Server = Server{Scheduler: o.Scheduler, Flags: o.Flags, Timeout: o.Timeout}
}

func (o SetServer) change(a *after) {
	s := &a.f.Server
	s.Scheduler, s.Flags, s.Timeout = o.Scheduler, o.Flags, o.Timeout
}

func (o DelServer) change(a *after) {
	a.f.Server = Server{}
	clear(a.reals)
}

func (o AddReal) change(a *after) { a.reals[o.Real.Addr] = o.Real }
func (o SetReal) change(a *after) { a.reals[o.Real.Addr] = o.Real }
func (o DelReal) change(a *after) { a.reals[o.Addr] = Real{} }

func (Bind) change(*after)   {}
func (Unbind) change(*after) {}
func (Forget) change(*after) {}

func (e Element) change(a *after) {
	switch {
	case e.Set.OfAddr():
	case e.Set == SetRanges:
		a.ranges[e.From] = !e.Remove
	case e.Remove:
		a.f.Guard.drop(e.Set)
	default:
		a.f.Guard.Put(e)
	}
}

// drop notes that a Key has no element in one of KeySets.
func (g *Guard) drop(s Set) {
	switch s {
	case SetOwned:
		g.Owned = false
	case SetOpen:
		g.Open = false
	case SetAnswered:
		g.Answered = false
	case SetMasqueraded:
		g.Sources &^= SourcesMasqueraded
	case SetKept:
		g.Sources &^= SourcesKept
	case SetInside:
		g.Barred &^= BarredOutside
	case SetDropped:
		g.Barred &^= BarredAll
	case SetRedirect:
		g.Redirect = netip.AddrPort{}
	case SetLimited:
		g.Limited = false
	}
}
