package sync

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// fields is a cluster with nothing wrong in it: a Service with all its ways in, its endpoints in both families here and
// elsewhere, a Service beside it, and the own Node.
type fields struct {
	web, other     *corev1.Service
	four, six, far *discoveryv1.EndpointSlice // far is the other Service's
	node           *corev1.Node
	more           []any
}

func sound() *fields {
	f := &fields{web: service("web", "10.96.0.1", 80, 443), other: service("other", "10.96.0.2", 80), node: nodeNamed("192.0.2.7")}
	f.web.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
	f.web.Spec.Type = corev1.ServiceTypeLoadBalancer
	f.web.Spec.Ports[0].NodePort, f.web.Spec.Ports[1].NodePort = 30080, 30443
	f.web.Spec.ExternalIPs = []string{"198.51.100.1"}
	f.web.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}, {IP: "fd20:113::1"}}
	f.four = slice(f.web, "10.244.1.1@node1", "10.244.2.1")
	f.six = slice(f.web, "fd10:244:1::1@node1", "fd10:244:2::1")
	f.six.Name = "web-2"
	f.far = slice(f.other, "10.244.2.2")
	f.node.Labels = map[string]string{corev1.LabelTopologyZone: "east"}
	return f
}

func (f *fields) world() *world {
	return newWorld(append([]any{f.web, f.other, f.four, f.six, f.far, f.node}, f.more...)...)
}

// ranges gives the load balancer source ranges.
func (f *fields) ranges(list ...string) { f.web.Spec.LoadBalancerSourceRanges = list }

// sticky gives the Service affinity with a timeout.
func (f *fields) sticky(seconds int32) {
	f.web.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	f.web.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
}

// port gives the Service one more port.
func (f *fields) port(p corev1.ServicePort) { f.web.Spec.Ports = append(f.web.Spec.Ports, p) }

// endpoints gives the IPv4 slice more endpoints of this node.
func (f *fields) endpoints(addrs ...string) {
	for _, a := range addrs {
		f.four.Endpoints = append(f.four.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: new(thisNode)})
	}
}

// hints gives every endpoint of the Service a zone and hints, for a zone and for a node.
func (f *fields) hints(in, zone, node string) {
	for _, s := range []*discoveryv1.EndpointSlice{f.four, f.six} {
		for i := range s.Endpoints {
			s.Endpoints[i].Zone, s.Endpoints[i].Hints = &in, &discoveryv1.EndpointHints{}
			if zone != "" {
				s.Endpoints[i].Hints.ForZones = []discoveryv1.ForZone{{Name: zone}}
			}
			if node != "" {
				s.Endpoints[i].Hints.ForNodes = []discoveryv1.ForNode{{Name: node}}
			}
		}
	}
}

// badInput is a value that cannot be used: what Events say of it, and which sound objects the kernel is to be
// programmed for in its place.
type badInput struct {
	name    string
	bad     func(*fields)
	instead func(*fields)  // nil: nothing at all
	events  []string       // object, reason, note
	counts  map[string]int // by reason, where it is not one for each Event
}

// B4, B53: for every field that is read, bad values: they are counted by reason, an Event names object and field, the
// kernel is programmed as if a sound value, or nothing, were there; and once it is mended nothing is left of it.
func TestBadInput(t *testing.T) {
	opt := desk.Options{ExternalIPs: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	before := sound().world()
	r, events := newEventRig(t, opt, before.objects()...)
	like, _ := newEventRig(t, opt, before.objects()...) // which never sees a bad value
	r.clean(t, "before", events)
	was := dumpOf(r.kernel)
	change := func(r *healthRig, from, to *world) {
		from.become(r.model, to)
		r.pass(10 * time.Second) // what goes drains
	}
	for _, c := range slices.Concat(badServices(), badPorts(), badSlices(), badNodes()) {
		t.Run(c.name, func(t *testing.T) {
			r.t, like.t = t, t
			bad, instead := sound(), sound()
			c.bad(bad)
			if c.instead != nil {
				c.instead(instead)
			}
			change(r, before, bad.world())
			if got := events.take(); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(c.events))) {
				t.Errorf("Events:\n got  %s\n want %s", strings.Join(got, "\n      "), strings.Join(c.events, "\n      "))
			}
			r.counted(t, c)
			change(like, before, instead.world())
			if diff := cmp.Diff(dumpOf(like.kernel), dumpOf(r.kernel)); diff != "" {
				t.Errorf("the kernel (-want +got):\n%s", diff)
			}

			change(r, bad.world(), before)
			change(like, instead.world(), before)
			r.clean(t, "mended", events)
			if diff := cmp.Diff(was, dumpOf(r.kernel)); diff != "" {
				t.Errorf("the kernel, mended (-want +got):\n%s", diff)
			}
		})
	}
}

