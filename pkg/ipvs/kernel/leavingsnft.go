package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kubeproxy"
)

// place is a chain of somebody's table, and with a handle a rule in it.
type place struct {
	family byte
	table  string
	chain  string
	handle uint64
}

func (p place) in() string { return familyNames[nftables.TableFamily(p.family)] + " " + p.table }

// theirFamilies are those in which kube-proxy has tables.
var theirFamilies = []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}

// leftChains lists kube-proxy's rules and chains of iptables-nft: as unlink what cuts them off from the hooks, as chains
// what is then out of reach.
func (n *nftDoor) leftChains(ctx context.Context) (unlink, chains []ipvs.Leaving, stays []string, err error) {
	var jumps, gone []place
	for _, table := range kubeproxy.Tables {
		for _, f := range theirFamilies {
			j, g, s, err := n.leftIn(ctx, f, table)
			if err != nil {
				return nil, nil, nil, err
			}
			jumps, gone, stays = append(jumps, j...), append(gone, g...), append(stays, s...)
		}
	}
	for part := range slices.Chunk(jumps, n.perTransaction()) {
		unlink = append(unlink, ipvs.Leaving{
			Text: fmt.Sprintf("nft delete the %d rules that lead to kube-proxy's chains, of %s", len(part), tablesOf(part)),
			Take: n.taking("delete the rules that lead to kube-proxy's chains", part, putDelRule),
		})
	}
	for part := range slices.Chunk(gone, n.perTransaction()) {
		chains = append(chains, ipvs.Leaving{
			Text: fmt.Sprintf("nft flush %d chains of kube-proxy's, of %s", len(part), tablesOf(part)),
			Take: n.taking("flush kube-proxy's chains", part, putDelRule),
		})
	}
	for part := range slices.Chunk(gone, n.perTransaction()) {
		chains = append(chains, ipvs.Leaving{
			Text: fmt.Sprintf("nft delete %d chains of kube-proxy's, of %s", len(part), tablesOf(part)),
			Take: n.taking("delete kube-proxy's chains", part, putDelChain),
		})
	}
	return unlink, chains, stays, nil
}

// perTransaction is how many chains or rules go into one transaction.
func (n *nftDoor) perTransaction() int { return n.room() / largestElement }

func tablesOf(places []place) string {
	var names []string
	for _, p := range places {
		if !slices.Contains(names, p.in()) {
			names = append(names, p.in())
		}
	}
	return strings.Join(names, ", ")
}

// taking makes one transaction of messages about places.
func (n *nftDoor) taking(what string, places []place, put func(*batch, place)) func(context.Context) error {
	return func(ctx context.Context) error {
		replies, err := n.transaction(ctx, func(b *batch) {
			for _, p := range places {
				put(b, p)
			}
		})
		for i, r := range replies {
			if r.err != nil && !r.unknown {
				p := places[i]
				return fmt.Errorf("nftables: %s: %s %s: %w", what, p.in(), p.chain, r.err)
			}
		}
		if err != nil {
			return fmt.Errorf("nftables: %s: %w", what, err)
		}
		return nil
	}
}

// putDelRule appends the request to delete a rule, or without a handle all rules of a chain.
func putDelRule(b *batch, p place) {
	b.begin(nftType(unix.NFT_MSG_DELRULE), 0, nfgen(p.family, 0))
	b.attrString(unix.NFTA_RULE_TABLE, p.table)
	b.attrString(unix.NFTA_RULE_CHAIN, p.chain)
	if p.handle != 0 {
		b.attr(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, p.handle))
	}
}

func putDelChain(b *batch, p place) {
	b.begin(nftType(unix.NFT_MSG_DELCHAIN), 0, nfgen(p.family, 0))
	b.attrString(unix.NFTA_CHAIN_TABLE, p.table)
	b.attrString(unix.NFTA_CHAIN_NAME, p.chain)
}

// leftIn finds kube-proxy's chains in a table, and the rules of other chains that lead there.
func (n *nftDoor) leftIn(ctx context.Context, family nftables.TableFamily, table string) (jumps, gone []place, stays []string, err error) {
	all, err := n.chainsOf(family, table)
	if err != nil {
		return nil, nil, nil, err
	}
	if !slices.ContainsFunc(all, func(c kubeproxy.Chain) bool { return kubeproxy.IsChain(c.Name) }) {
		return nil, nil, nil, nil
	}
	rules := map[place]string{}
	var order []place
	var leads []kubeproxy.Jump
	for _, c := range all {
		if kubeproxy.IsChain(c.Name) {
			continue
		}
		err := n.rulesOf(ctx, place{family: byte(family), table: table, chain: c.Name}, func(p place, to string) {
			if kubeproxy.IsChain(to) {
				rules[p] = to
				order, leads = append(order, p), append(leads, kubeproxy.Jump{From: c.Name, To: to})
			}
		})
		if err != nil {
			return nil, nil, nil, err
		}
	}
	going, stays := kubeproxy.Going(all, leads)
	for _, p := range order {
		if going[rules[p]] {
			jumps = append(jumps, p)
		}
	}
	for _, c := range all {
		if going[c.Name] {
			gone = append(gone, place{family: byte(family), table: table, chain: c.Name})
		}
	}
	return jumps, gone, stays, nil
}

