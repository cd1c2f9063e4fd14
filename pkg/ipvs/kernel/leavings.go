package kernel

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/legacy"
)

// Left lists what kube-proxy left, whatever its mode was: its rules and chains in iptables, its tables in nftables, its
// ipsets. It is in the order in which it may go while everything is in use, where every prefix is safe:
//   - the rules that lead to its chains, in one transaction: from then on no packet meets any of its rules;
//   - its tables, in one transaction as well;
//   - in iptables-legacy its rules and chains of one table at a time, in the order of kubeproxy.Tables;
//   - the chains that nobody can reach any more;
//   - the sets, which the kernel keeps for as long as a rule refers to them.
//
// Stays says what of it stays, a line each, and why.
func (k *Kernel) Left(ctx context.Context) (list []ipvs.Leaving, stays []string, err error) {
	unlink, chains, kept, err := k.nft.leftChains(ctx)
	if err != nil {
		return nil, nil, err
	}
	tables, err := k.nft.leftTables(ctx)
	if err != nil {
		return nil, nil, err
	}
	old, keptOld, err := leftLegacy()
	if err != nil {
		return nil, nil, err
	}
	list = append(append(append(append(list, unlink...), tables...), old...), chains...)
	sets, err := k.sets.left(ctx)
	if err != nil {
		return nil, nil, err
	}
	return append(list, sets...), append(kept, keptOld...), nil
}

// leftLegacy lists what is left in iptables-legacy.
func leftLegacy() (list []ipvs.Leaving, stays []string, err error) {
	err = eachLegacy(func(t legacy.Table, found legacy.Found) {
		stays = append(stays, found.Stays...)
		if found.Rules == 0 && found.Chains == 0 {
			return
		}
		list = append(list, ipvs.Leaving{
			Text:  fmt.Sprintf("take %d rules and %d chains of kube-proxy's out of %s", found.Rules, found.Chains, t),
			Apart: true,
			Take: func(context.Context) error {
				err := t.Clean()
				if errors.Is(err, legacy.ErrNoLock) {
					err = fmt.Errorf("%w; take kube-proxy's rules out of %s by hand: %s", err, t, t.Command())
				}
				return err
			},
		})
	})
	return list, stays, err
}

// Trace is a number that changes when another program changes what Left would list of iptables-legacy and of ipsets, of
// which no notification tells. It takes some ten microseconds where nothing of them is in use.
func (k *Kernel) Trace(ctx context.Context) (uint64, error) {
	sum := fnv.New64a()
	tables, err := legacy.Tables()
	if err != nil {
		return 0, err
	}
	for _, t := range tables {
		if err := k.traces.Write(sum, t); err != nil {
			return 0, err
		}
	}
	sets, err := k.sets.list(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range sets {
		fmt.Fprintln(sum, s.name, s.elements)
	}
	return sum.Sum64(), nil
}
