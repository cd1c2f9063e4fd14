package sync

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// forgetting collects the UDP frontends whose virtual server has just begun to take packets. A client that
// sent before has a conntrack entry that bypasses it, and renews that with every datagram. One look through
// the table serves all of them, at most once a second (B31).
type forgetting struct {
	keys  map[ipvs.Key]bool
	bound map[netip.Addr]bool // those whose frontends are among the keys, because the address was bound
	next  time.Time
}

// forgetPeriod is the least time between two looks through the conntrack table.
const forgetPeriod = time.Second

func (f *forgetting) add(k ipvs.Key) {
	if f.keys == nil {
		f.keys = map[ipvs.Key]bool{}
	}
	f.keys[k] = true
}

// noteTaken takes from an operation which UDP frontends take packets that went elsewhere before. An address is
// bound once, for the sake of whichever of its frontends has its turn first: it concerns all of them.
func (l *Loop) noteTaken(s ipvs.Step) {
	switch op := s.Op.(type) {
	case ipvs.Bind:
		l.forget.takeAddress(op.Addr, l.ledger)
	case ipvs.AddServer:
		l.forget.take(s.Key)
	case ipvs.Element:
		if opens := op.Set == ipvs.SetOpen || op.Set == ipvs.SetRedirect || op.Set == ipvs.SetInside; opens && !op.Remove {
			l.forget.take(s.Key)
		}
	}
}

func (f *forgetting) take(k ipvs.Key) {
	if k.Proto == ipvs.UDP {
		f.add(k)
	}
}

// takeAddress takes all frontends of an address, once until the next look.
func (f *forgetting) takeAddress(a netip.Addr, l *ledger) {
	if f.bound[a] {
		return
	}
	if f.bound == nil {
		f.bound = map[netip.Addr]bool{}
	}
	f.bound[a] = true
	for k := range l.external[a] {
		f.take(k)
	}
	for _, h := range l.holding[a] {
		for _, k := range l.byService[h.service] {
			if k.Addr == a {
				f.take(k)
			}
		}
	}
}

// due is when the next look is wanted; zero: none.
func (f *forgetting) due() time.Time {
	if len(f.keys) == 0 {
		return time.Time{}
	}
	return f.next
}

// servesItself: a real server has the frontend's own address, as a pod of the host network has that of a node
// port. Its answers come from there whether IPVS translated them or not: what bypasses it cannot be told.
func servesItself(k ipvs.Key, fe *ipvs.Frontend) bool {
	return slices.ContainsFunc(fe.Server.Reals, func(r ipvs.Real) bool { return r.Addr.Addr() == k.Addr })
}

// forgetFlows deletes the conntrack entries of the collected frontends, when it is time.
func (l *Loop) forgetFlows(ctx context.Context) {
	now := l.now()
	if len(l.forget.keys) == 0 || now.Before(l.forget.next) {
		return
	}
	var plan ipvs.Plan
	for _, k := range sorted(l.forget.keys) {
		if want := l.ledger.want(k); want != nil && !servesItself(k, want) {
			// A client inside the cluster that keeps sending is not redirected as long as its entry lives, and finds nobody.
			undirected := want.Guard.Redirect.IsValid() && len(want.Server.Reals) == 0
			plan = append(plan, ipvs.Step{Key: k, Op: ipvs.Forget{Key: k, Undirected: undirected}})
		}
	}
	l.forget = forgetting{next: now.Add(forgetPeriod)}
	failed := 0
	var first error
	outcomes := l.kernel.Do(ctx, plan)
	l.noteForgotten(plan, outcomes, l.now().Sub(now))
	for i, o := range outcomes {
		if o.Err != nil {
			if failed++; first == nil {
				first = o.Err
			}
			l.forget.add(plan[i].Key)
		}
	}
	if failed > 0 && ctx.Err() == nil {
		l.log.Warn("conntrack entries could not be deleted, trying again", zap.Int("frontends", failed), zap.Error(first))
	}
}
