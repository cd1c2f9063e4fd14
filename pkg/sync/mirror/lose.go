package mirror

import (
	"cmp"
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// What is lost as a whole need not be read: that it is gone says it all. What another program did besides, the audit finds.

// LoseTable takes that the kernel has no element any more: our table is a new one.
func (m *Mirror) LoseTable() {
	for _, c := range m.cells {
		if c.have != nil {
			c.have = &ipvs.Frontend{Server: c.have.Server}
		}
	}
	m.loseFacts(ipvs.FactVIP, ipvs.FactHairpin)
	m.adopted = false
}

// LoseServers takes that the kernel has no virtual server any more, and counts those that were known.
func (m *Mirror) LoseServers() (lost int) {
	for _, c := range m.cells {
		if c.have != nil && c.have.Server.Exists() {
			lost++
			have := *c.have
			have.Server = ipvs.Server{}
			c.have = &have
		}
		m.setDrains(c, nil)
		c.reaped = nil
	}
	m.pass.void = m.pass.busy
	return lost
}

// LoseAddresses takes that nothing stands on our interface but what is given, right or not.
func (m *Mirror) LoseAddresses(stand map[netip.Addr]bool) {
	m.loseFacts(ipvs.FactBind, ipvs.FactMisbound)
	for a, right := range stand {
		kind := ipvs.FactMisbound
		if right {
			kind = ipvs.FactBind
		}
		m.facts[ipvs.Fact{Kind: kind, Addr: a}] = true
	}
}

// loseFacts takes that the kernel holds no shared fact of some kinds.
func (m *Mirror) loseFacts(kinds ...ipvs.FactKind) {
	for f := range m.facts {
		for _, kind := range kinds {
			if f.Kind == kind {
				delete(m.facts, f)
			}
		}
	}
	m.pass.void = m.pass.busy
}

// Use notes how many connections the kernel counts of a Key.
func (m *Mirror) Use(k ipvs.Key, conns uint32) {
	if c := m.cells[k]; c != nil {
		c.used = conns
	}
}

// ByUse orders Keys for a repair: those with the most connections when they were last counted come first, and then it is
// their canonical order.
func (m *Mirror) ByUse(a, b ipvs.Key) int {
	used := func(k ipvs.Key) uint32 {
		if c := m.cells[k]; c != nil {
			return c.used
		}
		return 0
	}
	return cmp.Or(cmp.Compare(used(b), used(a)), a.Compare(b))
}
