package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// The table is constant: chains and rules depend on the configuration alone, all facts of Services are set
// elements. As nft prints it:
//
//	chain check  { … drop UDP that a traffic policy leaves no endpoint for
//	               ct state established,related accept
//	               meta l4proto icmp accept
//	               … drop what comes from a source that the frontend does not take
//	               … drop what a traffic policy leaves no endpoint for
//	               ip daddr . meta l4proto . th dport @owned4 … != @open4 counter name "no-endpoint4" goto refuse
//	               ip daddr @vips4 … != @open4 counter name "no-port4" goto refuse }
//	chain input  { type filter hook input priority 0; jump check }
//	chain output { type filter hook output priority -150; jump check }
//	chain refuse { meta l4proto tcp reject with tcp reset
//	               meta l4proto sctp reject with icmp prot-unreachable
//	               reject with icmpx port-unreachable }
//	chain early  { type nat hook prerouting priority dstnat - 10; meta nfproto @shielded … goto shield }
//	chain shield { … dnat to what map redirect says
//	               dnat to ip daddr }
//	chain pre    { type nat hook prerouting priority dstnat; … dnat to what map redirect says }
//	chain local  { type nat hook output priority dstnat; … dnat to what map redirect says }
//	chain post   { type nat hook postrouting priority srcnat; … masquerade fully-random }
const (
	chainCheck  = "check"
	chainInput  = "input"
	chainOutput = "output"
	chainRefuse = "refuse"
	chainPre    = "pre"
	chainLocal  = "local"
	chainPost   = "post"
)

// chains lists the chains with their hooks. IPVS takes incoming packets at input 98 and the node's own at
// output -98: guard and redirection stand before both.
func chains(t *nftables.Table) []*nftables.Chain {
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: nftables.ChainPriorityRef(prio)}
	}
	return append(shieldChains(t), []*nftables.Chain{
		{Name: chainRefuse, Table: t},
		{Name: chainCheck, Table: t},
		base(chainInput, nftables.ChainTypeFilter, nftables.ChainHookInput, 0),
		base(chainOutput, nftables.ChainTypeFilter, nftables.ChainHookOutput, -150),
		base(chainPre, nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest),
		base(chainLocal, nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest),
		base(chainPost, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource),
	}...)
}

// rule is a constant rule: encoded expressions and a comment that says why it is there.
type rule struct {
	chain   string
	why     string
	encoded [][]byte
}

// comment carries the hash of the expressions, by which a later start knows that the rule is right.
func (r rule) comment() string {
	h := sha256.New()
	for _, e := range r.encoded {
		h.Write(e)
	}
	return fmt.Sprintf("%s (%s)", r.why, hex.EncodeToString(h.Sum(nil)[:6]))
}

func (r rule) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, r.comment())
}

// ruleBuilder encodes rules; the first error is kept.
type ruleBuilder struct {
	rules     []rule
	uncounted bool // the kernel has no named counters
	err       error
}

func (rb *ruleBuilder) add(chain, why string, exprs ...any) {
	r := rule{chain: chain, why: why}
	for _, e := range flatten(exprs) {
		switch e := e.(type) {
		case ctOriginal:
			r.encoded = append(r.encoded, e.encode())
		case expr.Any:
			b, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
			if err != nil && rb.err == nil {
				rb.err = fmt.Errorf("encode rule %q: %w", why, err)
			}
			r.encoded = append(r.encoded, b)
		default:
			panic(fmt.Sprintf("no nftables expression: %T", e))
		}
	}
	rb.rules = append(rb.rules, r)
}

func flatten(in []any) (out []any) {
	for _, e := range in {
		if list, ok := e.([]any); ok {
			out = append(out, flatten(list)...)
		} else {
			out = append(out, e)
		}
	}
	return out
}

// ctOriginal loads a field of the connection's original tuple. The library cannot say it: it sends the
// direction only for other keys, and the kernel then answers EINVAL.
type ctOriginal struct{ key, register uint32 }

func (c ctOriginal) encode() []byte {
	var b batch
	b.attr(unix.NFTA_EXPR_NAME, []byte("ct\x00"))
	b.nest(unix.NFTA_EXPR_DATA, func() {
		b.attr(unix.NFTA_CT_KEY, binary.BigEndian.AppendUint32(nil, c.key))
		b.attr(unix.NFTA_CT_DREG, binary.BigEndian.AppendUint32(nil, c.register))
		b.attr(unix.NFTA_CT_DIRECTION, []byte{0}) // IP_CT_DIR_ORIGINAL
	})
	return b.data
}

