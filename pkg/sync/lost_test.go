package sync

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

// scans counts how often all of a kernel, or a part of it, is read.
type scans struct {
	Kernel
	all, some int
}

func (s *scans) Scan(ctx context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	s.all++
	return s.Kernel.Scan(ctx, f)
}

func (s *scans) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	s.reads()
	return s.Kernel.Observe(ctx, keys)
}

func (s *scans) Connections(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error) {
	s.reads()
	return s.Kernel.Connections(ctx, keys)
}

func (s *scans) reads() {
	if s.some++; s.some > 1000 {
		time.Sleep(time.Second) // time stands still in a bubble where somebody is busy without end
	}
}

// losses are what another program takes away as a whole, with what is the first write for a Key that puts it back.
var losses = map[string]struct {
	do    func(*fake.Kernel)
	first func(ipvs.Op) bool
}{
	"F20 all virtual servers": {func(k *fake.Kernel) { clear(k.Servers) }, kind[ipvs.AddServer]},
	"F22 the interface":       {func(k *fake.Kernel) { k.DropLink(); k.Hear(ipvs.Tampering{Base: true}) }, kind[ipvs.Bind]},
	"F23 the table":           {func(k *fake.Kernel) { k.DropTable(); k.Hear(heardBoth) }, element(ipvs.SetVIPs, false)},
}

// F20, F22, F23: what is lost as a whole is written anew without reading the kernel, what is urgent first, then what has the
// most connections, then the rest in its order. In that order alone the three that are looked for would be the last.
func TestMendsTheMostUsedFirst(t *testing.T) {
	const services = 300
	for name, loss := range losses {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				at := func(i int) ipvs.Key {
					return ipvs.Key{Addr: netip.MustParseAddr(fmt.Sprintf("10.96.%d.%d", i/250, 1+i%250)), Port: 80, Proto: ipvs.TCP}
				}
				for i := range services {
					svc := service(fmt.Sprintf("s%d", i), at(i).Addr.String(), 80)
					if i == services-1 {
						svc.Name = "kubernetes"
					}
					give(r.model, svc, slice(svc, "10.244.2.10"))
				}
				r.synced()
				real := netip.MustParseAddrPort("10.244.2.10:8080")
				c := &scans{Kernel: &locked{&r.mu, r.kernel}}
				r.startOn(c)
				r.tamper(func() {
					r.kernel.Conns[at(services-2)] = map[netip.AddrPort]ipvs.Conns{real: {Active: 7}}
					r.kernel.Conns[at(services-3)] = map[netip.AddrPort]ipvs.Conns{real: {Inactive: 9}}
				})
				time.Sleep(72 * time.Second) // passes of the audit
				r.tamper(func() {
					r.kernel.Log, c.all, c.some = nil, 0, 0
					loss.do(r.kernel)
				})
				time.Sleep(950 * time.Millisecond)
				var order []netip.Addr
				r.tamper(func() {
					for _, op := range r.kernel.Log {
						if is := op.Effect(); loss.first(op) && is.Fact.Addr.IsValid() {
							order = append(order, is.Fact.Addr)
						} else if loss.first(op) {
							order = append(order, is.Key.Addr)
						}
					}
				})
				want := []netip.Addr{at(services - 1).Addr, at(services - 3).Addr, at(services - 2).Addr, at(0).Addr, at(1).Addr}
				if len(order) != services || !slices.Equal(order[:len(want)], want) || order[services-1] != at(services-4).Addr {
					t.Errorf("%d were put back, in the order of %v, want %d, first %v", len(order), order[:min(len(order), 6)], services, want)
				}
				if c.all+c.some > 0 {
					t.Errorf("all of the kernel was read %d times before, and parts of it %d times", c.all, c.some)
				}
			})
		})
	}
}

// startOn starts a loop on a kernel.
func (r *rig) startOn(k Kernel) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.loop = New(k, r.model, zap.NewNop(), r.opt)
	go func() { defer close(done); _ = r.loop.Run(ctx) }()
	r.stop = func() { cancel(); <-done; r.stop = func() {} }
}

// The interface was only set down: what still stands there is not written again, and what stood there alone is.
func TestF22SetDown(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		web.Spec.ClusterIPs = []string{"10.96.0.10", "fd00:96::10"}
		six := slice(web, "fd10:244:2::10")
		six.Name = "web-6"
		r.set(web, slice(web, "10.244.2.10"), six)
		r.synced()
		r.start()
		time.Sleep(72 * time.Second)
		var writes []string
		r.tamper(func() {
			r.kernel.Fail = func(op ipvs.Op) error { writes = append(writes, op.String()); return nil } // also those that are refused
			r.kernel.SetDown()
			r.kernel.Hear(ipvs.Tampering{Base: true})
		})
		time.Sleep(900 * time.Millisecond)
		r.tamper(func() { r.kernel.Fail = nil })
		wantLines(t, "set down", writes, "ip addr add fd00:96::10/128 dev kube-ipvs0 preferred_lft 0",
			"conntrack -D -p tcp --orig-dst fd00:96::10 --orig-port-dst 80 --reply-src fd00:96::10 # those that nobody answered")
	})
}

// Audits wait for the end of a repair, and not for ever where there is always something to do.
func TestMendingEnds(t *testing.T) {
	for name, busy := range map[string]bool{"work without end": true, "no more work": false} {
		s := newStepper()
		s.start(completeModel())
		s.pass(time.Second)
		s.loop.mend()
		s.loop.queue.add(webKey, classBulk)
		s.now = s.now.Add(s.loop.opt.AuditPeriod / 2)
		if s.loop.mended() {
			t.Errorf("%s: it is over while there is work", name)
		}
		if busy {
			s.now = s.now.Add(s.loop.opt.AuditPeriod)
		} else {
			s.loop.queue.pop(s.now, sliceKeys)
		}
		if !s.loop.mended() {
			t.Errorf("%s: it is not over", name)
		}
	}
}
