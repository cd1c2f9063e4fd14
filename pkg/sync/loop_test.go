package sync

import (
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// bubble runs a test with a rig whose clock is fake.
func bubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		f(t, r)
	})
}

func TestLifeOfAService(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.synced()
		r.start()
		wantLines(t, "the first start ends", lines(r.kernel.Log), "nft add element inet ipvs-proxy owned4 { 0.0.0.0 . proto-0 . 0 }")
		wantLines(t, "a Service without endpoints is refused by the guard", r.writes(func() { r.set(web) }),
			"nft add element inet ipvs-proxy owned4 { 10.96.0.10 . tcp . 80 }",
			"nft add element inet ipvs-proxy vips4 { 10.96.0.10 }",
			"ipvsadm -A -t 10.96.0.10:80 -s rr",
			"ip addr add 10.96.0.10/32 dev kube-ipvs0",
			"conntrack -D -p tcp --orig-dst 10.96.0.10 --orig-port-dst 80 --reply-src 10.96.0.10 # those that nobody answered")
		wantLines(t, "the first endpoint opens it", r.writes(func() { r.set(slice(web, "10.244.2.10@node2")) }),
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.2.10:8080 -m -w 1",
			"nft add element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }")
		wantLines(t, "one endpoint more is one write", r.writes(func() { r.set(slice(web, "10.244.2.10@node2", "10.244.2.11@node2")) }),
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.2.11:8080 -m -w 1")
		wantLines(t, "a local one is two", r.writes(func() { r.set(slice(web, "10.244.2.10@node2", "10.244.2.11@node2", "10.244.1.5@node1")) }),
			"nft add element inet ipvs-proxy hairpin4 { 10.244.1.5 . 10.244.1.5 }",
			"ipvsadm -a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w 1")
		wantLines(t, "the same again is none", r.writes(func() { r.set(slice(web, "10.244.1.5@node1", "10.244.2.11@node2", "10.244.2.10@node2")) }))
		wantLines(t, "the Service goes", r.writes(func() { r.model.DeleteService("default", "web") }),
			"nft delete element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }",
			"ip addr del 10.96.0.10/32 dev kube-ipvs0",
			"ipvsadm -D -t 10.96.0.10:80",
			"nft delete element inet ipvs-proxy owned4 { 10.96.0.10 . tcp . 80 }",
			"nft delete element inet ipvs-proxy vips4 { 10.96.0.10 }",
			"nft delete element inet ipvs-proxy hairpin4 { 10.244.1.5 . 10.244.1.5 }")
		if len(r.kernel.Servers) > 0 || len(r.kernel.Addrs) > 0 {
			t.Errorf("left behind:\n%s", dumpOf(r.kernel))
		}
	})
}

// Nothing is written before the cluster is known: an empty answer is no reason to delete.
func TestNothingBeforeTheClusterIsKnown(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.start()
		r.stop()
		before := dumpOf(r.kernel)
		r.model = newRig(t).model // knows nothing and never hears of anything
		wantLines(t, "unknown cluster", r.writes(func() { r.start(); time.Sleep(time.Hour) }))
		if after := dumpOf(r.kernel); after != before {
			t.Errorf("changed to\n%s", after)
		}
	})
}

// A restart on a correct node writes nothing (I5).
func TestRestartWritesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web, six := service("web", "10.96.0.10", 80, 443), service("six", "fd00:96::10", 80)
		objs := []any{web, slice(web, "10.244.1.5@node1", "10.244.2.10"), six, slice(six, "fd10:244:1::5@node1")}
		r.set(objs...)
		r.synced()
		r.start()
		wantLines(t, "restart", r.writes(func() { r.restart(objs...); time.Sleep(time.Hour) }))
	})
}

// What goes away while no agent runs is removed at the next start; what is not ours stays (I6).
func TestStartRemovesOnlyWhatIsOurs(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web, old := service("web", "10.96.0.10", 80), service("old", "10.96.0.11", 80)
		r.set(web, slice(web, "10.244.2.10"), old, slice(old, "10.244.1.5@node1"))
		r.synced()
		r.start()
		foreign := ipvs.Key{Addr: netip.MustParseAddr("172.16.0.1"), Port: 80, Proto: ipvs.TCP}
		r.kernel.Servers[foreign] = ipvs.Server{Scheduler: "wlc"}
		wantLines(t, "restart", r.writes(func() { r.restart(web, slice(web, "10.244.2.10")) }),
			"nft delete element inet ipvs-proxy open4 { 10.96.0.11 . tcp . 80 }",
			"ip addr del 10.96.0.11/32 dev kube-ipvs0",
			"ipvsadm -D -t 10.96.0.11:80",
			"nft delete element inet ipvs-proxy owned4 { 10.96.0.11 . tcp . 80 }",
			"nft delete element inet ipvs-proxy vips4 { 10.96.0.11 }",
			"nft delete element inet ipvs-proxy hairpin4 { 10.244.1.5 . 10.244.1.5 }")
		if _, ok := r.kernel.Servers[foreign]; !ok {
			t.Error("a foreign virtual server was removed")
		}
	})
}