// clean: nothing is wrong, and nobody remembers that anything was.
func (r *healthRig) clean(t *testing.T, when string, events *said) {
	t.Helper()
	if got := events.take(); len(got) > 0 {
		t.Errorf("%s: Events %q", when, got)
	}
	r.wantValue(when, 0, "ipvsproxy_problems")
	if len(r.loop.tell.raised)+len(r.loop.tell.counted)+len(r.loop.tell.told) != 0 {
		t.Errorf("%s: something is remembered: %v %v %v", when, r.loop.tell.raised, r.loop.tell.counted, r.loop.tell.told)
	}
}

// counted wants the metric of problems as a case has it, and no other reason in it.
func (r *healthRig) counted(t *testing.T, c badInput) {
	t.Helper()
	counts := maps.Clone(c.counts)
	if counts == nil {
		counts = map[string]int{}
		for _, e := range c.events {
			counts[strings.Split(e, " | ")[1]]++
		}
	}
	total := 0
	for reason, n := range counts {
		total += n
		r.wantValue("counted", float64(n), "ipvsproxy_problems", "reason", reason)
	}
	r.wantValue("counted in all", float64(total), "ipvsproxy_problems")
}

// oneWord is a value as part of a test's name.
func oneWord(value string) string { return strings.ReplaceAll(value, "/", "_") }

// webEvent is an Event about the Service, of its own fields.
func webEvent(reason, note string) []string {
	return []string{"default/web | " + reason + " | Service default/web: " + note}
}

