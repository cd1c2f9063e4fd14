package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"unique"
)

// copied is a part of a Model on its way to another process of the same version: one of its fields is there.
type copied struct {
	Service *copiedService `json:"service,omitempty"`
	Slice   *copiedSlice   `json:"slice,omitempty"`
	Node    *copiedNode    `json:"node,omitempty"`
	// APIServers are the addresses by which the source reaches the API server.
	APIServers []netip.Addr `json:"apiServers,omitempty"`
	// Complete is the last of all: what has not come by then is not there, if it is true.
	Complete *bool `json:"complete,omitempty"`
}

type copiedService struct {
	ID       ID        `json:"id"`
	Is       *Service  `json:"is,omitempty"` // nil: nothing of it is of use
	Problems []Problem `json:"problems,omitempty"`
}

type copiedNode struct {
	Is       Node      `json:"is"`
	Problems []Problem `json:"problems,omitempty"`
}

// copiedSlice is a sliceContent.
type copiedSlice struct {
	ID, Service ID
	IPv4        bool           `json:",omitempty"`
	Weight      Weight         `json:",omitzero"`
	Ports       []copiedPort   `json:",omitempty"`
	Records     []copiedRecord `json:",omitempty"`
	Problems    []Problem      `json:",omitempty"`
}

type copiedPort struct {
	Name     string   `json:",omitempty"`
	Protocol Protocol `json:",omitempty"`
	Port     uint16   `json:",omitempty"`
}

type copiedRecord struct {
	Addr                             netip.Addr
	Node, Zone, ZoneHints, NodeHints string `json:",omitempty"`
	State                            uint8  `json:",omitempty"`
}

// WriteCopy writes all that the Model has, for ReadCopy. The Model goes on meanwhile: what changes is there as it was or as
// it is, each object whole.
func (m *Model) WriteCopy(w io.Writer) error {
	to := json.NewEncoder(w)
	var err error
	put := func(c copied) bool {
		if err = to.Encode(c); err != nil {
			err = fmt.Errorf("write a copy of the cluster's objects: %w", err)
		}
		return err == nil
	}
	node, servers, complete := m.copyRest()
	services, slcs := m.copyNames()
	if !put(node) || len(servers) > 0 && !put(copied{APIServers: servers}) {
		return err
	}
	for _, id := range services {
		if s := m.copyService(id); s != nil && !put(copied{Service: s}) {
			return err
		}
	}
	for _, id := range slcs {
		if s := m.copySlice(id); s != nil && !put(copied{Slice: s}) {
			return err
		}
	}
	put(copied{Complete: &complete})
	return err
}

func (m *Model) copyRest() (node copied, servers []netip.Addr, complete bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copied{Node: &copiedNode{m.own.node, m.own.problems}}, m.apiServers, m.complete
}

// copyNames lists the objects that there are. What comes while they are copied is left out.
func (m *Model) copyNames() (services, slcs []ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.services)), slices.Collect(maps.Keys(m.slices))
}

func (m *Model) copyService(id ID) *copiedService {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.services[id]
	if s == nil || s.svc == nil && len(s.problems) == 0 {
		return nil
	}
	return &copiedService{id, s.svc, s.problems} // neither is ever changed
}

func (m *Model) copySlice(id ID) *copiedSlice {
	c := m.contentOf(id)
	if c == nil {
		return nil
	}
	out := &copiedSlice{ID: c.id, Service: c.service, IPv4: c.ipv4, Weight: c.weight, Problems: c.problems}
	for _, p := range c.ports {
		out.Ports = append(out.Ports, copiedPort{p.name, p.proto, p.port})
	}
	for _, r := range c.records {
		at := r.place.Value()
		out.Records = append(out.Records, copiedRecord{r.addr, at.node, at.zone, at.zoneHints, at.nodeHints, uint8(r.state)})
	}
	return out
}

func (m *Model) contentOf(id ID) *sliceContent {
	m.mu.Lock()
	defer m.mu.Unlock()
	if sl := m.slices[id]; sl != nil {
		return sl.content
	}
	return nil
}

// ReadCopy gives a Model with what WriteCopy has written, of the node with the name that opt has.
func ReadCopy(r io.Reader, opt Options) (*Model, error) {
	m := NewModel(opt)
	for from := json.NewDecoder(r); ; {
		var c copied
		if err := from.Decode(&c); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // the last part says so
			}
			return nil, fmt.Errorf("read a copy of the cluster's objects: %w", err)
		}
		switch {
		case c.Service != nil:
			m.setService(c.Service.ID, c.Service.Is, c.Service.Problems)
		case c.Slice != nil:
			m.setSlice(c.Slice.ID, c.Slice.content())
		case c.Node != nil:
			m.setNode(c.Node.Is, c.Node.Problems)
		case c.APIServers != nil:
			m.AddAPIServers(c.APIServers)
		case c.Complete != nil:
			m.SetSynced()
			if *c.Complete {
				m.SetComplete()
			}
			return m, nil
		}
	}
}

func (c *copiedSlice) content() *sliceContent {
	out := &sliceContent{id: c.ID, service: c.Service, ipv4: c.IPv4, weight: c.Weight, problems: c.Problems}
	for _, p := range c.Ports {
		out.ports = append(out.ports, slicePort{intern(p.Name), p.Protocol, p.Port})
	}
	for _, r := range c.Records {
		out.records = append(out.records, record{r.Addr, unique.Make(place{r.Node, r.Zone, r.ZoneHints, r.NodeHints}), state(r.State)})
	}
	return out
}
