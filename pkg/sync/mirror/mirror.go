// Package mirror says what this node's kernel has, as far as is known. It knows no Service: what is wanted comes with
// the question. It reads and writes nothing itself; it learns from what was read and written.
package mirror

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Mirror is what is known of the kernel. It is used by one goroutine at a time.
type Mirror struct {
	cells map[ipvs.Key]*cell
	// facts are the shared facts that the kernel holds.
	facts map[ipvs.Fact]bool
	// doubted are the addresses of which facts may be wrong: their last write failed or got lost.
	doubted map[netip.Addr]bool
	// adopted: the first start is over, and the kernel has the record of it.
	adopted  bool
	pass     Pass
	draining int // real servers, in all cells
	trash    trash
}

// cell is what is known of one Key.
type cell struct {
	have *ipvs.Frontend // its shared facts do not count, see Mirror.facts
	// doubted: have may be wrong, the kernel must be asked first.
	doubted bool
	// wanted is what this process last wanted of the Key and got.
	wanted *ipvs.Frontend
	// tried are the real servers of what it wanted since and did not get: a plan that failed may have made some.
	tried map[netip.AddrPort]bool
	// drains are the real servers on their way out.
	drains map[netip.AddrPort]drain
	// reaped are those that the plan under way removes.
	reaped map[netip.AddrPort]bool
	met    meeting
	// used is how many connections the kernel counted when it was last read as a whole.
	used uint32
}

// New makes a Mirror of a kernel of which nothing is known.
func New() *Mirror {
	m := &Mirror{cells: map[ipvs.Key]*cell{}, facts: map[ipvs.Fact]bool{}, doubted: map[netip.Addr]bool{}}
	m.pass.mirror = m
	return m
}

// Begin makes the Mirror anew from all that the kernel has. Ours says which of the virtual servers, and of what is
// recorded of them, count; it may ask for shared facts and for the adoption. Nothing remains but since when real servers
// drain.
func (m *Mirror) Begin(found map[ipvs.Key]ipvs.Observed, ours func(ipvs.Key, *ipvs.Frontend) bool) {
	clear(m.facts)
	clear(m.doubted)
	for k, o := range found {
		if !k.HasServer() {
			m.LearnFacts(k, o.Have, func(ipvs.Fact, bool) {})
		}
	}
	record := found[ipvs.Adopted].Have
	m.adopted = record != nil && record.Guard.Owned
	old := m.cells
	m.cells, m.draining = map[ipvs.Key]*cell{}, 0
	for k, o := range found {
		if !k.HasServer() || !ours(k, o.Have) {
			continue
		}
		c := &cell{have: o.Have, used: ipvs.SumOf(o.Conns)}
		m.cells[k] = c
		if before := old[k]; before != nil {
			m.setDrains(c, before.drains)
		}
	}
	m.pass.void = m.pass.busy
}

// cell is a Key's, made if need be.
func (m *Mirror) cell(k ipvs.Key) *cell {
	c := m.cells[k]
	if c == nil {
		c = &cell{}
		m.cells[k] = c
	}
	return c
}

// Keys gives every Key of which something is known or doubted, in no order.
func (m *Mirror) Keys() iter.Seq[ipvs.Key] { return maps.Keys(m.cells) }

// Knows reports whether a Key is among them.
func (m *Mirror) Knows(k ipvs.Key) bool { return m.cells[k] != nil }

// Facts gives the shared facts that the kernel holds, in no order.
func (m *Mirror) Facts() iter.Seq[ipvs.Fact] { return maps.Keys(m.facts) }

// Holds reports whether the kernel holds a shared fact.
func (m *Mirror) Holds(f ipvs.Fact) bool { return m.facts[f] }

// Adopted reports whether the first start is over, and the kernel has the record of it.
func (m *Mirror) Adopted() bool { return m.adopted }

// Unowned gives the virtual servers that are not known to be recorded as ours.
func (m *Mirror) Unowned() iter.Seq[ipvs.Key] {
	return func(yield func(ipvs.Key) bool) {
		for k, c := range m.cells {
			if k.HasServer() && (c.have == nil || !c.have.Guard.Owned || c.doubted) && !yield(k) {
				return
			}
		}
	}
}

// Sound finds a Key whose virtual server is known, among those that will do.
func (m *Mirror) Sound(will func(ipvs.Key) bool) (k ipvs.Key, s ipvs.Server, found bool) {
	for k, c := range m.cells {
		if k.HasServer() && will(k) && !c.doubted && c.have != nil && c.have.Server.Exists() {
			return k, c.have.Server, true
		}
	}
	return k, s, false
}