func badServices() []badInput {
	const ranges = "spec.loadBalancerSourceRanges"
	good := func(f *fields) { f.ranges("192.0.2.0/24", "2001:db8::/32") }
	withRange := func(r string) func(*fields) {
		return func(f *fields) { f.ranges("192.0.2.0/24", r, "2001:db8::/32") }
	}
	invalid := func(r string) []string {
		return webEvent("InvalidCIDR", fmt.Sprintf("%s[1]: %q is not a CIDR", ranges, r))
	}
	closed := func(family, addr string) string {
		return fmt.Sprintf("no range of %s that can be used: nobody is let in at %s", family, addr)
	}
	timeout := func(n int32) badInput {
		return badInput{fmt.Sprintf("affinity: timeout of %d s", n), func(f *fields) { f.sticky(n) }, func(f *fields) { f.sticky(10800) },
			webEvent("SessionAffinity", fmt.Sprintf("spec.sessionAffinityConfig.clientIP.timeoutSeconds: %d is not between 1 and 86400; taken as 10800", n)), nil}
	}
	address := func(value, reason, what string) badInput {
		return badInput{"addresses: " + oneWord(value), func(f *fields) {
			f.web.Spec.ClusterIPs = append(f.web.Spec.ClusterIPs, value)
			f.web.Spec.ExternalIPs = append(f.web.Spec.ExternalIPs, value)
			f.web.Status.LoadBalancer.Ingress = append(f.web.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: value})
		}, nil, webEvent(reason, fmt.Sprintf("spec.clusterIPs[2]: %[1]q %[2]s; Service default/web: spec.externalIPs[1]: %[1]q %[2]s; "+
			"Service default/web: status.loadBalancer.ingress[2].ip: %[1]q %[2]s", value, what)), map[string]int{reason: 3}}
	}
	return []badInput{
		{"ranges: no CIDR", withRange("nonsense"), good, invalid("nonsense"), nil},
		{"ranges: no length", withRange("192.0.2.1"), good, invalid("192.0.2.1"), nil},
		{"ranges: too long", withRange("10.0.0.0/33"), good, invalid("10.0.0.0/33"), nil},
		{"ranges: a negative length", withRange("10.0.0.0/-1"), good, invalid("10.0.0.0/-1"), nil},
		{"ranges: empty", withRange(""), good, invalid(""), nil},
		{"ranges: blank inside", withRange("10.0.0.0 /8"), good, invalid("10.0.0.0 /8"), nil},
		{"ranges: IPv4 as IPv6", withRange("::ffff:10.0.0.0/104"), good,
			webEvent("IPv4Mapped", ranges+`[1]: "::ffff:10.0.0.0/104" is an IPv4 CIDR written as IPv6`), nil},
		{"ranges: host bits, blanks around, leading zeros and repetitions are sound", func(f *fields) {
			f.ranges(" 192.0.2.77/24 ", "\t2001:db8::1/32\n", "192.000.02.0/024", "2001:DB8::/32")
		}, good, nil, nil},
		{"ranges: of IPv4 only", func(f *fields) { f.ranges("192.0.2.0/24") }, func(f *fields) { f.ranges("192.0.2.0/24") },
			webEvent("SourceRanges", ranges+": "+closed("IPv6", "fd20:113::1")), nil},
		{"ranges: of IPv6 only", func(f *fields) { f.ranges("2001:db8::/32") }, func(f *fields) { f.ranges("2001:db8::/32") },
			webEvent("SourceRanges", ranges+": "+closed("IPv4", "203.0.113.1")), nil},
		{"ranges: of IPv4 only, the balancer, too", func(f *fields) {
			f.ranges("192.0.2.0/24")
			f.web.Status.LoadBalancer.Ingress = f.web.Status.LoadBalancer.Ingress[:1]
		}, func(f *fields) {
			good(f)
			f.web.Status.LoadBalancer.Ingress = f.web.Status.LoadBalancer.Ingress[:1]
		}, nil, nil},
		{"ranges: none that is one", func(f *fields) { f.ranges("nonsense") }, func(f *fields) { f.ranges("rubbish") },
			append(webEvent("InvalidCIDR", ranges+`[0]: "nonsense" is not a CIDR`),
				webEvent("SourceRanges", ranges+": "+closed("IPv4", "203.0.113.1")+"; Service default/web: "+ranges+": "+closed("IPv6", "fd20:113::1"))...),
			map[string]int{"InvalidCIDR": 1, "SourceRanges": 2}},
		timeout(-1), timeout(0), timeout(86401),
		{"affinity: unknown", func(f *fields) { f.sticky(60); f.web.Spec.SessionAffinity = "Cookie" }, nil,
			webEvent("SessionAffinity", `spec.sessionAffinity: "Cookie" is not an affinity; taken as None`), nil},
		{"policy: internal, unknown", func(f *fields) { f.web.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicy("Near")) }, nil,
			webEvent("TrafficPolicy", `spec.internalTrafficPolicy: "Near" is not a policy; taken as Cluster`), nil},
		{"policy: external, unknown", func(f *fields) { f.web.Spec.ExternalTrafficPolicy = "Far" }, nil,
			webEvent("TrafficPolicy", `spec.externalTrafficPolicy: "Far" is not a policy; taken as Cluster`), nil},
		{"ipMode: unknown", func(f *fields) {
			f.web.Status.LoadBalancer.Ingress[0].IPMode = new(corev1.LoadBalancerIPMode("Odd"))
		}, func(f *fields) { f.web.Status.LoadBalancer.Ingress = f.web.Status.LoadBalancer.Ingress[1:] },
			webEvent("IPMode", `status.loadBalancer.ingress[0].ipMode: "Odd" is not a mode; address left out`), nil},
		{"type: unknown", func(f *fields) { f.web.Spec.Type = "Tunnel" }, func(f *fields) { f.web.Spec.Type = corev1.ServiceTypeExternalName },
			webEvent("ServiceType", `spec.type: "Tunnel" is not a type of Service`), nil},
		{"traffic distribution: unknown", func(f *fields) { f.web.Spec.TrafficDistribution = new("Nearest") }, nil,
			webEvent("TrafficDistribution", `spec.trafficDistribution: "Nearest" is not a distribution; the hints of the endpoints are followed`), nil},
		{"metrics: neither yes nor no", func(f *fields) { f.web.Annotations = map[string]string{"ipvs-proxy.io/metrics": "True"} }, nil,
			webEvent("MetricsAnnotation", `metadata.annotations[ipvs-proxy.io/metrics]: "True" is neither "true" nor "false"; the Service gets no metrics of its own`), nil},
		{"traffic distribution: known", func(f *fields) { f.web.Spec.TrafficDistribution = new("PreferSameZone") }, nil, nil, nil},
		address("300.1.1.1", "InvalidAddress", "is not an IP address"),
		address("10.0.0.1/32", "InvalidAddress", "is not an IP address"), address("127.0.0.1", "Loopback", "is a loopback address"),
		address("fe80::1", "LinkLocal", "is a link-local address"), address("::", "Unspecified", "is the unspecified address"),
		address("224.0.0.1", "Multicast", "is a multicast address"), address("255.255.255.255", "Broadcast", "is the broadcast address"),
		address("::ffff:10.9.9.9", "IPv4Mapped", "is an IPv4 address written as IPv6"), address("2001:db8::1%eth0", "ZonedAddress", "has a zone"),
	}
}

