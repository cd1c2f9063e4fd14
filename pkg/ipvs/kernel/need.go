package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Schedulers are those that the kernel's source has. Each is a module of its own, ip_vs_NAME.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"}

// Need is a part of the kernel that the agent builds upon.
type Need struct {
	Module string // that has it, where it is not built in
	try    func(context.Context) error
}

// Try asks the kernel for the part, and the kernel then loads a missing module by itself where it can. Nothing
// else changes: each question is a request that the kernel refuses, or takes back, once it has found the part.
// A part that is not there is a *MissingModuleError; any other error means that nobody can say (ErrNotRoot
// among them).
func (n Need) Try(ctx context.Context) error {
	if err := MayAdminister(); err != nil {
		return err
	}
	return n.try(ctx)
}

// Needs lists what a configuration builds upon, in an order in which a module comes after those it needs.
func Needs(cfg Config) ([]Need, error) {
	rs, err := rules(cfg, false)
	if err != nil {
		return nil, err
	}
	needs := []Need{
		{"ip_vs", func(ctx context.Context) error {
			v, err := openIPVS(ctx, familyName)
			if err == nil {
				v.close()
			}
			return err
		}},
		{"dummy", func(ctx context.Context) error {
			return withoutStray(ctx, func() error { return tryLink(ctx, "dummy") })
		}},
		{"nf_tables", func(ctx context.Context) error { return tryNFT(ctx, "nf_tables", nftTrial{}) }},
		{"nf_conntrack_netlink", tryConntrackNetlink},
	}
	for _, module := range nftModules(rs) {
		needs = append(needs, Need{module, func(ctx context.Context) error { return tryNFT(ctx, module, nftTrials[module]) }})
	}
	return needs, nil
}

// NeedScheduler is the part that a scheduler is.
func NeedScheduler(name string) Need {
	return Need{"ip_vs_" + name, func(ctx context.Context) error { return tryScheduler(ctx, name) }}
}

// HasScheduler asks the kernel for a scheduler, which it then loads where it can. Nothing else changes.
func (*Kernel) HasScheduler(ctx context.Context, name string) (bool, error) {
	err := tryScheduler(ctx, name)
	if errors.As(err, new(*MissingModuleError)) {
		return false, nil
	}
	return err == nil, err
}

// ask sends one request and returns the kernel's answer to it. An answer that does not come is no errno.
func ask(ctx context.Context, protocol int, fill func(*batch)) error {
	s := newSocket(protocol)
	defer s.close()
	var b batch
	fill(&b)
	b.acknowledge()
	replies, err := s.exchange(ctx, &b)
	if err != nil {
		return err
	}
	return replies[0].err
}

// tryScheduler asks for an IPv6 virtual server with a netmask that cannot be. The kernel looks for the scheduler
// first and says ENOENT, or else EINVAL because of the netmask (ip_vs_ctl.c, ip_vs_add_service).
func tryScheduler(ctx context.Context, name string) error {
	const longest = 15 // IP_VS_SCHEDNAME_MAXLEN with its zero
	if name == "" || len(name) > longest {
		return fmt.Errorf("scheduler %q: a name has 1 to %d characters", name, longest)
	}
	v, err := openIPVS(ctx, familyName)
	if err != nil {
		return err
	}
	defer v.close()
	key := ipvs.Key{Addr: netip.MustParseAddr("100::1"), Port: 1, Proto: ipvs.TCP} // of the discard prefix
	service := func(cmd uint8, put func(b *batch)) error {
		return ask(ctx, unix.NETLINK_GENERIC, func(b *batch) {
			v.begin(b, cmd, 0)
			b.nest(attrService, func() { putKey(b, key); put(b) })
		})
	}
	err = service(cmdNewService, func(b *batch) {
		b.attrString(svcSched, name)
		b.attr(svcFlags, make([]byte, 8))
		b.attrU32(svcTimeout, 0)
		b.attrU32(svcNetmask, 0)
	})
	switch {
	case errors.Is(err, unix.EINVAL):
		return nil
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("scheduler %s: %w", name, missingModule("ip_vs_"+name, err))
	case err == nil: // no kernel that we know; what was made goes again
		return service(cmdDelService, func(*batch) {})
	}
	return fmt.Errorf("ask for scheduler %s: %w", name, err)
}

