// Package inspect says what this node serves, to whoever asks: it joins what the kernel counts with the names, the states
// and the reasons that the loop knows. It writes nothing, and what an answer costs the loop has a bound.
package inspect

import (
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// State is how a frontend stands.
type State string

// The states. Open is the only one in which every client is served.
const (
	Open State = "open"
	// NoEndpoints: a new connection is refused.
	NoEndpoints State = "no-endpoints"
	// NoLocal: a policy is Local and leaves some clients no endpoint here; theirs are dropped.
	NoLocal State = "no-local"
	// Taken: another Service has it.
	Taken State = "taken"
	// Forbidden: no Service may have it.
	Forbidden State = "forbidden"
	// Failing: the kernel refuses it, and it is tried again.
	Failing State = "failing"
	// Waiting: the kernel does not have it as it is wanted yet.
	Waiting State = "waiting"
	// Foreign: the kernel has it, and it is no Service's.
	Foreign State = "foreign"
)

// States are all of them.
var States = []State{Open, NoEndpoints, NoLocal, Taken, Forbidden, Failing, Waiting, Foreign}

// Head is how the node stands.
type Head struct {
	// Node is its name; "": no agent says it.
	Node    string `json:"node,omitempty"`
	Version string `json:"version,omitempty"`
	// Since is when the agent started.
	Since *time.Time `json:"upSince,omitempty"`
	// Kernel is its release.
	Kernel    string `json:"kernel"`
	Services  int    `json:"services"`
	Frontends int    `json:"frontends"`
	// Programmed: nothing waits and nothing fails.
	Programmed bool `json:"programmed"`
	// Waiting counts the frontends and the Services that wait for their turn, Failing the frontends that the kernel refuses,
	// Draining the real servers on their way out.
	Waiting  int `json:"waiting"`
	Failing  int `json:"failing"`
	Draining int `json:"draining"`
	// LastWrite is when the kernel was written last; nil: never by this agent.
	LastWrite *time.Time `json:"lastWrite,omitempty"`
	// Now is the time of the answer.
	Now time.Time `json:"now"`
	// Note says what else a reader must know: that another proxy is at work, or that no agent is.
	Note string `json:"note,omitempty"`
}

// Reason is why something is not as one might wish; its zero value: there is nothing to say.
type Reason struct {
	// Code is IPX and four digits, see docs/reasons.md; "": there is none.
	Code string `json:"reason,omitempty"`
	Why  string `json:"why,omitempty"`
	Do   string `json:"do,omitempty"`
}

// Row is a frontend, as a list has it.
type Row struct {
	// Service is "namespace/name"; "": nobody knows.
	Service string `json:"service,omitempty"`
	// Port is the name of the Service's port, Protocol TCP, UDP or SCTP.
	Port     string `json:"port,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	// Frontend is "address:port", or an address alone where that is forbidden as a whole.
	Frontend string `json:"frontend"`
	// By says what the address is: ClusterIP, load balancer, node port or external IP.
	By        string `json:"by,omitempty"`
	Scheduler string `json:"scheduler,omitempty"`
	// Backends counts the real servers that take new connections, Here those on this node, of which the agent knows.
	Backends int   `json:"backends"`
	Here     int   `json:"here"`
	State    State `json:"state"`
	Reason
	Load
}

// Load is what the kernel counts.
type Load struct {
	// Active and Inactive count the connections that IPVS knows now.
	Active   uint64 `json:"active"`
	Inactive uint64 `json:"inactive"`
	// Conns counts the connections since the kernel has it, In and Out the bytes.
	Conns uint64 `json:"connections"`
	In    uint64 `json:"bytesIn"`
	Out   uint64 `json:"bytesOut"`
	// Rate is the kernel's estimate of new connections a second.
	Rate uint64 `json:"connectionsPerSecond"`
}

// Frontend is one with its backends.
type Frontend struct {
	Row
	// Affinity is for how many seconds a client keeps its backend; 0: it does not.
	Affinity uint32 `json:"affinitySeconds,omitempty"`
	Scheduling
	// Inside is where clients inside the cluster are sent in its place; "": nowhere.
	Inside string    `json:"redirectsInside,omitempty"`
	Of     []Backend `json:"of"`
}

// Scheduling is what a Service asks for in how a frontend's connections are shared out.
type Scheduling = preview.Scheduling

// BackendState is how a backend stands.
type BackendState string

// The states of a backend.
const (
	Ready    BackendState = "ready"
	Draining BackendState = "draining"
	LeftOut  BackendState = "left out"
	// Missing: the kernel does not have it yet.
	Missing BackendState = "missing"
	// Stray: the kernel has it, and nobody wants it.
	Stray BackendState = "stray"
)

// Backend is one of a frontend.
type Backend struct {
	Address string `json:"address"`
	// Node is where it runs; "": nobody knows.
	Node   string       `json:"node,omitempty"`
	Weight uint16       `json:"weight"`
	State  BackendState `json:"state"`
	// Full is the weight that it has in the end, and Grows when it has that; 0 and nil: it has it.
	Full  uint16     `json:"fullWeight,omitempty"`
	Grows *time.Time `json:"growsUntil,omitempty"`
	// Since and Until are when it began to drain, and when its connections are given up at the latest.
	Since *time.Time `json:"since,omitempty"`
	Until *time.Time `json:"until,omitempty"`
	// Share is its part of the frontend's connections, 0 to 1.
	Share float64 `json:"share"`
	// Persistent counts the templates that hold clients to it.
	Persistent uint32 `json:"persistent"`
	Reason
	Load
}

// Service is one Service on this node.
type Service struct {
	Service        string `json:"service"`
	Type           string `json:"type"`
	InternalPolicy string `json:"internalTrafficPolicy"`
	// ExternalPolicy is "" where it cannot be reached from outside.
	ExternalPolicy string     `json:"externalTrafficPolicy,omitempty"`
	Frontends      []Frontend `json:"frontends"`
	// Problems are what it may not have.
	Problems []Problem `json:"problems"`
	// Pending are the writes that are still to be done for it, as a person would type them, a slice of the loop's work at most; Since is
	// since when the first of them waits; nil: none does, or nobody knows.
	Pending []string   `json:"pending,omitempty"`
	Since   *time.Time `json:"pendingSince,omitempty"`
}

// Problem is an address or a field of a Service that is not served.
type Problem struct {
	// What is the field, with the address that stands there.
	What string `json:"what"`
	Reason
}

// List is a page of rows.
type List struct {
	Head Head  `json:"head"`
	Rows []Row `json:"rows"`
	// Next asks for the page behind it; "": there is none.
	Next string `json:"next,omitempty"`
}

// Change is a write to the kernel, and because of what.
type Change struct {
	Number uint64    `json:"number"`
	At     time.Time `json:"at"`
	// Service is for whom it was done; "": for nobody in particular.
	Service string `json:"service,omitempty"`
	// Line is what a person would type.
	Line string `json:"line"`
	// Cause is one of: start, object, other Service, node, no scheduler, health check, tampered, drained, conntrack,
	// takeover, slow start, again.
	Cause string `json:"cause"`
	// Heard is when the cause was heard of; nil: there was nothing to hear.
	Heard *time.Time `json:"heard,omitempty"`
	// Error is how it failed; "": it did not.
	Error string `json:"error,omitempty"`
	// Deleted counts the conntrack entries that went.
	Deleted int `json:"deleted,omitempty"`
}

// Log is a page of changes, the oldest first.
type Log struct {
	Changes []Change `json:"changes"`
	// More: there are more behind the last Number.
	More bool `json:"more,omitempty"`
}

// Amiss reports whether a state is other than what its Service wants: somebody has to see to it, or it takes a moment.
func (s State) Amiss() bool { return s == Taken || s == Forbidden || s == Failing || s == Waiting }
