package cluster

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Session affinity as the API server defaults and bounds it, in seconds.
const (
	defaultAffinitySeconds = 10800
	maxAffinitySeconds     = 86400
)

func objectID(obj metav1.Object) ID { return ID{intern(obj.GetNamespace()), obj.GetName()} }

// sanitiseService reads a Service; nil when no proxy serves it. A Service of
// an unknown type is not served but has a Problem. Of one that another proxy
// serves only the ClusterIPs count, and what of these cannot be used is that
// proxy's to say.
func sanitiseService(obj *corev1.Service, opt Options) (*Service, []Problem) {
	if !hasProxy(obj) {
		return nil, nil
	}
	if !ours(obj, opt) {
		return sanitiseForeign(obj), nil
	}
	s := &Service{Identity: Identity{ID: objectID(obj), UID: parseUID(obj.UID)}}
	r := serviceReader{obj: obj, s: s}
	r.service, r.object = s.ID, "Service "+s.ID.String()
	if !r.serviceType() {
		return nil, r.list
	}
	if t := obj.CreationTimestamp; !t.IsZero() {
		s.Created = t.Unix()
	}
	s.DNSLabel = obj.Labels["k8s-app"] == "kube-dns"
	r.distribution()
	s.ClusterIPs = r.addrs(clusterIPs(obj), "spec.clusterIPs")
	s.ExternalIPs = r.addrs(obj.Spec.ExternalIPs, "spec.externalIPs")
	slices.SortFunc(s.ExternalIPs, netip.Addr.Compare)
	r.ports()
	r.affinity()
	r.loadBalancer()
	r.policies()   // needs the type and the external IPs
	r.scheduling() // needs the ports and the affinity
	r.metrics()
	return s, r.list
}

// sanitiseForeign reads what counts of a Service that another proxy serves.
func sanitiseForeign(obj *corev1.Service) *Service {
	s := &Service{Identity: Identity{ID: objectID(obj), Foreign: true}}
	if t := obj.CreationTimestamp; !t.IsZero() {
		s.Created = t.Unix()
	}
	s.ClusterIPs = (&problems{}).addrs(clusterIPs(obj), "spec.clusterIPs")
	return s
}

// ours and hasProxy are rule B1: the label that says which proxy a Service is
// for, and neither ExternalName nor headless.
func ours(obj *corev1.Service, opt Options) bool {
	name, labelled := obj.Labels["service.kubernetes.io/service-proxy-name"]
	return labelled == (opt.ServiceProxyName != "") && (!labelled || name == opt.ServiceProxyName)
}

// hasProxy: some proxy is to serve it. A Service that has no cluster IP yet
// will be served when it has.
func hasProxy(obj *corev1.Service) bool {
	ips := clusterIPs(obj)
	return obj.Spec.Type != corev1.ServiceTypeExternalName && len(ips) > 0 &&
		obj.Spec.ClusterIP != corev1.ClusterIPNone && !slices.Contains(ips, corev1.ClusterIPNone)
}

// clusterIPs are all cluster IPs of a Service. Objects from before dual-stack
// and hand-written ones have only the single field.
func clusterIPs(obj *corev1.Service) []string {
	if len(obj.Spec.ClusterIPs) == 0 && obj.Spec.ClusterIP != "" {
		return []string{obj.Spec.ClusterIP}
	}
	return obj.Spec.ClusterIPs
}

// serviceReader carries a Service and its reading.
type serviceReader struct {
	problems
	obj *corev1.Service
	s   *Service
}

func (r *serviceReader) serviceType() bool {
	switch r.obj.Spec.Type {
	case "", corev1.ServiceTypeClusterIP:
		r.s.Type = TypeClusterIP
	case corev1.ServiceTypeNodePort:
		r.s.Type = TypeNodePort
	case corev1.ServiceTypeLoadBalancer:
		r.s.Type = TypeLoadBalancer
	default:
		r.add(ReasonServiceType, "spec.type", "%s is not a type of Service", quote(string(r.obj.Spec.Type)))
		return false
	}
	return true
}

// addrs reads a list of addresses, keeping its order.
func (p *problems) addrs(list []string, field string) []netip.Addr {
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	for i, s := range list {
		if a, ok := p.addr(s, fmt.Sprintf("%s[%d]", field, i), seen); ok {
			out = append(out, a)
		}
	}
	return slices.Clip(out)
}

