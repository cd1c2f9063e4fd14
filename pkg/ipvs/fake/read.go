package fake

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

func (k *Kernel) readable() error {
	if k.FailRead != nil {
		return k.FailRead()
	}
	return nil
}

// Observe reads some Keys.
func (k *Kernel) Observe(_ context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	if err := k.readable(); err != nil {
		return nil, err
	}
	out := map[ipvs.Key]ipvs.Observed{}
	for _, key := range keys {
		if o := k.look(key); o.Have != nil {
			out[key] = o
		}
	}
	return out, nil
}

// Connections counts those of some Keys.
func (k *Kernel) Connections(_ context.Context, keys []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error) {
	if err := k.readable(); err != nil {
		return nil, err
	}
	out := map[ipvs.Key]map[netip.AddrPort]ipvs.Conns{}
	for _, key := range keys {
		if len(k.Conns[key]) > 0 {
			out[key] = maps.Clone(k.Conns[key])
		}
	}
	return out, nil
}

// Scan reads everything.
func (k *Kernel) Scan(_ context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	if err := k.readable(); err != nil {
		return err
	}
	all := k.all()
	for _, key := range slices.SortedFunc(maps.Keys(all), ipvs.Key.Compare) {
		f(key, all[key])
	}
	return nil
}

// Detect reads everything, a part at a time.
func (k *Kernel) Detect(_ context.Context, f func(ipvs.Key, *ipvs.Frontend, uint32)) (done bool, err error) {
	if err := k.readable(); err != nil {
		k.detected = nil
		return false, err
	}
	all := k.all()
	if k.detected == nil {
		k.detected = slices.SortedFunc(maps.Keys(all), ipvs.Key.Compare)
	}
	n := min(detectPart, len(k.detected))
	for _, key := range k.detected[:n] {
		o, ok := all[key]
		if !ok || k.Overlooks != nil && k.Overlooks(key) {
			continue
		}
		o.Have.Server.Timeout = 0
		o.Have.Server.Flags &= ipvs.Persistent
		f(key, o.Have, ipvs.SumOf(o.Conns))
	}
	k.detected = k.detected[n:]
	if len(k.detected) == 0 {
		k.detected = nil
		return true, nil
	}
	return false, nil
}

// detectPart is how many Keys a part of Detect has: few, so that tests see several.
const detectPart = 3

func (k *Kernel) all() map[ipvs.Key]ipvs.Observed {
	out := map[ipvs.Key]ipvs.Observed{}
	at := func(key ipvs.Key) { out[key] = k.look(key) }
	for key := range k.Servers {
		at(key)
	}
	for _, set := range k.Sets {
		for key := range set {
			at(key)
		}
	}
	for key := range k.Ranges {
		at(key)
	}
	for _, addrs := range []map[netip.Addr]bool{k.Addrs, k.Misbound} {
		for a := range addrs {
			at(ipvs.AddrKey(a))
		}
	}
	return out
}

// look reads one Key at a cost that does not depend on how many there are.
func (k *Kernel) look(key ipvs.Key) ipvs.Observed {
	s, served := k.Servers[key]
	s.Reals = slices.Clone(s.Reals)
	f := &ipvs.Frontend{Server: s}
	for _, s := range ipvs.Sets {
		if k.Sets[s][key] && (!s.OfAddr() || !key.HasServer()) {
			f.Guard.Put(ipvs.Element{Set: s, Key: key, To: k.Redirects[key]})
		}
	}
	f.Guard.Ranges = slices.Clone(k.Ranges[key])
	if !key.HasServer() {
		f.Misbound = k.Misbound[key.Addr]
		f.Bind = k.Addrs[key.Addr] && !f.Misbound
	}
	if f.Equal(&ipvs.Frontend{}) {
		return ipvs.Observed{}
	}
	o := ipvs.Observed{Have: f}
	if served {
		o.Conns = maps.Clone(k.Conns[key])
	}
	return o
}
