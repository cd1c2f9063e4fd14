package sync

import (
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

func (l *Loop) noteElement(e ipvs.Element) {
	var f fact
	switch {
	case e.Set == ipvs.SetVIPs:
		f = fact{factVIP, e.Key.Addr}
	case e.Set == ipvs.SetHairpin:
		f = fact{factHairpin, e.Key.Addr}
	case e.Key == ipvs.Adopted:
		l.adopted = true
		return
	default:
		return
	}
	if !e.Remove {
		l.present[f] = true
	}
}

// noteUnsure notes that nobody knows whether an address's shared facts are as they were. Neither their
// presence nor their absence may be built upon, by whatever Key, before they are read.
func (l *Loop) noteUnsure(op ipvs.Op) {
	switch o := op.(type) {
	case ipvs.Bind:
		l.unsure[o.Addr] = true
	case ipvs.Unbind:
		l.unsure[o.Addr] = true
	case ipvs.Element:
		if o.Set.OfAddr() {
			l.unsure[o.Key.Addr] = true
		}
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

// noteGone notes which shared facts an operation took away.
func (l *Loop) noteGone(op ipvs.Op) {
	switch o := op.(type) {
	case ipvs.Unbind:
		delete(l.present, fact{factBind, o.Addr})
		delete(l.present, fact{factMisbound, o.Addr})
	case ipvs.Element:
		if o.Remove && o.Set == ipvs.SetVIPs {
			delete(l.present, fact{factVIP, o.Key.Addr})
		}
		if o.Remove && o.Set == ipvs.SetHairpin {
			delete(l.present, fact{factHairpin, o.Key.Addr})
		}
	}
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
		v.Guard.Owned, v.Guard.Open, v.Guard.Sources = c.have.Guard.Owned, c.have.Guard.Open, c.have.Guard.Sources
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
