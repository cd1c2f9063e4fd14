package mirror

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Doubt has a Key read properly before anything is decided about it.
func (m *Mirror) Doubt(k ipvs.Key) { m.cell(k).doubted = true }

// Doubted reports whether what is known of a Key may be wrong.
func (m *Mirror) Doubted(k ipvs.Key) bool {
	c := m.cells[k]
	return c != nil && c.doubted
}

// MustRead reports whether the kernel has to be asked about a Key before its turn: what is known of it, or of the shared
// facts that it stands on, may be wrong.
func (m *Mirror) MustRead(k ipvs.Key, want *ipvs.Frontend) bool {
	if len(m.doubted) > 0 {
		doubted := m.doubted[k.Addr]
		ipvs.FactsOf(k, want, func(f ipvs.Fact) { doubted = doubted || m.doubted[f.Addr] })
		if doubted {
			m.Doubt(k)
		}
	}
	return m.Doubted(k)
}

// Ask adds the Keys that have to be read for one.
func (m *Mirror) Ask(ask []ipvs.Key, k ipvs.Key, want *ipvs.Frontend) []ipvs.Key {
	ask = append(ask, k, ipvs.AddrKey(k.Addr))
	ipvs.FactsOf(k, want, func(f ipvs.Fact) { ask = append(ask, ipvs.AddrKey(f.Addr)) })
	return ask
}

// Learn takes what a proper read found of a Key; nil: nothing. Where it is an address's, changed hears of each shared
// fact that is another than was known.
func (m *Mirror) Learn(k ipvs.Key, have *ipvs.Frontend, changed func(f ipvs.Fact, there bool)) {
	if !k.HasServer() {
		m.LearnFacts(k, have, changed)
	} else if c := m.cells[k]; c != nil {
		c.have, c.doubted = have, false
	}
}

// LearnFacts takes the shared facts that a proper read found of an address.
func (m *Mirror) LearnFacts(k ipvs.Key, have *ipvs.Frontend, changed func(f ipvs.Fact, there bool)) {
	set := func(kind ipvs.FactKind, there bool) {
		f := ipvs.Fact{Kind: kind, Addr: k.Addr}
		if there {
			m.pass.meetFact(f)
		}
		if there == m.facts[f] {
			return
		}
		if there {
			m.facts[f] = true
		} else {
			delete(m.facts, f)
		}
		changed(f, there)
	}
	delete(m.doubted, k.Addr)
	var none ipvs.Frontend
	if have == nil {
		have = &none
	}
	set(ipvs.FactBind, have.Bind)
	set(ipvs.FactMisbound, have.Misbound)
	set(ipvs.FactVIP, have.Guard.VIP)
	set(ipvs.FactHairpin, len(have.Guard.Hairpin) > 0)
}

// LearnDone takes that an operation took place.
func (m *Mirror) LearnDone(op ipvs.Op, now time.Time) {
	is := op.Effect()
	if is.OfServer() || !is.Key.Proto.Drains() { // for a single one that drained a place was taken
		m.trash.put(now, len(m.Leaving(is)))
	}
	f := is.Fact
	if !f.Addr.IsValid() {
		if is.Set == ipvs.SetOwned && is.Key == ipvs.Adopted {
			m.adopted, m.pass.adopted = true, true
		}
		return
	}
	if f.Kind == ipvs.FactBind { // put right, or off altogether
		delete(m.facts, ipvs.Fact{Kind: ipvs.FactMisbound, Addr: f.Addr})
	}
	if is.Gone {
		delete(m.facts, f)
	} else {
		m.facts[f] = true
		m.pass.meetFact(f)
	}
}

// GiveUp lets go of all that is known and doubted of a Key, and of those facts of its address that nobody needs: a pass
// of the audit meets as new what the kernel has of them.
func (m *Mirror) GiveUp(k ipvs.Key, needed func(ipvs.FactKind) bool) {
	if c := m.cells[k]; c != nil {
		m.setDrains(c, nil)
		delete(m.cells, k)
	}
	all := true
	for kind := range ipvs.FactHairpin + 1 {
		if needed(kind) {
			all = false
		} else {
			delete(m.facts, ipvs.Fact{Kind: kind, Addr: k.Addr})
		}
	}
	if all {
		delete(m.doubted, k.Addr)
	}
}

