package sync

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Remains is a kernel of which even what all Keys stand on can be taken away.
type Remains interface {
	Writer
	// Scan reads everything, see Reader.
	Scan(context.Context, func(ipvs.Key, ipvs.Observed)) error
	// Yield takes the shield down, so that another proxy's rules come first, and reports whether our nftables table is
	// there: without it nothing is recorded as ours.
	Yield(context.Context) (table bool, err error)
	// Remove takes away the interface, where nothing is left on it, then the table. Stays says why the
	// interface is still there.
	Remove(context.Context) (done []string, stays string, err error)
}

// Cleanup removes what the kernel records as ours, and nothing else: what is to be there when no agent is. It
// needs no cluster. Virtual servers whose address is in a spared range stay, with their address. Say is told
// of each write, as a person would type it, and of what stays. When a removal fails, the table stays with the
// record of what is left, and Cleanup can be called again.
func Cleanup(ctx context.Context, k Remains, spared []netip.Prefix, say func(string)) error {
	table, err := k.Yield(ctx)
	if err != nil {
		return err
	}
	if !table {
		say("nothing to remove: there is no nftables table inet ipvs-proxy, the record of what is the agent's")
		return nil
	}
	say("nft flush set inet ipvs-proxy shielded")
	found := map[ipvs.Key]ipvs.Observed{}
	if err := k.Scan(ctx, func(k ipvs.Key, o ipvs.Observed) { found[k] = o }); err != nil {
		return err
	}
	plan := removal(found, spared, say)
	var errs []error
	said := map[ipvs.Op]bool{} // an address is removed once for all of its Keys
	for i, o := range k.Do(ctx, plan) {
		op := plan[i].Op
		if said[op] || errors.Is(o.Err, ipvs.ErrNotTried) {
			continue
		}
		said[op] = true
		if o.Err != nil {
			errs = append(errs, o.Err)
		} else {
			say(op.String())
		}
	}
	if len(errs) > 0 {
		return errors.Join(append(errs, errors.New("the rest stays, with its record: run cleanup again"))...)
	}
	done, stays, err := k.Remove(ctx)
	for _, line := range done {
		say(line)
	}
	if stays != "" {
		say("kube-ipvs0 stays: " + stays)
	}
	return err
}

// removal is the Plan that removes what is recorded as ours: addresses first, then virtual servers. Until its
// address is gone a frontend serves, and no packet meets an address whose server is gone already: it would
// reach a listener of the node. For that reason no element of the sets is touched, either: the guard goes with
// the table, last and at once, and what is recorded stays recorded until it is gone.
func removal(found map[ipvs.Key]ipvs.Observed, spared []netip.Prefix, say func(string)) (plan ipvs.Plan) {
	owned := map[netip.Addr]bool{} // addresses with a virtual server of ours
	for k, o := range found {
		if k.HasServer() && o.Have.Guard.Owned {
			owned[k.Addr] = true
		}
	}
	for _, k := range sorted(found) {
		have := found[k].Have
		addr := found[ipvs.AddrKey(k.Addr)].Have
		if addr == nil {
			addr = &ipvs.Frontend{}
		}
		ours := have.Guard.Owned || !k.HasServer() && (owned[k.Addr] || addr.Guard.VIP)
		if !ours || k == ipvs.Adopted {
			continue
		}
		if slices.ContainsFunc(spared, func(p netip.Prefix) bool { return p.Contains(k.Addr) }) {
			if k.HasServer() && have.Server.Exists() {
				say("virtual server " + k.String() + " stays: ipvs.excludeCIDRs has its address")
			}
			continue
		}
		left := &ipvs.Frontend{Server: have.Server, Bind: addr.Bind, Misbound: addr.Misbound}
		for _, op := range ipvs.Diff(k, left, nil) {
			plan = append(plan, ipvs.Step{Key: k, Op: op})
		}
	}
	return plan
}
