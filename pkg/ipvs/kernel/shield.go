package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// A virtual IP is a local address to the kernel, and so are the node's own. Host ports of a CNI and published ports of
// Docker are destination NAT for "a local address, port N", at priority -100: they would take a Service's packets
// before IPVS sees them. A connection's destination is translated once, by the first rule that says to what: for what is
// a Service's, that is to itself, in chains that come before theirs. (All chains of type nat of a hook have their turn
// one after the other at -100, whatever their own priorities, which order them.)
//
// Another Service proxy's rules are such rules as well. While they stand they serve, so that this is switched on and off:
// the set shielded holds the families for which it is on. Its elements live for shieldedFor, so that a proxy that comes
// back while no agent runs gets its packets in the end.
const (
	chainEarly       = "early"
	chainEarlyLocal  = "earlylocal"
	chainShield      = "shield"
	chainShieldLocal = "shieldlocal"
	setShielded      = "shielded"
)

// shieldedFor is how long Services stay shielded after the last Shield.
const shieldedFor = 5 * time.Minute

// earlier is before what others translate. A chain of type nat must come after connection tracking (-200).
var earlier = *nftables.ChainPriorityNATDest - 10

// shieldChains are what does it, with their hooks.
func shieldChains(t *nftables.Table) []*nftables.Chain {
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityRef(earlier)}
	}
	return []*nftables.Chain{
		{Name: chainShield, Table: t},
		{Name: chainShieldLocal, Table: t},
		base(chainEarly, nftables.ChainHookPrerouting),
		base(chainEarlyLocal, nftables.ChainHookOutput),
	}
}

// shielded is the set that switches it on and off, by family.
func (n *nftDoor) shielded() *nftables.Set {
	return &nftables.Set{Table: n.table, Name: setShielded, KeyType: nftables.TypeNFProto, HasTimeout: true}
}

// shieldRules decide the destination of a new connection to what is a Service's: where it is to be redirected it is sent
// there, and else to itself. Of a virtual IP that is every port: those that no Service has are refused by the guard, and are
// no host port's either. The chains that come later then have nothing to say, our own among them.
func shieldRules(rb *ruleBuilder, cfg Config) {
	shielded := func(chain, why string, invert bool) {
		rb.add(chain, why, &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: setShielded, Invert: invert}, verdict(expr.VerdictReturn, ""))
	}
	for _, c := range [][2]string{{chainEarly, chainShield}, {chainEarlyLocal, chainShieldLocal}} {
		base, service := c[0], c[1]
		for _, f := range families {
			rb.add(base, "no port of a virtual IP is a host port", f.is(), f.addr(f.dstOff, reg0), f.lookup(ipvs.SetVIPs, false), verdict(expr.VerdictGoto, service))
			rb.add(base, "a frontend", f.is(), f.destination(), f.lookup(ipvs.SetOwned, false), verdict(expr.VerdictGoto, service))
		}
		shielded(service, "another proxy's rules stand, or no agent has run for a while", true)
	}
	for _, f := range families {
		redirectRules(rb, f, cfg, chainShield, chainShieldLocal, []any{f.addr(f.dstOff, reg0), f.itself()})
		for _, service := range []string{chainShield, chainShieldLocal} {
			rb.add(service, "before what others do with local addresses", f.is(), f.addr(f.dstOff, reg0), f.itself())
		}
	}
	for _, chain := range []string{chainPre, chainLocal} {
		shielded(chain, "done before", false)
	}
}

// itself translates the destination to what it is, which must be in reg0.
func (f fam) itself() any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: reg0}
}

// Shield switches on, or off, that what is a Service's stays so before the rules of others. What is on ends by itself
// when it is not said again for shieldedFor.
func (k *Kernel) Shield(ctx context.Context, on bool) error {
	if k.readOnly {
		return nil
	}
	return k.nft.shield(ctx, on)
}

func (n *nftDoor) shield(ctx context.Context, on bool) error {
	_, err := n.transaction(ctx, func(b *batch) {
		// The life of an element that is there cannot be prolonged before Linux 6.12: it is made anew.
		putShielded(b, unix.NFT_MSG_DELSETELEM, 0, nil)
		if on {
			putShielded(b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, families)
		}
	})
	switch {
	case err == nil, !on && errors.Is(err, unix.ENOENT): // there is no such set
		return nil
	case on:
		return fmt.Errorf("keep host ports off Services, nftables set %s: %w", setShielded, err)
	}
	return fmt.Errorf("let another proxy's rules come before Services, nftables set %s: %w", setShielded, err)
}

// putShielded appends the request to add families, or to remove all that there are.
func putShielded(b *batch, msg int, flags uint16, families []fam) {
	b.begin(nftType(msg), flags, nfgen(unix.NFPROTO_INET, 0))
	b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	b.attrString(unix.NFTA_SET_ELEM_LIST_SET, setShielded)
	if families == nil {
		return
	}
	b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		for _, f := range families {
			b.nest(unix.NFTA_LIST_ELEM, func() {
				b.nest(unix.NFTA_SET_ELEM_KEY, func() { b.attr(unix.NFTA_DATA_VALUE, []byte{f.nfproto}) })
				b.attr(unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(shieldedFor.Milliseconds())))
			})
		}
	})
}