// fam holds what differs between the families in a rule.
type fam struct {
	suffix         string // of the set names
	nfproto        byte
	size           uint32 // of an address in bytes
	srcOff, dstOff uint32 // in the network header
	ctDst          uint32 // conntrack key of the original destination
	icmp           byte
	regs           uint32 // 4-byte registers of an address
}

var families = []fam{
	{suffix: "4", nfproto: unix.NFPROTO_IPV4, size: 4, srcOff: 12, dstOff: 16, ctDst: unix.NFT_CT_DST_IP, icmp: unix.IPPROTO_ICMP, regs: 1},
	{suffix: "6", nfproto: unix.NFPROTO_IPV6, size: 16, srcOff: 8, dstOff: 24, ctDst: unix.NFT_CT_DST_IP6, icmp: unix.IPPROTO_ICMPV6, regs: 4},
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

func verdict(kind expr.VerdictKind, chain string) any { return &expr.Verdict{Kind: kind, Chain: chain} }

// rules builds all rules for a configuration, in order; uncounted: without counters.
func rules(cfg Config, uncounted bool) ([]rule, error) {
	rb := ruleBuilder{uncounted: uncounted}
	guardRules(&rb, cfg)
	shieldRules(&rb, cfg)
	for _, f := range families {
		redirectRules(&rb, f, cfg, chainPre, chainLocal, verdict(expr.VerdictReturn, ""))
		masqueradeRules(&rb, f, cfg)
	}
	return rb.rules, rb.err
}

func guardRules(rb *ruleBuilder, cfg Config) {
	accept := verdict(expr.VerdictAccept, "")
	// A UDP client that keeps sending is no connection that lives on: the endpoint that it had is gone, and the next one
	// may be another node's.
	for _, f := range families {
		localPolicyRules(rb, f, cfg, l4proto(unix.IPPROTO_UDP))
	}
	// Before what follows: without it the replies to the node's own connections, whose destination is a VIP, would be
	// refused, and a Service that loses its endpoints would cut the connections that live.
	rb.add(chainCheck, "connections that live go on",
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}, accept)
	for _, f := range families {
		rb.add(chainCheck, "a virtual IP answers to ping", l4proto(f.icmp), accept)
		policyRules(rb, f, cfg)
		// In this order, so that each is counted for what it is.
		rb.add(chainCheck, "refuse a frontend that has no endpoints", f.is(), f.destination(),
			f.lookup(ipvs.SetOwned, false), f.lookup(ipvs.SetOpen, true), rb.counter(f, NoEndpoint), verdict(expr.VerdictGoto, chainRefuse))
		rb.add(chainCheck, "refuse what no Service serves", f.is(), f.addr(f.dstOff, reg0), f.lookup(ipvs.SetVIPs, false),
			f.destination(), f.lookup(ipvs.SetOpen, true), rb.counter(f, NoPort), verdict(expr.VerdictGoto, chainRefuse))
	}
	// A reset, not ICMP: over IPv6 a connecting socket ignores ICMP until it retransmits, 1 s later, and
	// the kernel limits the rate of ICMP.
	rb.add(chainRefuse, "at once and unlimited", l4proto(unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	// SCTP takes port unreachable for passing trouble and tries on for minutes. Of IPv4 it believes this one.
	rb.add(chainRefuse, "SCTP believes only this", families[0].is(), l4proto(unix.IPPROTO_SCTP),
		&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpProtUnreach})
	rb.add(chainRefuse, "for UDP", &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
	rb.add(chainInput, "before IPVS takes incoming packets", verdict(expr.VerdictJump, chainCheck))
	rb.add(chainOutput, "before IPVS takes the node's own packets", verdict(expr.VerdictJump, chainCheck))
}

// policyRules drop new connections that a Service does not take, in silence: what is refused would be tried no
// more, or elsewhere.
func policyRules(rb *ruleBuilder, f fam, cfg Config) {
	drop := verdict(expr.VerdictDrop, "")
	// By the original destination: clients inside the cluster may have been sent on already.
	limited := &expr.Lookup{SourceRegister: reg0, SetName: f.set(ipvs.SetLimited)}
	rb.add(chainCheck, "loadBalancerSourceRanges", f.is(), f.original(), limited,
		f.original(), f.addr(f.srcOff, reg0+f.regs+2), f.lookup(ipvs.SetRanges, true), rb.counter(f, OutsideRanges), drop)
	localPolicyRules(rb, f, cfg, nil)
}

// localPolicyRules drop what a policy Local leaves no endpoint for, of the protocols that match.
func localPolicyRules(rb *ruleBuilder, f fam, cfg Config, match []any) {
	drop := verdict(expr.VerdictDrop, "")
	rb.add(chainCheck, "internalTrafficPolicy Local without an endpoint here", match, f.is(), f.destination(), f.lookup(ipvs.SetDropped, false),
		rb.counter(f, NoLocal), drop)
	outside, _ := f.strangers(cfg)
	rb.add(chainCheck, "externalTrafficPolicy Local without an endpoint here, for clients outside the cluster",
		match, f.is(), f.destination(), f.lookup(ipvs.SetInside, false),
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)}, outside, rb.counter(f, NoLocal), drop)
}