// Leaving are the real servers that an operation takes away, by what was known of its Key before.
func (m *Mirror) Leaving(is ipvs.Effect) []ipvs.Real {
	if is.Table != ipvs.TableIPVS || !is.Gone {
		return nil
	}
	c := m.cells[is.Key]
	switch {
	case is.Real.IsValid():
		return []ipvs.Real{{Addr: is.Real}}
	case c != nil && c.have != nil:
		return c.have.Server.Reals
	}
	return nil
}

// View is what the kernel has for a Key, with the shared facts as far as they are this Key's business: those that the
// Key wants, and those of its address that nobody needs any more.
func (m *Mirror) View(k ipvs.Key, want *ipvs.Frontend, needed func(ipvs.FactKind) bool) *ipvs.Frontend {
	var v, w ipvs.Frontend
	if want != nil {
		w = *want
	}
	if c := m.cells[k]; c != nil && c.have != nil {
		v.Server = c.have.Server
		v.Guard = c.have.Guard.Own()
	}
	mine := func(kind ipvs.FactKind, a netip.Addr, wanted bool) bool {
		return m.facts[ipvs.Fact{Kind: kind, Addr: a}] && (wanted || !needed(kind))
	}
	// The interface is ours by its name: whatever stands on it and nobody needs goes, as with kube-proxy. Left
	// there without its guard, it would lead to the node's own listeners.
	v.Bind = mine(ipvs.FactBind, k.Addr, w.Bind)
	v.Misbound = m.facts[ipvs.Fact{Kind: ipvs.FactMisbound, Addr: k.Addr}] && !needed(ipvs.FactBind)
	v.Guard.VIP = mine(ipvs.FactVIP, k.Addr, w.Guard.VIP)
	for _, a := range w.Guard.Hairpin {
		if mine(ipvs.FactHairpin, a, true) {
			v.Guard.Hairpin = append(v.Guard.Hairpin, a)
		}
	}
	if !k.HasServer() && mine(ipvs.FactHairpin, k.Addr, false) {
		v.Guard.Hairpin = append(v.Guard.Hairpin, k.Addr)
	}
	v.Guard.Hairpin = ipvs.SortAddrs(v.Guard.Hairpin)
	return &v
}

// Agrees reports whether a proper read found what is known of a Key, shared facts apart.
func (m *Mirror) Agrees(k ipvs.Key, found *ipvs.Frontend) bool {
	own := func(f *ipvs.Frontend) *ipvs.Frontend {
		return &ipvs.Frontend{Server: f.Server, Guard: f.Guard.Own()}
	}
	c := m.cells[k]
	return found != nil && c != nil && c.have != nil && own(found).Equal(own(c.have))
}

// Reals is how many real servers are known of a Key.
func (m *Mirror) Reals(k ipvs.Key) int {
	if c := m.cells[k]; c != nil && c.have != nil {
		return len(c.have.Server.Reals)
	}
	return 0
}

// Knew reports whether an operation takes away only what this process itself wanted before: that is known to be gone
// from the cluster, however incomplete the rest is.
func (m *Mirror) Knew(k ipvs.Key, want *ipvs.Frontend, op ipvs.Op) bool {
	c, is := m.cells[k], op.Effect()
	if !k.HasServer() {
		return is.Set == ipvs.SetHairpin
	}
	had := func(a netip.AddrPort) bool {
		return c != nil && (c.tried[a] || c.wanted != nil && slices.ContainsFunc(c.wanted.Server.Reals, func(r ipvs.Real) bool { return r.Addr == a }))
	}
	// strangers: something that this process never wanted serves behind the Key.
	strangers := func() bool {
		return c != nil && slices.ContainsFunc(extraReals(c.have, want), func(r ipvs.Real) bool { return r.Weight > 0 && !had(r.Addr) })
	}
	if want != nil {
		switch is.Set {
		case ipvs.SetLimited, ipvs.SetRanges, ipvs.SetRedirect:
			return true // the Service says it, and the Service is known
		case ipvs.SetInside, ipvs.SetDropped:
			return !strangers()
		}
	}
	switch {
	case is.Real.IsValid():
		return had(is.Real)
	case c == nil:
		return false
	case is.Set == ipvs.SetOpen && want != nil: // as its real servers: a plan that failed may have opened it
		return (c.wanted != nil || len(c.tried) > 0) && !strangers()
	case c.wanted == nil:
		return false
	}
	return want == nil
}
