package cluster

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testSlice is a slice of default/web with 10.1.0.1:8080.
func testSlice(name string, change ...func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, Labels: map[string]string{"kubernetes.io/service-name": "web"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.1"}}},
		Ports:       []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

// show is an endpoint in one line: "10.1.0.1:8080/TCP" and what is not the
// default.
func show(e Endpoint) string {
	s := fmt.Sprintf("%s:%d/%s", e.Addr, e.Port, e.Protocol)
	add := func(is bool, text string) {
		if is {
			s += " " + text
		}
	}
	add(e.PortName != "", e.PortName)
	add(e.NodeName != "", "node="+e.NodeName)
	add(e.Zone != "", "zone="+e.Zone)
	add(e.ZoneHints != nil, "zones="+strings.Join(e.ZoneHints, ","))
	add(e.NodeHints != nil, "nodes="+strings.Join(e.NodeHints, ","))
	add(!e.Ready, "unready")
	add(!e.Serving, "unserving")
	add(e.Terminating, "terminating")
	return s
}

func shown(eps []Endpoint) []string {
	var out []string
	for _, e := range eps {
		out = append(out, show(e))
	}
	return out
}

func TestSanitiseSlice(t *testing.T) {
	type slice = discoveryv1.EndpointSlice
	endpoints := func(addrs ...string) []discoveryv1.Endpoint {
		var out []discoveryv1.Endpoint
		for _, a := range addrs {
			out = append(out, discoveryv1.Endpoint{Addresses: []string{a}})
		}
		return out
	}
	udp, icmp := corev1.ProtocolUDP, corev1.Protocol("ICMP")
	for _, test := range []struct {
		name     string
		change   func(*slice)
		want     []string
		problems []string
	}{
		{name: "plain", change: func(s *slice) {}, want: []string{"10.1.0.1:8080/TCP"}},
		{name: "no ports", change: func(s *slice) { s.Ports = nil }},
		{name: "no endpoints", change: func(s *slice) { s.Endpoints = nil }},
		{
			name: "bad addresses cost themselves",
			change: func(s *slice) {
				s.Endpoints = endpoints("10.1.0.2", "fd00::1", "127.0.0.1", "169.254.0.1", "0.0.0.0", "224.0.0.1",
					"255.255.255.255", "::ffff:10.1.0.9", "010.1.0.3", "pod.example")
			},
			want: []string{"10.1.0.2:8080/TCP", "10.1.0.3:8080/TCP"},
			problems: []string{
				"endpoints[1].addresses[0]: WrongFamily", "endpoints[2].addresses[0]: Loopback", "endpoints[3].addresses[0]: LinkLocal",
				"endpoints[4].addresses[0]: Unspecified", "endpoints[5].addresses[0]: Multicast", "endpoints[6].addresses[0]: Broadcast",
				"endpoints[7].addresses[0]: IPv4Mapped", "endpoints[9].addresses[0]: InvalidAddress",
			},
		},
		{
			name: "IPv6",
			change: func(s *slice) {
				s.AddressType, s.Endpoints = "IPv6", endpoints("fd00::2", "10.1.0.1", "::ffff:10.1.0.9", "fe80::1%eth0", "fd00::1")
			},
			want: []string{"fd00::1:8080/TCP", "fd00::2:8080/TCP"},
			problems: []string{
				"endpoints[1].addresses[0]: WrongFamily", "endpoints[2].addresses[0]: IPv4Mapped", "endpoints[3].addresses[0]: ZonedAddress",
			},
		},
		{name: "FQDN", change: func(s *slice) { s.AddressType = "FQDN" }, problems: []string{"addressType: AddressType"}},
		{name: "no address type", change: func(s *slice) { s.AddressType = "" }, problems: []string{"addressType: AddressType"}},
		{
			name: "first usable address",
			change: func(s *slice) {
				s.Endpoints = []discoveryv1.Endpoint{{}, {Addresses: []string{"::1", "10.1.0.5", "10.1.0.6"}}}
			},
			want:     []string{"10.1.0.5:8080/TCP"},
			problems: []string{"endpoints[0].addresses: NoAddress", "endpoints[1].addresses[0]: Loopback"},
		},
		{
			name: "ports",
			change: func(s *slice) {
				s.Ports = []discoveryv1.EndpointPort{
					{}, {Name: new("z"), Port: new(int32(0))}, {Name: new("z"), Port: new(int32(-5))}, {Name: new("z"), Port: new(int32(70000))},
					{Name: new("z"), Port: new(int32(65535))}, {Name: new("a"), Port: new(int32(1)), Protocol: &udp},
					{Name: new("a"), Port: new(int32(2))}, {Name: new("a"), Port: new(int32(3))}, {Port: new(int32(1)), Protocol: &icmp},
				}
			},
			want: []string{"10.1.0.1:2/TCP a", "10.1.0.1:1/UDP a", "10.1.0.1:65535/TCP z"},
			problems: []string{
				"ports[0].port: NoPort", "ports[1].port: PortRange", "ports[2].port: PortRange", "ports[3].port: PortRange",
				"ports[8].protocol: Protocol", "ports: Duplicate",
			},
		},
		{
			name: "conditions, places and hints",
			change: func(s *slice) {
				s.Endpoints = endpoints("10.1.0.1", "10.1.0.2", "10.1.0.3")
				s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false), Terminating: new(true)}
				s.Endpoints[1].Conditions = discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}
				s.Endpoints[1].NodeName, s.Endpoints[1].Zone = new("n1"), new("z1")
				s.Endpoints[1].Hints = &discoveryv1.EndpointHints{
					ForZones: []discoveryv1.ForZone{{Name: "z2"}, {Name: "z1"}, {Name: "z2"}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}},
				}
				s.Endpoints[2].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: ""}}}
			},
			want: []string{
				"10.1.0.1:8080/TCP unready unserving terminating",
				"10.1.0.2:8080/TCP node=n1 zone=z1 zones=z1,z2 nodes=n1",
				"10.1.0.3:8080/TCP zones=",
			},
			problems: []string{"endpoints[2].hints.forZones[0].name: Hints"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := sanitiseSlice(testSlice("web-1", test.change))
			if diff := cmp.Diff(test.want, shown(expand([]*sliceContent{c}, everyPort, "n1"))); diff != "" {
				t.Errorf("endpoints (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.problems, reasons(c.problems)); diff != "" {
				t.Errorf("Problems (-want +got):\n%s", diff)
			}
			for _, p := range c.problems {
				if p.Service != (ID{"default", "web"}) || p.Object != "EndpointSlice default/web-1" {
					t.Errorf("Problem of %v, %s", p.Service, p.Object)
				}
			}
		})
	}
}

