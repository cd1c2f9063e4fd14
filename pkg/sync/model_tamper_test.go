package sync

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// connect makes connections come and go, and conntrack entries that will bypass a frontend once it opens.
func (w *walker) connect(r *rand.Rand) {
	for _, a := range slices.Concat(vips4, vips6) {
		if k := (ipvs.Key{Addr: netip.MustParseAddr(a), Port: 53, Proto: ipvs.UDP}); !w.kernel.Sets[ipvs.SetOpen][k] {
			w.kernel.Stale[k] = 1
		}
	}
	for _, k := range sorted(w.kernel.Servers) {
		w.kernel.Conns[k] = map[netip.AddrPort]ipvs.Conns{}
		for _, real := range w.kernel.Servers[k].Reals {
			w.kernel.Conns[k][real.Addr] = pick(r, []ipvs.Conns{{}, {}, {Active: 1}, {Inactive: 1}})
		}
	}
}

// tamper changes something behind the loop's back.
func (w *walker) tamper(r *rand.Rand) {
	k := w.kernel
	servers := slices.DeleteFunc(sorted(k.Servers), func(k ipvs.Key) bool { _, foreign := w.foreign[k]; return foreign })
	set := pick(r, ipvs.Sets)
	elements := sorted(k.Sets[set])
	addrs := slices.SortedFunc(maps.Keys(k.Addrs), netip.Addr.Compare)
	what := pick(r, []string{"link", "table", "element", "element", "extra element", "address", "address", "extra address", "server", "reals", "real", "weight", "scheduler", "extra real", "flush", "flush all"})
	w.say("%s", what)
	if r.IntN(2) == 0 { // else nobody hears of it
		defer k.Hear(ipvs.Tampering{Base: r.IntN(2) == 0, Keys: r.IntN(4) > 0})
	}
	switch what {
	case "link":
		w.allBad = true
		w.disown(servers...)
		k.DropLink()
	case "table":
		w.allBad = true
		for _, key := range servers {
			w.disowned[key] = true
		}
		for _, a := range addrs {
			w.disowned[ipvs.AddrKey(a)] = true
		}
		k.DropTable()
	case "flush all": // what is foreign as well
		for key := range k.Servers {
			w.tampered[key.Addr] = true
		}
		clear(k.Servers)
		clear(k.Conns)
		clear(w.foreign)
	case "flush":
		for _, key := range servers {
			w.tampered[key.Addr] = true
			delete(k.Servers, key)
			delete(k.Conns, key)
		}
	case "element":
		if len(elements) > 0 {
			key := pick(r, elements)
			w.say("%s %s", set, key)
			w.tampered[key.Addr] = true
			k.Tamper(ipvs.Element{Set: set, Key: key, Remove: true})
			if set == ipvs.SetOwned || set == ipvs.SetVIPs {
				w.disowned[key] = true
			}
		}
	case "extra element":
		if set == ipvs.SetRanges && k.Table {
			w.tamperRange(r)
		} else if set != ipvs.SetOwned && k.Table { // whoever says that something is ours, hands it over
			key := ipvs.AddrKey(netip.MustParseAddr(pick(r, vips4)))
			if !set.OfAddr() {
				key.Port, key.Proto = 443, ipvs.TCP
			}
			w.say("%s %s", set, key)
			w.tampered[key.Addr] = true
			if k.Sets[set][key] && set == ipvs.SetRedirect {
				k.Tamper(ipvs.Element{Set: set, Key: key, Remove: true})
			}
			k.Tamper(ipvs.Element{Set: set, Key: key, To: netip.AddrPortFrom(foreignAddr, 80)})
		}
	case "address":
		if len(addrs) > 0 {
			a := pick(r, addrs)
			w.tampered[a] = true
			w.disown(slices.DeleteFunc(servers, func(k ipvs.Key) bool { return k.Addr != a })...)
			delete(k.Addrs, a)
		}
	case "extra address":
		if k.Link {
			a := netip.MustParseAddr(pick(r, vips4))
			w.tampered[a], w.disowned[ipvs.AddrKey(a)] = true, true
			k.Addrs[a] = true
		}
	default:
		if len(servers) > 0 {
			w.tamperServer(r, what, pick(r, servers))
		}
	}
}

