package cluster

import (
	"net/netip"
	"slices"
)

// Named says who has an address as an endpoint. The zero value: nobody has.
type Named struct {
	// Pod is a Service of which a slice has the address on a node: it is a pod's, or that node's. Of several it is the
	// one whose name comes first; zero: there is none.
	Pod ID
	// ByHand is the oldest of the known Services of which a slice has it without a node, as what people write by hand
	// is, and Created when that Service was made; zero: there is none.
	ByHand  ID
	Created int64
}

// naming are the slices that name an address, counted by their Service. Nearly always it is one.
type naming struct {
	one  *service
	n    uses
	more map[*service]uses
}

// uses counts the records of a Service's slices that name an address, on a node and without one.
type uses struct{ onNode, byHand int32 }

func (u *uses) add(onNode bool, by int32) {
	if onNode {
		u.onNode += by
	} else {
		u.byHand += by
	}
}

// count counts a record of a Service up or down.
func (n *naming) count(s *service, onNode bool, by int32) {
	if n.n == (uses{}) {
		n.one = s
	}
	if n.one != s {
		if n.more == nil {
			n.more = map[*service]uses{}
		}
		u := n.more[s]
		if u.add(onNode, by); u == (uses{}) {
			delete(n.more, s)
		} else {
			n.more[s] = u
		}
		return
	}
	if n.n.add(onNode, by); n.n != (uses{}) {
		return
	}
	n.one = nil
	for next, u := range n.more { // whichever takes the place
		n.one, n.n = next, u
		delete(n.more, next)
		return
	}
}

// each calls f for every Service that names the address, in no order.
func (n naming) each(f func(*service, uses)) {
	if n.one == nil {
		return
	}
	f(n.one, n.n)
	for s, u := range n.more {
		f(s, u)
	}
}

// Named says who has an address as an endpoint, ready or not, whoever serves the Service.
func (m *Model) Named(a netip.Addr) Named {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.namedNow(a)
}

func (m *Model) namedNow(a netip.Addr) (is Named) {
	m.named[a].each(func(s *service, u uses) {
		id := s.slices[0].content.service
		if u.onNode > 0 && (is.Pod == (ID{}) || id.Less(is.Pod)) {
			is.Pod = id
		}
		if u.byHand == 0 || s.svc == nil {
			return
		}
		if c := s.svc.Created; is.ByHand == (ID{}) || c < is.Created || c == is.Created && id.Less(is.ByHand) {
			is.ByHand, is.Created = id, c
		}
	})
	return is
}

// name counts what a Service's slice says of addresses from now on in the place of what it said before, and marks the
// Services that ask for one of these from outside: whether they may have it is another question now. What both say
// costs no more than looking at it.
func (m *Model) name(s *service, before, after []record) {
	for len(before)+len(after) > 0 {
		switch c := compareNext(before, after); {
		case c < 0:
			m.countRecord(s, before[0], -1)
			before = before[1:]
		case c > 0:
			m.countRecord(s, after[0], +1)
			after = after[1:]
		default:
			if x, y := before[0].onNode(), after[0].onNode(); x != y {
				m.countRecord(s, before[0], -1)
				m.countRecord(s, after[0], +1)
			}
			before, after = before[1:], after[1:]
		}
	}
}

// compareNext compares the first addresses of two sorted lists, of which an empty one comes last.
func compareNext(a, b []record) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return a[0].addr.Compare(b[0].addr)
}

func (r record) onNode() bool { return r.place.Value().node != "" }

func (m *Model) countRecord(s *service, r record, by int32) {
	asked := len(m.asking[r.addr]) > 0
	var before Named
	if asked {
		before = m.namedNow(r.addr)
	}
	n := m.named[r.addr]
	if n.count(s, r.onNode(), by); n.one == nil {
		delete(m.named, r.addr)
	} else {
		m.named[r.addr] = n
	}
	if asked && m.namedNow(r.addr) != before {
		m.markAsking(r.addr)
	}
}

// markAsking marks the Services that ask for an address from outside.
func (m *Model) markAsking(a netip.Addr) {
	for id := range m.asking[a] {
		m.mark(id)
	}
}

// asks are the addresses that a Service asks for from outside, sorted lists one after the other.
func asks(s *Service) []netip.Addr {
	if s == nil || len(s.LoadBalancerIPs)+len(s.ExternalIPs) == 0 {
		return nil
	}
	return slices.Concat(s.LoadBalancerIPs, s.ExternalIPs)
}

// ask notes which addresses a Service asks for from outside.
func (m *Model) ask(id ID, before, after *Service) {
	if before != nil && after != nil && slices.Equal(before.LoadBalancerIPs, after.LoadBalancerIPs) && slices.Equal(before.ExternalIPs, after.ExternalIPs) {
		return
	}
	for _, a := range asks(before) {
		if delete(m.asking[a], id); len(m.asking[a]) == 0 {
			delete(m.asking, a)
		}
	}
	for _, a := range asks(after) {
		if m.asking[a] == nil {
			m.asking[a] = map[ID]struct{}{}
		}
		m.asking[a][id] = struct{}{}
	}
}

// age has the Services decided anew that ask for an address which a Service's slices name by hand: the Service came,
// went, or is another of the same name, and the older has it.
func (m *Model) age(s *service, before, after *Service) {
	if (before == nil) == (after == nil) && (before == nil || before.Created == after.Created) {
		return
	}
	for _, sl := range s.slices {
		for _, r := range sl.content.records {
			if !r.onNode() {
				m.markAsking(r.addr)
			}
		}
	}
}

// Held gives the ClusterIPs of a Service that another proxy serves, sorted, and when the Service was made: nobody else
// may have them.
func (m *Model) Held(id ID) (addrs []netip.Addr, created int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.services[id]
	if s == nil || s.svc == nil || !s.svc.Foreign {
		return nil, 0
	}
	addrs = slices.Clone(s.svc.ClusterIPs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, s.svc.Created
}
