package cluster

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Options say which part of the cluster a Model keeps.
type Options struct {
	// NodeName is the own node; other Nodes are ignored.
	NodeName string
	// ServiceProxyName: empty takes the Services without the label
	// service.kubernetes.io/service-proxy-name, anything else exactly those
	// with this value.
	ServiceProxyName string
}

// Model holds the part of the cluster that this node needs. Sources feed it,
// one loop reads it; all methods are safe for concurrent use.
//
// It is a function of the final objects: the order in which they came leaves
// no trace. An object that says nothing new dirties nothing. A call costs in
// proportion to its object, never to the number of others.
type Model struct {
	opt     Options
	changed chan struct{}

	mu         sync.Mutex
	services   map[ID]*service
	slices     map[ID]*slice // by the slice's own namespace and name
	own        own
	apiServers []netip.Addr // sorted
	named      map[netip.Addr]naming
	asking     map[netip.Addr]map[ID]struct{} // who asks for an address from outside
	dirty      []ID                           // first dirtied first
	queued     map[ID]struct{}
	synced     bool
	complete   bool
	started    time.Time
	tally
}

// tally counts what has happened to a Model.
type tally struct {
	changes  [2]uint64 // of Services, of slices
	measures uint64    // how often the answer of Measured may have changed
}

// own is this node, as its Node object has it.
type own struct {
	node     Node
	problems []Problem
	changed  bool // since it was last asked about
}

// service is all that is kept under one Service's name: either half may come
// first or stay alone.
type service struct {
	svc      *Service // nil: absent or of no use here
	problems []Problem
	slices   []*slice // in no order
	// triggers are the changes of slices that Take told of and nobody has asked for yet; nearly always none.
	triggers []Trigger
}

// slice is an EndpointSlice in its place.
type slice struct {
	content *sliceContent
	pos     int // in the slices of its Service
}

// NewModel returns an empty Model that is not synced.
func NewModel(opt Options) *Model {
	return &Model{
		opt:      opt,
		changed:  make(chan struct{}, 1),
		services: map[ID]*service{},
		slices:   map[ID]*slice{},
		named:    map[netip.Addr]naming{},
		asking:   map[netip.Addr]map[ID]struct{}{},
		own:      own{node: Node{Name: opt.NodeName}},
		queued:   map[ID]struct{}{},
		started:  time.Now(),
	}
}

// SetService takes a Service as it is now. Of a Service that is not ours (any
// more) no more counts than that its ClusterIPs are its own, and it has no
// Problems. The object is not kept.
func (m *Model) SetService(obj *corev1.Service) []Problem {
	if obj == nil {
		return nil
	}
	svc, probs := sanitiseService(obj, m.opt)
	m.setService(objectID(obj), svc, probs)
	return probs
}

// DeleteService forgets a Service. Its slices stay until they are deleted
// themselves.
func (m *Model) DeleteService(namespace, name string) {
	m.setService(ID{namespace, name}, nil, nil)
}

// SetSlice takes an EndpointSlice as it is now. One without the label
// kubernetes.io/service-name or of a headless Service is as good as deleted
// and has no Problems. The object is not kept.
func (m *Model) SetSlice(obj *discoveryv1.EndpointSlice) []Problem {
	if obj == nil {
		return nil
	}
	content := sanitiseSlice(obj)
	m.setSlice(objectID(obj), content)
	if content == nil {
		return nil
	}
	return content.problems
}

// DeleteSlice forgets an EndpointSlice.
func (m *Model) DeleteSlice(namespace, name string) {
	m.setSlice(ID{namespace, name}, nil)
}

// SetNode takes a Node as it is now; only the own one counts. The object is
// not kept.
func (m *Model) SetNode(obj *corev1.Node) []Problem {
	if obj == nil || obj.Name != m.opt.NodeName {
		return nil
	}
	node, probs := sanitiseNode(obj)
	m.setNode(node, probs)
	return probs
}

// DeleteNode takes that the Node object is gone; only the own one counts. Its
// addresses, ranges of pods and zone hold until there are others.
func (m *Model) DeleteNode(name string) {
	if name == m.opt.NodeName {
		m.setNode(Node{Name: name}, nil)
	}
}

// SetSynced is called by the source when it has delivered its first complete
// state: from now on what is absent is meant to be absent.
func (m *Model) SetSynced() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.synced {
		m.synced = true
		m.signal()
	}
}

