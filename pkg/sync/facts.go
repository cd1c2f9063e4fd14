package sync

import (
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// factOf is the shared fact that an operation makes or, where gone, takes away.
func factOf(op ipvs.Op) (f fact, gone, ok bool) {
	switch o := op.(type) {
	case ipvs.Bind:
		return fact{factBind, o.Addr}, false, true
	case ipvs.Unbind:
		return fact{factBind, o.Addr}, true, true
	case ipvs.Element:
		switch o.Set {
		case ipvs.SetVIPs:
			return fact{factVIP, o.Key.Addr}, o.Remove, true
		case ipvs.SetHairpin:
			return fact{factHairpin, o.Key.Addr}, o.Remove, true
		}
	}
	return fact{}, false, false
}

// noteDone notes what an operation that took place made of the shared facts and of the record of the adoption.
func (l *Loop) noteDone(op ipvs.Op) {
	f, gone, ok := factOf(op)
	if !ok {
		if e, ok := op.(ipvs.Element); ok && e.Key == ipvs.Adopted {
			l.adopted, l.audits.adopted = true, true
		}
		return
	}
	if f.kind == factBind { // put right, or off altogether
		delete(l.present, fact{factMisbound, f.addr})
	}
	if gone {
		delete(l.present, f)
	} else {
		l.present[f] = true
		l.audits.saw(f)
	}
}

// noteUnsure notes that nobody knows whether an address's shared facts are as they were. Neither their
// presence nor their absence may be built upon, by whatever Key, before they are read.
func (l *Loop) noteUnsure(op ipvs.Op) {
	if f, _, ok := factOf(op); ok {
		l.unsure[f.addr] = true
	}
}

// isUnsure reports whether a Key stands on shared facts that must be read first.
func (l *Loop) isUnsure(k ipvs.Key) bool {
	if len(l.unsure) == 0 {
		return false
	}
	unsure := l.unsure[k.Addr]
	factsOf(k, l.wanted(k), func(f fact) { unsure = unsure || l.unsure[f.addr] })
	return unsure
}

// view is what the kernel holds for a Key, with the shared facts as far as they are this Key's business: a
// fact that the Key wants, or one that nobody needs any more.
func (l *Loop) view(k ipvs.Key, c *cell, want *ipvs.Frontend) *ipvs.Frontend {
	var v, w ipvs.Frontend
	if want != nil {
		w = *want
	}
	if c != nil && c.have != nil {
		v.Server = c.have.Server
		v.Guard = c.have.Guard.Own()
	}
	mine := func(kind factKind, a netip.Addr, wanted bool) bool {
		f := fact{kind, a}
		return l.present[f] && (wanted || l.ledger.needs[f] == 0)
	}
	// The interface is ours by its name: whatever stands on it and nobody needs goes, as with kube-proxy. Left
	// there without its guard, it would lead to the node's own listeners.
	v.Bind = mine(factBind, k.Addr, w.Bind)
	v.Misbound = l.present[fact{factMisbound, k.Addr}] && l.ledger.needs[fact{factBind, k.Addr}] == 0
	v.Guard.VIP = mine(factVIP, k.Addr, w.Guard.VIP)
	hairpin := func(a netip.Addr, wanted bool) {
		if mine(factHairpin, a, wanted) {
			v.Guard.Hairpin = append(v.Guard.Hairpin, a)
		}
	}
	for _, a := range w.Guard.Hairpin {
		hairpin(a, true)
	}
	if !k.HasServer() {
		hairpin(k.Addr, false)
	}
	v.Guard.Hairpin = ipvs.SortAddrs(v.Guard.Hairpin)
	return &v
}