func TestSliceNotOurs(t *testing.T) {
	for name, labels := range map[string]map[string]string{
		"no labels":     nil,
		"empty service": {"kubernetes.io/service-name": ""},
		"headless":      {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""},
	} {
		if sanitiseSlice(testSlice("x", func(s *discoveryv1.EndpointSlice) { s.Labels = labels })) != nil {
			t.Errorf("%s: the slice counts", name)
		}
	}
}

// Of copies in several slices the best counts, whichever comes first.
func TestCopies(t *testing.T) {
	state := func(node string, ready, serving, terminating bool) func(*discoveryv1.EndpointSlice) {
		return func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].NodeName = &node
			s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
		}
	}
	better := []func(*discoveryv1.EndpointSlice){ // each better than the next
		state("own", true, true, false), state("a", true, true, false), state("b", true, true, false), state("", true, true, false),
		state("own", false, true, false), state("own", false, true, true), state("own", false, false, false), state("own", false, false, true),
	}
	for i := range better[:len(better)-1] {
		a, b := sanitiseSlice(testSlice("x", better[i])), sanitiseSlice(testSlice("x", better[i+1]))
		want := shown(expand([]*sliceContent{a}, everyPort, "own"))
		for _, order := range [][]*sliceContent{{a, b}, {b, a}, {b, a, b}} {
			if diff := cmp.Diff(want, shown(expand(order, everyPort, "own"))); diff != "" {
				t.Errorf("%d against %d (-want +got):\n%s", i, i+1, diff)
			}
		}
	}
}

func TestRecordIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(record{}); n > 40 {
		t.Errorf("a record has %d bytes", n)
	}
	c := sanitiseSlice(testSlice("x", func(s *discoveryv1.EndpointSlice) {
		s.Endpoints = append(s.Endpoints, s.Endpoints[0], discoveryv1.Endpoint{})
	}))
	if len(c.records) != 1 || cap(c.records) != 1 {
		t.Errorf("%d records, room for %d", len(c.records), cap(c.records))
	}
}

func everyPort(c *sliceContent) []slicePort { return c.ports }

// Of a slice only the ports that its Service has become endpoints. One of 37 KB can name 1,000 addresses and 2,000 ports,
// which would be 2,000,000 of them.
func TestB92PortsOfTheService(t *testing.T) {
	m := NewModel(Options{NodeName: "n1"})
	m.SetService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1",
		Ports: []corev1.ServicePort{{Name: "p7", Port: 80}, {Name: "p9", Port: 80, Protocol: corev1.ProtocolUDP}, {Name: "none", Port: 81}}}})
	sl := testSlice("big", func(s *discoveryv1.EndpointSlice) {
		s.Ports, s.Endpoints = nil, nil
		for i := range 2000 {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(fmt.Sprintf("p%d", i)), Port: new(int32(1 + i))})
		}
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new("p9"), Port: new(int32(53)), Protocol: new(corev1.ProtocolUDP)})
		for i := range 1000 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.9.%d.%d", i>>8, i&255)}})
		}
	})
	m.SetSlice(sl)
	id := ID{"default", "web"}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, eps := m.Get(id)
	addresses := m.Endpoints(id)
	runtime.ReadMemStats(&after)
	if kb := (after.TotalAlloc - before.TotalAlloc) >> 10; kb > 1024 {
		t.Errorf("reading the endpoints takes %d KB, want 1,024 at most", kb)
	}
	if len(eps) != 2000 || len(addresses) != 1000 {
		t.Fatalf("%d endpoints for two ports of 1,000 addresses, %d addresses", len(eps), len(addresses))
	}
	for i, ep := range eps {
		want := slicePort{"p7", TCP, 8}
		if i >= 1000 {
			want = slicePort{"p9", UDP, 53}
		}
		if got := (slicePort{ep.PortName, ep.Protocol, ep.Port}); got != want {
			t.Fatalf("endpoint %d is of port %v, want %v", i, got, want)
		}
	}
	if ep := addresses[0]; ep.Port != 0 || ep.PortName != "" || !ep.Ready {
		t.Errorf("an address: %+v", ep)
	}
}
