package sync

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
)

// safe checks what must hold after every single write, wherever the process may die (I3).
func safe(t *testing.T, k *fake.Kernel, after ipvs.Op) {
	t.Helper()
	for a := range k.Addrs {
		if !k.Sets[ipvs.SetVIPs][ipvs.AddrKey(a)] {
			t.Errorf("after %s: %s is bound and not guarded: a listener of the node answers on it", after, a)
		}
	}
	for key := range k.Sets[ipvs.SetOpen] {
		if _, ok := k.Servers[key]; !ok {
			t.Errorf("after %s: %s is open without a virtual server", after, key)
		}
		if len(k.Servers[key].Reals) == 0 {
			t.Errorf("after %s: %s is open without a real server", after, key)
		}
		if !k.Addrs[key.Addr] {
			t.Errorf("after %s: %s is open and not bound", after, key)
		}
	}
	for key := range k.Servers {
		if !k.Sets[ipvs.SetOwned][key] {
			t.Errorf("after %s: nothing says that %s is ours", after, key)
		}
	}
}

// TestCrashPoints stops the agent after every single write of some histories, checks that the state is a
// safe one, starts a new agent, and wants the same end as without the crash (F41).
func TestCrashPoints(t *testing.T) {
	web, six := service("web", "10.96.0.10", 80, 443), service("six", "fd00:96::10", 80)
	histories := map[string]struct{ before, after []any }{
		"first start":       {nil, []any{web, slice(web, "10.244.1.5@node1", "10.244.2.10"), six, slice(six, "fd10:244:1::5")}},
		"endpoint replaced": {[]any{web, slice(web, "10.244.1.5@node1")}, []any{web, slice(web, "10.244.2.10")}},
		"Service gone":      {[]any{web, slice(web, "10.244.1.5@node1"), six}, []any{six}},
		"endpoints gone":    {[]any{web, slice(web, "10.244.1.5@node1")}, []any{web, slice(web)}},
		"port gone":         {[]any{web, slice(web, "10.244.2.10")}, []any{service("web", "10.96.0.10", 443), slice(web, "10.244.2.10")}},
		"address changed":   {[]any{web, slice(web, "10.244.2.10")}, []any{service("web", "10.96.0.12", 80), slice(web, "10.244.2.10")}},
	}
	for name, h := range histories {
		t.Run(name, func(t *testing.T) {
			points := 0
			for n := 1; ; n++ {
				crashed := false
				synctest.Test(t, func(t *testing.T) { crashed = crashAfter(t, n, h.before, h.after) })
				if !crashed {
					break
				}
				points++
			}
			if points == 0 {
				t.Error("no write to crash after")
			}
			t.Logf("%d crash points", points)
		})
	}
}

// crashAfter takes a node from before to after and lets the agent die after n writes. It reports whether
// there were that many.
func crashAfter(t *testing.T, n int, before, after []any) bool {
	died := errors.New("the process is dead")
	r := newRig(t)
	r.set(before...)
	r.synced()
	r.start()
	r.stop()
	left := n
	crashed := false
	var last ipvs.Op
	r.kernel.Fail = func(op ipvs.Op) error {
		if last != nil {
			safe(t, r.kernel, last)
		}
		if left == 0 {
			crashed = true
			return died
		}
		left--
		last = op
		return nil
	}
	r.restart(after...)
	if !crashed {
		r.stop()
		return false
	}
	r.stop()
	r.kernel.Fail = nil
	r.restart(after...)
	time.Sleep(time.Minute)
	synctest.Wait()
	r.stop()

	whole := newRig(t)
	whole.set(after...)
	whole.synced()
	whole.start()
	whole.stop()
	if got, want := dumpOf(r.kernel), dumpOf(whole.kernel); got != want {
		t.Errorf("after a crash at write %d and a restart:\n%s\nwant:\n%s", n, got, want)
	}
	return true
}
