package sync

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// B56: what stands in a spared range is never removed, neither at the first start nor later, and what Services
// want there is made all the same. A node at rest stays at rest.
func TestB56Spared(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.opt.Desk.Spared = prefixes("10.96.0.96/28")
		at := func(a string) ipvs.Key { return ipvs.Key{Addr: netip.MustParseAddr(a), Port: 80, Proto: ipvs.TCP} }
		stale, spared, wanted := at("10.96.0.10"), at("10.96.0.99"), at("10.96.0.100")
		r.kernel.Link = true
		for _, k := range []ipvs.Key{stale, spared} {
			r.kernel.Servers[k], r.kernel.Addrs[k.Addr] = ipvs.Server{Scheduler: "wlc"}, true
		}
		web := service("web", "10.96.0.100", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.start()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		want := func(when string, there map[ipvs.Key]bool) {
			t.Helper()
			for k, want := range there {
				if _, has := r.kernel.Servers[k]; has != want || r.kernel.Addrs[k.Addr] != want {
					t.Errorf("%s: virtual server %s %t, address %t; want %t", when, k, has, r.kernel.Addrs[k.Addr], want)
				}
			}
		}
		want("first start", map[ipvs.Key]bool{stale: false, spared: true, wanted: true})
		if r.kernel.Sets[ipvs.SetOwned][spared] || !r.kernel.Sets[ipvs.SetOwned][ipvs.Adopted] {
			t.Errorf("what is recorded: %v", r.kernel.Sets[ipvs.SetOwned])
		}
		var said []string
		said = append(said, r.writes(func() { r.restart() })...) // the Service is gone, and its record is there
		said = append(said, r.writes(func() { time.Sleep(time.Minute) })...)
		for _, line := range said {
			if strings.Contains(line, "10.96.0") {
				t.Errorf("written: %s", line)
			}
		}
		want("without the Service", map[ipvs.Key]bool{stale: false, spared: true, wanted: true})
	})
}

// TestB56SparedDrainsNoMore: a Service on a spared address that goes while a real server drains leaves none to count,
// though what stands there stays.
func TestB56SparedDrainsNoMore(t *testing.T) {
	web, key := service("web", "10.96.0.1", 80), tcp("10.96.0.1")
	s := newStepper()
	s.opt.Desk.Spared = prefixes("10.96.0.1/32")
	s.start(completeModel(web, slice(web, "10.244.2.1", "10.244.2.2")))
	s.pass(3 * time.Second)
	s.kernel.Conns[key] = map[netip.AddrPort]ipvs.Conns{netip.MustParseAddrPort("10.244.2.2:8080"): {Active: 3}}
	give(s.model, slice(web, "10.244.2.1"))
	s.pass(time.Second)
	if n := s.loop.mirror.Draining(); n != 1 {
		t.Fatalf("%d real servers drain, want 1", n)
	}
	s.model.DeleteService("default", "web")
	s.pass(time.Minute)
	if n := s.loop.mirror.Draining(); n != 0 || len(s.kernel.Servers[key].Reals) != 2 {
		t.Errorf("the Service is gone: %d real servers drain, want none; %d stand there, want 2", n, len(s.kernel.Servers[key].Reals))
	}
}
