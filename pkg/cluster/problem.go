package cluster

import (
	"fmt"
	"strings"
)

// Problem is something in an object that cannot be used. It costs only itself.
// Problem is comparable.
type Problem struct {
	Service ID     // the Service that it concerns; zero for a Node
	Object  string // kind and name: "EndpointSlice default/web-x7"
	Field   string // "endpoints[2].addresses[0]"
	Reason  string // one of the Reason constants, fit for a metric label
	Message string // what is wrong with the field, of bounded length
	Node    string // the node of the endpoint that it is about; "" when unknown, or when it is about no endpoint
	// Count is how many places in the object this stands for, itself
	// included: after the first few with the same reason the rest are
	// counted, not listed, so that a thousand bad endpoints cost little.
	Count int
}

// The reasons of Problems: a bounded set.
const (
	ReasonInvalidAddress  = "InvalidAddress"
	ReasonWrongFamily     = "WrongFamily"
	ReasonLoopback        = "Loopback"
	ReasonLinkLocal       = "LinkLocal"
	ReasonUnspecified     = "Unspecified"
	ReasonMulticast       = "Multicast"
	ReasonBroadcast       = "Broadcast"
	ReasonReserved        = "Reserved"
	ReasonIPv4Mapped      = "IPv4Mapped"
	ReasonZonedAddress    = "ZonedAddress"
	ReasonAddressType     = "AddressType"
	ReasonNoAddress       = "NoAddress"
	ReasonNoPort          = "NoPort"
	ReasonPortRange       = "PortRange"
	ReasonProtocol        = "Protocol"
	ReasonDuplicate       = "Duplicate"
	ReasonServiceType     = "ServiceType"
	ReasonTrafficPolicy   = "TrafficPolicy"
	ReasonSessionAffinity = "SessionAffinity"
	ReasonIPMode          = "IPMode"
	ReasonInvalidCIDR     = "InvalidCIDR"
	ReasonSourceRanges    = "SourceRanges"
	ReasonDistribution    = "TrafficDistribution"
	ReasonHints           = "Hints"
	ReasonTriggerTime     = "TriggerTime"
	ReasonScheduling      = "Scheduling"
	ReasonMetrics         = "MetricsAnnotation"
)

// String gives the Problem as one line.
func (p Problem) String() string {
	if p.Count > 1 {
		return fmt.Sprintf("%s (and %d more like it)", p.One(), p.Count-1)
	}
	return p.One()
}

// One is the line without the number of those that it stands for.
func (p Problem) One() string { return p.Object + ": " + p.Field + ": " + p.Message }

// listedPerReason is how many Problems of one object and reason are listed
// before the rest are counted.
const listedPerReason = 4

// problems collects the Problems of one object.
type problems struct {
	service ID
	object  string
	node    string // of the endpoint that is being looked at
	list    []Problem
}

func (p *problems) add(reason, field, format string, args ...any) {
	seen, last := 0, 0
	for i := range p.list {
		if p.list[i].Reason == reason {
			seen, last = seen+1, i
		}
	}
	if seen == listedPerReason {
		p.list[last].Count++
		return
	}
	p.list = append(p.list, Problem{
		Service: p.service, Object: p.object, Field: field,
		Reason: reason, Message: fmt.Sprintf(format, args...), Count: 1, Node: p.node,
	})
}

// quote makes text from an object fit to be printed: one line, of bounded
// length.
func quote(s string) string {
	const limit = 64
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}
