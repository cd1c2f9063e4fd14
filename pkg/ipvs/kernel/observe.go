package kernel

import (
	"context"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Observe reads what the kernel holds for some Keys. What hangs on an address is read only for who asks for the
// address's own Key: the interface can only be listed as a whole.
func (k *Kernel) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	as := newAssembly()
	var servers, addrs []ipvs.Key
	for _, key := range keys {
		if key.HasServer() {
			servers = append(servers, key)
		} else {
			addrs = append(addrs, key)
		}
	}
	found, err := k.ipvs.services(ctx, servers)
	if err != nil {
		return nil, err
	}
	if err := k.addReals(ctx, as, found); err != nil {
		return nil, err
	}
	for _, set := range ipvs.Sets {
		ask := keys
		if set.OfAddr() {
			ask = addrs
		}
		if set == ipvs.SetRanges {
			continue
		}
		has, err := k.nft.has(ctx, set, ask)
		if err != nil {
			return nil, err
		}
		for _, e := range has {
			as.element(e)
		}
	}
	if err := k.addRanges(ctx, as, keys); err != nil {
		return nil, err
	}
	if len(addrs) > 0 {
		if err := k.addBindings(ctx, as); err != nil {
			return nil, err
		}
	}
	return as.forKeys(keys), nil
}

// Connections counts those of some Keys.
func (k *Kernel) Connections(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error) {
	found := map[ipvs.Key]map[netip.AddrPort]ipvs.Conns{}
	for _, key := range keys {
		_, conns, err := k.ipvs.reals(ctx, key)
		if err != nil {
			return nil, err
		}
		if conns != nil {
			found[key] = conns
		}
	}
	return found, nil
}

// Scan reads everything.
func (k *Kernel) Scan(ctx context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	as := newAssembly()
	found, err := k.ipvs.allServices(ctx)
	if err != nil {
		return err
	}
	for key := range found {
		k.canary.saw(key)
	}
	if err := k.addReals(ctx, as, found); err != nil {
		return err
	}
	for _, set := range ipvs.Sets {
		if err := k.nft.all(ctx, set, as.element); err != nil {
			return err
		}
	}
	if err := k.addBindings(ctx, as); err != nil {
		return err
	}
	all := as.all()
	for _, key := range sortedKeys(all) {
		f(key, all[key])
	}
	return nil
}

// addRanges notes the source ranges of Keys. They cannot be asked for by Key, only listed all together, so that is
// done only for Keys that have some: those that are limited, and those where a write or another program left some.
func (k *Kernel) addRanges(ctx context.Context, as *assembly, keys []ipvs.Key) error {
	ask := map[ipvs.Key]bool{}
	for _, key := range keys {
		if f := as.parts[key]; k.ranged[key] || f != nil && f.Guard.Limited {
			ask[key] = true
		}
	}
	if len(ask) == 0 {
		return nil
	}
	if err := k.nft.all(ctx, ipvs.SetRanges, func(e ipvs.Element) {
		if ask[e.Key] {
			as.element(e)
		}
	}); err != nil {
		return err
	}
	for key := range ask {
		if f := as.parts[key]; f == nil || len(f.Guard.Ranges) == 0 {
			delete(k.ranged, key)
		}
	}
	return nil
}

// mayHaveRanges has the next Observe of a Key look for source ranges, whether it is limited or not.
func (k *Kernel) mayHaveRanges(key ipvs.Key) {
	if k.ranged == nil {
		k.ranged = map[ipvs.Key]bool{}
	}
	k.ranged[key] = true
}

func (k *Kernel) addReals(ctx context.Context, as *assembly, servers map[ipvs.Key]ipvs.Server) error {
	for key, s := range servers {
		reals, conns, err := k.ipvs.reals(ctx, key)
		if err != nil {
			return err
		}
		s.Reals = reals
		as.server(key, s, conns)
	}
	return nil
}

// addBindings notes what stands on the interface.
func (k *Kernel) addBindings(ctx context.Context, as *assembly) error {
	bound, err := k.link.bindings(ctx)
	if err != nil {
		return err
	}
	for a, right := range bound {
		f := as.at(ipvs.AddrKey(a))
		f.Bind, f.Misbound = right, !right
	}
	return nil
}

func sortedKeys(m map[ipvs.Key]ipvs.Observed) []ipvs.Key {
	keys := make([]ipvs.Key, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, ipvs.Key.Compare)
	return keys
}

// assembly puts together what different parts of the kernel say of a Key.
type assembly struct {
	parts map[ipvs.Key]*ipvs.Frontend
	conns map[ipvs.Key]map[netip.AddrPort]ipvs.Conns
}

func newAssembly() *assembly {
	return &assembly{map[ipvs.Key]*ipvs.Frontend{}, map[ipvs.Key]map[netip.AddrPort]ipvs.Conns{}}
}

func (a *assembly) at(k ipvs.Key) *ipvs.Frontend {
	f := a.parts[k]
	if f == nil {
		f = &ipvs.Frontend{}
		a.parts[k] = f
	}
	return f
}

func (a *assembly) server(k ipvs.Key, s ipvs.Server, conns map[netip.AddrPort]ipvs.Conns) {
	a.at(k).Server = s
	a.conns[k] = conns
}

func (a *assembly) element(e ipvs.Element) { a.at(e.Key).Guard.Put(e) }

func (a *assembly) all() map[ipvs.Key]ipvs.Observed {
	out := make(map[ipvs.Key]ipvs.Observed, len(a.parts))
	for k, f := range a.parts {
		out[k] = ipvs.Observed{Have: f, Conns: a.conns[k]}
	}
	return out
}

// forKeys answers for the Keys asked for.
func (a *assembly) forKeys(keys []ipvs.Key) map[ipvs.Key]ipvs.Observed {
	out := make(map[ipvs.Key]ipvs.Observed, len(keys))
	for _, k := range keys {
		if f := a.parts[k]; f != nil {
			out[k] = ipvs.Observed{Have: f, Conns: a.conns[k]}
		}
	}
	return out
}
