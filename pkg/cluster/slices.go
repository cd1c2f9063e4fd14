package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// sliceContent is what an EndpointSlice says, sanitised. Immutable. It is kept
// as the API has it, addresses times ports, and multiplied out only when read:
// 40 bytes an address instead of 128 for each of its ports.
type sliceContent struct {
	id       ID // of the slice
	service  ID
	ports    []slicePort // sorted
	records  []record    // sorted, unique
	problems []Problem
	ipv4     bool
	weight   Weight
	trigger  int64 // when the change was that led to this content, Unix nanoseconds; 0: unknown. No part of it
}

type slicePort struct {
	name  string
	proto Protocol
	port  uint16
}

// record is an address with its state.
type record struct {
	addr  netip.Addr
	place unique.Handle[place]
	state state
}

// place is what many endpoints have in common: one copy for all endpoints on
// a node, kept as long as one of them needs it. Each hint ends with a NUL.
type place struct{ node, zone, zoneHints, nodeHints string }

type state uint8

const (
	ready state = 1 << iota
	serving
	terminating
)

// intern gives the one shared copy of a string that many objects repeat.
func intern(s string) string { return unique.Make(s).Value() }

func (c *sliceContent) equal(o *sliceContent) bool {
	return c.service == o.service && c.weight == o.weight && slices.Equal(c.ports, o.ports) &&
		slices.Equal(c.records, o.records) && slices.Equal(c.problems, o.problems)
}

func (c *sliceContent) lists(addr netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(c.records, addr.Addr(), func(r record, a netip.Addr) int { return r.addr.Compare(a) })
	return found && slices.ContainsFunc(c.ports, func(p slicePort) bool { return p.port == addr.Port() })
}

// sanitiseSlice reads an EndpointSlice; nil when it has no Service or its
// Service is headless.
func sanitiseSlice(obj *discoveryv1.EndpointSlice) *sliceContent {
	name := obj.Labels[discoveryv1.LabelServiceName]
	if _, headless := obj.Labels[corev1.IsHeadlessService]; headless || name == "" {
		return nil
	}
	c := &sliceContent{id: objectID(obj), service: ID{intern(obj.Namespace), name}}
	p := &problems{service: c.service, object: "EndpointSlice " + c.id.String()}
	c.trigger = p.trigger(obj)
	c.weight = p.weight(obj.Annotations)
	if t := obj.AddressType; t == discoveryv1.AddressTypeIPv4 || t == discoveryv1.AddressTypeIPv6 {
		c.ipv4 = t == discoveryv1.AddressTypeIPv4
		c.ports = p.slicePorts(obj.Ports)
		c.records = p.records(obj.Endpoints, c.ipv4)
	} else {
		p.add(ReasonAddressType, "addressType", "%s endpoints cannot be used, only IPv4 and IPv6", quote(string(t)))
	}
	c.problems = slices.Clip(p.list)
	return c
}

func (p *problems) slicePorts(ports []discoveryv1.EndpointPort) []slicePort {
	out := make([]slicePort, 0, len(ports))
	for i := range ports {
		port, ok := p.slicePort(&ports[i], i)
		if ok {
			out = append(out, port)
		}
	}
	// Of two numbers for one name the first counts. A sort by name and
	// protocol that is stable puts it first.
	slices.SortStableFunc(out, compareNames)
	given := len(out)
	out = slices.CompactFunc(out, func(a, b slicePort) bool { return compareNames(a, b) == 0 })
	if n := given - len(out); n > 0 {
		p.add(ReasonDuplicate, "ports", "%d repeat the name and protocol of an earlier one", n)
	}
	return slices.Clip(out)
}

func (p *problems) slicePort(port *discoveryv1.EndpointPort, i int) (slicePort, bool) {
	var out slicePort
	if port.Name != nil {
		out.name = intern(*port.Name)
	}
	protocol := corev1.ProtocolTCP
	if port.Protocol != nil {
		protocol = *port.Protocol
	}
	var ok bool
	if out.proto, ok = parseProtocol(protocol); !ok {
		p.add(ReasonProtocol, fmt.Sprintf("ports[%d].protocol", i), "%s is not a protocol of Services", quote(string(protocol)))
		return out, false
	}
	field := fmt.Sprintf("ports[%d].port", i)
	if port.Port == nil {
		p.add(ReasonNoPort, field, "no port number")
		return out, false
	}
	if !validPort(*port.Port) {
		p.add(ReasonPortRange, field, "%d is not between 1 and 65535", *port.Port)
		return out, false
	}
	out.port = uint16(*port.Port)
	return out, true
}