// chainsOf lists the chains of a table, which need not be there.
func (n *nftDoor) chainsOf(family nftables.TableFamily, table string) (out []kubeproxy.Chain, err error) {
	c, err := n.conn()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	var all []*nftables.Chain
	if err := again(func() (err error) {
		all, err = c.ListChainsOfTableFamily(family)
		return err
	}); err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range all {
		if ch.Table.Name == table {
			out = append(out, kubeproxy.Chain{Name: ch.Name, Base: ch.Hooknum != nil,
				Drops: ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop})
		}
	}
	return out, nil
}

// rulesOf gives the rules of a chain that lead to another one.
func (n *nftDoor) rulesOf(ctx context.Context, of place, f func(rule place, to string)) error {
	type jump struct {
		rule place
		to   string
	}
	var found []jump
	err := again(func() error {
		found = found[:0]
		n.b.reset()
		n.b.begin(nftType(unix.NFT_MSG_GETRULE), unix.NLM_F_DUMP, nfgen(of.family, 0))
		n.b.attrString(unix.NFTA_RULE_TABLE, of.table)
		n.b.attrString(unix.NFTA_RULE_CHAIN, of.chain)
		return n.sock.dump(ctx, &n.b, func(msg []byte) error {
			handle, to, err := parseJump(msg)
			if err == nil && to != "" {
				p := of
				p.handle = handle
				found = append(found, jump{p, to})
			}
			return err
		})
	})
	if errors.Is(err, unix.ENOENT) { // it went meanwhile
		return nil
	}
	if err != nil {
		return fmt.Errorf("list rules of nftables chain %s %s: %w", of.in(), of.chain, err)
	}
	for _, j := range found {
		f(j.rule, j.to)
	}
	return nil
}

// parseJump reads where a rule leads by its verdict; empty: nowhere. Whatever else the rule has is of no interest, so that
// matches and targets of iptables need not be understood.
func parseJump(msg []byte) (handle uint64, to string, err error) {
	err = eachAttr(skip(msg, nfgenLen), func(typ uint16, v []byte) error {
		switch {
		case typ == unix.NFTA_RULE_HANDLE && len(v) == 8:
			handle = binary.BigEndian.Uint64(v)
		case typ == unix.NFTA_RULE_EXPRESSIONS:
			return eachAttr(v, func(_ uint16, expression []byte) error {
				chain, err := verdictChain(expression)
				if chain != "" {
					to = chain
				}
				return err
			})
		}
		return nil
	})
	return handle, to, err
}

// verdictChain reads the chain of an expression's verdict: DATA holds IMMEDIATE_DATA, that DATA_VERDICT, that VERDICT_CHAIN.
func verdictChain(expression []byte) (chain string, err error) {
	var immediate bool
	var data []byte
	err = eachAttr(expression, func(typ uint16, v []byte) error {
		switch typ {
		case unix.NFTA_EXPR_NAME:
			immediate = cString(v) == "immediate"
		case unix.NFTA_EXPR_DATA:
			data = v
		}
		return nil
	})
	if err != nil || !immediate {
		return "", err
	}
	for _, want := range []uint16{unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VERDICT, unix.NFTA_VERDICT_CHAIN} {
		var inner []byte
		if err := eachAttr(data, func(typ uint16, v []byte) error {
			if typ == want {
				inner = v
			}
			return nil
		}); err != nil {
			return "", err
		}
		data = inner
	}
	return cString(data), nil
}

// leftTables lists kube-proxy's tables of its nftables mode.
func (n *nftDoor) leftTables(ctx context.Context) (list []ipvs.Leaving, err error) {
	c, err := n.conn()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	var found []place
	for _, f := range theirFamilies {
		tables, err := c.ListTablesOfFamily(f)
		if err != nil {
			return nil, fmt.Errorf("list nftables tables: %w", err)
		}
		for _, t := range tables {
			if t.Name == kubeproxy.Table {
				found = append(found, place{family: byte(f), table: t.Name})
			}
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	return []ipvs.Leaving{{Text: "nft delete kube-proxy's tables: " + tablesOf(found), Take: n.taking("delete kube-proxy's tables", found, func(b *batch, p place) {
		b.begin(nftType(unix.NFT_MSG_DELTABLE), 0, nfgen(p.family, 0))
		b.attrString(unix.NFTA_TABLE_NAME, p.table)
	})}}, nil
}
