package ipvs

import (
	"context"
	"errors"
	"net/netip"
)

// Kernel is a node's kernel as the sync loop sees it. It is used by one goroutine at a time.
type Kernel interface {
	// Base sees to what every Key stands on: modules, the interface, the nftables table, the sysctls. It
	// reads first and writes only what differs.
	Base(context.Context) (BaseReport, error)
	// Observe reads what the kernel holds for the Keys. A Key that is missing in the answer is absent from
	// the kernel. What Keys of one address share comes under the address's Key, where that is asked for. An
	// error means that nothing is known of any of them.
	Observe(context.Context, []Key) (map[Key]Observed, error)
	// Scan reads everything: all virtual servers, owned or not, all our set elements, all addresses of our
	// interface. Facts that belong to no virtual server come under an address's Key.
	Scan(context.Context, func(Key, Observed)) error
	// Detect reads the same as Scan in the cheapest way, for finding what somebody else changed; nothing
	// may be decided from it. Each call delivers a part and returns done with the last one; the next call
	// then begins anew. What is delivered of a Key comes in pieces: a virtual server (its Timeout is 0 and
	// its Flags hold Persistent at most), or single facts of Guard and Bind. A virtual server that comes or
	// goes meanwhile may be missing or come twice.
	Detect(context.Context, func(Key, *Frontend)) (done bool, err error)
	// Do writes a Plan, phase by phase, and says of every Step how it ended. When a Step of a Key fails,
	// the Key's Steps of later phases are not tried. Equal Ops of several Keys are one write.
	Do(context.Context, Plan) []Outcome
	// Local reads what of the node itself decides what Services become on it.
	Local(context.Context) (Local, error)
	// LocalChanged has a token when Local may give something new.
	LocalChanged() <-chan struct{}
	// Tampered has a token when another program may have changed what is ours.
	Tampered() <-chan struct{}
	// Tampering takes what was heard of such changes since it was last asked. Hearing is quick and may fail: nothing
	// may rely on it. What Base and Do write is not heard.
	Tampering() Tampering
	// Canary looks in the cheapest way, within microseconds, whether another program added or removed virtual servers,
	// of which nobody hears. It knows what Do wrote. It need not notice: some changes leave their number as it was, and
	// the kernel may count one family only. After a write of which nobody can say whether it took place it begins anew.
	Canary(context.Context) (changed bool, err error)
	// SetPods says which sources are pods: on the way to a ClusterIP they keep their address. It takes effect
	// with the next Base.
	SetPods([]netip.Prefix) error
}

// Local is what a node is, beside what its objects say.
type Local struct {
	// Addrs are the addresses of the node's interfaces other than ours: no loopback, no link-local ones, none
	// that cannot be used yet. Sorted and unique.
	Addrs []netip.Addr
	// Sources are the addresses, at most one of each family, with which the node's own connections leave.
	Sources []netip.Addr
	// NoIPv6: IPv6 is switched off on the node.
	NoIPv6 bool
}

// Tampering is where another program may have changed something of ours.
type Tampering struct {
	// Base: what Base sees to.
	Base bool
	// Keys: what Detect reads.
	Keys bool
}

// And is both.
func (t Tampering) And(o Tampering) Tampering { return Tampering{t.Base || o.Base, t.Keys || o.Keys} }

// BaseReport says what Base found and did.
type BaseReport struct {
	// Wrote lists the writes, as a person would type them; empty on a node that was right.
	Wrote []string
	// LinkCreated: the interface is new or was down, so whatever was known of its addresses is void.
	LinkCreated bool
	// TableCreated: the nftables table is new, so whatever was known of its elements is void.
	TableCreated bool
	// Warnings are things that could not be set up and without which the rest still works in part.
	Warnings []error
}

// ErrNotTried is the error of a Step whose Key failed in an earlier phase.
var ErrNotTried = errors.New("not tried: an earlier step for the same frontend failed")

// Outcome is how a Step ended.
type Outcome struct {
	// Err is nil when the kernel confirmed the write. Otherwise it wraps the errno where there is one, and
	// says what was tried on which object.
	Err error
	// Unknown: nobody can say whether the write took place (a time-out, a lost acknowledgement).
	Unknown bool
	// Deleted counts the conntrack entries that a Forget deleted.
	Deleted int
}