// The very first start takes over what an earlier proxy left on the interface, in place.
func TestAdoption(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		kept := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Proto: ipvs.TCP}
		stale := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.99"), Port: 80, Proto: ipvs.TCP}
		foreign := ipvs.Key{Addr: netip.MustParseAddr("172.16.0.1"), Port: 80, Proto: ipvs.TCP}
		r.kernel.Link = true
		for _, k := range []ipvs.Key{kept, stale, foreign} {
			r.kernel.Servers[k] = ipvs.Server{Scheduler: "rr", Reals: []ipvs.Real{{Addr: netip.MustParseAddrPort("10.244.2.10:8080"), Weight: 1}}}
		}
		r.kernel.Addrs[kept.Addr], r.kernel.Addrs[stale.Addr] = true, true
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.start()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantLines(t, "adoption", lines(r.kernel.Log),
			"nft add element inet ipvs-proxy owned4 { 10.96.0.10 . tcp . 80 }",
			"nft add element inet ipvs-proxy vips4 { 10.96.0.10 }",
			"nft add element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }",
			"nft add element inet ipvs-proxy owned4 { 10.96.0.99 . tcp . 80 }",
			"ip addr del 10.96.0.99/32 dev kube-ipvs0",
			"ipvsadm -D -t 10.96.0.99:80",
			"nft delete element inet ipvs-proxy owned4 { 10.96.0.99 . tcp . 80 }",
			"nft add element inet ipvs-proxy owned4 { 0.0.0.0 . proto-0 . 0 }")
		if _, ok := r.kernel.Servers[foreign]; !ok {
			t.Error("a foreign virtual server was removed")
		}
	})
}

// Whatever one frontend is refused, the others go on, nothing wanted is deleted, and it is right within 2 s
// of the fault's end (F27).
func TestFaults(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EEXIST, syscall.ENOENT, syscall.ENOBUFS, syscall.EINTR, syscall.ENOMEM, syscall.EBUSY, syscall.EPERM, syscall.EIO} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				web, other := service("web", "10.96.0.10", 80), service("other", "10.96.0.11", 80)
				objs := []any{web, slice(web, "10.244.1.5@node1", "10.244.2.10"), other, slice(other, "10.244.2.11")}
				bad := netip.MustParseAddr("10.96.0.10")
				r.kernel.Fail = func(op ipvs.Op) error {
					if touches(op, bad) {
						return errno
					}
					return nil
				}
				r.set(objs...)
				r.synced()
				r.start()
				time.Sleep(time.Minute)
				synctest.Wait()
				if !r.kernel.Sets[ipvs.SetOpen][ipvs.Key{Addr: netip.MustParseAddr("10.96.0.11"), Port: 80, Proto: ipvs.TCP}] {
					t.Error("the other frontend was held up")
				}
				r.tamper(func() { r.kernel.Fail = nil })
				time.Sleep(2 * time.Second)
				synctest.Wait()
				healthy := newRig(t)
				healthy.set(objs...)
				healthy.synced()
				healthy.start()
				defer healthy.stop()
				if got, want := dumpOf(r.kernel), dumpOf(healthy.kernel); got != want {
					t.Errorf("2 s after the fault:\n%s\nwant:\n%s", got, want)
				}
			})
		})
	}
}

// touches reports whether an operation is about an address.
func touches(op ipvs.Op, a netip.Addr) bool {
	switch o := op.(type) {
	case ipvs.Element:
		return o.Key.Addr == a
	case ipvs.AddServer:
		return o.Key.Addr == a
	case ipvs.AddReal:
		return o.Key.Addr == a
	case ipvs.Bind:
		return o.Addr == a
	}
	return false
}

// The interface or the table deleted by somebody else comes back with all that was in it.
func TestBaseIsMended(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.1.5@node1"))
		r.synced()
		r.start()
		before := dumpOf(r.kernel)
		for name, drop := range map[string]func(){"interface": r.kernel.DropLink, "table": r.kernel.DropTable} {
			r.tamper(drop)
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if after := dumpOf(r.kernel); after != before {
				t.Errorf("%s dropped, then:\n%s\nwant:\n%s", name, after, before)
			}
		}
	})
}

