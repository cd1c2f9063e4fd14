package sync

import (
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

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
	// Count is how many places in the objects this stands for; 0: one.
	Count int
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
	ReasonHints             = "Hints"               // they name only zones or nodes that nobody knows
	ReasonHealthCheckPort   = "HealthCheckNodePort" // it belongs to another Service, or to another process of this node
	ReasonSchedulerMissing  = "SchedulerMissing"    // the kernel lacks a scheduler; about the Node
	ReasonZoneMissing       = "ZoneMissing"         // hints are for zones, and the node has none; about the Node
)

// Events tells the users of the cluster what is wrong with their objects.
type Events interface {
	// Warn puts an Event of type Warning on a Service; the zero ID stands for the own Node. The reason is
	// CamelCase and from a bounded set, the note at most 1 KiB. It must not block: what cannot be sent in time is
	// dropped.
	Warn(about cluster.ID, reason, note string)
}

// ownNode is the ID under which the own Node has its Problems and Events.
var ownNode cluster.ID

// tellNode does for the own Node what tell does for a Service.
func (l *Loop) tellNode() {
	var problems []Problem
	if node := l.model.Node(); node.Known && node.Zone == "" && len(l.zonal) > 0 {
		problems = []Problem{{Reason: ReasonZoneMissing, Here: true, Text: "Node " + node.Name + ": metadata.labels[topology.kubernetes.io/zone]" +
			": missing: endpoints with hints for zones serve this node as if they had none"}}
	}
	l.tell(ownNode, problems)
}

// tell logs what is wrong with a Service when it changes, and when it is mended, counts it by reason, and puts
// Events on the Service for what is this node's to say.
func (l *Loop) tell(id cluster.ID, problems []Problem) {
	for _, p := range l.model.Problems(id) {
		here := p.Node != "" && p.Node == l.site.Node.Name || id == ownNode
		problems = append(problems, Problem{Reason: p.Reason, Text: p.String(), Here: here, Anywhere: p.Node == "", Count: p.Count})
	}
	l.raise(id, problems)
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.Text
	}
	text := strings.Join(lines, "; ")
	if text == l.told[id] {
		return
	}
	l.count(id, problems)
	what, subject := "Service", zap.Stringer("service", id)
	if id == ownNode {
		what, subject = "Node", zap.String("node", l.site.Node.Name)
	}
	if text == "" {
		delete(l.told, id)
		l.log.Info(what+" is in order again", subject)
		return
	}
	l.told[id] = text
	l.log.Warn("parts of a "+what+" cannot be used", subject, zap.Strings("problems", lines))
}

// count keeps the metric of problems by reason.
func (l *Loop) count(id cluster.ID, problems []Problem) {
	for reason, n := range l.counted[id] {
		l.opt.Health.Problems(reason, -n)
	}
	delete(l.counted, id)
	if len(problems) == 0 {
		return
	}
	counts := map[string]int{}
	for _, p := range problems {
		counts[p.Reason] += max(p.Count, 1)
	}
	for reason, n := range counts {
		l.opt.Health.Problems(reason, n)
	}
	l.counted[id] = counts
}

// noteLimit is how long the note of an Event may be (events.k8s.io/v1).
const noteLimit = 1024

// raise puts Events on a Service, one a reason, when what this node has to say of it is new. With 5,000 nodes each
// would otherwise say the same: of an endpoint only its own node speaks, of an address of a node that node, and of
// everything else the node that has the Service's first endpoint. Of a Service without endpoints there is the log
// of every node.
func (l *Loop) raise(id cluster.ID, problems []Problem) {
	if l.opt.Events == nil || len(problems) == 0 && l.raised[id] == nil {
		return
	}
	if len(problems) == 0 {
		delete(l.raised, id)
		return
	}
	speaks := l.speaksFor(id)
	notes := map[string]string{}
	lasting := map[string]bool{}
	var reasons []string
	for _, p := range problems {
		lasting[p.Reason] = true
		if !p.Here && !(p.Anywhere && speaks) {
			continue
		}
		if notes[p.Reason] == "" {
			reasons = append(reasons, p.Reason)
			notes[p.Reason] = p.Text
		} else {
			notes[p.Reason] += "; " + p.Text
		}
	}
	before := l.raised[id]
	after := map[string]string{}
	for reason, note := range before {
		if lasting[reason] { // also while another node speaks: it may be this one's turn again
			after[reason] = note
		}
	}
	for _, reason := range reasons {
		note := notes[reason]
		if len(note) > noteLimit {
			note = strings.ToValidUTF8(note[:noteLimit-len("…")], "") + "…"
		}
		if before[reason] != note {
			l.opt.Events.Warn(id, reason, note)
		}
		after[reason] = note
	}
	if len(after) == 0 {
		delete(l.raised, id)
	} else {
		l.raised[id] = after
	}
}

// speaksFor: this node has the first ready endpoint of a Service, in the canonical order that all nodes have.
func (l *Loop) speaksFor(id cluster.ID) bool {
	eps := l.model.Endpoints(id)
	i := slices.IndexFunc(eps, func(ep cluster.Endpoint) bool { return ep.Ready && ep.NodeName != "" })
	return i >= 0 && eps[i].NodeName == l.site.Node.Name
}

// isOwn reports whether an address is this node's.
func (s Site) isOwn(a netip.Addr) bool { return s.isLocal(a) || slices.Contains(s.Node.Addrs, a) }
