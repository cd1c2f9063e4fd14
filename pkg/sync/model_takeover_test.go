package sync

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// staleAddr is that of a Service which went while another proxy had the node.
var staleAddr = netip.MustParseAddr("10.96.0.99")

// takeOver starts an agent on a node that another proxy had for a while: nothing says what was the agent's, and what there is
// is nearly right (B54). What is right must not be written, and what stands on an address of our interface and nobody wants
// must go.
func (w *walker) takeOver(r *rand.Rand) {
	w.lastNode, w.want = w.node, nil // the new process knows nothing of a Node that is gone
	k, want := w.kernel, w.expected()
	k.DropTable()
	k.Link = true
	maps.DeleteFunc(k.Servers, func(key ipvs.Key, _ ipvs.Server) bool { _, foreign := w.foreign[key]; return !foreign })
	clear(k.Conns)
	clear(k.Addrs)
	clear(w.disowned)
	for _, a := range slices.SortedFunc(maps.Keys(want.addrs), netip.Addr.Compare) {
		if r.IntN(8) > 0 {
			k.Addrs[a] = true
		}
	}
	w.right = map[ipvs.Key]bool{}
	for _, key := range sorted(want.servers) {
		if _, foreign := w.foreign[key]; foreign || !want.servers[key].Exists() {
			continue
		}
		if s, there := leftOf(r, key.Addr.Is6(), want.sets[ipvs.SetKept][key], want.servers[key]); there {
			k.Servers[key] = s
			w.right[key] = reflect.DeepEqual(s, want.servers[key])
			w.say("ipvsadm has %s: right %t", key, w.right[key])
		}
		if !k.Addrs[key.Addr] { // nothing says that it is the proxy's: should its Service go before the agent knows it, it stays
			w.disowned[key] = true
		}
	}
	stale := ipvs.Key{Addr: staleAddr, Port: 80, Proto: ipvs.TCP}
	k.Servers[stale], k.Addrs[staleAddr] = ipvs.Server{Scheduler: "rr", Reals: []ipvs.Real{{Addr: netip.MustParseAddrPort("10.244.2.10:8080"), Weight: 1}}}, true
	w.begin(r.IntN(3) > 0)
}

// leftOf is what another proxy has of a virtual server: what is right, more often than not. Near: it has endpoints of this node alone.
func leftOf(r *rand.Rand, is6, near bool, s ipvs.Server) (left ipvs.Server, there bool) {
	s.Reals = slices.Clone(s.Reals)
	switch r.IntN(8) {
	case 0:
		return s, false
	case 1:
		s.Scheduler = "lc"
	case 2:
		if len(s.Reals) > 0 {
			s.Reals = s.Reals[1:]
		}
	case 3:
		if near {
			break
		}
		gone := "10.244.7.7:8080"
		if is6 {
			gone = "[fd10:244:7::7]:8080"
		}
		s.Reals = append(s.Reals, ipvs.Real{Addr: netip.MustParseAddrPort(gone), Weight: 1})
		slices.SortFunc(s.Reals, func(a, b ipvs.Real) int { return a.Addr.Compare(b.Addr) })
	}
	return s, true
}
