package sync

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

// looking counts how often a kernel is looked at.
type looking struct {
	Kernel
	mu            sync.Mutex
	bases, passes int
	detectTakes   time.Duration
}

func (c *looking) Base(ctx context.Context) (ipvs.BaseReport, error) {
	c.mu.Lock()
	c.bases++
	c.mu.Unlock()
	return c.Kernel.Base(ctx)
}

func (c *looking) Detect(ctx context.Context, f func(ipvs.Key, *ipvs.Frontend, uint32)) (bool, error) {
	done, err := c.Kernel.Detect(ctx, f)
	c.mu.Lock()
	takes := c.detectTakes
	c.mu.Unlock()
	time.Sleep(takes)
	c.mu.Lock()
	defer c.mu.Unlock()
	if done {
		c.passes++
	}
	return done, err
}

// looks gives what was counted since it was last asked.
func (c *looking) looks() (bases, passes int) {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	bases, passes, c.bases, c.passes = c.bases, c.passes, 0, 0
	return bases, passes
}

// startLooking starts the rig's loop on a kernel whose looks are counted.
func (r *rig) startLooking() (*looking, *observer.ObservedLogs) {
	c := &looking{Kernel: &locked{&r.mu, r.kernel}}
	core, logged := observer.New(zapcore.InfoLevel)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	loop := New(c, r.model, zap.New(core), r.opt)
	go func() { defer close(done); _ = loop.Run(ctx) }()
	r.stop = func() { cancel(); <-done; r.stop = func() {} }
	synctest.Wait()
	return c, logged
}

// healed are changes by another program of which there is a sign: the kernel tells, or there are more or fewer virtual
// servers than before.
var healed = map[string]func(*fake.Kernel){
	"the interface": func(k *fake.Kernel) { k.DropLink(); k.Hear(heardBoth) },
	"the table":     func(k *fake.Kernel) { k.DropTable(); k.Hear(heardBoth) },
	"both":          func(k *fake.Kernel) { k.DropTable(); k.Hear(heardBoth); k.DropLink(); k.Hear(heardBoth) },
	"an address": func(k *fake.Kernel) {
		delete(k.Addrs, netip.MustParseAddr("10.96.0.10"))
		k.Hear(ipvs.Tampering{Keys: true})
	},
	"an element": func(k *fake.Kernel) {
		k.Tamper(ipvs.Element{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(netip.MustParseAddr("10.96.0.10")), Remove: true})
		k.Hear(ipvs.Tampering{Keys: true})
	},
	"an element too many": func(k *fake.Kernel) {
		k.Tamper(ipvs.Element{Set: ipvs.SetOpen, Key: ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 81, Proto: ipvs.TCP}})
		k.Hear(ipvs.Tampering{Keys: true})
	},
	"a virtual server":    func(k *fake.Kernel) { delete(k.Servers, webKey) },
	"all virtual servers": func(k *fake.Kernel) { clear(k.Servers) },
	"everything":          func(k *fake.Kernel) { clear(k.Servers); k.DropLink(); k.DropTable(); k.Hear(heardBoth) },
}

var heardBoth = ipvs.Tampering{Base: true, Keys: true}

var webKey = ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}

// B74, F22, F23: what another program changes of ours is put right within 1 s, and said once.
func TestHealsWithinASecond(t *testing.T) {
	for name, tamper := range healed {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				web, other := service("web", "10.96.0.10", 80, 443), service("other", "10.96.0.11", 80)
				r.set(web, slice(web, "10.244.1.5@node1", "10.244.2.10"), other, slice(other, "10.244.2.11"))
				r.synced()
				c, logged := r.startLooking()
				time.Sleep(72*time.Second + 300*time.Millisecond)
				r.tamper(func() {})
				before := strings.Replace(dumpOf(r.kernel), "owned 0.0.0.0\n", "", 1) // the record of the adoption comes when all is done
				c.looks()
				logged.TakeAll()
				r.tamper(func() { tamper(r.kernel) })
				time.Sleep(time.Second)
				r.tamper(func() {
					if after := strings.Replace(dumpOf(r.kernel), "owned 0.0.0.0\n", "", 1); after != before {
						t.Errorf("a second later:\n%s\nwant:\n%s", after, before)
					}
				})
				if bases, passes := c.looks(); bases > 1 || passes > 1 {
					t.Errorf("looked %d times at the base and %d times at all", bases, passes)
				}
				if n := logged.FilterLevelExact(zapcore.WarnLevel).Len(); n > 0 {
					t.Errorf("%d warnings: %v", n, logged.FilterLevelExact(zapcore.WarnLevel).All())
				}
				if n := logged.FilterMessageSnippet("another program changed").Len(); n != 1 {
					t.Errorf("said %d times: %v", n, logged.All())
				}
			})
		})
	}
}

