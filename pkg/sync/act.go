package sync

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// act brings some Keys to what is wanted of them.
func (l *Loop) act(ctx context.Context, keys []ipvs.Key) {
	began := l.now()
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
	outcomes := l.kernel.Do(ctx, plan)
	failed := l.note(plan, outcomes)
	for _, k := range planned {
		l.settle(k, failed[k])
	}
	if len(plan) == 0 {
		return
	}
	l.noteWrites(plan, outcomes, failed, l.now().Sub(began))
	level := zap.InfoLevel
	if len(failed) == len(planned) {
		level = zap.DebugLevel // each has said so, and will be tried again and again
	}
	l.log.Log(level, "programmed", zap.Int("frontends", len(planned)), zap.Int("writes", len(plan)), zap.Int("failed", len(failed)),
		zap.Duration("took", l.now().Sub(began)), zap.Int("queued", l.queue.len()))
	if ce := l.log.Check(zap.DebugLevel, "plan"); ce != nil {
		lines := make([]string, len(plan))
		slices.SortStableFunc(plan, func(a, b ipvs.Step) int { return int(a.Op.Phase()) - int(b.Op.Phase()) })
		for i, s := range plan {
			lines[i] = s.Op.String()
		}
		ce.Write(zap.Strings("ops", lines))
	}
}

// observe asks the kernel about those Keys of which the mirror is not sure, and about connections of
// draining real servers. Keys that could not be read go back into the queue.
func (l *Loop) observe(ctx context.Context, keys []ipvs.Key) (conns map[ipvs.Key]ipvs.Observed, unread map[ipvs.Key]bool) {
	var doubtful []ipvs.Key
	for _, k := range keys {
		c := l.cells[k]
		if l.isUnsure(k) {
			if c == nil {
				c = &cell{}
				l.cells[k] = c
			}
			c.unknown = true
		}
		if c == nil || !c.unknown && len(c.drains) == 0 {
			continue
		}
		doubtful = append(doubtful, k)
	}
	if len(doubtful) == 0 {
		return nil, nil
	}
	conns, err := l.read(ctx, doubtful)
	if err == nil {
		return conns, nil
	}
	// One Key that cannot be read must not hold up the others.
	conns, unread = map[ipvs.Key]ipvs.Observed{}, map[ipvs.Key]bool{}
	for _, k := range doubtful {
		if ctx.Err() != nil {
			break
		}
		found, err := l.read(ctx, []ipvs.Key{k})
		if err != nil {
			unread[k] = true
			l.retry(k, l.cells[k])
			continue
		}
		maps.Copy(conns, found)
	}
	if len(unread) > 0 && ctx.Err() == nil {
		l.log.Warn("reading frontends failed, trying again", zap.Int("frontends", len(unread)), zap.Error(err))
	}
	return conns, unread
}

// read asks the kernel about Keys and brings the mirror up to date. Of a Key that is only draining it asks for
// no more than the Key itself.
func (l *Loop) read(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	var ask []ipvs.Key
	for _, k := range keys {
		ask = append(ask, k)
		if l.cells[k].unknown {
			ask = append(ask, ipvs.AddrKey(k.Addr))
			ipvs.FactsOf(k, l.want(k).Frontend, func(f ipvs.Fact) { ask = append(ask, ipvs.AddrKey(f.Addr)) })
		}
	}
	slices.SortFunc(ask, ipvs.Key.Compare)
	ask = slices.Compact(ask)
	found, err := l.kernel.Observe(ctx, ask)
	if err != nil {
		return nil, err
	}
	gone := map[ipvs.Fact]bool{}
	for _, k := range ask {
		if c := l.cells[k]; k.HasServer() && c != nil {
			c.have, c.unknown = found[k].Have, false
		}
		if !k.HasServer() {
			l.see(k, found[k].Have, gone)
		}
	}
	if len(gone) > 0 {
		l.lack(func(f ipvs.Fact) bool { return gone[f] }) // other Keys may rely on them
	}
	return found, nil
}

// want is what is wanted of a Key now, the record of the adoption included.
func (l *Loop) want(k ipvs.Key) desk.Wish {
	if k == ipvs.Adopted {
		return desk.Wish{Frontend: adoption}
	}
	return l.desk.Want(k, l.now())
}

