// Package ipvs says what a node's kernel can hold for one frontend of a Service, and what the smallest
// ordered change between two such things is. It is pure: no system call, no clock, no cluster. The door to
// the real kernel is package kernel, the decisions are made in package sync.
package ipvs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Proto is an IP protocol number (IANA), as the kernel and the wire carry it.
type Proto uint8

// The protocols that IPVS can balance (net/netfilter/ipvs/ip_vs_proto.c).
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

// String gives the name that nft and ipvsadm use.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// Drains reports whether connections of this protocol have an end that IPVS sees, so that waiting for it
// makes sense. UDP has none: a client that keeps sending would keep a real server of weight 0 for ever.
func (p Proto) Drains() bool { return p == TCP || p == SCTP }

// Key names one virtual server: the unit of diff, retry, audit and ownership.
//
// A Key with port 0 and protocol 0 stands for the address alone. It is used for what hangs on an address
// and on no virtual server: a left-over address of the interface, or a local pod's hairpin fact.
type Key struct {
	Addr  netip.Addr
	Port  uint16
	Proto Proto
}

// AddrKey is the Key of an address that has no virtual server.
func AddrKey(a netip.Addr) Key { return Key{Addr: a} }

// Adopted is the Key whose ownership record says that this node's first start is over: everything that an
// earlier proxy left on our interface has been taken over or removed. No virtual server belongs to it.
var Adopted = AddrKey(netip.IPv4Unspecified())

// HasServer tells a virtual server's Key from that of a bare address.
func (k Key) HasServer() bool { return k.Proto != 0 }

func (k Key) String() string {
	if !k.HasServer() {
		return k.Addr.String()
	}
	return netip.AddrPortFrom(k.Addr, k.Port).String() + "/" + k.Proto.String()
}

// Compare orders Keys by address, port and protocol: the canonical order on every node.
func (k Key) Compare(o Key) int {
	if c := k.Addr.Compare(o.Addr); c != 0 {
		return c
	}
	if c := cmp.Compare(k.Port, o.Port); c != 0 {
		return c
	}
	return cmp.Compare(k.Proto, o.Proto)
}

// Forward is IPVS's forwarding method (IP_VS_CONN_F_FWD_MASK in include/uapi/linux/ip_vs.h).
type Forward uint8

// The forwarding methods, with the kernel's numbers.
const (
	Masquerade Forward = 0
	LocalNode  Forward = 1
	Tunnel     Forward = 2
	DirectRt   Forward = 3
)

// Real is a real server: where IPVS sends the connections of a virtual server.
type Real struct {
	Addr netip.AddrPort
	// Weight is relative to the other real servers, 0 to 65535; 0 takes no new connection (draining).
	Weight  uint16
	Forward Forward
	// Most is how many connections it may have before it gets no new ones, until there are a quarter less (its upper
	// threshold); 0: no limit.
	Most uint32
}

// Flags are a virtual server's flags (IP_VS_SVC_F_* in include/uapi/linux/ip_vs.h).
type Flags uint32

const (
	// Persistent sends a client's connections to the real server that its first one got.
	Persistent Flags = 0x1
	// OnePacket has each datagram scheduled by itself.
	OnePacket Flags = 0x4
	// Fallback has the schedulers that go by the client's address, sh and mh, look for another real server where theirs
	// takes no new connection. Without it those clients are refused.
	Fallback Flags = 0x8
	// ClientPorts has them take the client's port into account as well.
	ClientPorts Flags = 0x10
)

// Server is a virtual server's own configuration and its real servers.
type Server struct {
	// Scheduler is the kernel's name of it ("rr", "wlc", …). Empty means that there is no virtual server.
	Scheduler string
	Flags     Flags
	// Timeout is the life of a persistence template in seconds; 0 without Persistent.
	Timeout uint32
	// Reals are sorted by address and unique.
	Reals []Real
}

// Exists reports whether there is a virtual server at all.
func (s Server) Exists() bool { return s.Scheduler != "" }

// Hidden reports whether some of it does not show in /proc/net/ip_vs.
func (s Server) Hidden() bool {
	return s.Flags != 0 || slices.ContainsFunc(s.Reals, func(r Real) bool { return r.Most != 0 })
}

// sameConfig compares all but the real servers.
func (s Server) sameConfig(o Server) bool {
	return s.Scheduler == o.Scheduler && s.Flags == o.Flags && s.Timeout == o.Timeout
}

