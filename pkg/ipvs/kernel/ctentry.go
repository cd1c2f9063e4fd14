package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Connection tracking over netlink: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	ctMsgNew    = 0
	ctMsgGet    = 1
	ctMsgDelete = 2

	ctTupleOrig  = 1
	ctTupleReply = 2
	ctStatus     = 3
	ctID         = 12
	ctZone       = 18
	ctFilter     = 25

	ctTupleIP    = 1
	ctTupleProto = 2
	ctTupleZone  = 3

	ctV4Src = 1
	ctV4Dst = 2
	ctV6Src = 3
	ctV6Dst = 4

	ctProtoNum     = 1
	ctProtoSrcPort = 2
	ctProtoDstPort = 3

	ctFilterOrig  = 1
	ctFilterReply = 2

	// IPS_SEEN_REPLY, IPS_SRC_NAT and IPS_DST_NAT of include/uapi/linux/netfilter/nf_conntrack_common.h. IPVS does not
	// set the latter two.
	ctSeenReply = 1 << 1
	ctSrcNAT    = 1 << 4
	ctDstNAT    = 1 << 5

	// What a filter looks at, CTA_FILTER_F_* in net/netfilter/nf_conntrack_netlink.c.
	ctFilterSrc     = 0x01
	ctFilterDst     = 0x02
	ctFilterProto   = 0x08
	ctFilterDstPort = 0x20
)

func ctType(msg int) uint16 { return uint16(unix.NFNL_SUBSYS_CTNETLINK<<8 | msg) }

// ctEntry is what a Forget needs to know of an entry of the connection table.
type ctEntry struct {
	key      ipvs.Key       // the original destination
	answers  netip.AddrPort // who does
	tuple    []byte         // the original tuple as the kernel wrote it: it names the entry
	id       []byte         // tells the entry from a later one with the same tuple
	zone     bool
	directed bool // its destination was translated by a rule
	plain    bool // it was neither answered nor translated
	answered bool // packets came back
}

// lateKey is where a late answer comes from.
type lateKey struct {
	from  netip.AddrPort
	proto ipvs.Proto
}

// lateOf says for whose sake the late answers of real servers are forgotten.
func lateOf(ops []ipvs.Forget) map[lateKey]ipvs.Key {
	late := map[lateKey]ipvs.Key{}
	for _, o := range ops {
		for _, from := range o.Late {
			late[lateKey{from, o.Key.Proto}] = o.Key
		}
	}
	return late
}

// lateFor is the Key for whose sake an entry is to go that a late answer made; false: it is none.
func (e *ctEntry) lateFor(late map[lateKey]ipvs.Key) (k ipvs.Key, is bool, err error) {
	if len(late) == 0 || !e.plain || e.zone {
		return k, false, nil
	}
	from, err := e.parseTuple(e.tuple, ctV4Src, ctV6Src, ctProtoSrcPort)
	if err != nil {
		return k, false, err
	}
	k, is = late[lateKey{from, e.key.Proto}]
	return k, is, nil
}

// bypasses: the entry answers from the virtual IP itself, which no connection of IPVS does. Entries of a
// zone other than the first are another's view of the traffic (Open vSwitch): there, a connection through
// IPVS looks like this as well.
func (e *ctEntry) bypasses() bool { return e.answers.Addr() == e.key.Addr && !e.zone }

// useless reports whether an entry is one that a Forget is for.
func (e *ctEntry) useless(o ipvs.Forget) bool {
	if o.Directed && e.directed {
		return !e.zone && !o.Reaches(e.answers)
	}
	if e.key.Proto.Drains() { // a connection that somebody answers goes on as it is: it has an end
		return e.bypasses() && !e.answered && !o.ServesItself()
	}
	return e.bypasses() && !o.ServesItself() || o.Undirected && !e.directed && !e.zone
}

