package kernel

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"

	moby "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// crossServers are virtual servers with something in every field.
func crossServers() map[ipvs.Key]ipvs.Server {
	tcp6 := key("fd00:96::10", 443)
	return map[ipvs.Key]ipvs.Server{
		key("10.96.0.10", 80): {Scheduler: "rr", Reals: []ipvs.Real{
			{Addr: netip.MustParseAddrPort("10.244.1.10:8080"), Weight: 0},
			{Addr: netip.MustParseAddrPort("10.244.1.11:8080"), Weight: 65535},
			{Addr: netip.MustParseAddrPort("10.244.1.12:80"), Weight: 7, Forward: ipvs.DirectRt}}},
		udp("10.96.0.10", 53): {Scheduler: "sh", Flags: ipvs.Persistent | 0x8, Timeout: 10800},
		tcp6: {Scheduler: "wlc", Flags: ipvs.Persistent, Timeout: 1, Reals: []ipvs.Real{
			{Addr: netip.MustParseAddrPort("[fd10:244:1::10]:8443"), Weight: 256},
			{Addr: netip.MustParseAddrPort("[fd10:244:1::11]:8443"), Weight: 1, Forward: ipvs.Tunnel}}},
	}
}

// TestMobyReadsWhatWeWrite: another reader of the same kernel sees what we meant.
func TestMobyReadsWhatWeWrite(t *testing.T) {
	needsIPVS(t)
	k := openHere(t, BindAddress)
	want := crossServers()
	var plan ipvs.Plan
	for _, key := range keysOf(want) {
		for _, op := range ipvs.Diff(key, nil, &ipvs.Frontend{Server: want[key]}) {
			plan = append(plan, ipvs.Step{Key: key, Op: op})
		}
	}
	for i, o := range k.Do(context.Background(), plan) {
		if o.Err != nil {
			t.Fatalf("%s: %v", plan[i].Op, o.Err)
		}
	}
	h := openMoby(t)
	services, err := h.GetServices()
	must(t, err)
	if len(services) != len(want) {
		t.Errorf("%d virtual servers, want %d", len(services), len(want))
	}
	for _, s := range services {
		key := ipvs.Key{Addr: addrOf(s.Address), Port: s.Port, Proto: ipvs.Proto(s.Protocol)}
		got := ipvs.Server{Scheduler: s.SchedName, Flags: ipvs.Flags(s.Flags) &^ flagHashed, Timeout: s.Timeout}
		mask := ^uint32(0)
		if key.Addr.Is6() {
			mask = 128
		}
		if s.Netmask != mask || s.AddressFamily != af(key.Addr) {
			t.Errorf("%s: netmask %#x, family %d", key, s.Netmask, s.AddressFamily)
		}
		dests, err := h.GetDestinations(s)
		must(t, err)
		for _, d := range dests {
			got.Reals = append(got.Reals, ipvs.Real{Addr: netip.AddrPortFrom(addrOf(d.Address), d.Port),
				Weight: uint16(d.Weight), Forward: ipvs.Forward(d.ConnectionFlags & 7)})
		}
		got.Reals = ipvs.SortReals(got.Reals)
		if w := want[key]; got.Scheduler != w.Scheduler || got.Flags != w.Flags || got.Timeout != w.Timeout || !slices.Equal(got.Reals, w.Reals) {
			t.Errorf("%s: moby/ipvs reads %+v\nwant %+v", key, got, w)
		}
	}
}

// TestWeReadWhatMobyWrites: our readers see what another writer meant.
func TestWeReadWhatMobyWrites(t *testing.T) {
	needsIPVS(t)
	k := openHere(t, BindAddress)
	_, err := k.Base(context.Background())
	must(t, err)
	h, want := openMoby(t), crossServers()
	for key, s := range want {
		svc := &moby.Service{Address: key.Addr.AsSlice(), Port: key.Port, Protocol: uint16(key.Proto), AddressFamily: af(key.Addr),
			SchedName: s.Scheduler, Flags: uint32(s.Flags), Timeout: s.Timeout, Netmask: ^uint32(0)}
		if key.Addr.Is6() {
			svc.Netmask = 128
		}
		must(t, h.NewService(svc))
		for _, r := range s.Reals {
			must(t, h.NewDestination(svc, &moby.Destination{Address: r.Addr.Addr().AsSlice(), Port: r.Addr.Port(),
				Weight: int(r.Weight), ConnectionFlags: uint32(r.Forward), AddressFamily: af(r.Addr.Addr())}))
		}
	}
	// A server of a firewall mark is nobody's Key, and stops no reader.
	must(t, h.NewService(&moby.Service{FWMark: 5, AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: ^uint32(0)}))
	keys := keysOf(want)
	observed, err := k.Observe(context.Background(), keys)
	must(t, err)
	scanned := map[ipvs.Key]ipvs.Observed{}
	must(t, k.Scan(context.Background(), func(k ipvs.Key, o ipvs.Observed) { scanned[k] = o }))
	if len(scanned) != len(want) {
		t.Errorf("scanned %d Keys, want %d", len(scanned), len(want))
	}
	for _, key := range keys {
		f := &ipvs.Frontend{Server: want[key]}
		if !f.Equal(observed[key].Have) || !f.Equal(scanned[key].Have) {
			t.Errorf("%s: observed %+v\nscanned %+v\nwant %+v", key, observed[key].Have, scanned[key].Have, f)
		}
	}
}

func openMoby(t *testing.T) *moby.Handle {
	t.Helper()
	h, err := moby.New("")
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func keysOf(m map[ipvs.Key]ipvs.Server) (keys []ipvs.Key) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, ipvs.Key.Compare)
	return keys
}