// addr reads one address that must not have been seen.
func (p *problems) addr(s, field string, seen map[netip.Addr]bool) (netip.Addr, bool) {
	a, fault := parseAddr(s)
	if fault.reason != "" {
		p.add(fault.reason, field, "%s", fault.message)
		return a, false
	}
	if seen[a] {
		p.add(ReasonDuplicate, field, "%s is in the list already", a)
		return a, false
	}
	seen[a] = true
	return a, true
}

// prefixes reads a list of CIDRs, keeping its order. A repetition says
// nothing new and is no Problem.
func (p *problems) prefixes(list []string, field string) []netip.Prefix {
	var out []netip.Prefix
	seen := map[netip.Prefix]bool{}
	for i, s := range list {
		prefix, fault := parsePrefix(s)
		if fault.reason != "" {
			p.add(fault.reason, fmt.Sprintf("%s[%d]", field, i), "%s", fault.message)
		} else if !seen[prefix] {
			seen[prefix] = true
			out = append(out, prefix)
		}
	}
	return slices.Clip(out)
}

// ports reads the ports. One that repeats an earlier one is left out; a node
// port that does costs only itself.
func (r *serviceReader) ports() {
	type key struct { // name or number, with its protocol
		name   string
		number uint16
		proto  Protocol
	}
	names, ports, nodePorts := map[key]bool{}, map[key]bool{}, map[key]bool{}
	out := make([]Port, 0, len(r.obj.Spec.Ports))
	for i := range r.obj.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		p, ok := r.port(&r.obj.Spec.Ports[i], field)
		if !ok {
			continue
		}
		name, number := key{name: p.Name, proto: p.Protocol}, key{number: p.Port, proto: p.Protocol}
		if names[name] {
			r.add(ReasonDuplicate, field+".name", "an earlier %s port has the name %s", p.Protocol, quote(p.Name))
			continue
		}
		if ports[number] {
			r.add(ReasonDuplicate, field+".port", "an earlier port is %d/%s as well", p.Port, p.Protocol)
			continue
		}
		node := key{number: p.NodePort, proto: p.Protocol}
		if p.NodePort != 0 && nodePorts[node] {
			r.add(ReasonDuplicate, field+".nodePort", "an earlier port has node port %d/%s", p.NodePort, p.Protocol)
			p.NodePort = 0
		}
		names[name], ports[number], nodePorts[node] = true, true, true
		out = append(out, p)
	}
	r.s.Ports = slices.Clip(out)
}

// port reads one port by itself.
func (r *serviceReader) port(p *corev1.ServicePort, field string) (Port, bool) {
	proto, ok := parseProtocol(p.Protocol)
	if !ok {
		r.add(ReasonProtocol, field+".protocol", "%s is not a protocol of Services", quote(string(p.Protocol)))
		return Port{}, false
	}
	if !validPort(p.Port) {
		r.add(ReasonPortRange, field+".port", "%d is not between 1 and 65535", p.Port)
		return Port{}, false
	}
	return Port{
		Name: intern(p.Name), Protocol: proto, Port: uint16(p.Port),
		NodePort: r.nodePort(p.NodePort, field+".nodePort"),
	}, true
}

// nodePort reads a node port; a bad one costs only itself. A ClusterIP Service
// has none: the API server drops them when the type changes.
func (r *serviceReader) nodePort(n int32, field string) uint16 {
	switch {
	case n == 0 || r.s.Type == TypeClusterIP:
		return 0
	case !validPort(n):
		r.add(ReasonPortRange, field, "%d is not between 1 and 65535", n)
		return 0
	}
	return uint16(n)
}

func (r *serviceReader) affinity() {
	spec := &r.obj.Spec
	switch spec.SessionAffinity {
	case "", corev1.ServiceAffinityNone:
		return
	case corev1.ServiceAffinityClientIP:
	default:
		r.add(ReasonSessionAffinity, "spec.sessionAffinity", "%s is not an affinity; taken as None",
			quote(string(spec.SessionAffinity)))
		return
	}
	r.s.AffinitySeconds = defaultAffinitySeconds
	c := spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return
	}
	n := *c.ClientIP.TimeoutSeconds
	if n < 1 || n > maxAffinitySeconds {
		r.add(ReasonSessionAffinity, "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
			"%d is not between 1 and %d; taken as %d", n, maxAffinitySeconds, defaultAffinitySeconds)
		return
	}
	r.s.AffinitySeconds = uint32(n)
}