// tryLink asks for an interface of a kind with a hardware address that cannot be. The kernel looks for the kind
// first and says EOPNOTSUPP; else the kind itself says EADDRNOTAVAIL (drivers/net/dummy.c, dummy_validate).
func tryLink(ctx context.Context, kind string) error {
	const name = "ipvs-proxy-try"
	err := ask(ctx, unix.NETLINK_ROUTE, func(b *batch) {
		b.begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
		b.attrString(unix.IFLA_IFNAME, name)
		b.attr(unix.IFLA_ADDRESS, make([]byte, 6))
		b.nest(unix.IFLA_LINKINFO, func() { b.attrString(unix.IFLA_INFO_KIND, kind) })
	})
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("interfaces of kind %s: %w", kind, missingModule(kind, err))
	case err == nil: // no kernel that we know; what was made goes again
		return ask(ctx, unix.NETLINK_ROUTE, func(b *batch) {
			b.begin(unix.RTM_DELLINK, 0, make([]byte, unix.SizeofIfInfomsg))
			b.attrString(unix.IFLA_IFNAME, name)
		})
	}
	return fmt.Errorf("ask for interfaces of kind %s: %w", kind, err)
}

// tryConntrackNetlink asks for the connection table's figures.
func tryConntrackNetlink(ctx context.Context) error {
	const getStats = 5 // IPCTNL_MSG_CT_GET_STATS
	err := ask(ctx, unix.NETLINK_NETFILTER, func(b *batch) { b.begin(ctType(getStats), 0, nfgen(0, 0)) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // no such part of netfilter
		return fmt.Errorf("the connection table over netlink: %w", missingModule("nf_conntrack_netlink", err))
	}
	if err != nil {
		return fmt.Errorf("ask for the connection table's figures: %w", err)
	}
	return nil
}

// nftTrial is what shows whether a module of nftables is there: a base chain and a rule in it.
type nftTrial struct {
	kind  nftables.ChainType
	hook  uint32
	exprs []any
	// counter is a named counter that the rule refers to; "": none.
	counter string
}

// nftTrials has one for each module outside nf_tables itself that rules can need. A rule of ours with an
// expression that is not in nftExpressions fails a test: then its module belongs here.
var nftTrials = map[string]nftTrial{
	"nft_chain_nat":   {kind: nftables.ChainTypeNAT, hook: unix.NF_INET_POST_ROUTING},
	"nft_ct":          {kind: nftables.ChainTypeFilter, hook: unix.NF_INET_LOCAL_IN, exprs: []any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}},
	"nft_fib_inet":    {kind: nftables.ChainTypeFilter, hook: unix.NF_INET_LOCAL_IN, exprs: []any{&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true}}},
	"nft_limit":       {kind: nftables.ChainTypeFilter, hook: unix.NF_INET_LOCAL_IN, exprs: []any{&expr.Limit{Type: expr.LimitTypePkts, Rate: 1, Unit: expr.LimitTimeSecond}}},
	"nft_log":         {kind: nftables.ChainTypeFilter, hook: unix.NF_INET_LOCAL_IN, exprs: []any{&expr.Log{}}},
	"nft_masq":        {kind: nftables.ChainTypeNAT, hook: unix.NF_INET_POST_ROUTING, exprs: []any{&expr.Masq{FullyRandom: true}}},
	"nft_nat":         {kind: nftables.ChainTypeNAT, hook: unix.NF_INET_PRE_ROUTING, exprs: []any{&expr.Immediate{Register: 1, Data: []byte{127, 0, 0, 1}}, &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}}},
	"nft_reject_inet": {kind: nftables.ChainTypeFilter, hook: unix.NF_INET_LOCAL_IN, exprs: []any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}},
}

