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
	clear(l.unsure)
	for k, o := range seen {
		if !k.HasServer() {
			l.see(k, o.Have, nil)
		}
	}
	o := seen[ipvs.Adopted]
	l.adopted = o.Have != nil && o.Have.Guard.Owned
	old := l.cells
	l.cells = map[ipvs.Key]*cell{}
	for k, o := range seen {
		if k.HasServer() && o.Have.Guard.Redirect.IsValid() {
			l.forget.redirects(k)
		}
		if k.HasServer() && l.ours(k, o.Have) {
			c := &cell{have: o.Have}
			if before := old[k]; before != nil {
				c.drains = before.drains
			}
			l.cells[k] = c
		}
	}
	l.queueDifferences()
	l.standAnew()
	if !l.adopted && l.complete {
		l.queue.add(ipvs.Adopted, classBulk)
	}
	return nil
}

// ours decides whether a virtual server or its records may be changed: what the kernel says is owned, what
// is wanted, and at the very first start what stands on our interface.
func (l *Loop) ours(k ipvs.Key, have *ipvs.Frontend) bool {
	if l.want(k).Spared {
		return have.Guard.Owned || l.want(k).Frontend != nil
	}
	own := have.Guard.Own()
	return !own.Equal(&ipvs.Guard{}) || l.want(k).Frontend != nil ||
		!l.adopted && (l.present[ipvs.Fact{Kind: ipvs.FactBind, Addr: k.Addr}] || l.present[ipvs.Fact{Kind: ipvs.FactMisbound, Addr: k.Addr}] || l.desk.IsNodePort(k))
}

// see notes the shared facts that were read of an address, and in gone those that were thought to be there.
func (l *Loop) see(k ipvs.Key, have *ipvs.Frontend, gone map[ipvs.Fact]bool) {
	set := func(kind ipvs.FactKind, there bool) {
		f := ipvs.Fact{Kind: kind, Addr: k.Addr}
		if there {
			l.audits.saw(f)
		}
		switch {
		case !there && l.present[f]:
			delete(l.present, f)
			gone[f] = true
		case !there:
		case !l.present[f]:
			l.present[f] = true
			if l.started && !l.needs(f) {
				l.queue.add(k, classBulk) // somebody else made it: no other Key would take it away
			}
		}
	}
	delete(l.unsure, k.Addr)
	var none ipvs.Frontend
	if have == nil {
		have = &none
	}
	set(ipvs.FactBind, have.Bind)
	set(ipvs.FactMisbound, have.Misbound)
	set(ipvs.FactVIP, have.Guard.VIP)
	set(ipvs.FactHairpin, len(have.Guard.Hairpin) > 0)
}

// queueDifferences queues every Key that may not be as it should be.
func (l *Loop) queueDifferences() {
	// Whether they differ is found out slice by slice: a Key that is right costs a comparison.
	for _, k := range slices.SortedFunc(l.desk.Keys(), ipvs.Key.Compare) {
		wish := l.want(k)
		if wish.Frontend == nil {
			continue
		}
		class := classBulk
		if wish.Urgent {
			class = classUrgent
		}
		l.queue.add(k, class)
		if k.Proto == ipvs.UDP {
			l.forget.add(k) // what an earlier run may have left undone
		}
	}
	if !l.complete {
		return
	}
	for _, k := range sorted(l.cells) {
		if l.want(k).Frontend == nil {
			l.queue.add(k, classBulk)
		}
	}
	stale := map[ipvs.Key]bool{}
	for f := range l.present {
		if !l.needs(f) {
			stale[ipvs.AddrKey(f.Addr)] = true
		}
	}
	for _, k := range sorted(stale) {
		l.queue.add(k, classBulk)
	}
}

// sorted gives the Keys of a map in their canonical order, so that every start does the same.
func sorted[V any](m map[ipvs.Key]V) []ipvs.Key {
	return slices.SortedFunc(maps.Keys(m), ipvs.Key.Compare)
}
