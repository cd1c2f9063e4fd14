package sync

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// The universe: small, so that things meet.
var (
	serviceNames = []string{"s0", "s1", "s2"}
	sliceNames   = []string{"e0", "e1", "e2", "e3"} // the last one is IPv6
	vips4        = []string{"10.96.0.10", "10.96.0.11"}
	vips6        = []string{"fd00:96::10", "fd00:96::11"}
	pods4        = []string{"10.244.1.5@node1", "10.244.2.10@node2", "10.244.2.11", "10.96.0.11"} // the last one is a virtual IP as well
	pods6        = []string{"fd10:244:1::5@node1", "fd10:244:2::10@node2"}
	allPorts     = []corev1.ServicePort{
		{Name: "a", Port: 80, Protocol: corev1.ProtocolTCP, NodePort: 30080}, {Name: "b", Port: 443, Protocol: corev1.ProtocolTCP},
		{Name: "c", Port: 53, Protocol: corev1.ProtocolTCP}, {Name: "d", Port: 53, Protocol: corev1.ProtocolUDP, NodePort: 30053},
	}
	// After the load balancers' the ClusterIP of another, the API server's or the node's own, a pod's, and one that slices
	// name without a node.
	external4 = []string{"203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.2", "10.96.0.11", "192.0.2.1", "10.244.2.10", "10.244.2.11"}
	// Addresses that the node may have beside its own: one may be a load balancer's as well.
	locals4 = []string{"192.0.2.1", "192.0.2.2", "203.0.113.2", "10.244.1.1"}
)

// randomService is a Service as new, or as it was and changed in one thing.
func (w *walker) randomService(r *rand.Rand) *corev1.Service {
	name := pick(r, serviceNames)
	change := []func(*corev1.Service){
		func(s *corev1.Service) {
			s.Spec.ClusterIPs = pick(r, [][]string{{pick(r, vips4)}, {pick(r, vips6)}, {pick(r, vips4), pick(r, vips6)}, {pick(r, vips6), pick(r, vips4)}})
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		},
		func(s *corev1.Service) {
			s.Spec.Ports = nil
			for _, p := range allPorts {
				if r.IntN(2) == 0 {
					s.Spec.Ports = append(s.Spec.Ports, p)
				}
			}
		},
		func(s *corev1.Service) {
			s.Spec.Type = pick(r, []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName})
		},
		func(s *corev1.Service) {
			s.Spec.SessionAffinity = pick(r, []corev1.ServiceAffinity{corev1.ServiceAffinityNone, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP})
			seconds := pick(r, []int32{60, 600})
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		},
		func(s *corev1.Service) {
			s.Labels = pick(r, []map[string]string{nil, nil, {"app": "x"}, {"service.kubernetes.io/service-proxy-name": "another"}})
		},
		func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy = pick(r, []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal})
			policy := pick(r, []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal})
			s.Spec.InternalTrafficPolicy = &policy
		},
		func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = nil
			if r.IntN(3) > 0 {
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: pick(r, external4)}}
			}
		},
		func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = pick(r, [][]string{nil, nil, {"198.51.100.0/24"}, {"192.0.0.0/8", "198.51.100.0/25"}, {"nonsense"}})
		},
		func(s *corev1.Service) {
			s.Spec.ExternalIPs = nil
			if r.IntN(3) == 0 {
				s.Spec.ExternalIPs = []string{pick(r, external4)}
			}
		},
		func(s *corev1.Service) { s.CreationTimestamp = metav1.Unix(1000+int64(r.IntN(3)), 0) },
		func(s *corev1.Service) {
			s.Annotations = randomAnnotations(r)
			maps.Copy(s.Annotations, pick(r, []map[string]string{nil, {cluster.SlowStartAnnotation: "20s"}, {cluster.SlowStartAnnotation: "20s"}, {cluster.SlowStartAnnotation: "20s"}, {cluster.SlowStartAnnotation: "1s", cluster.SchedulerAnnotation: "wlc"}}))
		},
	}
	old := w.services[name]
	if old == nil || r.IntN(4) == 0 {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		for _, f := range change {
			f(s)
		}
		if r.IntN(4) > 0 { // mostly one that is ours
			s.Labels, s.Spec.Type = nil, pick(r, []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer})
		}
		return s
	}
	s := old.DeepCopy()
	pick(r, change)(s)
	return s
}