// nftExpressions says which module an expression needs; "" is nf_tables itself, which has these since 5.10 or
// before. objref is a module before 6.2, without which nothing is counted and all else works: no need.
var nftExpressions = map[string]string{
	"bitwise": "", "byteorder": "", "cmp": "", "dynset": "", "exthdr": "", "immediate": "", "lookup": "", "meta": "", "objref": "",
	"payload": "", "range": "", "rt": "",
	"ct": "nft_ct", "fib": "nft_fib_inet", "limit": "nft_limit", "log": "nft_log", "masq": "nft_masq", "nat": "nft_nat",
	"reject": "nft_reject_inet",
}

// nftModules are the modules that the table with its rules needs.
func nftModules(rs []rule) (modules []string) {
	modules = append(modules, "nft_chain_nat")
	for _, name := range expressionsOf(rs) {
		if m := nftExpressions[name]; m != "" {
			modules = append(modules, m)
		}
	}
	slices.Sort(modules)
	return slices.Compact(modules)
}

// expressionsOf names the expressions in rules.
func expressionsOf(rs []rule) (names []string) {
	for _, r := range rs {
		for _, e := range r.encoded {
			_ = eachAttr(e, func(typ uint16, v []byte) error { // our own encoding
				if typ == unix.NFTA_EXPR_NAME {
					names = append(names, cString(v))
				}
				return nil
			})
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// trialTable is a table that never comes to be.
const trialTable = "ipvs-proxy-try"

// tryNFT writes a table in a transaction without an end: the kernel tells what it thinks of each message and
// takes all of it back, as with nft --check.
func tryNFT(ctx context.Context, module string, trial nftTrial) error {
	s := newSocket(unix.NETLINK_NETFILTER)
	defer s.close()
	return tryNFTBy(ctx, s, module, trial)
}

func tryNFTBy(ctx context.Context, s *socket, module string, trial nftTrial) error {
	b, err := trial.batch()
	if err != nil {
		return err
	}
	replies, err := s.exchange(ctx, b)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, r := range replies {
		switch {
		case r.err == nil:
		case r.unknown:
			return fmt.Errorf("ask for %s: %w", module, r.err)
		case errors.Is(r.err, unix.ENOENT):
			return fmt.Errorf("nftables: %w", missingModule(module, r.err))
		case notSupported(r.err) && lacksInet(ctx, s):
			return ErrNoInet
		case notSupported(r.err): // of the whole transaction
			return fmt.Errorf("nftables: %w", missingModule("nf_tables", r.err))
		default:
			return fmt.Errorf("ask for %s: %w", module, r.err)
		}
	}
	return nil
}

// batch is the transaction, but for its end.
func (trial nftTrial) batch() (*batch, error) {
	const table, chain = trialTable, "try"
	var rb ruleBuilder
	rb.add(chain, "", trial.exprs...)
	if rb.err != nil {
		return nil, rb.err
	}
	b := &batch{transaction: true}
	b.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgen(0, unix.NFNL_SUBSYS_NFTABLES))
	b.begin(nftType(unix.NFT_MSG_NEWTABLE), unix.NLM_F_CREATE, nfgen(unix.NFPROTO_INET, 0))
	b.attrString(unix.NFTA_TABLE_NAME, table)
	if trial.kind != "" {
		b.begin(nftType(unix.NFT_MSG_NEWCHAIN), unix.NLM_F_CREATE, nfgen(unix.NFPROTO_INET, 0))
		b.attrString(unix.NFTA_CHAIN_TABLE, table)
		b.attrString(unix.NFTA_CHAIN_NAME, chain)
		b.nest(unix.NFTA_CHAIN_HOOK, func() {
			b.attr(unix.NFTA_HOOK_HOOKNUM, binary.BigEndian.AppendUint32(nil, trial.hook))
			b.attr(unix.NFTA_HOOK_PRIORITY, make([]byte, 4))
		})
		b.attrString(unix.NFTA_CHAIN_TYPE, string(trial.kind))
		if trial.counter != "" {
			putCounter(b, table, trial.counter)
		}
		putRule(b, table, rb.rules[0])
	}
	b.acknowledge()
	return b, nil
}
