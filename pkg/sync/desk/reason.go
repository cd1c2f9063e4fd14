package desk

import (
	"fmt"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// Code says why an endpoint is left out, why a Service may not have something, why a connection is not served, or what of
// an object or the node is not as it should be. It prints as IPX and four digits. A code never gets another meaning.
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
	StrayHints      Code = 111 // of all of them
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

// Why a new connection is not served, or is not ours to serve.
const (
	NoSuchPort    Code = 301
	NoEndpoint    Code = 302
	NoneForSome   Code = 303
	OutOfRanges   Code = 304 // loadBalancerSourceRanges
	NobodysIP     Code = 305
	NodesOwnPort  Code = 306
	PodsAddress   Code = 307
	LoopbackPort  Code = 308
	CheckAnswered Code = 309
	OthersServer  Code = 310 // in the kernel, and no Service's
)

// What of an object cannot be used as it is, whoever asks for it. Package cluster has the reasons.
const (
	BadAddress      Code = 401
	WrongFamily     Code = 402
	LoopbackAddress Code = 403
	LinkLocal       Code = 404
	Unspecified     Code = 405
	Multicast       Code = 406
	Broadcast       Code = 407
	Reserved        Code = 408
	IPv4Mapped      Code = 409
	ZonedAddress    Code = 410
	AddressType     Code = 411
	NoAddress       Code = 412
	NoPort          Code = 413
	PortRange       Code = 414
	Protocol        Code = 415
	Duplicate       Code = 416
	ServiceType     Code = 417
	TrafficPolicy   Code = 418
	SessionAffinity Code = 419
	IPMode          Code = 420
	InvalidCIDR     Code = 421
	SourceRanges    Code = 422
	Distribution    Code = 423
	TriggerTime     Code = 424
	MetricsNeither  Code = 425 // the annotation ipvs-proxy.io/metrics
	Scheduling      Code = 426
)

// What concerns the node as a whole.
const (
	SchedulerMissing Code = 501
	OtherProxy       Code = 502
	RulesBefore      Code = 503
	ZoneMissing      Code = 504
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
	{StrayHints, ReasonHints, "A hint has no name; or all hints are for a zone or a node that neither an endpoint nor this node is in: endpoints serve as if they had none.", "See who writes hints, and the zones of the Nodes."},

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
	{NobodysIP, "", "No Service has the address on this node: its packets go on as if there were no proxy.", "See the Service's addresses: kubectl get service -A -o wide."},
	{NodesOwnPort, "", "The address is this node's own, and no node port has this port there: whoever listens on it answers, or the node refuses.", "See spec.ports[].nodePort of the Service, and who listens: ss -lntup."},
	{PodsAddress, "", "The address is an endpoint's, not a Service's: the packet goes there by itself.", "Where nothing answers, the application does not listen on that address and port; see the pod: kubectl exec -- ss -lntup."},
	{LoopbackPort, "", "The address is of the loopback interface, from which IPVS takes no packet: node ports are not served there.", "Ask for the node port at an address of the node."},
	{CheckAnswered, "", "The port is the Service's healthCheckNodePort: the agent answers there itself how many endpoints this node has.", "Nothing: it is for the load balancer."},
	{OthersServer, "", "No Service has the address and port, and another program's virtual server in the kernel takes the packet.", "See whose it is: ipvsadm -Ln."},

	{BadAddress, cluster.ReasonInvalidAddress, "The text is no IP address.", "Correct it in the object that the note names."},
	{WrongFamily, cluster.ReasonWrongFamily, "The address is not of the family that the object or the slice says.", "Correct it in the object that the note names."},
	{LoopbackAddress, cluster.ReasonLoopback, "The address is of the loopback interface: every node would send to itself.", "Use an address that is reached from all nodes; for an application that listens on localhost alone, have it listen on the pod's address."},
	{LinkLocal, cluster.ReasonLinkLocal, "The address is link-local: it means something else on every link, and 169.254.169.254 is the cloud's metadata.", "Use an address that is reached from all nodes."},
	{Unspecified, cluster.ReasonUnspecified, "The address is 0.0.0.0 or ::, which is no host's.", "Correct it in the object that the note names."},
	{Multicast, cluster.ReasonMulticast, "The address is a multicast address: IPVS balances connections, which have one end.", "Correct it in the object that the note names."},
	{Broadcast, cluster.ReasonBroadcast, "The address is the broadcast address.", "Correct it in the object that the note names."},
	{Reserved, cluster.ReasonReserved, "The address is in 0.0.0.0/8, which is no host's.", "Correct it in the object that the note names."},
	{IPv4Mapped, cluster.ReasonIPv4Mapped, "The address is an IPv4 address written as IPv6: no packet has such an address.", "Write it as IPv4."},
	{ZonedAddress, cluster.ReasonZonedAddress, "The address names an interface (%eth0), which no other host knows.", "Write it without the zone."},
	{AddressType, cluster.ReasonAddressType, "The EndpointSlice's addressType is none that a proxy serves: IPv4 and IPv6 are.", "Correct the EndpointSlice."},
	{NoAddress, cluster.ReasonNoAddress, "The endpoint has no address.", "Correct the EndpointSlice."},
	{NoPort, cluster.ReasonNoPort, "The port of the EndpointSlice has no number.", "Give it one."},
	{PortRange, cluster.ReasonPortRange, "The number is no port: ports are 1 to 65535.", "Correct it in the object that the note names."},
	{Protocol, cluster.ReasonProtocol, "The protocol is none that IPVS balances: TCP, UDP and SCTP are.", "Correct it in the object that the note names."},
	{Duplicate, cluster.ReasonDuplicate, "The port stands in the object twice: the first one counts.", "Take one of them out."},
	{ServiceType, cluster.ReasonServiceType, "The Service's type is not known: it is not served.", "Correct spec.type."},
	{TrafficPolicy, cluster.ReasonTrafficPolicy, "The traffic policy is neither Cluster nor Local: it counts as Cluster.", "Correct the field that the note names."},
	{SessionAffinity, cluster.ReasonSessionAffinity, "The session affinity cannot be had as it is: the note says what is taken in its place.", "Correct spec.sessionAffinity, or its time-out: 1 to 86400 s."},
	{IPMode, cluster.ReasonIPMode, "The ipMode of the load balancer's address is neither VIP nor Proxy: it counts as VIP.", "See the controller that writes status.loadBalancer."},
	{InvalidCIDR, cluster.ReasonInvalidCIDR, "The text is no range of addresses.", "Correct it in the object that the note names."},
	{SourceRanges, cluster.ReasonSourceRanges, "loadBalancerSourceRanges has no range of a family that can be used: nobody of that family is let in at the load balancer's addresses.", "Correct spec.loadBalancerSourceRanges."},
	{Distribution, cluster.ReasonDistribution, "spec.trafficDistribution is not known: endpoints serve by their hints.", "Correct spec.trafficDistribution."},
	{TriggerTime, cluster.ReasonTriggerTime, "The annotation endpoints.kubernetes.io/last-change-trigger-time is no time: the change is missing in network_programming_duration_seconds.", "Nothing: traffic is as it should be."},
	{MetricsNeither, cluster.ReasonMetrics, "The annotation ipvs-proxy.io/metrics is neither \"true\" nor \"false\": the Service gets no metrics of its own.", "Write \"true\", in quotes."},
	{Scheduling, cluster.ReasonScheduling, "An annotation of scheduling cannot be used, or is not known: it alone has no effect.", "Correct the annotation that the note names: docs/scheduling.md has them all."},

	{SchedulerMissing, ReasonSchedulerMissing, "The kernel lacks the scheduler: in the place of the node's own rr serves, in that of a Service's the node's own.", "Load its module: modprobe ip_vs_NAME."},
	{OtherProxy, ReasonOtherProxy, "Another Service proxy is at work on the node: nothing is written until it is gone.", "Take the other proxy off the node, or this one."},
	{RulesBefore, ReasonRulesBefore, "Rules that kube-proxy left take packets before IPVS sees them.", "Take them out: kube-proxy --cleanup, or leave it to a start with takeover.leftovers: Remove."},
	{ZoneMissing, ReasonZoneMissing, "Endpoints have hints for zones, and the Node has no zone: all endpoints serve it.", "Give the Node the label topology.kubernetes.io/zone."},
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
