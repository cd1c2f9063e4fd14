package sync

import (
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// factOf is the shared fact that an operation makes or, where gone, takes away.
func factOf(op ipvs.Op) (f ipvs.Fact, gone, ok bool) {
	switch o := op.(type) {
	case ipvs.Bind:
		return ipvs.Fact{Kind: ipvs.FactBind, Addr: o.Addr}, false, true
	case ipvs.Unbind:
		return ipvs.Fact{Kind: ipvs.FactBind, Addr: o.Addr}, true, true
	case ipvs.Element:
		switch o.Set {
		case ipvs.SetVIPs:
			return ipvs.Fact{Kind: ipvs.FactVIP, Addr: o.Key.Addr}, o.Remove, true
		case ipvs.SetHairpin:
			return ipvs.Fact{Kind: ipvs.FactHairpin, Addr: o.Key.Addr}, o.Remove, true
		}
	}
	return ipvs.Fact{}, false, false
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
	if f.Kind == ipvs.FactBind { // put right, or off altogether
		delete(l.present, ipvs.Fact{Kind: ipvs.FactMisbound, Addr: f.Addr})
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
		l.unsure[f.Addr] = true
	}
}

// isUnsure reports whether a Key stands on shared facts that must be read first.
func (l *Loop) isUnsure(k ipvs.Key) bool {
	if len(l.unsure) == 0 {
		return false
	}
	unsure := l.unsure[k.Addr]
	ipvs.FactsOf(k, l.want(k).Frontend, func(f ipvs.Fact) { unsure = unsure || l.unsure[f.Addr] })
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
	mine := func(kind ipvs.FactKind, a netip.Addr, wanted bool) bool {
		f := ipvs.Fact{Kind: kind, Addr: a}
		return l.present[f] && (wanted || !l.needs(f))
	}
	// The interface is ours by its name: whatever stands on it and nobody needs goes, as with kube-proxy. Left
	// there without its guard, it would lead to the node's own listeners.
	v.Bind = mine(ipvs.FactBind, k.Addr, w.Bind)
	v.Misbound = l.present[ipvs.Fact{Kind: ipvs.FactMisbound, Addr: k.Addr}] && !l.needs(ipvs.Fact{Kind: ipvs.FactBind, Addr: k.Addr})
	v.Guard.VIP = mine(ipvs.FactVIP, k.Addr, w.Guard.VIP)
	hairpin := func(a netip.Addr, wanted bool) {
		if mine(ipvs.FactHairpin, a, wanted) {
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