// An endpoint that is a virtual IP is left out, whichever of the two came first, and served when it is none
// any more.
func TestEndpointThatIsAVirtualIP(t *testing.T) {
	for _, order := range []string{"VIP first", "endpoint first"} {
		t.Run(order, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				web, loop := service("web", "10.96.0.10", 80), service("loop", "10.96.0.20", 80)
				looping := []any{loop, slice(loop, "10.96.0.10", "10.244.2.10")}
				if order == "VIP first" {
					r.set(web)
					r.set(looping...)
				} else {
					r.set(looping...)
					r.set(web)
				}
				r.synced()
				r.start()
				key := ipvs.Key{Addr: netip.MustParseAddr("10.96.0.20"), Port: 80, Proto: ipvs.TCP}
				if got := r.kernel.Servers[key].Reals; len(got) != 1 || got[0].Addr != netip.MustParseAddrPort("10.244.2.10:8080") {
					t.Errorf("real servers %v, want 10.244.2.10:8080 alone", got)
				}
				r.writes(func() { r.model.DeleteService("default", "web") })
				if got := r.kernel.Servers[key].Reals; len(got) != 2 {
					t.Errorf("real servers %v once 10.96.0.10 is no virtual IP any more, want both", got)
				}
			})
		})
	}
}

// While parts of the cluster could not be read, what is missing may be among them: nothing is taken out of
// service because of it, and what is known is programmed all the same.
func TestNothingIsRemovedWhilePartsAreMissing(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web, old := service("web", "10.96.0.10", 80), service("old", "10.96.0.11", 80)
		r.set(web, slice(web, "10.244.2.10", "10.244.2.11"), old, slice(old, "10.244.2.12"))
		r.synced()
		r.start()
		r.stop()
		r.model = newRig(t).model
		fresh := service("fresh", "10.96.0.13", 80)
		r.set(web, slice(web, "10.244.2.10"), fresh)
		wantLines(t, "old and an endpoint of web are missing", r.writes(func() {
			r.model.SetSynced()
			r.start()
			time.Sleep(time.Hour)
		}),
			"nft add element inet ipvs-proxy owned4 { 10.96.0.13 . tcp . 80 }",
			"nft add element inet ipvs-proxy vips4 { 10.96.0.13 }",
			"ipvsadm -A -t 10.96.0.13:80 -s rr",
			"ip addr add 10.96.0.13/32 dev kube-ipvs0",
			"conntrack -D -p tcp --orig-dst 10.96.0.13 --orig-port-dst 80 --reply-src 10.96.0.13 # those that nobody answered")
		wantLines(t, "now they are known to be gone", r.writes(r.model.SetComplete),
			"nft delete element inet ipvs-proxy open4 { 10.96.0.11 . tcp . 80 }",
			"ip addr del 10.96.0.11/32 dev kube-ipvs0",
			"ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.11:8080 -m -w 0",
			"ipvsadm -D -t 10.96.0.11:80",
			"nft delete element inet ipvs-proxy owned4 { 10.96.0.11 . tcp . 80 }",
			"nft delete element inet ipvs-proxy vips4 { 10.96.0.11 }")
	})
}

// Another binding of virtual IPs is a change of configuration: what stands in the old form is put into the
// new one, and what nobody needs goes in whatever form it is.
func TestBindingChanged(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web, old := service("web", "10.96.0.10", 80), service("old", "10.96.0.11", 80)
		r.set(web, slice(web, "10.244.2.10"), old)
		r.synced()
		r.start()
		r.stop()
		for _, a := range []string{"10.96.0.10", "10.96.0.11"} {
			r.kernel.Misbound[netip.MustParseAddr(a)] = true
		}
		wantLines(t, "restart with the other binding", r.writes(func() { r.restart(web, slice(web, "10.244.2.10")) }),
			"ip addr add 10.96.0.10/32 dev kube-ipvs0",
			"ip addr del 10.96.0.11/32 dev kube-ipvs0",
			"ipvsadm -D -t 10.96.0.11:80",
			"nft delete element inet ipvs-proxy owned4 { 10.96.0.11 . tcp . 80 }",
			"nft delete element inet ipvs-proxy vips4 { 10.96.0.11 }",
			"conntrack -D -p tcp --orig-dst 10.96.0.10 --orig-port-dst 80 --reply-src 10.96.0.10 # those that nobody answered")
		wantLines(t, "and then nothing", r.writes(func() { time.Sleep(time.Minute) }))
	})
}