// Guard is what nftables holds for a Key.
type Guard struct {
	// Owned records in the kernel that this Key is ours. Only what is owned is ever deleted.
	Owned bool
	// Open lets new connections through to the virtual server: it has endpoints.
	Open bool
	// Answered: no virtual server is behind it, a process of this node answers at the address itself.
	Answered bool
	// VIP refuses every port of the address that is not open. Shared by the Keys of one address. Without it
	// only the Key itself is refused while it is not open: the address is the node's own, or another
	// program's.
	VIP bool
	// Sources says as whom clients are seen by the real servers.
	Sources Sources
	// Barred says whose new connections are dropped in silence, because a policy leaves no endpoint for them.
	Barred Barred
	// Redirect is the virtual server that serves clients inside the cluster in place of this one, by destination
	// NAT: the ClusterIP. The zero value: none.
	Redirect netip.AddrPort
	// Limited lets in new connections only from Ranges.
	Limited bool
	// Ranges are sorted and do not overlap. What is wanted has none that follow upon each other, see SortRanges.
	Ranges []Range
	// Hairpin are the addresses of this node's pods behind the Key, whose connections to themselves are
	// masqueraded. Sorted and unique. Shared by the Keys that the pod stands behind.
	Hairpin []netip.Addr
}

// Sources says whose address a connection carries to the real server. The node's own connections and a pod's
// to itself are masqueraded in any case: nothing else would bring their replies back.
type Sources uint8

// These are bits because the kernel holds them apart: both may be read, never wanted.
const (
	// SourcesByOrigin: pods keep their address, clients from outside the cluster are masqueraded, as the
	// configuration tells them apart. The way of a ClusterIP.
	SourcesByOrigin Sources = 0
	// SourcesMasqueraded: every client is, so that replies come back through this node wherever the real
	// server stands. The way of external frontends.
	SourcesMasqueraded Sources = 1
	// SourcesKept: every client keeps its address. The way of externalTrafficPolicy Local.
	SourcesKept Sources = 2
)

// Barred says whose new connections to a frontend are dropped.
type Barred uint8

// These are bits because the kernel holds them apart: both may be read, never wanted.
const (
	// BarredNobody lets all in that the rest of the guard lets in.
	BarredNobody Barred = 0
	// BarredOutside drops clients from outside the cluster: no endpoint of the node is left for them, and those of
	// other nodes are not for them.
	BarredOutside Barred = 1
	// BarredAll drops every client.
	BarredAll Barred = 2
)

// Range is a range of source addresses of one family, both ends in it.
type Range struct{ First, Last netip.Addr }

// RangeOf is the range of a prefix.
func RangeOf(p netip.Prefix) Range {
	last := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(last)
	return Range{p.Masked().Addr(), a}
}

// Compare orders ranges by their first address, and then by their last.
func (r Range) Compare(o Range) int { return cmp.Or(r.First.Compare(o.First), r.Last.Compare(o.Last)) }

// Contains reports whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.Is4() == a.Is4() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// SortRanges puts ranges in canonical order and makes one of those that overlap or follow upon each other: each costs
// the kernel memory, and time with every change of the set.
func SortRanges(rs []Range) []Range {
	slices.SortFunc(rs, Range.Compare)
	kept := rs[:0]
	for _, r := range rs {
		n := len(kept)
		if n == 0 || !kept[n-1].meets(r) {
			kept = append(kept, r)
		} else if kept[n-1].Last.Less(r.Last) {
			kept[n-1].Last = r.Last
		}
	}
	return kept
}

// InsertRange gives ranges as SortRanges leaves them and one more, in a list of its own.
func InsertRange(rs []Range, r Range) []Range {
	at, _ := slices.BinarySearchFunc(rs, r, Range.Compare)
	list := append(append(append(make([]Range, 0, len(rs)+1), rs[:at]...), r), rs[at:]...)
	from := max(at-1, 0) // the only one before it that it can meet
	to := at + 1
	for to < len(list) && r.meets(list[to]) {
		to++
	}
	return slices.Delete(list, from+len(SortRanges(list[from:to])), to)
}

// meets reports whether a range that begins no earlier overlaps with this one, or follows upon it.
func (r Range) meets(later Range) bool {
	return r.Contains(later.First) || r.Last.Next() == later.First
}

