package cluster

import (
	"net/netip"
	"slices"
)

// What only a source needs of a Model.

// mostAPIServers bounds what a name with ever new addresses can do.
const mostAPIServers = 64

// AddAPIServers is called by the source with addresses by which it reaches the
// API server, and returns those that are new. They are for no Service from
// outside.
func (m *Model) AddAPIServers(addrs []netip.Addr) (added []netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := slices.Clone(m.apiServers) // the old list is in others' hands
	for _, a := range addrs {
		if i, found := slices.BinarySearchFunc(next, a, netip.Addr.Compare); !found && len(next) < mostAPIServers {
			next = slices.Insert(next, i, a)
			added = append(added, a)
		}
	}
	if len(added) > 0 {
		m.apiServers = next
		m.mark(kubernetes)
	}
	return added
}

func (m *Model) isAPIServer(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.apiServers, a)
}

// withClusterIP lists the Services of ours with a ClusterIP. It looks at all of them.
func (m *Model) withClusterIP(a netip.Addr) (ids []ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, s := range m.services {
		if s.ours() && slices.Contains(s.svc.ClusterIPs, a) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, ID.Compare)
	return ids
}

// prune forgets all objects of a kind but these.
func (m *Model) prune(kind string, keep map[ID]struct{}) {
	var gone []ID
	note := func(id ID) {
		if _, kept := keep[id]; !kept {
			gone = append(gone, id)
		}
	}
	m.mu.Lock()
	switch kind {
	case "Service":
		for id, s := range m.services {
			if s.svc != nil || len(s.problems) > 0 {
				note(id)
			}
		}
	case "EndpointSlice":
		for id := range m.slices {
			note(id)
		}
	case "Node":
		note(ID{Name: m.opt.NodeName})
	}
	m.mu.Unlock()
	slices.SortFunc(gone, ID.Compare) // what follows is the same on every node
	for _, id := range gone {
		m.drop(objectKey{kind, id})
	}
}

// uid is the UID of a Service, zero when it is not ours.
func (m *Model) uid(id ID) UID {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.services[id]; s != nil && s.ours() {
		return s.svc.UID
	}
	return UID{}
}