// redirectRules send clients inside the cluster, pods and the node itself, to the ClusterIP where the frontend has
// only the endpoints that outside clients may reach. One connection tracking entry carries both translations. Outside is
// what becomes of the others.
func redirectRules(rb *ruleBuilder, f fam, cfg Config, pre, local string, outside any) {
	redirect := []any{f.is(), f.destination(),
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: f.set(ipvs.SetRedirect)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: reg0, RegProtoMin: reg0 + f.regs}}
	const why = "externalTrafficPolicy Local: all endpoints for clients inside the cluster"
	if strangers, some := f.strangers(cfg); some {
		rb.add(pre, "clients outside the cluster go to the endpoints of this node", f.is(), strangers, outside)
		rb.add(pre, why, redirect)
	}
	rb.add(local, why, redirect)
}

// masqueradeRules match the connection's original destination, so that no packet mark is needed. They
// match what is owned, which outlives what is open: a connection that was let in keeps its translation.
func masqueradeRules(rb *ruleBuilder, f fam, cfg Config) {
	masquerade := &expr.Masq{FullyRandom: true}
	original := func(s ipvs.Set) []any { return []any{f.is(), f.original(), f.lookup(s, false)} }
	owned := original(ipvs.SetOwned)
	rb.add(chainPost, "clients of external frontends: replies must come back through this node", original(ipvs.SetMasqueraded), masquerade)
	rb.add(chainPost, "the node's own connections never leave with a virtual IP as source", owned,
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)}, masquerade)
	rb.add(chainPost, "hairpin: a pod that reaches itself", owned,
		f.addr(f.srcOff, reg0), f.addr(f.dstOff, reg0+f.regs), f.lookup(ipvs.SetHairpin, false), masquerade)
	// Replies to a pod of another node that came by a node port would not pass here. Any other frontend is taken by the
	// client's own node, and there pods keep their address.
	rb.add(chainPost, "externalTrafficPolicy Local: a client inside the cluster by a node port, with the endpoint elsewhere",
		original(ipvs.SetKept), ctOriginal{f.ctDst, reg0}, f.lookup(ipvs.SetVIPs, true),
		f.addr(f.dstOff, reg0), f.addr(f.dstOff, reg0+f.regs), f.lookup(ipvs.SetHairpin, true), masquerade)
	others, some := f.others(cfg)
	if !some {
		return
	}
	rb.add(chainPost, "externalTrafficPolicy Local keeps the client's address", original(ipvs.SetKept), verdict(expr.VerdictReturn, ""))
	rb.add(chainPost, "clients outside the cluster: replies must come back through this node", owned, others, masquerade)
}

// others matches the clients that are to be masqueraded on their way to a ClusterIP. False: none are.
func (f fam) others(cfg Config) (match []any, some bool) {
	if cfg.MasqueradeAll {
		return nil, true
	}
	return f.strangers(cfg)
}

// strangers matches the clients outside the cluster, as far as the configuration can tell. False: it cannot, and
// matches everyone.
func (f fam) strangers(cfg Config) (match []any, known bool) {
	if cfg.PodInterface != "" {
		name := []byte(cfg.PodInterface)
		if prefix, ok := bytes.CutSuffix(name, []byte("*")); ok {
			name = prefix
		} else {
			name = append(name, make([]byte, unix.IFNAMSIZ-len(name))...)
		}
		return []any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name}}, true
	}
	match = f.outside(cfg.ClusterCIDRs)
	return match, len(match) > 0
}
