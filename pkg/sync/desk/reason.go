package desk

import "fmt"

// Code says why an endpoint is left out, why a Service may not have something, or why a connection is not served. It
// prints as IPX and four digits. A code never gets another meaning.
type Code uint16

// None: there is nothing to say.
const None Code = 0

// Why an endpoint is left out of a frontend, or used all the same.
const (
	NotReady        Code = 101
	NotServing      Code = 102
	VirtualEndpoint Code = 103
	Terminating     Code = 104
	Elsewhere       Code = 105 // external policy Local
	LastOnes        Code = 106 // used all the same
	ElsewhereInside Code = 107 // internal policy Local
	OtherZone       Code = 108
	OtherNode       Code = 109
	NoHost          Code = 110
)

// Why a Service may not have an address, or a port of one.
const (
	NodeAddress      Code = 201
	APIServerAddress Code = 202
	ExternalIP       Code = 203
	ProtectedAddress Code = 204
	FamilyMissing    Code = 205
	KeyTaken         Code = 206
	ClusterIPTaken   Code = 207
	IPv6Off          Code = 208
	CheckPortTaken   Code = 209
	PodAddress       Code = 210
	EndpointAddress  Code = 211
	OthersAddress    Code = 212
	NoHostAddress    Code = 213
)

// Why a new connection is not served.
const (
	NoSuchPort  Code = 301
	NoEndpoint  Code = 302
	NoneForSome Code = 303
	OutOfRanges Code = 304 // loadBalancerSourceRanges
)

func (c Code) String() string { return fmt.Sprintf("IPX%04d", uint16(c)) }

// Reason explains a Code.
type Reason struct {
	Code Code
	// Name is that of the Problem that it is, as Events and metrics have it; "": it is none.
	Name string
	// Means and Do are sentences for an administrator: what it is, and what to do where that is not wanted.
	Means, Do string
}

// Reasons are all there are, by code.
func Reasons() []Reason { return reasons }

var reasons = []Reason{
	{NotReady, "", "The endpoint is not ready.", "See why its pod is not: kubectl describe pod."},
	{NotServing, "", "The endpoint is about to end and serves no more.", "Nothing: it goes."},
	{VirtualEndpoint, ReasonVirtualIPEndpoint, "The endpoint's address is a virtual IP of a Service: IPVS would send the connection to itself.", "Correct the EndpointSlice that somebody wrote by hand."},
	{Terminating, "", "The endpoint is about to end, and another one is ready.", "Nothing: its connections go on."},
	{Elsewhere, "", "externalTrafficPolicy is Local, and the endpoint is on another node.", "Set the policy to Cluster, or run a pod on this node."},
	{LastOnes, "", "The endpoint is about to end and is used all the same: it still serves, and none that could take its place is ready.", "See why no other pod is ready."},
	{ElsewhereInside, "", "internalTrafficPolicy is Local, and the endpoint is on another node.", "Set the policy to Cluster, or run a pod on this node."},
	{OtherZone, "", "By its hints the endpoint is for another zone.", "See spec.trafficDistribution of the Service."},
	{OtherNode, "", "By its hints the endpoint is for another node.", "See spec.trafficDistribution of the Service."},
	{NoHost, ReasonNoHost, "The endpoint's address is no host's: the network or the broadcast address of a subnet of this node, or in 240.0.0.0/4 without the node having pods or a subnet there.", "Correct the EndpointSlice that somebody wrote by hand."},

	{NodeAddress, ReasonNodeAddress, "The address is this node's own, by its Node object or because it stands on an interface with its subnet: a Service on it would cut the node off.", "Give the Service another address."},
	{APIServerAddress, ReasonAPIServerAddress, "The address is one of the API server's.", "Give the Service another address."},
	{ExternalIP, ReasonExternalIP, "External IPs are served only from ranges that are allowed: whoever may write a Service could take any address (CVE-2020-8554).", "Allow its range: --external-ip-cidrs."},
	{ProtectedAddress, ReasonProtectedAddress, "The address is in one of the protectedCIDRs.", "Give the Service another address, or change protectedCIDRs."},
	{FamilyMissing, ReasonFamilyMissing, "The address is of a family that the Service does not have.", "See spec.ipFamilies of the Service."},
	{KeyTaken, ReasonAddressTaken, "Another Service has the address, port and protocol: a load balancer's address goes before a node port, that before an external IP, and then the older Service.", "Give one of the two another port or address."},
	{ClusterIPTaken, ReasonAddressTaken, "The address is another Service's ClusterIP, which has all its ports.", "Give the Service another address."},
	{IPv6Off, "", "IPv6 is switched off on this node.", "Switch it on: net.ipv6.conf.all.disable_ipv6."},
	{CheckPortTaken, ReasonHealthCheckPort, "Another Service has the healthCheckNodePort, as its own or as a node port.", "Give one of the two another port."},
	{PodAddress, ReasonPodAddress, "The address is in a range of the cluster's pods: clusterCIDR, or the podCIDRs of this node's Node object.", "Give the Service another address."},
	{EndpointAddress, ReasonEndpointAddress, "The address is an endpoint of a Service: a pod's, a node's, or one that an older Service names by hand. Who had it would take what is meant for that.", "Give the Service another address. Is it a node's, name the nodes' ranges in protectedCIDRs."},
	{OthersAddress, ReasonNodeAddress, "The list in which the address stands names this node's own address as well: it is a list of nodes, as k3s's ServiceLB writes it.", "Name the nodes' ranges in protectedCIDRs; nodes that are not in the list cannot know."},
	{NoHostAddress, ReasonNoHost, "The address is no host's: the network or the broadcast address of a subnet of this node, or in 240.0.0.0/4.", "Give the Service another address."},

	{NoSuchPort, "", "The address is a virtual IP, and no Service has this port of it: TCP is reset, all else refused by ICMP.", "See the Service's ports."},
	{NoEndpoint, "", "The Service has no endpoint that could serve: TCP is reset, all else refused by ICMP.", "See whether the Service's selector fits its pods, and whether they are ready."},
	{NoneForSome, "", "A Local policy leaves no endpoint for the client: its packets are dropped, so that the load balancer's check decides.", "Run a pod on this node, or set the policy to Cluster."},
	{OutOfRanges, "", "The client is in none of the Service's loadBalancerSourceRanges: its packets are dropped.", "Add the client's range to spec.loadBalancerSourceRanges."},
}

// name is that of the Problem that a Code is.
func (c Code) name() string {
	for _, r := range reasons {
		if r.Code == c {
			return r.Name
		}
	}
	return ""
}
