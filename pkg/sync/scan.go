package sync

import (
	"context"
	"maps"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// scan reads all of the kernel, makes the mirror anew from it, and queues what differs from what is wanted.
// It writes nothing.
func (l *Loop) scan(ctx context.Context) error {
	seen := map[ipvs.Key]ipvs.Observed{}
	if err := l.kernel.Scan(ctx, func(k ipvs.Key, o ipvs.Observed) { seen[k] = o }); err != nil {
		return err
	}
	clear(l.present)
	for k, o := range seen {
		if !k.HasServer() {
			l.see(k, o.Have)
		}
	}
	o := seen[ipvs.Adopted]
	l.adopted = o.Have != nil && o.Have.Guard.Owned
	old := l.cells
	l.cells = map[ipvs.Key]*cell{}
	for k, o := range seen {
		if k.HasServer() && l.ours(k, o.Have) {
			c := &cell{have: o.Have}
			if before := old[k]; before != nil {
				c.drains = before.drains
			}
			l.cells[k] = c
		}
	}
	l.queueDifferences()
	if !l.adopted && l.complete {
		l.queue.add(ipvs.Adopted, classBulk)
	}
	return nil
}

// ours decides whether a virtual server or its records may be changed: what the kernel says is owned, what
// is wanted, and at the very first start what stands on our interface.
func (l *Loop) ours(k ipvs.Key, have *ipvs.Frontend) bool {
	return have.Guard.Owned || have.Guard.Open || l.ledger.want(k) != nil ||
		!l.adopted && l.present[fact{factBind, k.Addr}]
}

// see notes the shared facts that were read of an address.
func (l *Loop) see(k ipvs.Key, have *ipvs.Frontend) {
	set := func(kind factKind, there bool) {
		if there {
			l.present[fact{kind, k.Addr}] = true
		} else {
			delete(l.present, fact{kind, k.Addr})
		}
	}
	var none ipvs.Frontend
	if have == nil {
		have = &none
	}
	set(factBind, have.Bind)
	set(factVIP, have.Guard.VIP)
	set(factHairpin, len(have.Guard.Hairpin) > 0)
}

// queueDifferences queues every Key that is not as it should be.
func (l *Loop) queueDifferences() {
	for _, k := range sorted(l.ledger.claims) {
		if len(l.steps(k, nil)) > 0 || l.hasExtraReals(k) {
			l.queue.add(k, l.classOf(l.ledger.claims[k][0].Service, classBulk))
		}
	}
	if !l.complete {
		return
	}
	for _, k := range sorted(l.cells) {
		if l.ledger.want(k) == nil {
			l.queue.add(k, classBulk)
		}
	}
	stale := map[ipvs.Key]bool{}
	for f := range l.present {
		if l.ledger.needs[f] == 0 {
			stale[ipvs.AddrKey(f.addr)] = true
		}
	}
	for _, k := range sorted(stale) {
		l.queue.add(k, classBulk)
	}
}

// hasExtraReals: a drain that an earlier run began has to be watched to its end.
func (l *Loop) hasExtraReals(k ipvs.Key) bool {
	c, want := l.cells[k], l.ledger.want(k)
	return c != nil && c.have != nil && want != nil && len(c.have.Server.Reals) > len(want.Server.Reals)
}

// sorted gives the Keys of a map in their canonical order, so that every start does the same.
func sorted[V any](m map[ipvs.Key]V) []ipvs.Key {
	return slices.SortedFunc(maps.Keys(m), ipvs.Key.Compare)
}