// LearnLost takes that nobody knows whether an operation took place. Neither the presence nor the absence of a shared
// fact that it is about may be built upon, by whatever Key, before it is read.
func (m *Mirror) LearnLost(op ipvs.Op) {
	if f := op.Effect().Fact; f.Addr.IsValid() {
		m.doubted[f.Addr] = true
	}
}

// triedMost bounds what is kept of plans that failed: beyond it, what an older one may have made counts as another's.
const triedMost = 5000

// Failed takes that a plan for a Key failed, and what it was for, where that matters; else nil.
func (m *Mirror) Failed(k ipvs.Key, want *ipvs.Frontend) {
	c := m.cell(k)
	c.doubted, c.reaped = true, nil
	if want == nil {
		return
	}
	if len(c.tried) > triedMost {
		c.tried = nil
	}
	for _, r := range want.Server.Reals {
		if c.tried == nil {
			c.tried = map[netip.AddrPort]bool{}
		}
		c.tried[r.Addr] = true
	}
}

// Advance takes that the beginning of a plan for a Key was carried out, and what the Key has now, shared facts apart.
func (m *Mirror) Advance(k ipvs.Key, have *ipvs.Frontend) {
	c := m.cell(k)
	c.have, c.met = have, m.pass.all()
}

// Settled is what a plan that was carried out was for.
type Settled struct {
	Want *ipvs.Frontend
	// Complete: all of the cluster was known; else nothing was taken away but what this process had wanted before.
	Complete bool
	// Spared: what stands there was left as it is.
	Spared bool
	// Patience is until when real servers may drain that begin to now.
	Patience time.Time
}

// Settle takes that a plan for a Key was carried out, and reports whether it leaves real servers that drain.
func (m *Mirror) Settle(k ipvs.Key, is Settled) (drains bool) {
	c, want := m.cell(k), is.Want
	c.met = m.pass.all()
	if is.Complete { // else some of it may be there still
		c.tried = nil
	}
	switch {
	case want == nil && !is.Complete && c.have != nil:
		c.doubted = true // what this process did not know of it stays for now
	case want == nil && is.Spared && c.have != nil:
		c.wanted = nil
		m.setDrains(c, nil)
	case k == ipvs.Adopted || want == nil:
		m.setDrains(c, nil)
		delete(m.cells, k)
	default:
		// What was removed of a cluster that is not all known shows only in a proper read, and who was barred.
		c.doubted = !is.Complete && (c.wanted != nil && c.wanted != want || c.have != nil && c.have.Guard.Barred != want.Guard.Barred)
		if is.Complete {
			m.settleDrains(k, c, want, is.Patience)
		} else {
			c.have = together(c.have, want)
		}
		c.wanted = want
		return is.Complete && len(c.drains) > 0
	}
	return false
}

// together is what a Key holds when what is wanted was added and nothing was removed.
func together(have, want *ipvs.Frontend) *ipvs.Frontend {
	if have == nil {
		return want
	}
	fe := *want
	fe.Guard.Owned = want.Guard.Owned || have.Guard.Owned
	fe.Guard.Open = want.Guard.Open || have.Guard.Open
	fe.Guard.Barred = want.Guard.Barred & have.Guard.Barred // none was added that is not known to be right
	fe.Guard.Sources = want.Guard.Sources | have.Guard.Sources
	fe.Server.Reals = ipvs.SortReals(append(slices.Clone(want.Server.Reals), extraReals(have, want)...))
	return &fe
}

// Known is what the kernel has of a Key, as far as is known, shared facts apart; it must not be changed. Nil: nothing.
func (m *Mirror) Known(k ipvs.Key) *ipvs.Frontend {
	if c := m.cells[k]; c != nil {
		return c.have
	}
	return nil
}
