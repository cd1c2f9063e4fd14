package kernel

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// ctOriginal loads a field of the connection's original tuple, ctReply one of the tuple that its answers have. The library
// cannot say it: it sends the direction only for other keys, and the kernel then answers EINVAL.
type (
	ctOriginal struct{ key, register uint32 }
	ctReply    struct{ key, register uint32 }
)

// ctDirection is enum ip_conntrack_dir of include/uapi/linux/netfilter/nf_conntrack_tuple_common.h.
type ctDirection byte

const (
	dirOriginal ctDirection = 0
	dirReply    ctDirection = 1
)

func (c ctOriginal) encode() []byte { return ctTuple(dirOriginal, c.key, c.register) }
func (c ctReply) encode() []byte    { return ctTuple(dirReply, c.key, c.register) }

func ctTuple(dir ctDirection, key, register uint32) []byte {
	var b batch
	b.attr(unix.NFTA_EXPR_NAME, []byte("ct\x00"))
	b.nest(unix.NFTA_EXPR_DATA, func() {
		b.attr(unix.NFTA_CT_KEY, binary.BigEndian.AppendUint32(nil, key))
		b.attr(unix.NFTA_CT_DREG, binary.BigEndian.AppendUint32(nil, register))
		b.attr(unix.NFTA_CT_DIRECTION, []byte{byte(dir)})
	})
	return b.data
}

// fam holds what differs between the families in a rule.
type fam struct {
	suffix         string // of the set names
	nfproto        byte
	size           uint32 // of an address in bytes
	srcOff, dstOff uint32 // in the network header
	ctSrc, ctDst   uint32 // conntrack keys of a tuple's addresses
	icmp           byte
	regs           uint32 // 4-byte registers of an address
}

var families = []fam{
	{suffix: "4", nfproto: unix.NFPROTO_IPV4, size: 4, srcOff: 12, dstOff: 16, ctSrc: unix.NFT_CT_SRC_IP, ctDst: unix.NFT_CT_DST_IP, icmp: unix.IPPROTO_ICMP, regs: 1},
	{suffix: "6", nfproto: unix.NFPROTO_IPV6, size: 16, srcOff: 8, dstOff: 24, ctSrc: unix.NFT_CT_SRC_IP6, ctDst: unix.NFT_CT_DST_IP6, icmp: unix.IPPROTO_ICMPV6, regs: 4},
}

func familyOf(a netip.Addr) fam {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

// icmpProtUnreach is ICMP_PROT_UNREACH of include/uapi/linux/icmp.h.
const icmpProtUnreach = 2

// reg0 is the first of the 4-byte registers, in which concatenations are put together.
const reg0 = unix.NFT_REG32_00

func (f fam) set(s ipvs.Set) string { return string(s) + f.suffix }

func (f fam) chain(name string) string { return name + f.suffix }

func (f fam) is() []any {
	return []any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}}}
}

func (f fam) addr(offset, register uint32) any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

func (f fam) lookup(s ipvs.Set, invert bool) any {
	return &expr.Lookup{SourceRegister: reg0, SetName: f.set(s), Invert: invert}
}

// destination loads daddr . l4proto . dport of the packet.
func (f fam) destination() []any {
	return []any{f.addr(f.dstOff, reg0), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0 + f.regs},
		&expr.Payload{DestRegister: reg0 + f.regs + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

// original loads the same of the connection's first packet, as the client sent it.
func (f fam) original() []any {
	return []any{ctOriginal{f.ctDst, reg0}, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0 + f.regs},
		ctOriginal{unix.NFT_CT_PROTO_DST, reg0 + f.regs + 1}}
}

// outside matches a source in none of the prefixes of the family.
func (f fam) outside(prefixes []netip.Prefix) (match []any) {
	for _, p := range prefixes {
		if uint32(p.Addr().BitLen())/8 != f.size {
			continue
		}
		mask := make([]byte, f.size)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		match = append(match, f.addr(f.srcOff, 1),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: p.Masked().Addr().AsSlice()})
	}
	return match
}

func l4proto(p byte) []any {
	return []any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

func notL4proto(p byte) []any {
	return []any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{p}}}
}

func verdict(kind expr.VerdictKind, chain string) any { return &expr.Verdict{Kind: kind, Chain: chain} }

// living matches packets of connections that both sides have sent to, and what belongs to them.
func living() []any {
	return []any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}

// Bits of a connection's status, enum ip_conntrack_status of include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	statusConfirmed  = 1 << 3
	statusDstNAT     = 1 << 5
	statusDstNATDone = 1 << 8 // it was settled whether the destination is translated
)

// status matches connections of whose status the bits of a mask are these.
func status(mask, are uint32) []any {
	bits := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	return []any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bits(are)}}
}

// repeated matches what a client sends again before anybody answered, where nothing has translated the destination.
func repeated() []any { return status(statusConfirmed|statusDstNAT, statusConfirmed) }

// arrived matches, in output, the first packet of a connection that came in from elsewhere. IPVS sends what it has translated
// through output, where the destination is a real server's. That of an arrived packet was settled in prerouting, while that
// of the node's own is not settled before -100; and what has once left the node is confirmed, as is the entry of a process
// that sends again before anybody answered.
func arrived() []any { return status(statusDstNATDone|statusConfirmed, statusDstNATDone) }
