package cluster

import "slices"

// Measurable is a Service of which metrics can be kept. It does not change.
type Measurable struct {
	ID    ID
	Ports []Port
}

// Measured gives the Services of which metrics are kept: those that ask for it, or all that are ours; in their order, the
// first most of them, which are the same ones on every node. Left counts the others. Stamp is another one whenever
// the answer may be.
func (m *Model) Measured(all bool, most int) (chosen []Measurable, left int, stamp uint64) {
	m.mu.Lock()
	for _, s := range m.services {
		if s.ours() && (all || s.svc.Measured) {
			chosen = append(chosen, Measurable{ID: s.svc.ID, Ports: s.svc.Ports})
		}
	}
	stamp = m.measures
	m.mu.Unlock()
	slices.SortFunc(chosen, func(a, b Measurable) int { return a.ID.Compare(b.ID) })
	if left = len(chosen) - most; left > 0 {
		return slices.Clone(chosen[:most]), left, stamp
	}
	return chosen, 0, stamp
}

// MeasuredStamp is the stamp of what Measured would answer now.
func (m *Model) MeasuredStamp() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.measures
}

// measuredAlike reports whether metrics are kept of both in the same way.
func measuredAlike(a, b *Service) bool {
	ours := a != nil && !a.Foreign
	if ours != (b != nil && !b.Foreign) {
		return false
	}
	return !ours || a.Measured == b.Measured && slices.Equal(a.Ports, b.Ports)
}