// randomAnnotations are those of a Service that say how its connections are shared out: mostly none.
func randomAnnotations(r *rand.Rand) map[string]string {
	all := map[string]string{}
	for _, a := range []struct {
		name   string
		values []string
	}{
		{cluster.SchedulerAnnotation, []string{"wrr", "lc", "wlc", "sh", "mh", "nonsense"}},
		{cluster.SchedulerFlagsAnnotation, []string{"mh-port,sh-port"}},
		{cluster.WeightsAnnotation, []string{"same-node=100,same-zone=10,other=1", "same-node=0", "other=0", "nonsense"}},
		{cluster.DrainDeadlineAnnotation, []string{"0s", "7s"}},
		{cluster.MaxConnectionsAnnotation, []string{"5"}},
		{cluster.OnePacketAnnotation, []string{"true"}},
	} {
		if r.IntN(3) == 0 {
			all[a.name] = pick(r, a.values)
		}
	}
	return all
}

// randomSlice is an EndpointSlice of any of the Services. Slices may repeat each other.
func (w *walker) randomSlice(r *rand.Rand) *discoveryv1.EndpointSlice {
	name := pick(r, sliceNames)
	of := pick(r, serviceNames)
	if old := w.slices[name]; old != nil && r.IntN(3) > 0 {
		of = old.Labels[discoveryv1.LabelServiceName]
	}
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	pods := pods4
	if name == "e3" {
		s.AddressType, pods = discoveryv1.AddressTypeIPv6, pods6
	}
	for _, p := range allPorts {
		if target := pick(r, []int32{0, 8080, 8080, 8080, 9090}); target != 0 {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &target, Protocol: &p.Protocol})
		}
	}
	if r.IntN(5) == 0 {
		s.Annotations = map[string]string{cluster.WeightAnnotation: pick(r, []string{"0", "3", "nonsense"})}
	}
	hinted := r.IntN(4) == 0
	for _, a := range pods {
		if r.IntN(2) == 0 {
			continue
		}
		addr, node, _ := strings.Cut(a, "@")
		ep := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
		ready, serving, terminating := r.IntN(4) > 0, r.IntN(4) > 0, r.IntN(2) == 0
		ep.Conditions = discoveryv1.EndpointConditions{Ready: &ready}
		if !ready {
			ep.Conditions.Serving, ep.Conditions.Terminating = &serving, &terminating
		}
		if hinted {
			ep.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: pick(r, []string{"a", "b"})}}}
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func randomNode(r *rand.Rand) *corev1.Node {
	if r.IntN(3) == 0 {
		return nil
	}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{corev1.LabelTopologyZone: pick(r, []string{"a", "b"})}}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: pick(r, []string{"192.0.2.1", "192.0.2.2"})}}
	n.Spec.PodCIDRs = []string{pick(r, []string{"10.244.1.0/24", "10.244.1.0/24", "203.0.113.2/32"})}
	return n
}

// randomLocal are addresses that the node may have.
func randomLocal(r *rand.Rand) (l ipvs.Local) {
	for _, a := range locals4 {
		if r.IntN(2) == 0 {
			l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
		}
	}
	l.Addrs = ipvs.SortAddrs(l.Addrs)
	if r.IntN(3) == 0 {
		l.Own = l.Addrs
	}
	if r.IntN(3) == 0 { // of which an endpoint and a load balancer's address are no hosts
		l.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.2.8/30"), netip.MustParsePrefix("203.0.113.2/31"), netip.MustParsePrefix("203.0.113.0/30")}
	}
	l.NoIPv6 = r.IntN(4) == 0
	return l
}

func internalPolicy(s *corev1.Service) string {
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		return string(*p)
	}
	return ""
}

func portsOf(s *corev1.Service) (out []string) {
	for _, p := range s.Spec.Ports {
		out = append(out, fmt.Sprintf("%s=%d/%s", p.Name, p.Port, p.Protocol))
	}
	return out
}

func endpointsOf(s *discoveryv1.EndpointSlice) string {
	var out []string
	for _, p := range s.Ports {
		out = append(out, fmt.Sprintf("%s=%d", *p.Name, *p.Port))
	}
	for _, e := range s.Endpoints {
		c, hint := e.Conditions, ""
		if e.Hints != nil {
			hint = " for " + e.Hints.ForZones[0].Name
		}
		if *c.Ready {
			out = append(out, fmt.Sprintf("%s@%s%s", e.Addresses[0], *e.NodeName, hint))
		} else {
			out = append(out, fmt.Sprintf("%s@%s%s unready serving=%t terminating=%t", e.Addresses[0], *e.NodeName, hint, *c.Serving, *c.Terminating))
		}
	}
	return strings.Join(out, " ")
}
