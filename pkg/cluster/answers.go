package cluster

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Take returns what changed since the last Take, and clears it: the Services
// (appeared, changed, gone, endpoints changed, Problems changed) in the order
// in which they were first touched, whether the own Node changed, and whether
// the source has delivered its first complete state.
func (m *Model) Take() (dirty []ID, nodeChanged, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dirty, nodeChanged = m.dirty, m.own.changed
	m.dirty, m.own.changed = nil, false
	m.queued = map[ID]struct{}{} // a new one: clear would keep the size of the largest burst
	return dirty, nodeChanged, m.synced
}

// Get returns a Service with its endpoints; nil, nil when it is absent or not
// ours. The endpoints are those of all its slices for the ports that the
// Service has, one for each port name, protocol, address and port, sorted by
// these in this order. What slices say of other ports is of no use. Of copies that
// differ the best state counts (ready, serving, not terminating, on this
// node): an endpoint stays until its last copy goes. Neither result is changed
// later; the Service must not be changed by the caller either.
func (m *Model) Get(id ID) (*Service, []Endpoint) {
	m.mu.Lock()
	s := m.services[id]
	if s == nil || !s.ours() {
		m.mu.Unlock()
		return nil, nil
	}
	svc, contents := s.svc, s.contents()
	m.mu.Unlock()
	return svc, expand(contents, served(svc), m.opt.NodeName)
}

// Ports returns the ports of a Service that is ours, which must not be changed;
// nil: there is none.
func (m *Model) Ports(id ID) []Port {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.services[id]; s != nil && s.ours() {
		return s.svc.Ports
	}
	return nil
}

// Endpoints returns the endpoints of a Service, whether the Service is ours,
// another's or not known: each address once, sorted, with the best of its
// states, and without a port. What no slice gives a port to is not ready.
func (m *Model) Endpoints(id ID) []Endpoint {
	m.mu.Lock()
	s := m.services[id]
	if s == nil {
		m.mu.Unlock()
		return nil
	}
	contents := s.contents()
	m.mu.Unlock()
	return expand(contents, portless, m.opt.NodeName)
}

// Lists reports whether a slice of a Service names an address, ready or not,
// with a port of that number, whether the Service still has that port or not.
func (m *Model) Lists(id ID, addr netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.services[id]
	return s != nil && slices.ContainsFunc(s.slices, func(sl *slice) bool { return sl.content.lists(addr) })
}

// Problems returns the Problems that an ID has now: those of the Service
// itself and, while it is ours, of its slices, by slice name. The zero ID has
// those of the own Node.
func (m *Model) Problems(id ID) []Problem {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id == (ID{}) {
		return slices.Clone(m.own.problems)
	}
	s := m.services[id]
	if s == nil {
		return nil
	}
	probs := slices.Clone(s.problems)
	if !s.ours() {
		return probs
	}
	contents := s.contents()
	slices.SortFunc(contents, func(a, b *sliceContent) int { return cmp.Compare(a.id.Name, b.id.Name) })
	for _, c := range contents {
		probs = append(probs, c.problems...)
	}
	return probs
}

// Services returns the names of all Services that are ours, sorted.
func (m *Model) Services() []ID {
	m.mu.Lock()
	ids := make([]ID, 0, len(m.services))
	for id, s := range m.services {
		if s.ours() {
			ids = append(ids, id)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(ids, ID.Compare)
	return ids
}

// Asking returns the Services of ours that ask for an address from outside, a load balancer's or an external IP, whether
// they may have it or not. Sorted.
func (m *Model) Asking(a netip.Addr) []ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Keys(m.asking[a]), ID.Compare)
}

// Node returns the own Node as it is now. Its lists must not be changed.
func (m *Model) Node() Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.own.node
}

// APIServers returns the addresses by which the source reaches the API server,
// sorted. They are only ever added to; each addition makes the Service
// default/kubernetes dirty.
func (m *Model) APIServers() []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.apiServers
}

func (s *service) contents() []*sliceContent {
	contents := make([]*sliceContent, len(s.slices))
	for i, sl := range s.slices {
		contents[i] = sl.content
	}
	return contents
}
