package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// The table is constant: chains and rules depend on the configuration alone, all facts of Services are set
// elements. As nft prints it:
//
//	chain datagrams { … drop what a traffic policy leaves no endpoint for
//	               ct state established,related accept }
//	chain begun  { … drop what a client began before there was the virtual server }
//	chain check  { meta l4proto udp jump datagrams
//	               … what is sent again jump begun
//	               … @open4 … != @limited4 … != @dropped4 … != @inside4 accept
//	               ip daddr . meta l4proto . th dport @owned4 goto frontend4
//	               ip daddr @vips4 meta l4proto != icmp counter name "no-port4" goto refuse }
//	chain frontend4 { … drop what comes from a source that the frontend does not take
//	               … drop what a traffic policy leaves no endpoint for
//	               … @open4 accept
//	               counter name "no-endpoint4" goto refuse }
//	chain input  { type filter hook input priority 0;
//	               meta l4proto != udp ct state established,related accept; jump check }
//	chain output { type filter hook output priority -150;
//	               meta l4proto != udp ct state established,related accept; … what input let in accept; jump check }
//	chain refuse { meta l4proto tcp reject with tcp reset
//	               meta l4proto sctp reject with icmp prot-unreachable
//	               reject with icmpx port-unreachable }
//	chain early  { type nat hook prerouting priority dstnat - 10; … goto shield }
//	chain shield { meta nfproto != @shielded return
//	               … dnat to what map redirect says
//	               dnat to ip daddr }
//	chain pre    { type nat hook prerouting priority dstnat; … dnat to what map redirect says }
//	chain local  { type nat hook output priority dstnat; … dnat to what map redirect says }
//	chain post   { type nat hook postrouting priority srcnat; … goto sources4 }
//	chain sources4 { … meta mark set meta mark & 0xffffbfff masquerade fully-random }
//
// What is asked of every packet comes first and is little: one that lives on, or concerns no frontend, is asked no more. The
// bench counts what is left.
const (
	chainCheck  = "check"
	chainInput  = "input"
	chainOutput = "output"
	chainUDP    = "datagrams"
	chainBegun  = "begun"
	chainRefuse = "refuse"
	chainPre    = "pre"
	chainLocal  = "local"
	chainPost   = "post"
	// These have the family's suffix behind them.
	chainFrontend = "frontend"
	chainSources  = "sources"
	chainKeeps    = "keeps"
)