// adoption is what is wanted of its Key.
var adoption = &ipvs.Frontend{Guard: ipvs.Guard{Owned: true}}

// needs reports whether somebody needs a shared fact.
func (l *Loop) needs(f ipvs.Fact) bool {
	return l.desk.Want(ipvs.AddrKey(f.Addr), l.now()).Needs(f.Kind)
}

// steps are the operations that a Key needs now.
func (l *Loop) steps(k ipvs.Key, conns map[ipvs.Key]ipvs.Observed) []ipvs.Op {
	if k == ipvs.Adopted && !l.adoptionIsOver() {
		return nil
	}
	c, wish := l.cells[k], l.want(k)
	want := wish.Frontend
	have := l.view(k, c, want)
	if want == nil && wish.Spared {
		return slices.DeleteFunc(ipvs.Diff(k, have, nil), func(op ipvs.Op) bool {
			e, ok := op.(ipvs.Element)
			return !ok || e.Set != ipvs.SetHairpin // a fact about a pod, not about a virtual server
		})
	}
	if !l.complete {
		return withheld(ipvs.Diff(k, have, want), func(op ipvs.Op) bool { return removes(op) && !c.knew(k, want, op) })
	}
	var ops []ipvs.Op
	if want == nil && have.Server.Exists() && !have.Guard.Owned {
		// Found at the first start, by its address alone. Without a record, a process that dies once the address
		// is gone would leave it for good.
		ops = append(ops, ipvs.Element{Set: ipvs.SetOwned, Key: k})
		have.Guard.Owned = true
	}
	ops = append(ops, ipvs.Diff(k, have, want)...)
	if c == nil || want == nil {
		return ops
	}
	if o, ok := conns[k]; ok {
		ops = append(ops, l.reap(k, c, want, o)...)
	}
	return ops
}

// withheld leaves out what must not be done while parts of the cluster are not known. Where outside clients must not
// be barred yet, endpoints that are not for them must not come either.
func withheld(ops []ipvs.Op, not func(ipvs.Op) bool) []ipvs.Op {
	open := false
	ops = slices.DeleteFunc(ops, func(op ipvs.Op) bool {
		e, ok := op.(ipvs.Element)
		open = open || ok && e.Set == ipvs.SetInside && not(op)
		return not(op)
	})
	return slices.DeleteFunc(ops, func(op ipvs.Op) bool { _, adds := op.(ipvs.AddReal); return adds && open })
}

// removes reports whether an operation takes something out of service.
func removes(op ipvs.Op) bool {
	switch o := op.(type) {
	case ipvs.Element:
		return o.Remove != o.Set.Bars()
	case ipvs.SetReal:
		return o.Real.Weight == 0
	case ipvs.DelServer, ipvs.DelReal, ipvs.Unbind:
		return true
	}
	return false
}

// knew reports whether an operation removes only what this process itself wanted before: that is known to
// be gone from the cluster, however incomplete the rest is.
func (c *cell) knew(k ipvs.Key, want *ipvs.Frontend, op ipvs.Op) bool {
	if !k.HasServer() {
		e, ok := op.(ipvs.Element)
		return ok && e.Set == ipvs.SetHairpin
	}
	had := func(a netip.AddrPort) bool {
		return c != nil && c.wanted != nil && slices.ContainsFunc(c.wanted.Server.Reals, func(r ipvs.Real) bool { return r.Addr == a })
	}
	if o, ok := op.(ipvs.Element); ok && want != nil {
		switch o.Set {
		case ipvs.SetLimited, ipvs.SetRanges, ipvs.SetRedirect:
			return true // the Service says it, and the Service is known
		case ipvs.SetInside, ipvs.SetDropped: // only when nothing unknown serves behind it
			return c == nil || !slices.ContainsFunc(extraReals(c.have, want), func(r ipvs.Real) bool { return r.Weight > 0 && !had(r.Addr) })
		}
	}
	if c == nil || c.wanted == nil {
		return false
	}
	switch o := op.(type) {
	case ipvs.SetReal:
		return had(o.Real.Addr)
	case ipvs.DelReal:
		return had(o.Addr)
	case ipvs.Element:
		if o.Set == ipvs.SetOpen && want != nil { // closed only when nothing unknown serves behind it
			return !slices.ContainsFunc(extraReals(c.have, want), func(r ipvs.Real) bool { return r.Weight > 0 && !had(r.Addr) })
		}
	}
	return want == nil
}

