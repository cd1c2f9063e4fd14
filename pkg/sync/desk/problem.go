package desk

import (
	"fmt"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// Problem is something of a Service that is not served on this node, or not in the way that was asked for. Like the
// Problems of package cluster it costs only itself.
type Problem struct {
	Reason string // one of the Reason constants, or of package cluster's
	Text   string // one line that names the field or the frontend
	// Here: this node has the endpoint concerned, or it is an address of its own that is not served.
	Here bool
	// Anywhere: no endpoint and no address decides whose business it is.
	Anywhere bool
	// Count is how many places in the objects this stands for; 0: one. Those beyond the first few of a kind are not
	// listed: see note.
	Count int
}

// listedPerKind is how many Problems of a reason are listed, of each of those who speak of them: those of two ports over
// two protocols in two families. The API server takes 20,000 addresses in one Service, and each may be a Problem.
const listedPerKind = 8

// note adds a Problem to a list. Where there are enough of its kind, the last of them stands for it as well, and its text
// is not asked for.
func note(list []Problem, p Problem, text func() string) []Problem {
	listed, last := 0, 0
	for i, o := range list {
		if o.Reason == p.Reason && o.Here == p.Here && o.Anywhere == p.Anywhere {
			listed, last = listed+1, i
		}
	}
	if listed == listedPerKind {
		list[last].Count = max(list[last].Count, 1) + max(p.Count, 1)
		return list
	}
	p.Text = text()
	return append(list, p)
}

// noteAll adds Problems to a list as note does.
func noteAll(list, more []Problem) []Problem {
	for _, p := range more {
		list = note(list, p, func() string { return p.Text })
	}
	return list
}

// counted has each Problem say for how many others it stands.
func counted(list []Problem) []Problem {
	for i, p := range list {
		if p.Count > 1 {
			list[i].Text = fmt.Sprintf("%s (and %d more like it)", p.Text, p.Count-1)
		}
	}
	return list
}

// The reasons of Problems, beside those of package cluster: a bounded set, fit for a metric label and for an Event.
const (
	ReasonNodeAddress       = "NodeAddress"         // an address of this node
	ReasonAPIServerAddress  = "APIServerAddress"    // an address of the API server
	ReasonProtectedAddress  = "ProtectedAddress"    // in a protected range
	ReasonFamilyMissing     = "FamilyMissing"       // of a family that the Service does not have
	ReasonExternalIP        = "ExternalIPForbidden" // external IPs are not served, or not from this range
	ReasonAddressTaken      = "AddressTaken"        // it belongs to another Service
	ReasonVirtualIPEndpoint = "VirtualIPEndpoint"   // an endpoint that is a virtual IP of ours
	ReasonPodAddress        = "PodAddress"          // in a range of pods
	ReasonEndpointAddress   = "EndpointAddress"     // an endpoint of a Service
	ReasonNoHost            = "NoHost"              // no host can have it
	ReasonHints             = "Hints"               // they name only zones or nodes that nobody knows
	ReasonHealthCheckPort   = "HealthCheckNodePort" // it belongs to another Service, or to another process of this node
	ReasonSchedulerMissing  = "SchedulerMissing"    // the kernel lacks a scheduler; about the Node, or the Service that asks for it
	ReasonOtherProxy        = "OtherProxy"          // another Service proxy is at work; about the Node
	ReasonRulesBefore       = "RulesBeforeIPVS"     // another proxy's rules take packets before IPVS does; about the Node
	ReasonZoneMissing       = "ZoneMissing"         // hints are for zones, and the node has none; about the Node
)

// OwnNode is the ID under which the own Node has its Problems.
var OwnNode cluster.ID

// NodeProblems are those of the own Node.
func (d *Desk) NodeProblems() (problems []Problem) {
	if node := d.site.Node; node.Known && node.Zone == "" && len(d.zonal) > 0 {
		problems = []Problem{{Reason: ReasonZoneMissing, Here: true, Text: "Node " + node.Name + ": metadata.labels[topology.kubernetes.io/zone]" +
			": missing: endpoints with hints for zones serve this node as if they had none"}}
	}
	return counted(d.withObjects(OwnNode, problems))
}

// withObjects adds what of a Service's objects cannot be used.
func (d *Desk) withObjects(id cluster.ID, problems []Problem) []Problem {
	for _, p := range d.cluster.Problems(id) {
		here := p.Node != "" && p.Node == d.site.Node.Name || id == OwnNode
		problems = note(problems, Problem{Reason: p.Reason, Here: here, Anywhere: p.Node == "", Count: p.Count}, p.One)
	}
	return problems
}

// Speaks: this node has the first ready endpoint of a Service, in the canonical order that all nodes have. It speaks
// for it, where no endpoint and no address decides whose business a Problem is.
func (d *Desk) Speaks(id cluster.ID) bool {
	eps := d.cluster.Endpoints(id)
	i := slices.IndexFunc(eps, func(ep cluster.Endpoint) bool { return ep.Ready && ep.NodeName != "" })
	return i >= 0 && eps[i].NodeName == d.site.Node.Name
}