// chains lists the chains with their hooks. IPVS takes incoming packets at input 98 and the node's own at
// output -98: guard and redirection stand before both.
func chains(t *nftables.Table) []*nftables.Chain {
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: nftables.ChainPriorityRef(prio)}
	}
	list := shieldChains(t)
	for _, f := range families {
		for _, name := range []string{chainFrontend, chainKeeps, chainSources} {
			list = append(list, &nftables.Chain{Name: f.chain(name), Table: t})
		}
	}
	return append(list, []*nftables.Chain{
		{Name: chainRefuse, Table: t},
		{Name: chainUDP, Table: t},
		{Name: chainBegun, Table: t},
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
	comment string
}

// commentOn carries the hash of the expressions, by which a later start knows that the rule is right. It is made once: each
// look at the table compares those of all rules.
func commentOn(r rule) string {
	h := sha256.New()
	for _, e := range r.encoded {
		h.Write(e)
	}
	return fmt.Sprintf("%s (%s)", r.why, hex.EncodeToString(h.Sum(nil)[:6]))
}

func (r rule) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, r.comment)
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
		case interface{ encode() []byte }:
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
	r.comment = commentOn(r)
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
	// Without this the replies to the node's own connections, whose destination is a VIP, would be refused, and a Service
	// that loses its endpoints would cut the connections that live.
	const why = "connections that live go on"
	for _, base := range []string{chainInput, chainOutput} {
		rb.add(base, why, notL4proto(unix.IPPROTO_UDP), living(), accept)
	}
	// A UDP client that keeps sending is no connection that lives on: the endpoint that it had is gone, and the next one
	// may be another node's.
	rb.add(chainCheck, "UDP", l4proto(unix.IPPROTO_UDP), verdict(expr.VerdictJump, chainUDP))
	for _, f := range families {
		localPolicyRules(rb, f, cfg, chainUDP)
	}
	rb.add(chainUDP, why, living(), accept)
	// UDP has no middle of a connection.
	rb.add(chainCheck, "sent again before anybody answered", repeated(), notL4proto(unix.IPPROTO_UDP), verdict(expr.VerdictJump, chainBegun))
	for _, f := range families {
		// A connection that was begun before there was the virtual server. IPVS would send it on, but cannot change its entry;
		// with that deleted (ipvs.Forget) a client that is masqueraded would get another port in its middle, and be reset. A reset
		// would be the end of it as well where the frontend opens in a moment. A frontend that a process of this node answers
		// has no such entry deleted: there the virtual IP is who answers.
		rb.add(chainBegun, "only the virtual IP could answer: the client tries again, once the entry is deleted", f.is(),
			f.destination(), f.lookup(ipvs.SetOwned, false), f.lookup(ipvs.SetAnswered, true),
			ctReply{f.ctSrc, reg0}, f.lookup(ipvs.SetVIPs, false), verdict(expr.VerdictDrop, ""))
		// One key for all four; clients that were sent on are limited by where they wanted to.
		rb.add(chainCheck, "let in at once: nothing is to be asked of the client", f.is(), status(statusDstNAT, 0), f.destination(),
			f.lookup(ipvs.SetOpen, false), f.lookup(ipvs.SetLimited, true), f.lookup(ipvs.SetDropped, true), f.lookup(ipvs.SetInside, true), accept)
		rb.add(chainCheck, "a frontend", f.is(), f.destination(), f.lookup(ipvs.SetOwned, false), verdict(expr.VerdictGoto, f.chain(chainFrontend)))
		// Not ICMP: a virtual IP answers to ping.
		rb.add(chainCheck, "refuse what no Service serves", f.is(), f.addr(f.dstOff, reg0), f.lookup(ipvs.SetVIPs, false),
			notL4proto(f.icmp), rb.counter(f, NoPort), verdict(expr.VerdictGoto, chainRefuse))
		frontend := f.chain(chainFrontend)
		policyRules(rb, f, cfg, frontend)
		rb.add(frontend, "let in", f.is(), f.destination(), f.lookup(ipvs.SetOpen, false), accept)
		rb.add(frontend, "refuse a frontend that has no endpoints", rb.counter(f, NoEndpoint), verdict(expr.VerdictGoto, chainRefuse))
	}
	// A reset, not ICMP: over IPv6 a connecting socket ignores ICMP until it retransmits, 1 s later, and
	// the kernel limits the rate of ICMP.
	rb.add(chainRefuse, "at once and unlimited", l4proto(unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	// SCTP takes port unreachable for passing trouble and tries on for minutes. Of IPv4 it believes this one.
	rb.add(chainRefuse, "SCTP believes only this", families[0].is(), l4proto(unix.IPPROTO_SCTP),
		&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpProtUnreach})
	rb.add(chainRefuse, "for UDP", &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
	rb.add(chainInput, "before IPVS takes incoming packets", verdict(expr.VerdictJump, chainCheck))
	rb.add(chainOutput, "what IPVS sends on was let in before", arrived(), accept)
	rb.add(chainOutput, "before IPVS takes the node's own packets", verdict(expr.VerdictJump, chainCheck))
}

// policyRules drop new connections that a Service does not take, in silence: what is refused would be tried no
// more, or elsewhere.
func policyRules(rb *ruleBuilder, f fam, cfg Config, chain string) {
	drop := verdict(expr.VerdictDrop, "")
	// By the original destination: clients inside the cluster may have been sent on already.
	limited := &expr.Lookup{SourceRegister: reg0, SetName: f.set(ipvs.SetLimited)}
	rb.add(chain, "loadBalancerSourceRanges", f.is(), f.original(), limited,
		f.original(), f.addr(f.srcOff, reg0+f.regs+2), f.lookup(ipvs.SetRanges, true), rb.counter(f, OutsideRanges), drop)
	localPolicyRules(rb, f, cfg, chain)
}

// localPolicyRules drop what a policy Local leaves no endpoint for.
func localPolicyRules(rb *ruleBuilder, f fam, cfg Config, chain string) {
	drop := verdict(expr.VerdictDrop, "")
	rb.add(chain, "internalTrafficPolicy Local without an endpoint here", f.is(), f.destination(), f.lookup(ipvs.SetDropped, false),
		rb.counter(f, NoLocal), drop)
	outside, _ := f.strangers(cfg)
	rb.add(chain, "externalTrafficPolicy Local without an endpoint here, for clients outside the cluster",
		f.is(), f.destination(), f.lookup(ipvs.SetInside, false),
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

// masqueradeRules match the connection's original destination, so that no packet is marked. They
// match what is owned, which outlives what is open: a connection that was let in keeps its translation.
func masqueradeRules(rb *ruleBuilder, f fam, cfg Config) {
	masquerade := masquerade(cfg)
	original := func(s ipvs.Set) []any { return []any{f.is(), f.original(), f.lookup(s, false)} }
	sources := f.chain(chainSources)
	// Most are for a virtual IP, which is found in half the time.
	rb.add(chainPost, "a virtual IP", f.is(), ctOriginal{f.ctDst, reg0}, f.lookup(ipvs.SetVIPs, false), verdict(expr.VerdictGoto, sources))
	rb.add(chainPost, "a frontend", original(ipvs.SetOwned), verdict(expr.VerdictGoto, sources))
	rb.add(sources, "clients of external frontends: replies must come back through this node", original(ipvs.SetMasqueraded), masquerade)
	rb.add(sources, "the node's own connections never leave with a virtual IP as source", f.is(),
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)}, masquerade)
	rb.add(sources, "hairpin: a pod that reaches itself", f.is(),
		f.addr(f.srcOff, reg0), f.addr(f.dstOff, reg0+f.regs), f.lookup(ipvs.SetHairpin, false), masquerade)
	keeps := f.chain(chainKeeps)
	rb.add(sources, "externalTrafficPolicy Local", original(ipvs.SetKept), verdict(expr.VerdictGoto, keeps))
	// Replies to a pod of another node that came by a node port would not pass here. Any other frontend is taken by the
	// client's own node, and there pods keep their address.
	rb.add(keeps, "a client inside the cluster by a node port, with the endpoint elsewhere",
		f.is(), ctOriginal{f.ctDst, reg0}, f.lookup(ipvs.SetVIPs, true),
		f.addr(f.dstOff, reg0), f.addr(f.dstOff, reg0+f.regs), f.lookup(ipvs.SetHairpin, true), masquerade)
	if others, some := f.others(cfg); some {
		rb.add(sources, "clients outside the cluster: replies must come back through this node", f.is(), others, masquerade)
	}
}

// masquerade translates the source. No other chain of type nat sees the packet then, so that one that was marked for another
// proxy would keep its mark, which that proxy takes off where it masquerades itself.
func masquerade(cfg Config) []any {
	masq := []any{&expr.Masq{FullyRandom: true}}
	if cfg.ForeignMarks == 0 {
		return masq
	}
	return append([]any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, ^cfg.ForeignMarks), Xor: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}, masq...)
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
