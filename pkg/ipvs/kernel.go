package ipvs

import (
	"cmp"
	"errors"
	"net/netip"
)

// Local is what a node is, beside what its objects say.
type Local struct {
	// Addrs are the addresses of the node's interfaces other than ours: no loopback, no link-local ones, none
	// that cannot be used yet. Sorted and unique.
	Addrs []netip.Addr
	// Own are those of Addrs that are this node's for good: they come with a subnet, and are the first there of
	// their interface. What other programs put on an interface for a while, a virtual IP of theirs, has no subnet or is a
	// second one in it. Sorted.
	Own []netip.Addr
	// Subnets are those of the node's interfaces other than ours, sorted and unique.
	Subnets []netip.Prefix
	// Renamed is an interface that was ours and has another name now, with what stands there; empty: there is none.
	Renamed string
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
	// Proxy says what another Service proxy wrote of its own, the first thing; empty: nothing. It is no change of ours.
	Proxy string
	// Lost: there was no room for what was to be heard. It may have been anything.
	Lost bool
}

// And is both.
func (t Tampering) And(o Tampering) Tampering {
	return Tampering{t.Base || o.Base, t.Keys || o.Keys, cmp.Or(t.Proxy, o.Proxy), t.Lost || o.Lost}
}

// BaseReport says what Base found and did.
type BaseReport struct {
	// Wrote lists the writes, as a person would type them; empty on a node that was right.
	Wrote []string
	// LinkCreated: the interface is new or was down, so whatever was known of its addresses is void.
	LinkCreated bool
	// Standing is what stands on it nevertheless, where LinkCreated: whether in the form that is configured.
	Standing map[netip.Addr]bool
	// TableCreated: the nftables table is new, so whatever was known of its elements is void.
	TableCreated bool
	// Moved: what Local gives may be something new, of which nobody was told: IPv6 was switched, the interface is another
	// one, or the node's own connections leave with another address.
	Moved bool
	// Warnings are things that could not be set up and without which the rest still works in part.
	Warnings []error
}

// About is a warning with a name for what it is about: the same thing may be wrong in another way later, as with another
// value, and is no new one then.
type About struct {
	Name string
	Err  error
}

func (a About) Error() string { return a.Err.Error() }
func (a About) Unwrap() error { return a.Err }

// AboutOf names what a warning is about. One without a name is about itself.
func AboutOf(err error) string {
	if about := (About{}); errors.As(err, &about) {
		return about.Name
	}
	return err.Error()
}

// Census is what comes of counting the virtual servers.
type Census uint8

// What it finds.
const (
	// AsBefore: as many as there should be.
	AsBefore Census = iota
	// Changed: another program added or removed some.
	Changed
	// AllGone: there were some, and now there are none.
	AllGone
)

func (c Census) String() string { return [...]string{"as before", "changed", "all gone"}[c] }

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