func compareNames(a, b slicePort) int {
	return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.proto, b.proto))
}

func (p *problems) records(endpoints []discoveryv1.Endpoint, ipv4 bool) []record {
	out := make([]record, 0, len(endpoints))
	for i := range endpoints {
		ep := &endpoints[i]
		p.node = ""
		if ep.NodeName != nil {
			p.node = intern(*ep.NodeName)
		}
		addr, ok := p.endpointAddr(ep.Addresses, i, ipv4)
		if !ok {
			continue
		}
		out = append(out, record{addr: addr, place: unique.Make(p.place(ep, i)), state: stateOf(ep.Conditions)})
	}
	slices.SortFunc(out, compareRecords)
	out = slices.Compact(out)
	if len(out) < cap(out) {
		out = append(make([]record, 0, len(out)), out...)
	}
	return out
}

// endpointAddr gives the first address that can be used: all addresses of an
// endpoint lead to the same place, and kube-proxy, too, takes one of them.
func (p *problems) endpointAddr(addrs []string, i int, ipv4 bool) (netip.Addr, bool) {
	if len(addrs) == 0 {
		p.add(ReasonNoAddress, fmt.Sprintf("endpoints[%d].addresses", i), "no address")
	}
	for j, s := range addrs {
		a, fault := parseAddr(s)
		if fault.reason == "" && a.Is4() != ipv4 {
			fault = addrFault{ReasonWrongFamily, quote(s) + " is not of the slice's address type"}
		}
		if fault.reason == "" {
			return a, true
		}
		p.add(fault.reason, fmt.Sprintf("endpoints[%d].addresses[%d]", i, j), "%s", fault.message)
	}
	return netip.Addr{}, false
}

func (p *problems) place(ep *discoveryv1.Endpoint, i int) place {
	var pl place
	if ep.NodeName != nil {
		pl.node = *ep.NodeName
	}
	if ep.Zone != nil {
		pl.zone = *ep.Zone
	}
	if h := ep.Hints; h != nil {
		pl.zoneHints = joinHints(p, h.ForZones, func(z discoveryv1.ForZone) string { return z.Name }, i, "forZones")
		pl.nodeHints = joinHints(p, h.ForNodes, func(n discoveryv1.ForNode) string { return n.Name }, i, "forNodes")
	}
	return pl
}

func joinHints[T any](p *problems, hints []T, name func(T) string, endpoint int, field string) string {
	if len(hints) == 1 && isName(name(hints[0])) { // nearly always
		return name(hints[0]) + "\x00"
	}
	names := make([]string, len(hints))
	for i, h := range hints {
		if names[i] = name(h) + "\x00"; !isName(name(h)) { // still a hint, as it is to kube-proxy: for nobody
			p.add(ReasonHints, fmt.Sprintf("endpoints[%d].hints.%s[%d].name", endpoint, field, i), "%s is not a name", quote(name(h)))
		}
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), "")
}

func isName(s string) bool { return s != "" && !strings.Contains(s, "\x00") }

func splitHints(joined string) []string {
	if joined == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(joined, "\x00"), "\x00")
}

func stateOf(c discoveryv1.EndpointConditions) state {
	var s state
	if c.Ready == nil || *c.Ready {
		s |= ready
	}
	if c.Serving == nil || *c.Serving {
		s |= serving
	}
	if c.Terminating != nil && *c.Terminating {
		s |= terminating
	}
	return s
}

func compareRecords(a, b record) int {
	if c := cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.state, b.state)); c != 0 || a.place == b.place {
		return c
	}
	x, y := a.place.Value(), b.place.Value()
	return cmp.Or(cmp.Compare(x.node, y.node), cmp.Compare(x.zone, y.zone),
		cmp.Compare(x.zoneHints, y.zoneHints), cmp.Compare(x.nodeHints, y.nodeHints))
}
