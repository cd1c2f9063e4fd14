package sync

import (
	"errors"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// shieldedSoon wants what the kernel was last told, once there was time to tell it.
func (r *rig) shieldedSoon(when string, want bool) {
	r.t.Helper()
	time.Sleep(2 * time.Second)
	r.tamper(func() {
		if r.kernel.Shielded != want {
			r.t.Errorf("%s: shielded %t, want %t", when, r.kernel.Shielded, want)
		}
	})
}

// B80: what is a Service's is shielded from other programs' rules as soon as the kernel was read, and said again before
// the kernel forgets it; also when the table was lost, or something of it was changed.
func TestShields(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.startBeside(&otherProxy{stays: []string{"a chain stays"}})
		r.shieldedSoon("after the start", true)
		r.tamper(func() { r.kernel.Shields = 0 })
		time.Sleep(10 * time.Minute)
		r.tamper(func() {
			if r.kernel.Shields != 10 {
				t.Errorf("said %d times in 10 min", r.kernel.Shields)
			}
			r.kernel.Shielded = false
			r.kernel.Hear(ipvs.Tampering{Keys: true})
		})
		r.shieldedSoon("after somebody emptied the set", true)
		r.tamper(func() { r.kernel.DropTable(); r.kernel.Hear(ipvs.Tampering{Base: true, Keys: true}) })
		r.shieldedSoon("after somebody deleted the table", true)
	})
}

// B80, B54: while another proxy's rules stand they come first; where they are kept, for good. A process that finds them
// says so, whatever one before it said.
func TestShieldsAfterTakeOver(t *testing.T) {
	for _, keep := range []bool{false, true} {
		bubble(t, func(t *testing.T, r *rig) {
			web := service("web", "10.96.0.10", 80)
			r.set(web, slice(web, "10.244.2.10"))
			r.synced()
			r.opt.KeepLeftovers = keep
			r.kernel.Shielded = true
			o := &otherProxy{left: []string{"unlink"}}
			stuck := true
			o.fail = func(string) error {
				if stuck {
					return errors.New("no lock")
				}
				return nil
			}
			r.startBeside(o)
			r.shieldedSoon("while its rules stand", false)
			r.tamper(func() { stuck = false })
			time.Sleep(2 * time.Minute)
			r.shieldedSoon("when they could be taken out", !keep)
		})
	}
}

// B80, F26: while another proxy is at work its rules come first, from when it is heard of, and when it is gone ours do again.
func TestShieldsNotBesideAnother(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		o := &otherProxy{}
		r.startBeside(o)
		r.shieldedSoon("after the start", true)
		r.tamper(func() { r.kernel.Hear(heardProxy); o.left = []string{"unlink"} })
		time.Sleep(100 * time.Millisecond)
		r.tamper(func() {
			if r.kernel.Shielded {
				t.Error("still shielded when it was heard of")
			}
			r.kernel.Hear(ipvs.Tampering{Keys: true})
		})
		r.shieldedSoon("while it is at work", false)
		time.Sleep(quietFirst)
		r.shieldedSoon("when it is gone", true)
	})
}

// B80: cleanup lets others' rules come first, before anything of ours goes.
func TestCleanupShieldsFirst(t *testing.T) {
	k := programmedKernel(t)
	k.Shielded = true
	k.Fail = func(op ipvs.Op) error {
		if k.Shielded {
			t.Errorf("%s, and still shielded", op)
		}
		return nil
	}
	if _, err := cleanupAll(k); err != nil || k.Shielded {
		t.Errorf("%v, shielded %t", err, k.Shielded)
	}
}
