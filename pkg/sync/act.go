package sync

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// act brings some Keys to what is wanted of them.
func (l *Loop) act(ctx context.Context, keys []ipvs.Key) {
	began := time.Now()
	conns, unread := l.observe(ctx, keys)
	if ctx.Err() != nil {
		return
	}
	var plan ipvs.Plan
	var planned []ipvs.Key
	for _, k := range keys {
		if unread[k] {
			continue
		}
		planned = append(planned, k)
		for _, op := range l.steps(k, conns) {
			plan = append(plan, ipvs.Step{Key: k, Op: op})
		}
	}
	slices.SortStableFunc(plan, func(a, b ipvs.Step) int { return int(a.Op.Phase()) - int(b.Op.Phase()) })
	outcomes := l.kernel.Do(ctx, plan)
	failed := l.note(plan, outcomes)
	for _, k := range planned {
		l.settle(k, failed[k])
	}
	if len(plan) == 0 {
		return
	}
	l.log.Info("programmed", zap.Int("frontends", len(planned)), zap.Int("writes", len(plan)), zap.Int("failed", len(failed)),
		zap.Duration("took", time.Since(began)), zap.Int("queued", l.queue.len()))
	if ce := l.log.Check(zap.DebugLevel, "plan"); ce != nil {
		lines := make([]string, len(plan))
		for i, s := range plan {
			lines[i] = s.Op.String()
		}
		ce.Write(zap.Strings("ops", lines))
	}
}

// observe asks the kernel about those Keys of which the mirror is not sure, and about connections of
// draining real servers. Keys that could not be read go back into the queue.
func (l *Loop) observe(ctx context.Context, keys []ipvs.Key) (conns map[ipvs.Key]ipvs.Observed, unread map[ipvs.Key]bool) {
	var ask, sure []ipvs.Key
	for _, k := range keys {
		c := l.cells[k]
		if c == nil || !c.unknown && len(c.drains) == 0 {
			continue
		}
		sure = append(sure, k)
		ask = append(ask, k)
		for _, f := range c.facts {
			ask = append(ask, ipvs.AddrKey(f.addr))
		}
		factsOf(k, l.wanted(k), func(f fact) { ask = append(ask, ipvs.AddrKey(f.addr)) })
	}
	if len(ask) == 0 {
		return nil, nil
	}
	found, err := l.kernel.Observe(ctx, ask)
	if err != nil {
		unread = map[ipvs.Key]bool{}
		for _, k := range sure {
			unread[k] = true
			l.retry(k, l.cells[k])
		}
		if ctx.Err() == nil {
			l.log.Warn("reading frontends failed, trying again", zap.Int("frontends", len(sure)), zap.Error(err))
		}
		return nil, unread
	}
	for _, k := range ask {
		if c := l.cells[k]; k.HasServer() && c != nil {
			c.have, c.unknown = found[k].Have, false
		}
		if !k.HasServer() {
			l.see(k, found[k].Have)
		}
	}
	return found, nil
}

// wanted is what is wanted of a Key, the record of the adoption included.
func (l *Loop) wanted(k ipvs.Key) *ipvs.Frontend {
	if k == ipvs.Adopted {
		return &ipvs.Frontend{Guard: ipvs.Guard{Owned: true}}
	}
	return l.ledger.want(k)
}

// steps are the operations that a Key needs now.
func (l *Loop) steps(k ipvs.Key, conns map[ipvs.Key]ipvs.Observed) []ipvs.Op {
	if k == ipvs.Adopted && !l.adoptionIsOver() {
		return nil
	}
	c, want := l.cells[k], l.wanted(k)
	ops := ipvs.Diff(k, l.view(k, c, want), want)
	if !l.complete {
		return slices.DeleteFunc(ops, removes)
	}
	if c == nil || want == nil {
		return ops
	}
	if o, ok := conns[k]; ok {
		ops = append(ops, l.reap(k, c, want, o)...)
	}
	return ops
}

// removes reports whether an operation takes something out of service.
func removes(op ipvs.Op) bool {
	switch o := op.(type) {
	case ipvs.Element:
		return o.Remove
	case ipvs.SetReal:
		return o.Real.Weight == 0
	case ipvs.DelServer, ipvs.DelReal, ipvs.Unbind:
		return true
	}
	return false
}