// SetComplete is called by the source when it knows that nothing is missing
// from what it has delivered: from now on what is not in the Model is not in
// the cluster. Until then absence means nothing, so nothing may be removed
// because of it.
func (m *Model) SetComplete() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.complete {
		m.complete = true
		m.signal()
	}
}

// Complete reports whether SetComplete was called.
func (m *Model) Complete() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.complete
}

// Changed has a token whenever there is something new for [Model.Take].
func (m *Model) Changed() <-chan struct{} { return m.changed }

func (m *Model) setService(id ID, svc *Service, probs []Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes[0]++
	s := m.services[id]
	if s == nil {
		if svc == nil && len(probs) == 0 {
			return
		}
		s = m.service(id)
	}
	if !measuredAlike(s.svc, svc) {
		m.measures++
	}
	same := slices.Equal(s.problems, probs) &&
		(s.svc == nil && svc == nil || s.svc != nil && svc != nil && s.svc.equal(svc))
	m.ask(id, s.svc, svc)
	m.age(s, s.svc, svc)
	// The new one is stored even when it is equal: a source that keeps
	// sanitised objects shares them with the Model this way.
	s.svc, s.problems = svc, probs
	m.tidy(id, s)
	if !same {
		m.mark(id)
	}
}

func (m *Model) setSlice(id ID, content *sliceContent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes[1]++
	old := m.slices[id]
	if old != nil && content != nil && old.content.service == content.service {
		same := old.content.equal(content)
		before := old.content.records
		old.content = content
		if !same {
			m.name(m.services[content.service], before, content.records)
			m.noteTrigger(content)
			m.markServed(content.service)
		}
		return
	}
	if old != nil {
		m.detach(id, old)
	}
	if content != nil {
		s := m.service(content.service)
		sl := &slice{content: content, pos: len(s.slices)}
		s.slices = append(s.slices, sl)
		m.slices[id] = sl
		m.name(s, nil, content.records)
		m.noteTrigger(content)
		m.markServed(content.service)
	}
}

// detach takes a slice away from its Service.
func (m *Model) detach(id ID, sl *slice) {
	owner := sl.content.service
	s := m.services[owner]
	s.triggers = nil // what is dated in a slice that goes is not its going
	m.name(s, sl.content.records, nil)
	last := len(s.slices) - 1
	s.slices[sl.pos] = s.slices[last]
	s.slices[sl.pos].pos = sl.pos
	s.slices[last] = nil
	s.slices = s.slices[:last]
	delete(m.slices, id)
	m.markServed(owner)
	m.tidy(owner, s)
}

func (m *Model) setNode(node Node, probs []Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node = lasting(node, m.own.node)
	if m.own.node.equal(node) && slices.Equal(m.own.problems, probs) {
		return
	}
	m.own.node, m.own.problems, m.own.changed = node, probs, true
	m.signal()
}

// lasting is a Node with the addresses, the ranges of pods and the zone that it had before where it has none:
// its object is deleted and registered anew, or registered and not filled in
// yet (B84). A Node that has addresses has no zone if it says none.
func lasting(node, before Node) Node {
	if len(node.Addrs) == 0 {
		node.Addrs = before.Addrs
		node.Zone = cmp.Or(node.Zone, before.Zone)
	}
	if len(node.PodCIDRs) == 0 {
		node.PodCIDRs = before.PodCIDRs
	}
	return node
}

// service returns the place of a Service, made if need be.
func (m *Model) service(id ID) *service {
	s := m.services[id]
	if s == nil {
		s = &service{}
		m.services[id] = s
	}
	return s
}

// ours: there is such a Service and this proxy serves it.
func (s *service) ours() bool { return s.svc != nil && !s.svc.Foreign }

// tidy drops a place with nothing left in it.
func (m *Model) tidy(id ID, s *service) {
	if s.svc == nil && len(s.problems) == 0 && len(s.slices) == 0 {
		delete(m.services, id)
	}
}

// markServed marks a Service whose slices changed. One that is absent or not
// ours has no use for the news; its slices count when it appears.
func (m *Model) markServed(id ID) {
	if s := m.services[id]; s != nil && s.ours() || id == kubernetes {
		m.mark(id)
	}
}

// kubernetes is the API server's own Service: its endpoints are protected, whoever serves it.
var kubernetes = ID{Namespace: "default", Name: "kubernetes"}

func (m *Model) mark(id ID) {
	if _, ok := m.queued[id]; ok {
		return
	}
	m.queued[id] = struct{}{}
	m.dirty = append(m.dirty, id)
	m.signal()
}

func (m *Model) signal() {
	select {
	case m.changed <- struct{}{}:
	default: // a token is there already
	}
}