// disown notes virtual servers whose address leaves our interface: where there is no record yet that they are ours, nothing
// says it any more.
func (w *walker) disown(keys ...ipvs.Key) {
	for _, k := range keys {
		if !w.kernel.Sets[ipvs.SetOwned][k] {
			w.disowned[k] = true
		}
	}
}

// tamperRange removes one of the source ranges of a frontend, or adds one.
func (w *walker) tamperRange(r *rand.Rand) {
	extra := ipvs.Range{First: foreignAddr, Last: foreignAddr}
	keys := sorted(w.kernel.Ranges)
	if len(keys) == 0 {
		return
	}
	key := pick(r, keys)
	w.say("%s", key)
	w.tampered[key.Addr] = true
	if have := w.kernel.Ranges[key]; r.IntN(2) == 0 || slices.Contains(have, extra) {
		w.kernel.Tamper(ipvs.Element{Set: ipvs.SetRanges, Key: key, From: pick(r, have), Remove: true})
	} else {
		w.kernel.Tamper(ipvs.Element{Set: ipvs.SetRanges, Key: key, From: extra})
	}
}

func (w *walker) tamperServer(r *rand.Rand, what string, key ipvs.Key) {
	w.say("%s", key)
	w.tampered[key.Addr] = true
	k := w.kernel
	s := k.Servers[key]
	s.Reals = slices.Clone(s.Reals)
	switch what {
	case "server":
		delete(k.Servers, key)
		delete(k.Conns, key)
		return
	case "reals":
		s.Reals = nil
		delete(k.Conns, key)
	case "real":
		if len(s.Reals) > 0 {
			i := r.IntN(len(s.Reals))
			delete(k.Conns[key], s.Reals[i].Addr)
			s.Reals = slices.Delete(s.Reals, i, i+1)
		}
	case "weight":
		if len(s.Reals) > 0 {
			s.Reals[r.IntN(len(s.Reals))].Weight = uint16(r.IntN(3))
		}
	case "scheduler":
		s.Scheduler = "wlc"
		s.Flags, s.Timeout = pick(r, []ipvs.Flags{0, ipvs.Persistent}), 300
		if s.Flags == 0 {
			s.Timeout = 0
		}
	case "extra real":
		extra := ipvs.Real{Addr: netip.MustParseAddrPort("10.244.3.3:8080"), Weight: 1}
		if key.Addr.Is6() {
			extra.Addr = netip.MustParseAddrPort("[fd10:244:3::3]:8080")
		}
		s.Reals = ipvs.SortReals(append(s.Reals, extra))
	}
	k.Servers[key] = s
}

// plant lets somebody else make a virtual server where no Service has one, maybe on an address of ours. Not
// before the first start is over: it takes over all that it finds on the interface.
func (w *walker) plant(r *rand.Rand) {
	p := pick(r, allPorts)
	key := ipvs.Key{Addr: netip.MustParseAddr(pick(r, vips4)), Port: uint16(p.Port), Proto: ipvs.TCP}
	if p.Protocol == corev1.ProtocolUDP {
		key.Proto = ipvs.UDP
	}
	k := w.kernel
	if _, ok := k.Servers[key]; ok || !k.Sets[ipvs.SetOwned][ipvs.Adopted] || k.Sets[ipvs.SetOwned][key] || k.Sets[ipvs.SetOpen][key] {
		return
	}
	w.say("%s", key)
	w.foreign[key] = foreignServer
	k.Servers[key] = foreignServer
	w.tampered[key.Addr] = true
}
