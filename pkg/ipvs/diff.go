package ipvs

import (
	"net/netip"
	"slices"
)

// Diff gives the smallest ordered change that takes a Key from have to want. Nil means nothing at all.
//
// A virtual server is removed only where none is wanted. A TCP or SCTP real server that is not wanted any more gets
// weight 0 and stays: taking it away is the caller's decision, who knows of its connections. A UDP one is
// removed at once, after the new ones are in.
func Diff(k Key, have, want *Frontend) []Op {
	var none Frontend
	if have == nil {
		have = &none
	}
	if want == nil {
		want = &none
	}
	var ops []Op
	ops = diffGuard(ops, k, have.Guard, want.Guard, (have.Bind || !want.Bind) && serves(have.Server, want.Server))
	ops = diffServer(ops, k, have.Server, want.Server)
	switch {
	case want.Bind && !have.Bind:
		ops = append(ops, Bind{k.Addr})
	case (have.Bind || have.Misbound) && !want.Bind:
		ops = append(ops, Unbind{k.Addr})
	}
	slices.SortStableFunc(ops, func(a, b Op) int { return int(a.Phase()) - int(b.Phase()) })
	return ops
}

// serves: the virtual server stands already and some of what is wanted takes connections. Its frontend is
// opened together with the guard, so that taking it over from another proxy refuses nobody.
func serves(have, want Server) bool {
	found := false
	merge(have.Reals, want.Reals, compareReals, func(h, w *Real) {
		found = found || h != nil && w != nil && h.Weight > 0
	})
	return found
}

func diffGuard(ops []Op, k Key, have, want Guard, serves bool) []Op {
	put := func(e Element) { ops = append(ops, e) }
	element := func(s Set, key Key, h, w bool) {
		if h != w {
			put(Element{Set: s, Key: key, Remove: h, Early: s == SetOpen && w && serves})
		}
	}
	element(SetOwned, k, have.Owned, want.Owned)
	element(SetVIPs, AddrKey(k.Addr), have.VIP, want.VIP)
	diffSources(put, k, have, want)
	for _, s := range []Set{SetAnswered, SetMasqueraded, SetKept, SetInside, SetDropped} {
		element(s, k, have.Has(s), want.Has(s))
	}
	if have.Redirect != want.Redirect {
		// A client must be refused by the frontend itself: a reset is not taken for the answer to a redirected packet.
		early := have.Open && want.Redirect.IsValid() || !want.Open
		if have.Redirect.IsValid() {
			put(Element{Set: SetRedirect, Key: k, Remove: true, Early: early})
		}
		if want.Redirect.IsValid() {
			put(Element{Set: SetRedirect, Key: k, To: want.Redirect, Early: early})
		}
	}
	element(SetOpen, k, have.Open, want.Open)
	merge(have.Hairpin, want.Hairpin, netip.Addr.Compare, func(h, w *netip.Addr) {
		switch {
		case h == nil:
			element(SetHairpin, AddrKey(*w), false, true)
		case w == nil:
			element(SetHairpin, AddrKey(*h), true, false)
		}
	})
	return ops
}

// diffSources changes which sources are let in. A range goes before those come that overlap with it, for the kernel
// takes none that overlap, and right before them: where so many change that they do not fit into one transaction,
// few clients that may come before and after are turned away between two.
func diffSources(put func(Element), k Key, have, want Guard) {
	if have.Limited != want.Limited {
		put(Element{Set: SetLimited, Key: k, Remove: have.Limited})
	}
	var gone, fresh []Range
	merge(have.Ranges, want.Ranges, func(a, b Range) int { return a.Compare(b) }, func(h, w *Range) {
		switch {
		case h == nil:
			fresh = append(fresh, *w)
		case w == nil:
			gone = append(gone, *h)
		}
	})
	for _, r := range fresh {
		for len(gone) > 0 && gone[0].First.Compare(r.Last) <= 0 {
			put(Element{Set: SetRanges, Key: k, From: gone[0], Remove: true})
			gone = gone[1:]
		}
		put(Element{Set: SetRanges, Key: k, From: r})
	}
	for _, r := range gone {
		put(Element{Set: SetRanges, Key: k, From: r, Remove: true})
	}
}

func diffServer(ops []Op, k Key, have, want Server) []Op {
	if !want.Exists() {
		if have.Exists() {
			return append(ops, DelServer{k})
		}
		return ops
	}
	conf := AddServer{k, want.Scheduler, want.Flags, want.Timeout}
	switch {
	case !have.Exists():
		ops = append(ops, conf)
		have.Reals = nil
	case !have.sameConfig(want):
		ops = append(ops, SetServer(conf))
	}
	merge(have.Reals, want.Reals, compareReals, func(h, w *Real) {
		switch {
		case h == nil:
			ops = append(ops, AddReal{k, *w})
		case w != nil && *h != *w:
			ops = append(ops, SetReal{k, *w})
		case w == nil && !k.Proto.Drains():
			ops = append(ops, DelReal{k, h.Addr})
		case w == nil && h.Weight != 0:
			ops = append(ops, SetReal{k, Real{Addr: h.Addr, Forward: h.Forward, Most: h.Most}})
		}
	})
	return ops
}

func compareReals(a, b Real) int { return a.Addr.Compare(b.Addr) }

// merge walks two sorted lists of unique items and calls f once for each item with its place in either
// list, nil where it is missing.
func merge[T any](a, b []T, cmp func(T, T) int, f func(inA, inB *T)) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && cmp(a[0], b[0]) < 0:
			f(&a[0], nil)
			a = a[1:]
		case len(a) == 0 || cmp(a[0], b[0]) > 0:
			f(nil, &b[0])
			b = b[1:]
		default:
			f(&a[0], &b[0])
			a, b = a[1:], b[1:]
		}
	}
}
