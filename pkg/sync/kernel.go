package sync

import (
	"context"
	"net/netip"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// Kernel is a node's kernel, by who uses it. It is used by one goroutine at a time.
type Kernel interface {
	Writer
	Reader
	Node
	Signs
}

// Writer writes to the kernel.
type Writer interface {
	// Do writes a Plan, phase by phase, and says of every Step how it ended. When a Step of a Key fails,
	// the Key's Steps of later phases are not tried. Equal Ops of several Keys are one write.
	Do(context.Context, ipvs.Plan) []ipvs.Outcome
}

// Reader reads what Do writes.
type Reader interface {
	// Observe reads what the kernel holds for the Keys. A Key that is missing in the answer is absent from
	// the kernel. What Keys of one address share comes under the address's Key, where that is asked for. An
	// error means that nothing is known of any of them.
	Observe(context.Context, []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error)
	// Connections counts those of the Keys' real servers, as few of them as have any. A Key that is not there has none.
	Connections(context.Context, []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error)
	// Scan reads everything: all virtual servers, owned or not, all our set elements, all addresses of our
	// interface. Facts that belong to no virtual server come under an address's Key.
	Scan(context.Context, func(ipvs.Key, ipvs.Observed)) error
	// Detect reads the same as Scan in the cheapest way, for finding what somebody else changed; nothing
	// may be decided from it. Each call delivers a part and returns done with the last one; the next call
	// then begins anew. What is delivered of a Key comes in pieces: a virtual server (its Timeout is 0 and
	// its Flags hold Persistent at most), or single facts of Guard and Bind. A virtual server that comes or
	// goes meanwhile may be missing or come twice. Conns are the connections that the kernel counts of a virtual server.
	Detect(context.Context, func(k ipvs.Key, piece *ipvs.Frontend, conns uint32)) (done bool, err error)
}

// Node is what every Key stands on, and what of the node itself decides what Services become on it.
type Node interface {
	// Base sees to what every Key stands on: modules, the interface, the nftables table, the sysctls. It
	// reads first and writes only what differs.
	Base(context.Context) (ipvs.BaseReport, error)
	// Local reads what of the node itself decides what Services become on it.
	Local(context.Context) (ipvs.Local, error)
	// SetPods says which sources are pods: on the way to a ClusterIP they keep their address. It takes effect
	// with the next Base.
	SetPods([]netip.Prefix) error
	// Shield says whether the destination of what is a Service's is decided before the rules of other programs have their
	// turn. What is on ends by itself after some minutes, unless it is said again.
	Shield(ctx context.Context, on bool) error
}

// Signs are those of changes that others made.
type Signs interface {
	// LocalChanged has a token when Local may give something new.
	LocalChanged() <-chan struct{}
	// Tampered has a token when another program may have changed what is ours.
	Tampered() <-chan struct{}
	// Tampering takes what was heard of such changes since it was last asked. Hearing is quick and may fail: nothing
	// may rely on it. What Base and Do write is not heard.
	Tampering() ipvs.Tampering
	// Canary looks in the cheapest way, within microseconds, whether another program added or removed virtual servers,
	// of which nobody hears. It knows what Do wrote. It need not notice: some changes leave their number as it was, and
	// the kernel may count one family only. After a write of which nobody can say whether it took place it begins anew.
	Canary(context.Context) (ipvs.Census, error)
}

// Model is the cluster as this node sees it, by who uses it.
type Model interface {
	Feed
	Where
	Triggers
	desk.Cluster
}

// Feed says what is new in the cluster.
type Feed interface {
	// Changed has a token when Take may give something.
	Changed() <-chan struct{}
	// Take takes the Services that changed, whether the own Node did, and whether the source has delivered what it has.
	Take() (dirty []cluster.ID, nodeChanged, synced bool)
	// Complete reports whether nothing is missing.
	Complete() bool
	// Changes counts the objects that were heard of.
	Changes() (services, slices uint64)
}

// Where says where this node is in the cluster.
type Where interface {
	// Node is the own Node as it is now.
	Node() cluster.Node
	// APIServers are the addresses by which the source reaches the API server.
	APIServers() []netip.Addr
}

// Triggers say when the control plane changed what is on its way into the kernel.
type Triggers interface {
	// TakeTriggers takes the dates of the last changes of a Service's endpoints.
	TakeTriggers(cluster.ID) []cluster.Trigger
}
