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