func badPorts() []badInput {
	// The slices have a port by the name, so that the bad one would be served if it were taken.
	add := func(name string, p corev1.ServicePort, reason, note string, instead func(*fields)) badInput {
		p.Name = "more"
		with := func(f *fields) {
			for _, s := range []*discoveryv1.EndpointSlice{f.four, f.six} {
				s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new("more"), Port: new(int32(9090))})
			}
		}
		return badInput{"ports: " + name, func(f *fields) { with(f); f.port(p) }, func(f *fields) {
			with(f)
			if instead != nil {
				instead(f)
			}
		}, webEvent(reason, note), nil}
	}
	noNodePort := func(f *fields) { f.port(corev1.ServicePort{Name: "more", Port: 90}) }
	health := func(port int32) badInput {
		local := func(f *fields) { f.web.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
		return badInput{fmt.Sprintf("healthCheckNodePort: %d", port), func(f *fields) { local(f); f.web.Spec.HealthCheckNodePort = port }, local,
			webEvent("PortRange", fmt.Sprintf("spec.healthCheckNodePort: %d is not between 1 and 65535", port)), nil}
	}
	var list []badInput
	for _, n := range []int32{0, -1, 65536} {
		list = append(list, add(fmt.Sprintf("number %d", n), corev1.ServicePort{Port: n}, "PortRange",
			fmt.Sprintf("spec.ports[2].port: %d is not between 1 and 65535", n), nil))
	}
	for _, n := range []int32{-1, 65536} {
		list = append(list, health(n), add(fmt.Sprintf("node port %d", n), corev1.ServicePort{Port: 90, NodePort: n}, "PortRange",
			fmt.Sprintf("spec.ports[2].nodePort: %d is not between 1 and 65535", n), noNodePort))
	}
	return append(list,
		add("protocol", corev1.ServicePort{Port: 90, Protocol: "ICMP"}, "Protocol", `spec.ports[2].protocol: "ICMP" is not a protocol of Services`, nil),
		add("protocol in small letters", corev1.ServicePort{Port: 90, Protocol: "udp"}, "Protocol", `spec.ports[2].protocol: "udp" is not a protocol of Services`, nil),
		add("the number of an earlier one", corev1.ServicePort{Port: 80}, "Duplicate", "spec.ports[2].port: an earlier port is 80/TCP as well", nil),
		add("the node port of an earlier one", corev1.ServicePort{Port: 90, NodePort: 30080}, "Duplicate",
			"spec.ports[2].nodePort: an earlier port has node port 30080/TCP", noNodePort),
		badInput{"ports: the name of an earlier one", func(f *fields) { f.port(corev1.ServicePort{Name: "p80", Port: 90}) }, nil,
			webEvent("Duplicate", `spec.ports[2].name: an earlier TCP port has the name "p80"`), nil},
	)
}