// note takes from the outcomes what the kernel now holds of shared facts, and which Keys failed.
func (l *Loop) note(plan ipvs.Plan, outcomes []ipvs.Outcome) map[ipvs.Key]error {
	failed := map[ipvs.Key]error{}
	for i, s := range plan {
		if err := outcomes[i].Err; err != nil {
			if failed[s.Key] == nil {
				failed[s.Key] = err
			}
			l.doubtBase()
			l.noteLacking(s.Op, err)
			if outcomes[i].Unknown { // it may have taken place, and then nobody does it again
				l.noteTaken(s)
				l.noteUnsure(s.Op)
			}
			continue
		}
		l.trash.note(l.now(), s.Op, l.cells[s.Key])
		l.noteTaken(s)
		l.noteDone(s.Op)
	}
	return failed
}

// settle brings the mirror of a Key up to date after its plan was carried out.
func (l *Loop) settle(k ipvs.Key, err error) {
	c := l.cells[k]
	if c == nil {
		c = &cell{}
		l.cells[k] = c
	}
	wish := l.want(k)
	want := wish.Frontend
	if err != nil {
		c.unknown, c.reaped = true, nil
		l.retry(k, c)
		if c.tries&(c.tries-1) == 0 { // the first time, and ever more rarely
			l.log.Warn("a frontend could not be programmed, trying again", zap.Stringer("frontend", k), zap.Error(err), zap.Uint8("tries", c.tries))
		}
		return
	}
	if c.tries > 0 {
		l.log.Info("a frontend is in order again", zap.Stringer("frontend", k))
	}
	l.standing.mended(k)
	l.confirmed(k)
	c.seen = l.audits.sighted()
	if want == nil && !l.complete && c.have != nil {
		c.tries, c.unknown = 0, true // what this process did not know of it stays for now
		return
	}
	if want == nil && c.have != nil && wish.Spared {
		c.tries, c.wanted, c.drains = 0, nil, nil // it stays as it is
		return
	}
	if k == ipvs.Adopted || want == nil {
		l.standing.draining -= len(c.drains)
		delete(l.cells, k)
		if k == ipvs.Adopted && !l.adopted {
			l.queue.addAt(k, l.now().Add(time.Second))
		}
		return
	}
	c.tries = 0
	// What was removed of a cluster that is not all known shows only in a proper read, and who was barred.
	c.unknown = !l.complete && (c.wanted != nil && c.wanted != want || c.have != nil && c.have.Guard.Barred != want.Guard.Barred)
	if l.complete {
		l.settleDrains(k, c, want)
	} else {
		c.have = together(c.have, want)
	}
	c.wanted = want
}

// together is what a Key holds when what is wanted was added and nothing was removed.
func together(have, want *ipvs.Frontend) *ipvs.Frontend {
	if have == nil {
		return want
	}
	fe := *want
	fe.Guard.Owned = want.Guard.Owned || have.Guard.Owned
	fe.Guard.Open = want.Guard.Open || have.Guard.Open
	fe.Guard.Barred = want.Guard.Barred & have.Guard.Barred // none was added that is not known to be right
	fe.Guard.Sources = want.Guard.Sources | have.Guard.Sources
	fe.Server.Reals = ipvs.SortReals(append(slices.Clone(want.Server.Reals), extraReals(have, want)...))
	return &fe
}

// retry puts a Key back with its own backoff.
func (l *Loop) retry(k ipvs.Key, c *cell) {
	l.queue.addAt(k, l.now().Add(backoff(c.tries)))
	l.standing.fails(k, l.want(k).Service)
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
		if !k.HasServer() || c.have != nil && c.have.Guard.Owned && !c.unknown {
			continue
		}
		if wish := l.want(k); !wish.Spared || wish.Frontend != nil {
			return false
		}
	}
	return true
}
