package cluster

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var netipComparer = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// testService is a plain Service, default/web on 10.96.0.1:80.
func testService(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", CreationTimestamp: metav1.Unix(1000, 0)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"},
			Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

// reasons are "field: Reason" of each Problem.
func reasons(probs []Problem) []string {
	var out []string
	for _, p := range probs {
		out = append(out, p.Field+": "+p.Reason)
	}
	return out
}

func TestSanitiseService(t *testing.T) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	proxy, vip, odd := corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPMode("Odd")
	seconds := func(n int32) *corev1.SessionAffinityConfig {
		return &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &n}}
	}
	for _, test := range []struct {
		name     string
		change   func(*corev1.Service)
		want     func(*Service) // nil: as plain
		problems []string
	}{
		{name: "plain", change: func(s *corev1.Service) {}},
		{
			name: "no types, no lists, no time",
			change: func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ClusterIPs, s.Spec.Ports[0].Protocol = "", nil, ""
				s.CreationTimestamp = metav1.Time{}
			},
			want: func(s *Service) { s.Created = 0 },
		},
		{
			name:   "time in another zone",
			change: func(s *corev1.Service) { s.CreationTimestamp = metav1.NewTime(time.Unix(1000, 5).UTC()) },
		},
		{
			name:   "dual stack, order kept",
			change: func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"fd00::1", "10.96.0.1"} },
			want:   func(s *Service) { s.ClusterIPs = addrs("fd00::1", "10.96.0.1") },
		},
		{
			name:   "leading zeros are decimal",
			change: func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"010.96.000.001"} },
		},
		{
			name: "bad cluster IPs cost themselves",
			change: func(s *corev1.Service) {
				s.Spec.ClusterIPs = []string{"10.96.0.1", "10.96.0.1", "", "300.1.1.1", "::ffff:10.96.0.2"}
			},
			problems: []string{
				"spec.clusterIPs[1]: Duplicate", "spec.clusterIPs[2]: InvalidAddress",
				"spec.clusterIPs[3]: InvalidAddress", "spec.clusterIPs[4]: IPv4Mapped",
			},
		},
		{
			name: "ports",
			change: func(s *corev1.Service) {
				s.Spec.Ports = []corev1.ServicePort{
					{Name: "dns", Port: 53, Protocol: "UDP"}, {Name: "dns", Port: 53, Protocol: "TCP"},
					{Name: "zero", Port: 0}, {Name: "minus", Port: -1}, {Name: "over", Port: 65536}, {Name: "last", Port: 65535},
					{Name: "icmp", Port: 1, Protocol: "ICMP"}, {Name: "dns", Port: 54, Protocol: "UDP"},
					{Name: "dns2", Port: 53, Protocol: "UDP"}, {Name: "sctp", Port: 53, Protocol: "SCTP"},
				}
			},
			want: func(s *Service) {
				s.Ports = []Port{{"dns", UDP, 53, 0}, {"dns", TCP, 53, 0}, {"last", TCP, 65535, 0}, {"sctp", SCTP, 53, 0}}
			},
			problems: []string{
				"spec.ports[2].port: PortRange", "spec.ports[3].port: PortRange", "spec.ports[4].port: PortRange",
				"spec.ports[6].protocol: Protocol", "spec.ports[7].name: Duplicate", "spec.ports[8].port: Duplicate",
			},
		},
		{
			name: "node ports cost only themselves",
			change: func(s *corev1.Service) {
				s.Spec.Type = "NodePort"
				s.Spec.Ports = []corev1.ServicePort{
					{Name: "a", Port: 1, NodePort: 30000}, {Name: "b", Port: 2, NodePort: 30000},
					{Name: "c", Port: 3, NodePort: 30000, Protocol: "UDP"}, {Name: "d", Port: 4, NodePort: 70000}, {Name: "e", Port: 5},
				}
			},
			want: func(s *Service) {
				s.Type = TypeNodePort
				s.Ports = []Port{{"a", TCP, 1, 30000}, {"b", TCP, 2, 0}, {"c", UDP, 3, 30000}, {"d", TCP, 4, 0}, {"e", TCP, 5, 0}}
			},
			problems: []string{"spec.ports[1].nodePort: Duplicate", "spec.ports[3].nodePort: PortRange"},
		},
		{
			name:   "no node port on ClusterIP",
			change: func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30000 },
		},
		{
			name:   "affinity, default time",
			change: func(s *corev1.Service) { s.Spec.SessionAffinity = "ClientIP" },
			want:   func(s *Service) { s.AffinitySeconds = 10800 },
		},
		{
			name: "affinity, nil in config",
			change: func(s *corev1.Service) {
				s.Spec.SessionAffinity = "ClientIP"
				s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{}}
			},
			want: func(s *Service) { s.AffinitySeconds = 10800 },
		},
		{
			name: "affinity, own time",
			change: func(s *corev1.Service) {
				s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = "ClientIP", seconds(86400)
			},
			want: func(s *Service) { s.AffinitySeconds = 86400 },
		},
		{
			name: "affinity, bad time",
			change: func(s *corev1.Service) {
				s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = "ClientIP", seconds(86401)
			},
			want:     func(s *Service) { s.AffinitySeconds = 10800 },
			problems: []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: SessionAffinity"},
		},
		{
			name:     "affinity, unknown",
			change:   func(s *corev1.Service) { s.Spec.SessionAffinity = "Cookie" },
			problems: []string{"spec.sessionAffinity: SessionAffinity"},
		},
		{
			name:   "external policy without outside",
			change: func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "Local" },
		},
		{
			name: "external policy with external IPs, sorted",
			change: func(s *corev1.Service) {
				s.Spec.ExternalTrafficPolicy = "Local"
				s.Spec.ExternalIPs = []string{"192.0.2.9", "fe80::1", "127.0.0.1", "192.0.2.010", "192.0.2.2"}
			},
			want: func(s *Service) {
				s.ExternalLocal, s.ExternalIPs = true, addrs("192.0.2.2", "192.0.2.9", "192.0.2.10")
			},
			problems: []string{"spec.externalIPs[1]: LinkLocal", "spec.externalIPs[2]: Loopback"},
		},
		{
			name: "policies unknown",
			change: func(s *corev1.Service) {
				bad := corev1.ServiceInternalTrafficPolicy("Near")
				s.Spec.InternalTrafficPolicy, s.Spec.ExternalTrafficPolicy = &bad, "Far"
			},
			problems: []string{"spec.externalTrafficPolicy: TrafficPolicy", "spec.internalTrafficPolicy: TrafficPolicy"},
		},
		{
			name:   "internal policy",
			change: func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = &local },
			want:   func(s *Service) { s.InternalLocal = true },
		},
		{
			name: "load balancer",
			change: func(s *corev1.Service) {
				s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = "LoadBalancer", "Local", 31000
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
					{IP: "203.0.113.9", IPMode: &vip}, {Hostname: "lb.example"}, {IP: "203.0.113.8", IPMode: &proxy},
					{IP: "203.0.113.1"}, {IP: "203.0.113.9"}, {IP: "0.0.0.0"}, {IP: "203.0.113.3", IPMode: &odd},
				}
				s.Spec.LoadBalancerSourceRanges = []string{" 198.051.100.7/024 ", "2001:db8::/32", "198.51.100.0/24", "nonsense", "10.0.0.0/33"}
			},
			want: func(s *Service) {
				s.Type, s.ExternalLocal, s.HealthCheckNodePort = TypeLoadBalancer, true, 31000
				s.LoadBalancerIPs = addrs("203.0.113.1", "203.0.113.9")
				s.SourceRanges, s.SourceRangesGiven = prefixes("198.51.100.0/24", "2001:db8::/32"), true
			},
			problems: []string{
				"status.loadBalancer.ingress[4].ip: Duplicate", "status.loadBalancer.ingress[5].ip: Unspecified",
				"status.loadBalancer.ingress[6].ipMode: IPMode",
				"spec.loadBalancerSourceRanges[3]: InvalidCIDR", "spec.loadBalancerSourceRanges[4]: InvalidCIDR",
			},
		},
		{
			name: "source ranges all bad: given, and nobody in them",
			change: func(s *corev1.Service) {
				s.Spec.Type, s.Spec.LoadBalancerSourceRanges = "LoadBalancer", []string{"::ffff:10.0.0.0/104"}
			},
			want:     func(s *Service) { s.Type, s.SourceRangesGiven = TypeLoadBalancer, true },
			problems: []string{"spec.loadBalancerSourceRanges[0]: IPv4Mapped"},
		},
		{
			name: "health-check port of a Cluster policy, status of no load balancer",
			change: func(s *corev1.Service) {
				s.Spec.HealthCheckNodePort = 31000
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.9"}}
			},
		},
		{
			name: "traffic distribution",
			change: func(s *corev1.Service) {
				d := "PreferClose"
				s.Spec.TrafficDistribution = &d
			},
			want: func(s *Service) { s.TrafficDistribution = "PreferClose" },
		},
		{
			name:   "metrics of its own",
			change: func(s *corev1.Service) { s.Annotations = map[string]string{MetricsAnnotation: "true"} },
			want:   func(s *Service) { s.Measured = true },
		},
		{
			name:   "no metrics of its own",
			change: func(s *corev1.Service) { s.Annotations = map[string]string{MetricsAnnotation: "false"} },
		},
		{
			name:     "metrics: neither yes nor no",
			change:   func(s *corev1.Service) { s.Annotations = map[string]string{MetricsAnnotation: "yes"} },
			problems: []string{"metadata.annotations[ipvs-proxy.io/metrics]: MetricsAnnotation"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := &Service{
				Identity:   Identity{ID: ID{"default", "web"}, Created: 1000},
				ClusterIPs: addrs("10.96.0.1"), Ports: []Port{{"", TCP, 80, 0}},
			}
			if test.want != nil {
				test.want(want)
			}
			got, probs := sanitiseService(testService(test.change), Options{})
			if diff := cmp.Diff(want, got, netipComparer); diff != "" {
				t.Errorf("Service (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.problems, reasons(probs)); diff != "" {
				t.Errorf("Problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOurs(t *testing.T) {
	label := func(v string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": v} }
	}
	for _, test := range []struct {
		name      string
		proxyName string
		change    func(*corev1.Service)
		want      bool
		foreign   bool
	}{
		{"plain", "", func(s *corev1.Service) {}, true, false},
		{"headless", "", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }, false, false},
		{"headless, one field", "", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", nil }, false, false},
		{"headless, other field", "", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", []string{"None"} }, false, false},
		{"no cluster IP yet", "", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil }, false, false},
		{"ExternalName", "", func(s *corev1.Service) { s.Spec.Type = "ExternalName" }, false, false},
		{"unknown type", "", func(s *corev1.Service) { s.Spec.Type = "Tunnel" }, false, false},
		{"labelled", "", label("x"), false, true},
		{"labelled with nothing", "", label(""), false, true},
		{"own label", "x", label("x"), true, false},
		{"other label", "x", label("y"), false, true},
		{"no label", "x", func(s *corev1.Service) {}, false, true},
		{"own label, ExternalName", "x", func(s *corev1.Service) { label("x")(s); s.Spec.Type = "ExternalName" }, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _ := sanitiseService(testService(test.change), Options{ServiceProxyName: test.proxyName})
			if ours := got != nil && !got.Foreign; ours != test.want {
				t.Errorf("ours = %v, want %v", ours, test.want)
			}
			if foreign := got != nil && got.Foreign; foreign != test.foreign || foreign && len(got.ClusterIPs) == 0 {
				t.Errorf("another proxy's = %v, want %v: %+v", foreign, test.foreign, got)
			}
		})
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "010.000.00.01": "10.0.0.1", "2001:DB8::1": "2001:db8::1",
		"240.0.0.1": "240.0.0.1", "0.0.0.1": ReasonReserved, "0.255.0.1": ReasonReserved, "1.0.0.0": "1.0.0.0", "100.64.0.1": "100.64.0.1",
		"10.0.0.256": ReasonInvalidAddress, "10.0.0": ReasonInvalidAddress, "0010.0..1": ReasonInvalidAddress,
		" 10.0.0.1": ReasonInvalidAddress, "0x0a.0.0.1": ReasonInvalidAddress, "10.0.0.1/32": ReasonInvalidAddress,
		"": ReasonInvalidAddress, "None": ReasonInvalidAddress, "-1.0.0.0": ReasonInvalidAddress,
		strings.Repeat("0", 100) + ".0.0.1": ReasonInvalidAddress,
		"127.0.0.1":                         ReasonLoopback, "127.255.0.1": ReasonLoopback, "::1": ReasonLoopback,
		"169.254.169.254": ReasonLinkLocal, "fe80::1": ReasonLinkLocal, "febf::1": ReasonLinkLocal,
		"0.0.0.0": ReasonUnspecified, "000.0.0.0": ReasonUnspecified, "::": ReasonUnspecified,
		"224.0.0.1": ReasonMulticast, "239.255.255.255": ReasonMulticast, "ff02::1": ReasonMulticast,
		"255.255.255.255": ReasonBroadcast, "::ffff:10.0.0.1": ReasonIPv4Mapped, "::ffff:7f00:1": ReasonIPv4Mapped,
		"fe80::1%eth0": ReasonZonedAddress, "2001:db8::1%1": ReasonZonedAddress,
	} {
		a, fault := parseAddr(in)
		got := fault.reason
		if got == "" {
			got = a.String()
		}
		if got != want {
			t.Errorf("parseAddr(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestSanitiseNode(t *testing.T) {
	now := metav1.Now()
	got, probs := sanitiseNode(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: "n1", DeletionTimestamp: &now, Labels: map[string]string{"topology.kubernetes.io/zone": "z1"},
		},
		Spec: corev1.NodeSpec{
			PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.7/24", "x", "fd00:1::/64"},
			Taints: []corev1.Taint{{Key: "a"}, {Key: "ToBeDeletedByClusterAutoscaler"}},
		},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: "Hostname", Address: "n1"}, {Type: "ExternalIP", Address: "192.0.2.1"}, {Type: "InternalIP", Address: "10.0.0.2"},
			{Type: "InternalIP", Address: "::1"}, {Type: "InternalIP", Address: "fd00::2"}, {Type: "ExternalIP", Address: "10.0.0.2"},
		}},
	})
	want := Node{
		Name: "n1", Addrs: addrs("10.0.0.2", "fd00::2", "192.0.2.1"), PodCIDRs: prefixes("10.1.0.0/24", "fd00:1::/64"),
		Zone: "z1", Known: true, Deleting: true, ToBeDeleted: true,
	}
	if diff := cmp.Diff(want, got, netipComparer); diff != "" {
		t.Errorf("Node (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"status.addresses[3]: Loopback", "spec.podCIDRs[1]: InvalidCIDR"}, reasons(probs)); diff != "" {
		t.Errorf("Problems (-want +got):\n%s", diff)
	}
	if got := probs[0].String(); got != `Node n1: status.addresses[3]: "::1" is a loopback address` {
		t.Errorf("String() = %s", got)
	}
}

// A field that equal forgets would be a change that never reaches the kernel.
func TestEqualSeesEveryField(t *testing.T) {
	fill := func(v reflect.Value) {
		switch v.Interface().(type) {
		case ID:
			v.Set(reflect.ValueOf(ID{"a", "b"}))
		case []netip.Addr:
			v.Set(reflect.ValueOf(addrs("10.0.0.1")))
		case []netip.Prefix:
			v.Set(reflect.ValueOf(prefixes("10.0.0.0/8")))
		case []Port:
			v.Set(reflect.ValueOf([]Port{{}}))
		case bool:
			v.SetBool(true)
		case string:
			v.SetString("x")
		case int64:
			v.SetInt(1)
		case Scheduling:
			v.Set(reflect.ValueOf(Scheduling{OnePacket: true})) // which Go compares as a whole
		default:
			v.SetUint(1) // panics for a type that is new here
		}
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Service]()) {
		if f.Anonymous || f.Name == "UID" { // the kernel knows nothing of it
			continue
		}
		var s Service
		fill(reflect.ValueOf(&s).Elem().FieldByIndex(f.Index))
		if s.equal(&Service{}) {
			t.Errorf("Service.%s is not compared", f.Name)
		}
	}
	for i := range reflect.TypeFor[Node]().NumField() {
		var n Node
		fill(reflect.ValueOf(&n).Elem().Field(i))
		if n.equal(Node{}) {
			t.Errorf("Node.%s is not compared", reflect.TypeFor[Node]().Field(i).Name)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	long := strings.Repeat("ä\n", 1000)
	_, probs := sanitiseService(testService(func(s *corev1.Service) {
		for range 1000 {
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, long)
		}
	}), Options{})
	if len(probs) != listedPerReason {
		t.Fatalf("%d Problems, want %d", len(probs), listedPerReason)
	}
	count := 0
	for _, p := range probs {
		count += p.Count
		if s := p.String(); len(s) > 300 || strings.Contains(s, "\n") {
			t.Errorf("not one short line: %s", s)
		}
	}
	if count != 1000 {
		t.Errorf("Problems stand for %d places, want 1000", count)
	}
	if s := probs[listedPerReason-1].String(); !strings.HasSuffix(s, "(and 996 more like it)") {
		t.Errorf("the last does not say how many more: %s", s)
	}
}