// policies are the traffic policies. An unknown one is taken as Cluster, which
// delivers.
func (r *serviceReader) policies() {
	spec := &r.obj.Spec
	external := r.s.Type != TypeClusterIP || len(r.s.ExternalIPs) > 0
	switch spec.ExternalTrafficPolicy {
	case corev1.ServiceExternalTrafficPolicyLocal:
		r.s.ExternalLocal = external
	case "", corev1.ServiceExternalTrafficPolicyCluster:
	default:
		r.add(ReasonTrafficPolicy, "spec.externalTrafficPolicy", "%s is not a policy; taken as Cluster",
			quote(string(spec.ExternalTrafficPolicy)))
	}
	if p := spec.InternalTrafficPolicy; p != nil {
		switch *p {
		case corev1.ServiceInternalTrafficPolicyLocal:
			r.s.InternalLocal = true
		case "", corev1.ServiceInternalTrafficPolicyCluster:
		default:
			r.add(ReasonTrafficPolicy, "spec.internalTrafficPolicy", "%s is not a policy; taken as Cluster",
				quote(string(*p)))
		}
	}
	if n := spec.HealthCheckNodePort; n != 0 && r.s.Type == TypeLoadBalancer && r.s.ExternalLocal {
		r.s.HealthCheckNodePort = r.nodePort(n, "spec.healthCheckNodePort")
	}
}

// loadBalancer reads what only a LoadBalancer has. The API server clears the
// status when the type changes; until then the addresses are already invalid.
func (r *serviceReader) loadBalancer() {
	if r.s.Type != TypeLoadBalancer {
		return
	}
	seen := map[netip.Addr]bool{}
	for i := range r.obj.Status.LoadBalancer.Ingress {
		in := &r.obj.Status.LoadBalancer.Ingress[i]
		if in.IP == "" {
			continue // a host name: its traffic arrives at node ports
		}
		field := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		if in.IPMode != nil {
			if *in.IPMode == corev1.LoadBalancerIPModeProxy {
				continue
			}
			if *in.IPMode != corev1.LoadBalancerIPModeVIP {
				r.add(ReasonIPMode, field+".ipMode", "%s is not a mode; address left out", quote(string(*in.IPMode)))
				continue
			}
		}
		if a, ok := r.addr(in.IP, field+".ip", seen); ok {
			r.s.LoadBalancerIPs = append(r.s.LoadBalancerIPs, a)
		}
	}
	slices.SortFunc(r.s.LoadBalancerIPs, netip.Addr.Compare)
	ranges := r.obj.Spec.LoadBalancerSourceRanges
	r.s.SourceRangesGiven = len(ranges) > 0
	r.s.SourceRanges = r.prefixes(ranges, "spec.loadBalancerSourceRanges")
	slices.SortFunc(r.s.SourceRanges, netip.Prefix.Compare)
	r.closed()
}

// closed reports the addresses that source ranges leave to nobody. Most often somebody thought of one family only.
func (r *serviceReader) closed() {
	if !r.s.SourceRangesGiven {
		return
	}
	for _, family := range []struct {
		name string
		of   func(netip.Addr) bool
	}{{"IPv4", netip.Addr.Is4}, {"IPv6", netip.Addr.Is6}} {
		at := slices.IndexFunc(r.s.LoadBalancerIPs, family.of)
		if at >= 0 && !slices.ContainsFunc(r.s.SourceRanges, func(p netip.Prefix) bool { return family.of(p.Addr()) }) {
			r.add(ReasonSourceRanges, "spec.loadBalancerSourceRanges", "no range of %s that can be used: nobody is let in at %s",
				family.name, r.s.LoadBalancerIPs[at])
		}
	}
}

// MetricsAnnotation is the annotation by which a Service asks for metrics of its own: "true". "false" is as good as none.
const MetricsAnnotation = "ipvs-proxy.io/metrics"

// metrics reads whether the Service asks for metrics of its own. What is neither yes nor no is no: nobody pays for what
// was not asked for.
func (r *serviceReader) metrics() {
	switch text, given := r.obj.Annotations[MetricsAnnotation]; {
	case text == "true":
		r.s.Measured = true
	case given && text != "false":
		r.add(ReasonMetrics, "metadata.annotations["+MetricsAnnotation+"]", "%s is neither \"true\" nor \"false\"; the Service gets no metrics of its own", quote(text))
	}
}

// distribution is how traffic is to be distributed. What it comes to is in the hints of the endpoints.
func (r *serviceReader) distribution() {
	d := r.obj.Spec.TrafficDistribution
	if d == nil {
		return
	}
	r.s.TrafficDistribution = intern(*d)
	switch *d {
	case "", corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
	default:
		r.add(ReasonDistribution, "spec.trafficDistribution", "%s is not a distribution; the hints of the endpoints are followed", quote(*d))
	}
}