// What the loop writes itself is no sign: through a thousand changes the kernel is looked at as often as without them.
func TestOwnWritesAreNoSign(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		c, _ := r.startLooking()
		quiet := func(f func(i int)) (bases, passes int) {
			c.looks()
			for i := range 1000 {
				f(i)
				time.Sleep(100 * time.Millisecond)
			}
			return c.looks()
		}
		bases, passes := quiet(func(int) {})
		wrote := len(r.kernel.Log)
		busyBases, busyPasses := quiet(func(i int) {
			s := service(fmt.Sprintf("s%d", i%50), fmt.Sprintf("10.96.1.%d", i%50+1), 80)
			if i/50%2 == 0 {
				r.set(s, slice(s, "10.244.2.11"))
			} else {
				r.model.DeleteService("default", s.Name)
			}
		})
		r.tamper(func() {
			if wrote = len(r.kernel.Log) - wrote; wrote < 5000 {
				t.Errorf("%d writes in a thousand changes", wrote)
			}
		})
		if busyBases > bases+1 || busyPasses > passes+1 {
			t.Errorf("looked %d times at the base and %d times at all; without changes %d and %d times", busyBases, busyPasses, bases, passes)
		}
	})
}

// Somebody who changes ours again and again is answered at once some times, and then as often as an audit comes anyway:
// an hour's fight costs what an hour's audits cost. Once it is over, the next change is put right at once again.
func TestAFightIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		c, _ := r.startLooking()
		time.Sleep(2 * time.Minute)
		c.looks()
		const fight = time.Hour
		for range fight / (100 * time.Millisecond) {
			r.tamper(func() {
				delete(r.kernel.Servers, webKey)
				r.kernel.DropTable()
				r.kernel.DropLink()
				r.kernel.Hear(heardBoth)
			})
			time.Sleep(100 * time.Millisecond)
		}
		bases, passes := c.looks()
		t.Logf("in an hour of changes by others: %d looks at the base, %d at all", bases, passes)
		// Writes fail, too, while the table is gone: that alone is a reason to look at the base.
		most, mostBases := int(fight/(10*time.Second))+hurries, int(fight/baseAgain)+hurries
		if passes > most || passes < most/2 || bases > mostBases {
			t.Errorf("looked %d times at the base and %d times at all; want at most %d and %d", bases, passes, mostBases, most)
		}
		time.Sleep(2 * time.Minute)
		for _, tamper := range []func(){r.kernel.DropTable, func() { delete(r.kernel.Sets[ipvs.SetOpen], webKey) }} {
			for i := range hurries {
				r.tamper(func() { tamper(); r.kernel.Hear(heardBoth) })
				time.Sleep(hurryAgain)
				r.tamper(func() {
					if !r.kernel.Table || !r.kernel.Sets[ipvs.SetOpen][webKey] {
						t.Errorf("change %d after the fight is over:\n%s", i, dumpOf(r.kernel))
					}
				})
			}
			time.Sleep(2 * time.Minute)
		}
	})
}

// An audit that is dear, as on a slow node with many Services, is no reason to leave the base as it is: others take the table
// and the interface away some times in a row, and each time both are back at once.
func TestF23BesideADearAudit(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.opt.AuditCPU = 1e-6
		c, _ := r.startLooking()
		c.mu.Lock()
		c.detectTakes = time.Millisecond // a pass is due a thousand seconds later
		c.mu.Unlock()
		time.Sleep(2 * time.Minute)
		rest := time.Second // as many at once as there are in advance, and then one a period of the audit
		for i := range 4 * hurries {
			r.tamper(func() { r.kernel.DropTable(); r.kernel.DropLink(); r.kernel.Hear(heardBoth) })
			time.Sleep(time.Second)
			r.tamper(func() {
				if !r.kernel.Table || !r.kernel.Sets[ipvs.SetOpen][webKey] {
					t.Errorf("change %d is not put right within a second:\n%s", i, dumpOf(r.kernel))
				}
			})
			if i == hurries {
				rest = 10 * time.Second
			}
			time.Sleep(rest)
		}
	})
}

// F28: where the kernel had no room for its notifications, everything is looked at, a metric counts it, and the log says it,
// once for many in a row. The control: the same change, of which nothing is heard, waits for the audit.
func TestF28Overrun(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("heard of %t", lost), func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				web := service("web", "10.96.0.10", 80)
				r.set(web, slice(web, "10.244.2.10"))
				r.synced()
				registry := metrics.NewKubeRegistry()
				r.opt.Health = healthz.New(healthz.Options{Registry: registry})
				c, logged := r.startLooking()
				time.Sleep(61 * time.Second)
				c.looks()
				for range 3 {
					r.tamper(func() {
						delete(r.kernel.Sets[ipvs.SetVIPs], ipvs.AddrKey(webKey.Addr))
						if lost {
							r.kernel.Hear(ipvs.Tampering{Base: true, Keys: true, Lost: true})
						}
					})
					time.Sleep(time.Second)
				}
				guarded := false
				r.tamper(func() { guarded = r.kernel.Sets[ipvs.SetVIPs][ipvs.AddrKey(webKey.Addr)] })
				bases, passes := c.looks()
				if guarded != lost || lost != (bases == 3 && passes == 3) {
					t.Errorf("guarded: %t; looked %d times at the base and %d times at all", guarded, bases, passes)
				}
				counted := 0.0
				families, err := registry.Gather()
				for _, f := range families {
					if f.GetName() == "ipvsproxy_notifications_lost_total" {
						counted = f.GetMetric()[0].GetCounter().GetValue()
					}
				}
				said := logged.FilterMessageSnippet("no room for its notifications").Len()
				if want := map[bool]int{true: 1}[lost]; err != nil || said != want || counted != float64(3*want) {
					t.Errorf("said %d times, counted %v, %v; want %d and %d", said, counted, err, want, 3*want)
				}
			})
		})
	}
}
