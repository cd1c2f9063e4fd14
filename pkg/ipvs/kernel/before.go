package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kubeproxy"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/legacy"
)

// Before says what of kube-proxy's serves, refuses or drops packets before IPVS sees them, a line a table. Chains to which
// no rule leads do nothing, and are not among it.
func (k *Kernel) Before(ctx context.Context) (lines []string, err error) { return k.nft.before(ctx) }

// StandsBefore is Before for who has no door to the kernel.
func StandsBefore(ctx context.Context) (lines []string, err error) {
	n, err := newNFT(Config{})
	if err != nil {
		return nil, err
	}
	defer n.close()
	return n.before(ctx)
}

func (n *nftDoor) before(ctx context.Context) (lines []string, err error) {
	for _, f := range theirFamilies {
		for _, table := range kubeproxy.Tables {
			jumps, err := n.jumpsBefore(ctx, f, table)
			if err != nil {
				return nil, err
			}
			if len(jumps) > 0 {
				lines = append(lines, "nftables "+familyNames[f]+" "+table+": "+lead(jumps))
			}
		}
		takes, err := n.proxyTable(ctx, f)
		if err != nil {
			return nil, err
		}
		if takes {
			lines = append(lines, "nftables table "+familyNames[f]+" "+kubeproxy.Table)
		}
	}
	old, err := legacyBefore()
	return append(lines, old...), err
}

// jumpsBefore lists what leads to such chains of kube-proxy's in a table of iptables-nft.
func (n *nftDoor) jumpsBefore(ctx context.Context, f nftables.TableFamily, table string) (jumps []kubeproxy.Jump, err error) {
	all, err := n.chainsOf(f, table)
	if err != nil || !slices.ContainsFunc(all, func(c kubeproxy.Chain) bool { return kubeproxy.StandsBefore(c.Name) }) {
		return nil, err
	}
	for _, c := range all {
		if kubeproxy.IsChain(c.Name) {
			continue
		}
		if err := n.rulesOf(ctx, place{family: byte(f), table: table, chain: c.Name}, func(_ place, to string) {
			if kubeproxy.StandsBefore(to) {
				jumps = append(jumps, kubeproxy.Jump{From: c.Name, To: to})
			}
		}); err != nil {
			return nil, err
		}
	}
	return jumps, nil
}

// lead says which chains lead where, each pair once.
func lead(jumps []kubeproxy.Jump) string {
	var parts []string
	for _, j := range jumps {
		if part := j.From + " leads to " + j.To; !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	const listed = 4 // of others' chains there may be any number
	if more := len(parts) - listed; more > 0 {
		parts = append(parts[:listed], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, ", ")
}

// proxyTable reports whether packets meet rules of a table of kube-proxy's in mode nftables: a chain with a hook leads on.
func (n *nftDoor) proxyTable(ctx context.Context, f nftables.TableFamily) (takes bool, err error) {
	all, err := n.chainsOf(f, kubeproxy.Table)
	if err != nil {
		return false, err
	}
	for _, c := range all {
		if !c.Base || takes {
			continue
		}
		if err := n.rulesOf(ctx, place{family: byte(f), table: kubeproxy.Table, chain: c.Name}, func(place, string) { takes = true }); err != nil {
			return false, err
		}
	}
	return takes, nil
}

// legacyBefore says the same of iptables-legacy.
func legacyBefore() (lines []string, err error) {
	err = eachLegacy(func(t legacy.Table, found legacy.Found) {
		if len(found.Before) > 0 {
			lines = append(lines, t.String()+": "+lead(found.Before))
		}
	})
	return lines, err
}

// eachLegacy looks into each table of iptables-legacy.
func eachLegacy(f func(legacy.Table, legacy.Found)) error {
	tables, err := legacy.Tables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		found, err := t.Look()
		if errors.Is(err, unix.EAGAIN) { // it changes right now
			found, err = t.Look()
		}
		if err != nil {
			return err
		}
		f(t, found)
	}
	return nil
}

// LegacyChains lists the chains of iptables-legacy that drop what no rule of theirs accepts. It reads the tables that are
// there: asking for another one would make it.
func LegacyChains() (chains []Chain, err error) {
	err = eachLegacy(func(t legacy.Table, found legacy.Found) {
		for _, name := range found.Drops {
			chains = append(chains, Chain{Family: t.Program(), Table: t.Name, Name: name, Show: t.Show(name),
				Forward: name == "FORWARD", Input: name == "INPUT", Drop: true})
		}
	})
	return chains, err
}
