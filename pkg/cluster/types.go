package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ID names a namespaced object, nearly always a Service.
type ID struct{ Namespace, Name string }

// String gives "namespace/name".
func (id ID) String() string { return id.Namespace + "/" + id.Name }

// mostID bounds how long a name may be that ParseID takes: 63 and 253 characters are what Kubernetes allows.
const mostID = 512

// ParseID reads "namespace/name", as String writes it. The error says what is wanted.
func ParseID(text string) (ID, error) {
	namespace, name, both := strings.Cut(text, "/")
	if !both || namespace == "" || name == "" || strings.Contains(name, "/") || len(text) > mostID {
		return ID{}, fmt.Errorf("%s names no Service: want NAMESPACE/NAME, such as default/kubernetes", quote(text))
	}
	return ID{namespace, name}, nil
}

// Compare orders by namespace, then by name.
func (id ID) Compare(other ID) int {
	return cmp.Or(cmp.Compare(id.Namespace, other.Namespace), cmp.Compare(id.Name, other.Name))
}

// Less reports whether id sorts before other.
func (id ID) Less(other ID) bool { return id.Compare(other) < 0 }

// Protocol is a transport protocol by its IANA number, as the kernel wants it.
type Protocol uint8

// The protocols of Kubernetes Services. The sanitiser lets no other pass.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String gives the name as Kubernetes writes it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// ServiceType is spec.type; ExternalName is missing because such a Service
// never becomes a [Service].
type ServiceType uint8

// Each type includes the ones before it.
const (
	TypeClusterIP ServiceType = iota
	TypeNodePort
	TypeLoadBalancer
)

// String gives the name as Kubernetes writes it.
func (t ServiceType) String() string {
	switch t {
	case TypeClusterIP:
		return "ClusterIP"
	case TypeNodePort:
		return "NodePort"
	case TypeLoadBalancer:
		return "LoadBalancer"
	}
	return fmt.Sprintf("service type %d", uint8(t))
}

// Identity is who a Service is.
type Identity struct {
	ID ID
	// UID tells a Service from an earlier one of the same name; it is for
	// Events. Two Services that differ in nothing else are equal.
	UID     UID
	Created int64 // metadata.creationTimestamp in Unix seconds; 0: unknown
	// DNSLabel: it has the label by which the cluster's DNS is known,
	// k8s-app: kube-dns.
	DNSLabel bool
	// Foreign: another proxy serves it. Of such a Service ID, Created and
	// ClusterIPs are known, and nothing else.
	Foreign bool
}

// Service is a Service that this proxy serves, sanitised, or another proxy. It is immutable once
// handed to the Model. Addresses are valid unicast addresses, neither IPv4 in
// IPv6 nor with a zone; a list holds no address twice.
type Service struct {
	Identity
	Type ServiceType

	// ClusterIPs in the order of the object, the primary family first. Empty
	// only when every one of them was unusable.
	ClusterIPs []netip.Addr
	// Ports in the order of the object. Unique by port and protocol, and by
	// name and protocol.
	Ports []Port

	// AffinitySeconds is the time-out of ClientIP session affinity, 1 to
	// 86,400; 0: no affinity.
	AffinitySeconds uint32
	// ExternalLocal: externalTrafficPolicy is Local and the Service can be
	// reached from outside at all (node port, load balancer, external IP).
	ExternalLocal bool
	// InternalLocal: internalTrafficPolicy is Local.
	InternalLocal bool
	// HealthCheckNodePort is set only on a LoadBalancer with ExternalLocal.
	HealthCheckNodePort uint16

	// LoadBalancerIPs are the addresses of status.loadBalancer of a
	// LoadBalancer, sorted. Those with ipMode Proxy are left out: their
	// balancer wants the traffic itself.
	LoadBalancerIPs []netip.Addr
	// ExternalIPs are spec.externalIPs, sorted.
	ExternalIPs []netip.Addr

	// SourceRanges are the usable spec.loadBalancerSourceRanges of a
	// LoadBalancer, masked, sorted, unique.
	SourceRanges []netip.Prefix
	// SourceRangesGiven: the list was not empty in the object. With every
	// entry unusable SourceRanges is empty and nobody may come in, rather
	// than everybody.
	SourceRangesGiven bool

	// TrafficDistribution is spec.trafficDistribution as it stands, "" when
	// absent. Endpoint hints already follow it.
	TrafficDistribution string
	// Scheduling is how its connections are shared out.
	Scheduling Scheduling
	// Measured: it asks for metrics of its own (MetricsAnnotation).
	Measured bool
}

