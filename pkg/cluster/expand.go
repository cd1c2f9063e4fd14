package cluster

import (
	"cmp"
	"slices"
	"unique"
)

// hints are the hints of a place, split.
type hints struct{ zones, nodes []string }

// expand multiplies slices out into the endpoints of one Service, for those
// ports of each slice that are asked for: sorted, and of copies only the best.
func expand(contents []*sliceContent, portsOf func(*sliceContent) []slicePort, ownNode string) []Endpoint {
	total := 0
	ports := make([][]slicePort, len(contents))
	for i, c := range contents {
		ports[i] = portsOf(c)
		total += len(ports[i]) * len(c.records)
	}
	if total == 0 {
		return nil
	}
	eps := make([]Endpoint, 0, total)
	split := map[unique.Handle[place]]hints{}
	for n, c := range contents {
		for i := range c.records {
			ep := c.records[i].endpoint(split)
			ep.Weight = c.weight
			if len(c.ports) == 0 { // nobody can be sent there
				ep.Ready, ep.Serving = false, false
			}
			for _, p := range ports[n] {
				ep.PortName, ep.Protocol, ep.Port = p.name, p.proto, p.port
				eps = append(eps, ep)
			}
		}
	}
	slices.SortFunc(eps, func(a, b Endpoint) int {
		return cmp.Or(compareIdentity(&a, &b), compareState(&a, &b, ownNode))
	})
	return slices.CompactFunc(eps, func(a, b Endpoint) bool { return compareIdentity(&a, &b) == 0 })
}

// served gives the ports of a slice that a Service has: by name and protocol.
// A slice may list 20,000 others, at 40 bytes each, and would cost that many
// endpoints for each of its addresses.
func served(svc *Service) func(*sliceContent) []slicePort {
	names := make([]slicePort, len(svc.Ports))
	for i, p := range svc.Ports {
		names[i] = slicePort{name: p.Name, proto: p.Protocol}
	}
	slices.SortFunc(names, compareNames)
	return func(c *sliceContent) []slicePort {
		var common []slicePort
		for _, p := range c.ports { // a Service of many ports may have a slice for each
			if _, has := slices.BinarySearchFunc(names, p, compareNames); has {
				common = append(common, p)
			}
		}
		return common
	}
}

// portless gives one port for any slice: each address counts once.
func portless(*sliceContent) []slicePort { return []slicePort{{}} }

// endpoint is the record without a port.
func (r *record) endpoint(split map[unique.Handle[place]]hints) Endpoint {
	pl := r.place.Value()
	ep := Endpoint{
		Addr: r.addr, NodeName: pl.node, Zone: pl.zone,
		Ready: r.state&ready != 0, Serving: r.state&serving != 0, Terminating: r.state&terminating != 0,
	}
	if pl.zoneHints != "" || pl.nodeHints != "" {
		h, ok := split[r.place]
		if !ok {
			h = hints{splitHints(pl.zoneHints), splitHints(pl.nodeHints)}
			split[r.place] = h
		}
		ep.ZoneHints, ep.NodeHints = h.zones, h.nodes
	}
	return ep
}

func compareIdentity(a, b *Endpoint) int {
	return cmp.Or(cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol),
		a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
}

// compareState puts the better of two copies first, and leaves no two
// different ones equal: which slice came first must not matter.
func compareState(a, b *Endpoint, ownNode string) int {
	return cmp.Or(trueFirst(a.Ready, b.Ready), trueFirst(a.Serving, b.Serving),
		trueFirst(!a.Terminating, !b.Terminating),
		trueFirst(a.NodeName == ownNode, b.NodeName == ownNode), // kube-proxy favours the local copy as well
		trueFirst(a.NodeName != "", b.NodeName != ""), cmp.Compare(a.NodeName, b.NodeName),
		cmp.Compare(a.Zone, b.Zone),
		trueFirst(a.Weight.Given, b.Weight.Given), cmp.Compare(b.Weight.Is, a.Weight.Is),
		slices.Compare(a.ZoneHints, b.ZoneHints), slices.Compare(a.NodeHints, b.NodeHints))
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
