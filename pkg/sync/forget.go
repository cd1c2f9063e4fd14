package sync

import (
	"context"
	"maps"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// forgetting collects the UDP frontends whose virtual server has just begun to take packets. A client that
// sent before has a conntrack entry that bypasses it, and renews that with every datagram. It collects as well
// those that redirect, when a real server goes to which clients may have been redirected. One look through the
// table serves all of them, at most once a second (B31).
type forgetting struct {
	keys  map[ipvs.Key]bool
	bound map[netip.Addr]bool // those whose frontends are among the keys, because the address was bound
	next  time.Time
	// redirected are the UDP frontends that redirect, or did: their clients may have entries that last longer.
	redirected map[ipvs.Key]bool
	// left says of UDP real servers that left until when a late answer of theirs may be in the way if they come back.
	left map[netip.AddrPort]time.Time
	tidy int                           // how many of them there may be before those of long ago are dropped
	late map[ipvs.Key][]netip.AddrPort // those that came back, for the next look
}

// lateAnswers: within 30 s an answer may come after its real server has left, and its entry lives for 30 s more
// (nf_conntrack_udp_timeout), if nobody changed that.
const lateAnswers = time.Minute

// leaves notes that a UDP real server leaves.
func (f *forgetting) leaves(from netip.AddrPort, now time.Time) {
	if len(f.left) >= f.tidy {
		maps.DeleteFunc(f.left, func(_ netip.AddrPort, until time.Time) bool { return !now.Before(until) })
		f.tidy = max(64, 2*len(f.left))
	}
	if f.left == nil {
		f.left = map[netip.AddrPort]time.Time{}
	}
	f.left[from] = now.Add(lateAnswers)
}

// comes notes that a UDP real server comes to a frontend, maybe back.
func (f *forgetting) comes(k ipvs.Key, to netip.AddrPort, now time.Time) {
	if !now.Before(f.left[to]) {
		return
	}
	if f.late == nil {
		f.late = map[ipvs.Key][]netip.AddrPort{}
	}
	f.late[k] = append(f.late[k], to)
	f.add(k)
}

// forgetPeriod is the least time between two looks through the conntrack table.
const forgetPeriod = time.Second

func (f *forgetting) add(k ipvs.Key) {
	if f.keys == nil {
		f.keys = map[ipvs.Key]bool{}
	}
	f.keys[k] = true
}

// noteTaken takes from an operation which UDP frontends take packets that went elsewhere before, and of which
// the redirected clients may go where they should not any more. An address is
// bound once, for the sake of whichever of its frontends has its turn first: it concerns all of them.
func (l *Loop) noteTaken(s ipvs.Step) {
	switch op := s.Op.(type) {
	case ipvs.Bind:
		l.forget.takeAddress(op.Addr, l.desk)
	case ipvs.AddServer:
		l.forget.take(s.Key)
	case ipvs.AddReal:
		if op.Key.Proto == ipvs.UDP {
			l.forget.comes(op.Key, op.Real.Addr, l.now())
		}
	case ipvs.DelReal:
		if op.Key.Proto == ipvs.UDP {
			l.forget.leaves(op.Addr, l.now())
		}
		l.takeRedirected(op.Key)
	case ipvs.DelServer:
		if c := l.cells[op.Key]; op.Key.Proto == ipvs.UDP && c != nil && c.have != nil {
			for _, r := range c.have.Server.Reals {
				l.forget.leaves(r.Addr, l.now())
			}
		}
		l.takeRedirected(op.Key)
	case ipvs.Element:
		if op.Set == ipvs.SetRedirect {
			l.forget.redirects(s.Key)
			l.forget.take(s.Key)
			return
		}
		if opens := op.Set == ipvs.SetOpen || op.Set == ipvs.SetInside; opens && !op.Remove {
			l.forget.take(s.Key)
		}
	}
}

func (f *forgetting) take(k ipvs.Key) {
	if k.Proto == ipvs.UDP {
		f.add(k)
	}
}

// redirects notes a frontend that redirects.
func (f *forgetting) redirects(k ipvs.Key) {
	if k.Proto != ipvs.UDP {
		return
	}
	if f.redirected == nil {
		f.redirected = map[ipvs.Key]bool{}
	}
	f.redirected[k] = true
}

// takeRedirected takes the redirecting frontends of the Service that lost a real server, by whichever of its Keys.
func (l *Loop) takeRedirected(k ipvs.Key) {
	wish := l.want(k)
	if wish.Frontend == nil || k.Proto != ipvs.UDP || len(l.forget.redirected) == 0 {
		return // where the Service is gone, so are its redirections
	}
	for _, other := range l.desk.KeysOf(wish.Service) {
		if l.forget.redirected[other] {
			l.forget.take(other)
		}
	}
}

// takeAddress takes all frontends of an address, once until the next look.
func (f *forgetting) takeAddress(a netip.Addr, d *desk.Desk) {
	if f.bound[a] {
		return
	}
	if f.bound == nil {
		f.bound = map[netip.Addr]bool{}
	}
	f.bound[a] = true
	for k := range d.KeysAt(a) {
		f.take(k)
	}
}

// due is when the next look is wanted; zero: none.
func (f *forgetting) due() time.Time {
	if len(f.keys) == 0 {
		return time.Time{}
	}
	return f.next
}

// forgetOf is what is to be deleted for a frontend; false: nothing.
func (l *Loop) forgetOf(k ipvs.Key) (op ipvs.Forget, some bool) {
	want := l.want(k).Frontend
	op = ipvs.Forget{Key: k, Directed: l.forget.redirected[k], Own: want, Late: l.forget.late[k]}
	if want == nil {
		return op, op.Directed || len(op.Late) > 0
	}
	if to := want.Guard.Redirect; to.IsValid() {
		op.Target = l.want(ipvs.Key{Addr: to.Addr(), Port: to.Port(), Proto: k.Proto}).Frontend
		// A client inside the cluster that keeps sending is not redirected as long as its entry lives, and finds nobody.
		op.Undirected = len(want.Server.Reals) == 0
	}
	return op, op.Directed || len(op.Late) > 0 || !op.ServesItself()
}

// forgetFlows deletes the conntrack entries of the collected frontends, when it is time.
func (l *Loop) forgetFlows(ctx context.Context) {
	now := l.now()
	if len(l.forget.keys) == 0 || now.Before(l.forget.next) {
		return
	}
	var plan ipvs.Plan
	for _, k := range sorted(l.forget.keys) {
		if op, some := l.forgetOf(k); some {
			plan = append(plan, ipvs.Step{Key: k, Op: op})
		}
	}
	f := &l.forget
	f.keys, f.bound, f.late, f.next = nil, nil, nil, now.Add(forgetPeriod)
	failed := 0
	var first error
	outcomes := l.kernel.Do(ctx, plan)
	l.noteForgotten(plan, outcomes, l.now().Sub(now))
	for i, o := range outcomes {
		if o.Err != nil {
			if failed++; first == nil {
				first = o.Err
			}
			for _, from := range plan[i].Op.(ipvs.Forget).Late {
				f.comes(plan[i].Key, from, now)
			}
			f.add(plan[i].Key)
		} else if l.want(plan[i].Key).Frontend == nil {
			delete(l.forget.redirected, plan[i].Key)
		}
	}
	if failed > 0 && ctx.Err() == nil {
		l.log.Warn("conntrack entries could not be deleted, trying again", zap.Int("frontends", failed), zap.Error(first))
	}
}