// Port is a port of a Service.
type Port struct {
	Name     string // "" where the Service has a single unnamed port
	Protocol Protocol
	Port     uint16 // 1 to 65535
	NodePort uint16 // 0: none; always 0 on a ClusterIP Service
}

// Endpoint is one address and port of an EndpointSlice. It belongs to the
// Service port with the same name and protocol.
type Endpoint struct {
	Addr     netip.Addr // valid unicast, see Service
	Port     uint16     // 1 to 65535
	Protocol Protocol
	PortName string

	NodeName string // "" when unknown
	Zone     string // "" when unknown
	// ZoneHints and NodeHints are the names in hints.forZones and
	// hints.forNodes, sorted, unique; nil where the endpoint has none. They
	// may be shared between endpoints.
	ZoneHints, NodeHints []string

	// Weight is its slice's.
	Weight Weight

	Ready, Serving, Terminating bool // nil resolved: true, true, false
}

// Node is the node this process runs on. The zero Node but for its name is
// what is known before the Node object arrived, and without one.
type Node struct {
	Name string
	// Addrs are the InternalIPs, then the ExternalIPs, each in the order of
	// the object.
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix // in the order of the object, masked
	Zone     string         // label topology.kubernetes.io/zone, "" without
	// Known: there is such an object.
	Known bool
	// Deleting: the object has a deletion timestamp.
	Deleting bool
	// ToBeDeleted: the cluster autoscaler has tainted the node and is about
	// to remove it.
	ToBeDeleted bool
}

func (s *Service) equal(o *Service) bool {
	return s.ID == o.ID && s.Created == o.Created && s.Type == o.Type &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) &&
		slices.Equal(s.Ports, o.Ports) &&
		s.AffinitySeconds == o.AffinitySeconds &&
		s.ExternalLocal == o.ExternalLocal && s.InternalLocal == o.InternalLocal &&
		s.HealthCheckNodePort == o.HealthCheckNodePort &&
		slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) &&
		slices.Equal(s.ExternalIPs, o.ExternalIPs) &&
		slices.Equal(s.SourceRanges, o.SourceRanges) &&
		s.SourceRangesGiven == o.SourceRangesGiven &&
		s.TrafficDistribution == o.TrafficDistribution && s.DNSLabel == o.DNSLabel &&
		s.Scheduling == o.Scheduling &&
		s.Measured == o.Measured &&
		s.Foreign == o.Foreign
}

func (n Node) equal(o Node) bool {
	return n.Name == o.Name && n.Zone == o.Zone &&
		slices.Equal(n.Addrs, o.Addrs) && slices.Equal(n.PodCIDRs, o.PodCIDRs) &&
		n.Known == o.Known && n.Deleting == o.Deleting && n.ToBeDeleted == o.ToBeDeleted
}

// Stays reports whether the Node exists and nobody is about to remove it: load balancers may send to it.
func (n Node) Stays() bool { return n.Known && !n.Deleting && !n.ToBeDeleted }

// InternalPolicy is its internalTrafficPolicy.
func (s *Service) InternalPolicy() string { return policy(s.InternalLocal) }

// ExternalPolicy is its externalTrafficPolicy; "" where it cannot be reached from outside.
func (s *Service) ExternalPolicy() string {
	if s.Type == TypeClusterIP && len(s.ExternalIPs) == 0 {
		return ""
	}
	return policy(s.ExternalLocal)
}

func policy(local bool) string {
	if local {
		return "Local"
	}
	return "Cluster"
}