func badSlices() []badInput {
	event := func(reason, note string) []string {
		return []string{"default/web | " + reason + " | EndpointSlice default/web-1: " + note}
	}
	endpoint := func(value, reason, what string) badInput {
		return badInput{"endpoints: " + value, func(f *fields) { f.endpoints(value) }, nil,
			event(reason, fmt.Sprintf("endpoints[2].addresses[0]: %q %s", value, what)), nil}
	}
	port := func(name string, p discoveryv1.EndpointPort, reason, note string) badInput {
		more := func(f *fields) { f.port(corev1.ServicePort{Name: "more", Port: 90}) }
		p.Name = new("more")
		return badInput{"slice's ports: " + name, func(f *fields) { more(f); f.four.Ports = append(f.four.Ports, p) }, more, event(reason, note), nil}
	}
	number := func(n int32) badInput {
		return port(fmt.Sprintf("number %d", n), discoveryv1.EndpointPort{Port: &n}, "PortRange", fmt.Sprintf("ports[2].port: %d is not between 1 and 65535", n))
	}
	const dated = corev1.EndpointsLastChangeTriggerTime
	return []badInput{
		endpoint("not-an-address", "InvalidAddress", "is not an IP address"), endpoint("", "InvalidAddress", "is not an IP address"),
		endpoint("10.244.1.256", "InvalidAddress", "is not an IP address"), endpoint("fd10:244:1::9", "WrongFamily", "is not of the slice's address type"),
		endpoint("127.0.0.1", "Loopback", "is a loopback address"), endpoint("169.254.169.254", "LinkLocal", "is a link-local address"),
		endpoint("0.0.0.0", "Unspecified", "is the unspecified address"), endpoint("224.0.0.1", "Multicast", "is a multicast address"),
		endpoint("::ffff:10.244.1.9", "IPv4Mapped", "is an IPv4 address written as IPv6"), endpoint("fe80::1%eth0", "ZonedAddress", "has a zone"),
		{"endpoints: no address", func(f *fields) {
			f.four.Endpoints = append(f.four.Endpoints, discoveryv1.Endpoint{NodeName: new(thisNode)})
		}, nil, event("NoAddress", "endpoints[2].addresses: no address"), nil},
		{"endpoints: a virtual IP", func(f *fields) { f.endpoints("10.96.0.2") }, nil,
			[]string{"default/web | VirtualIPEndpoint | endpoint 10.96.0.2 is a virtual IP of a Service: left out"}, nil},
		{"endpoints: seven bad ones count as seven", func(f *fields) {
			f.endpoints("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6", "127.0.0.7")
		}, nil, event("Loopback", `endpoints[2].addresses[0]: "127.0.0.1" is a loopback address; `+
			`EndpointSlice default/web-1: endpoints[3].addresses[0]: "127.0.0.2" is a loopback address; `+
			`EndpointSlice default/web-1: endpoints[4].addresses[0]: "127.0.0.3" is a loopback address; `+
			`EndpointSlice default/web-1: endpoints[5].addresses[0]: "127.0.0.4" is a loopback address (and 3 more like it)`), map[string]int{"Loopback": 7}},
		number(0), number(-1), number(65536),
		port("no number", discoveryv1.EndpointPort{}, "NoPort", "ports[2].port: no port number"),
		port("protocol", discoveryv1.EndpointPort{Port: new(int32(9090)), Protocol: new(corev1.Protocol("ICMP"))}, "Protocol",
			`ports[2].protocol: "ICMP" is not a protocol of Services`),
		{"slice's ports: one twice", func(f *fields) {
			f.four.Ports = append(f.four.Ports, discoveryv1.EndpointPort{Name: new("p80"), Port: new(int32(9090))})
		}, nil, event("Duplicate", "ports: 1 repeat the name and protocol of an earlier one"), nil},
		{"address type: unknown", func(f *fields) { f.six.AddressType = "FQDN" }, func(f *fields) { f.six.Endpoints = nil },
			[]string{`default/web | AddressType | EndpointSlice default/web-2: addressType: "FQDN" endpoints cannot be used, only IPv4 and IPv6`}, nil},
		{"annotation: no time", func(f *fields) { f.four.Annotations = map[string]string{dated: "yesterday"} }, nil,
			event("TriggerTime", "metadata.annotations["+dated+`]: "yesterday" is not a time; the change is not measured`), nil},
		{"annotation: a time of nobody's", func(f *fields) { f.four.Annotations = map[string]string{dated: "0001-01-01T00:00:00Z"} }, nil,
			event("TriggerTime", "metadata.annotations["+dated+`]: "0001-01-01T00:00:00Z" is not a time; the change is not measured`), nil},
		{"hints: for a zone without a name", func(f *fields) {
			f.hints("east", "east", "")
			f.four.Endpoints[0].Hints.ForZones[0].Name = ""
		}, func(f *fields) {
			f.hints("east", "east", "")
			f.four.Endpoints[0].Hints.ForZones[0].Name = "west"
		}, event("Hints", `endpoints[0].hints.forZones[0].name: "" is not a name`), nil},
		{"hints: for a zone that nobody is in", func(f *fields) { f.hints("east", "mars", "") }, nil,
			[]string{`default/web | Hints | endpoints: hints.forZones: "mars": neither an endpoint nor this node is in such a zone: not followed`}, nil},
		{"hints: for a node that nobody is on", func(f *fields) { f.hints("east", "", "node9") }, nil,
			[]string{`default/web | Hints | endpoints: hints.forNodes: "node9": neither an endpoint nor this node is in such a node: not followed`}, nil},
		{"hints: for a zone where no endpoint is near are sound", func(f *fields) { f.hints("west", "west", "") }, nil, nil, nil},
		{"hints: for a node elsewhere are sound", func(f *fields) { f.hints("west", "", "node2") }, nil, nil, nil},
	}
}

func badNodes() []badInput {
	event := func(reason, note string) []string { return []string{"/ | " + reason + " | Node node1: " + note} }
	unlabelled := func(f *fields) { f.node.Labels = nil }
	return []badInput{
		{"node: no address", func(f *fields) {
			f.node.Status.Addresses = append(f.node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "nowhere"})
		}, nil, event("InvalidAddress", `status.addresses[1]: "nowhere" is not an IP address`), nil},
		{"node: no range", func(f *fields) { f.node.Spec.PodCIDRs = []string{"10.244.1.0/99"} }, nil,
			event("InvalidCIDR", `spec.podCIDRs[0]: "10.244.1.0/99" is not a CIDR`), nil},
		{"node: no zone, hints for zones", func(f *fields) { unlabelled(f); f.hints("east", "east", "") }, nil,
			event("ZoneMissing", "metadata.labels[topology.kubernetes.io/zone]: missing: endpoints with hints for zones serve this node as if they had none"), nil},
		{"node: no zone, no hints is sound", unlabelled, nil, nil, nil},
		{"node: no zone, hints for nodes is sound", func(f *fields) { unlabelled(f); f.hints("east", "", thisNode) },
			func(f *fields) { f.hints("east", "", thisNode) }, nil, nil},
	}
}