// view is what the kernel holds for a Key, with the shared facts as far as they are this Key's business: a
// fact that the Key wants, or one that nobody needs any more.
func (l *Loop) view(k ipvs.Key, c *cell, want *ipvs.Frontend) *ipvs.Frontend {
	var v, w ipvs.Frontend
	if want != nil {
		w = *want
	}
	if c != nil && c.have != nil {
		v.Server = c.have.Server
		v.Guard.Owned, v.Guard.Open = c.have.Guard.Owned, c.have.Guard.Open
	}
	mine := func(kind factKind, a netip.Addr, wanted bool) bool {
		f := fact{kind, a}
		return l.present[f] && (wanted || l.ledger.needs[f] == 0)
	}
	v.Bind = mine(factBind, k.Addr, w.Bind)
	v.Guard.VIP = mine(factVIP, k.Addr, w.Guard.VIP)
	hairpin := func(a netip.Addr, wanted bool) {
		if mine(factHairpin, a, wanted) {
			v.Guard.Hairpin = append(v.Guard.Hairpin, a)
		}
	}
	for _, a := range w.Guard.Hairpin {
		hairpin(a, true)
	}
	if c != nil {
		for _, f := range c.facts {
			if f.kind == factHairpin {
				hairpin(f.addr, false)
			}
		}
	}
	if !k.HasServer() {
		hairpin(k.Addr, false)
	}
	v.Guard.Hairpin = ipvs.SortAddrs(v.Guard.Hairpin)
	return &v
}

// note takes from the outcomes what the kernel now holds of shared facts, and which Keys failed.
func (l *Loop) note(plan ipvs.Plan, outcomes []ipvs.Outcome) map[ipvs.Key]error {
	failed := map[ipvs.Key]error{}
	for i, s := range plan {
		if err := outcomes[i].Err; err != nil {
			if failed[s.Key] == nil {
				failed[s.Key] = err
			}
			continue
		}
		switch op := s.Op.(type) {
		case ipvs.Bind:
			l.present[fact{factBind, op.Addr}] = true
		case ipvs.Unbind:
			delete(l.present, fact{factBind, op.Addr})
		case ipvs.Element:
			l.noteElement(op)
		}
	}
	return failed
}

func (l *Loop) noteElement(e ipvs.Element) {
	var f fact
	switch {
	case e.Set == ipvs.SetVIPs:
		f = fact{factVIP, e.Key.Addr}
	case e.Set == ipvs.SetHairpin:
		f = fact{factHairpin, e.Key.Addr}
	case e.Key == ipvs.Adopted:
		l.adopted = true
		return
	default:
		return
	}
	if e.Remove {
		delete(l.present, f)
	} else {
		l.present[f] = true
	}
}

// settle brings the mirror of a Key up to date after its plan was carried out.
func (l *Loop) settle(k ipvs.Key, err error) {
	c := l.cells[k]
	if c == nil {
		c = &cell{}
		l.cells[k] = c
	}
	want := l.wanted(k)
	if err != nil {
		c.unknown, c.reaped = true, nil
		factsOf(k, want, func(f fact) { c.facts = append(c.facts, f) })
		l.retry(k, c)
		if c.tries&(c.tries-1) == 0 { // the first time, and ever more rarely
			l.log.Warn("a frontend could not be programmed, trying again", zap.Stringer("frontend", k), zap.Error(err), zap.Uint8("tries", c.tries))
		}
		return
	}
	if c.tries > 0 {
		l.log.Info("a frontend is in order again", zap.Stringer("frontend", k))
	}
	if k == ipvs.Adopted || want == nil {
		delete(l.cells, k)
		if k == ipvs.Adopted && !l.adopted {
			l.queue.addAt(k, time.Now().Add(time.Second))
		}
		return
	}
	if c.tries = 0; !l.complete {
		c.unknown = true // it may hold more than is wanted
		return
	}
	l.settleDrains(k, c, want)
	c.facts = c.facts[:0]
	factsOf(k, want, func(f fact) {
		if f.kind == factHairpin { // the address's own facts are at hand without a list
			c.facts = append(c.facts, f)
		}
	})
	c.unknown = false
}

// retry puts a Key back with its own backoff.
func (l *Loop) retry(k ipvs.Key, c *cell) {
	l.queue.addAt(k, time.Now().Add(backoff(c.tries)))
	if c.tries < 255 {
		c.tries++
	}
}

// backoff grows from 50 ms to 1.5 s: whatever was wrong, the node is right within 2 s of its end. Jitter
// keeps Keys that failed together from coming back together.
func backoff(tries uint8) time.Duration {
	d := min(50*time.Millisecond<<min(tries, 10), 1200*time.Millisecond)
	return d + time.Duration(rand.Int64N(int64(d)/4+1))
}

// adoptionIsOver: everything that was found at the first start is either owned or gone.
func (l *Loop) adoptionIsOver() bool {
	for k, c := range l.cells {
		if k.HasServer() && (c.have == nil || !c.have.Guard.Owned || c.unknown) {
			return false
		}
	}
	return true
}