// Has reports whether a Key with this Guard has an element in one of KeySets.
func (g *Guard) Has(s Set) bool {
	switch s {
	case SetOwned:
		return g.Owned
	case SetOpen:
		return g.Open
	case SetAnswered:
		return g.Answered
	case SetMasqueraded:
		return g.Sources&SourcesMasqueraded != 0
	case SetKept:
		return g.Sources&SourcesKept != 0
	case SetInside:
		return g.Barred&BarredOutside != 0
	case SetDropped:
		return g.Barred&BarredAll != 0
	case SetRedirect:
		return g.Redirect.IsValid()
	case SetLimited:
		return g.Limited
	}
	return false
}

// Put notes what an element of any set says, in a Guard that nobody shares. Ranges stay sorted.
func (g *Guard) Put(e Element) {
	switch e.Set {
	case SetOwned:
		g.Owned = true
	case SetOpen:
		g.Open = true
	case SetAnswered:
		g.Answered = true
	case SetVIPs:
		g.VIP = true
	case SetHairpin:
		g.Hairpin = []netip.Addr{e.Key.Addr}
	case SetMasqueraded:
		g.Sources |= SourcesMasqueraded
	case SetKept:
		g.Sources |= SourcesKept
	case SetInside:
		g.Barred |= BarredOutside
	case SetDropped:
		g.Barred |= BarredAll
	case SetRedirect:
		g.Redirect = e.To
	case SetLimited:
		g.Limited = true
	case SetRanges:
		at, _ := slices.BinarySearchFunc(g.Ranges, e.From, Range.Compare)
		g.Ranges = slices.Insert(g.Ranges, at, e.From)
	}
}

// Own is the Guard without what the Key shares with others.
func (g Guard) Own() Guard {
	g.VIP, g.Hairpin = false, nil
	return g
}

// Equal compares everything.
func (g *Guard) Equal(o *Guard) bool {
	return g.Owned == o.Owned && g.Open == o.Open && g.Answered == o.Answered && g.VIP == o.VIP && g.Sources == o.Sources && g.Barred == o.Barred &&
		g.Redirect == o.Redirect && g.Limited == o.Limited && slices.Equal(g.Ranges, o.Ranges) && slices.Equal(g.Hairpin, o.Hairpin)
}

// Frontend is all that the kernel holds for a Key. It is not changed once made, so it may be shared.
type Frontend struct {
	Server Server
	Guard  Guard
	// Bind wants the address on our interface. Shared by the Keys of one address.
	Bind bool
	// Misbound: the address stands on our interface, but not in the configured form, or not only. It is
	// read, never wanted: Bind mends it, Unbind removes it.
	Misbound bool
}

// Equal compares everything that the kernel holds.
func (f *Frontend) Equal(o *Frontend) bool {
	if f == nil || o == nil {
		return f == o
	}
	return f.Bind == o.Bind && f.Misbound == o.Misbound && f.Server.sameConfig(o.Server) && slices.Equal(f.Server.Reals, o.Server.Reals) &&
		f.Guard.Equal(&o.Guard)
}

// Observed is what a read of the kernel found for a Key.
type Observed struct {
	// Have is nil when the kernel holds nothing for the Key.
	Have *Frontend
	// Conns counts the connections, active and inactive, that IPVS knows of each real server.
	Conns map[netip.AddrPort]Conns
}

// Conns counts a real server's connections in the IPVS table.
type Conns struct{ Active, Inactive uint32 }

// SumOf counts the connections of all real servers of a Key.
func SumOf(conns map[netip.AddrPort]Conns) (sum uint32) {
	for _, c := range conns {
		sum += c.Active + c.Inactive
	}
	return sum
}

// SortReals puts real servers in their canonical order and drops repeats of one address, keeping the first.
// The kernel lists the one that came last first, so that they are often the wrong way round as a whole.
func SortReals(rs []Real) []Real {
	if slices.IsSortedFunc(rs, func(a, b Real) int { return cmp.Or(b.Addr.Compare(a.Addr), -1) }) {
		slices.Reverse(rs)
		return rs
	}
	slices.SortStableFunc(rs, func(a, b Real) int { return a.Addr.Compare(b.Addr) })
	return slices.CompactFunc(rs, func(a, b Real) bool { return a.Addr == b.Addr })
}

// SortAddrs puts addresses in canonical order and drops repeats.
func SortAddrs(as []netip.Addr) []netip.Addr {
	slices.SortFunc(as, netip.Addr.Compare)
	return slices.Compact(as)
}
