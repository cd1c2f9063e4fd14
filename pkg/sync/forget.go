package sync

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// forget collects the frontends whose virtual server has just begun to take packets. A client that
// sent before has a conntrack entry that bypasses it, and renews that with every datagram, or with every SYN that it sends
// again (B83). It collects as well those UDP frontends that redirect, when a real server goes to which clients may have been redirected. One look through the
// table serves all of them, at most once a second (B31).
type forget struct {
	shared
	writer Writer
	keys   map[ipvs.Key]bool
	bound  map[netip.Addr]bool // those whose frontends are among the keys, because the address was bound
	next   time.Time
	// redirected are the UDP frontends that redirect, or did: their clients may have entries that last longer.
	redirected map[ipvs.Key]bool
	// left says of UDP real servers that left until when a late answer of theirs may be in the way if they come back.
	left map[netip.AddrPort]time.Time
	tidy int                                  // how many of them there may be before those of long ago are dropped
	late map[ipvs.Key]map[netip.AddrPort]bool // those that came back, for the next look
}

// lateAnswers: within 30 s an answer may come after its real server has left, and its entry lives for 30 s more
// (nf_conntrack_udp_timeout), if nobody changed that.
const lateAnswers = time.Minute

// leaves notes that a UDP real server leaves.
func (f *forget) leaves(from netip.AddrPort, now time.Time) {
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
func (f *forget) comes(k ipvs.Key, to netip.AddrPort, now time.Time) {
	if !now.Before(f.left[to]) {
		return
	}
	if f.late == nil {
		f.late = map[ipvs.Key]map[netip.AddrPort]bool{}
	}
	if f.late[k] == nil {
		f.late[k] = map[netip.AddrPort]bool{}
	}
	f.late[k][to] = true
	f.add(k)
}

// forgetPeriod is the least time between two looks through the conntrack table.
const forgetPeriod = time.Second

func (f *forget) add(k ipvs.Key) {
	if f.keys == nil {
		f.keys = map[ipvs.Key]bool{}
	}
	f.keys[k] = true
}

// learn takes from an operation which UDP frontends take packets that went elsewhere before, and of which
// the redirected clients may go where they should not any more. An address is
// bound once, for the sake of whichever of its frontends has its turn first: it concerns all of them.
func (f *forget) learn(s ipvs.Step) {
	switch is := s.Op.Effect(); {
	case is.Binds():
		f.takeAddress(is.Fact.Addr)
	case is.Table == ipvs.TableIPVS && is.Gone:
		if is.Key.Proto == ipvs.UDP {
			for _, r := range f.mirror.Leaving(is) {
				f.leaves(r.Addr, f.now())
			}
		}
		f.takeRedirected(is.Key)
	case is.AddsReal():
		if is.Key.Proto == ipvs.UDP {
			f.comes(is.Key, is.Real, f.now())
		}
	case is.Set == ipvs.SetRedirect:
		f.redirects(s.Key)
		f.take(s.Key)
	case is.Made && is.OfServer():
		f.takeAny(s.Key)
	case is.Made && (is.Set == ipvs.SetOpen || is.Set == ipvs.SetInside):
		f.take(s.Key)
	}
}

func (f *forget) take(k ipvs.Key) {
	if k.Proto == ipvs.UDP {
		f.add(k)
	}
}

// takeAny takes a frontend of which nobody took packets before, whatever its protocol. A client that began a connection
// then is not answered as long as it tries again.
func (f *forget) takeAny(k ipvs.Key) {
	if k.HasServer() {
		f.add(k)
	}
}

// redirects notes a frontend that redirects.
func (f *forget) redirects(k ipvs.Key) {
	if k.Proto != ipvs.UDP {
		return
	}
	if f.redirected == nil {
		f.redirected = map[ipvs.Key]bool{}
	}
	f.redirected[k] = true
}

// takeRedirected takes the redirecting frontends of the Service that lost a real server, by whichever of its Keys.
func (f *forget) takeRedirected(k ipvs.Key) {
	if k.Proto != ipvs.UDP || len(f.redirected) == 0 {
		return
	}
	wish := f.want(k)
	if wish.Frontend == nil {
		return // where the Service is gone, so are its redirections
	}
	for _, other := range f.desk.KeysOf(wish.Service) {
		if f.redirected[other] {
			f.take(other)
		}
	}
}

// takeGone takes a frontend of which nobody wants anything any more and the kernel has nothing, if it redirected.
func (f *forget) takeGone(k ipvs.Key) {
	if f.redirected[k] {
		f.take(k)
	}
}

// giveUp lets go of a frontend of which nobody wants anything any more.
func (f *forget) giveUp(k ipvs.Key) {
	delete(f.redirected, k)
	delete(f.keys, k)
	delete(f.late, k)
}

// takeAddress takes all frontends of an address, once until the next look.
func (f *forget) takeAddress(a netip.Addr) {
	if f.bound[a] {
		return
	}
	if f.bound == nil {
		f.bound = map[netip.Addr]bool{}
	}
	f.bound[a] = true
	for k := range f.desk.KeysAt(a) {
		f.takeAny(k)
	}
}

// due is when the next look is wanted; zero: none.
func (f *forget) due(time.Time) time.Time {
	if len(f.keys) == 0 {
		return time.Time{}
	}
	return f.next
}

// opOf is what is to be deleted for a frontend; false: nothing.
func (f *forget) opOf(k ipvs.Key) (op ipvs.Forget, some bool) {
	want := f.want(k).Frontend
	op = ipvs.Forget{Key: k, Directed: f.redirected[k], Own: want, Late: slices.SortedFunc(maps.Keys(f.late[k]), netip.AddrPort.Compare)}
	if want == nil {
		return op, op.Directed || len(op.Late) > 0
	}
	if to := want.Guard.Redirect; to.IsValid() {
		op.Target = f.want(ipvs.Key{Addr: to.Addr(), Port: to.Port(), Proto: k.Proto}).Frontend
		// A client inside the cluster that keeps sending is not redirected as long as its entry lives, and finds nobody.
		op.Undirected = len(want.Server.Reals) == 0 && k.Proto == ipvs.UDP
	}
	return op, op.Directed || len(op.Late) > 0 || !op.ServesItself()
}

// tend deletes the conntrack entries of the collected frontends, when it is time.
func (f *forget) tend(ctx context.Context) (more bool) {
	now := f.now()
	if len(f.keys) == 0 || now.Before(f.next) {
		return false
	}
	var plan ipvs.Plan
	var late [][]netip.AddrPort // of each step
	for _, k := range sorted(f.keys) {
		if op, some := f.opOf(k); some {
			plan, late = append(plan, ipvs.Step{Key: k, Op: op}), append(late, op.Late)
		}
	}
	f.keys, f.bound, f.late, f.next = nil, nil, nil, now.Add(forgetPeriod)
	failed, gone := 0, 0
	var first error
	outcomes := f.writer.Do(ctx, plan)
	f.fare.forgot(plan, outcomes, f.now().Sub(now))
	for i, o := range outcomes {
		if o.Err != nil || o.Deleted > 0 {
			f.diary.forgot(f.now(), plan[i].Op.(ipvs.Forget), f.fare.whose(plan[i].Key, f.want(plan[i].Key).Service), o)
		}
		if o.Err != nil {
			if failed++; first == nil {
				first = o.Err
			}
			if f.want(plan[i].Key).Frontend == nil {
				if gone++; gone > goneMost { // its clients find out when their entries end
					f.giveUp(plan[i].Key)
					continue
				}
			}
			for _, from := range late[i] {
				f.comes(plan[i].Key, from, now)
			}
			f.add(plan[i].Key)
		} else if f.want(plan[i].Key).Frontend == nil {
			delete(f.redirected, plan[i].Key)
		}
	}
	if failed > 0 && ctx.Err() == nil {
		f.tell.log.Warn("conntrack entries could not be deleted, trying again", zap.Int("frontends", failed), zap.Error(first))
	}
	return false
}