// parseCT reads an entry; its slices point into msg. An entry whose protocol has no ports has none.
func parseCT(msg []byte) (e ctEntry, err error) {
	err = eachAttr(skip(msg, nfgenLen), func(typ uint16, v []byte) (err error) {
		switch typ {
		case ctTupleOrig:
			e.tuple = v
			var to netip.AddrPort
			to, err = e.parseTuple(v, ctV4Dst, ctV6Dst, ctProtoDstPort)
			e.key.Addr, e.key.Port = to.Addr(), to.Port()
		case ctTupleReply:
			e.answers, err = e.parseTuple(v, ctV4Src, ctV6Src, ctProtoSrcPort)
		case ctStatus:
			if len(v) == 4 {
				status := binary.BigEndian.Uint32(v)
				e.directed, e.plain = status&ctDstNAT != 0, status&(ctSeenReply|ctSrcNAT|ctDstNAT) == 0
				e.answered = status&ctSeenReply != 0
			}
		case ctID:
			e.id = v
		case ctZone:
			e.zone = true
		}
		return err
	})
	if err == nil && (e.tuple == nil || !e.key.Addr.IsValid() || !e.answers.Addr().IsValid() || len(e.id) != 4) {
		err = fmt.Errorf("conntrack entry without tuples or number: %w", unix.EBADMSG)
	}
	return e, err
}

// parseTuple reads one end of one direction, by the attributes that it has there, and the protocol, which both
// directions have in common.
func (e *ctEntry) parseTuple(b []byte, v4, v6, portAttr uint16) (end netip.AddrPort, err error) {
	var addr netip.Addr
	var port uint16
	err = eachAttr(b, func(typ uint16, v []byte) error {
		switch typ {
		case ctTupleIP:
			return eachAttr(v, func(typ uint16, v []byte) error {
				a, ok := netip.AddrFromSlice(v)
				if !ok {
					return fmt.Errorf("conntrack address of %d bytes: %w", len(v), unix.EBADMSG)
				}
				if typ == v4 || typ == v6 {
					addr = a
				}
				return nil
			})
		case ctTupleProto:
			return eachAttr(v, func(typ uint16, v []byte) error {
				switch {
				case typ == ctProtoNum && len(v) >= 1:
					e.key.Proto = ipvs.Proto(v[0])
				case typ == portAttr && len(v) >= 2:
					port = binary.BigEndian.Uint16(v)
				}
				return nil
			})
		case ctTupleZone:
			e.zone = true
		}
		return nil
	})
	return netip.AddrPortFrom(addr, port), err
}

// ctMatch is what a dump is asked for: what all of some frontends have in common, so that the kernel does
// not send what nobody wants. One frontend, the usual case, gets its own entries only.
type ctMatch struct {
	key         ipvs.Key
	orig, reply uint32
}

// commonOf needs at least one Key, all of one family.
func commonOf(keys []ipvs.Key) ctMatch {
	m := ctMatch{key: keys[0], orig: ctFilterDst | ctFilterProto | ctFilterDstPort, reply: ctFilterSrc}
	if m.key.Addr.Is6() {
		// The kernel's filter of IPv6 addresses is the wrong way round: it drops those that are equal
		// (ctnetlink_filter_match_tuple, seen on 6.18).
		m.orig, m.reply = m.orig&^ctFilterDst, 0
	}
	for _, k := range keys[1:] {
		if k.Addr != m.key.Addr {
			m.orig, m.reply = m.orig&^ctFilterDst, 0
		}
		if k.Port != m.key.Port {
			m.orig &^= ctFilterDstPort
		}
		if k.Proto != m.key.Proto {
			m.orig &^= ctFilterProto | ctFilterDstPort // ports need a protocol
		}
	}
	return m
}

// put appends the match to a dump request. The kernel filters since 5.8; an older one sends all.
func (m ctMatch) put(b *batch) {
	src, dst := uint16(ctV4Src), uint16(ctV4Dst)
	if m.key.Addr.Is6() {
		src, dst = ctV6Src, ctV6Dst
	}
	addr := m.key.Addr.AsSlice()
	if m.orig != 0 {
		b.nest(ctTupleOrig, func() {
			b.nest(ctTupleIP, func() { b.attr(dst, addr) })
			b.nest(ctTupleProto, func() {
				b.attr(ctProtoNum, []byte{byte(m.key.Proto)})
				b.attrPort(ctProtoDstPort, m.key.Port)
			})
		})
	}
	if m.reply != 0 {
		b.nest(ctTupleReply, func() {
			b.nest(ctTupleIP, func() { b.attr(src, addr) })
		})
	}
	b.nest(ctFilter, func() {
		b.attrU32(ctFilterOrig, m.orig)
		b.attrU32(ctFilterReply, m.reply)
	})
}
