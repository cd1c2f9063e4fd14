package sync

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// audit finds what another program changed of ours. It plans and writes nothing: whatever looks different
// is marked as unknown and queued, and the Key's own turn reads the kernel properly before it decides.
type audit struct {
	next time.Time
	pass uint32 // 0: none was begun yet
	busy bool   // a pass is under way
	void bool   // and concludes nothing: the mirror was made anew since it began
	cost time.Duration
	// facts are the shared facts seen in this pass, or written meanwhile.
	facts map[ipvs.Fact]bool
	found int
	first string // of what was found
	// adopted: so was the record of the adoption.
	adopted bool
}

// sighting says in which pass the parts of a Key were last seen as they should be, or written by us.
type sighting struct {
	server uint32
	sets   [8]uint32 // of ipvs.KeySets
	// ranges are how many of the source ranges were seen in the pass; -1: all of them.
	ranges     int
	rangesPass uint32
}

func (a *audit) sighted() sighting {
	s := sighting{server: a.pass, ranges: -1, rangesPass: a.pass}
	for i := range s.sets {
		s.sets[i] = a.pass
	}
	return s
}

// sawRange notes another source range.
func (s *sighting) sawRange(pass uint32) {
	if s.rangesPass != pass {
		s.ranges, s.rangesPass = 0, pass
	}
	if s.ranges >= 0 {
		s.ranges++
	}
}

// missed reports whether a part that a Key should have was not seen in a pass.
func (s *sighting) missed(have *ipvs.Frontend, pass uint32) bool {
	for i, set := range ipvs.KeySets {
		if have.Guard.Has(set) && s.sets[i] != pass {
			return true
		}
	}
	n := len(have.Guard.Ranges)
	return have.Server.Exists() && s.server != pass || n > 0 && (s.rangesPass != pass || s.ranges >= 0 && s.ranges != n)
}

// saw notes a shared fact that the kernel holds by other evidence than the pass under way: it may have come
// after the pass had been there.
func (a *audit) saw(f ipvs.Fact) {
	if a.busy {
		a.facts[f] = true
	}
}

// auditPart does a part of a pass when it is time for one, and reports whether the pass goes on.
func (l *Loop) auditPart(ctx context.Context) (more bool) {
	a := &l.audits
	began := l.now()
	if !a.busy {
		tampered := l.heal.keys.ripe(began, l.heal.apart)
		if began.Before(a.next) && !tampered {
			return false
		}
		l.heal.keys.took(began, l.heal.apart, tampered)
		*a = audit{pass: a.pass + 1, busy: true, facts: map[ipvs.Fact]bool{}}
	}
	done, err := l.kernel.Detect(ctx, l.compare)
	if err == nil && done && !a.void {
		l.missing(ctx)
	}
	a.cost += l.now().Sub(began)
	if err == nil && !done {
		return true
	}
	if err != nil && ctx.Err() == nil {
		l.log.Warn("looking for changes by others failed", zap.Error(err))
		l.doubtBase()
	}
	if a.found > 0 {
		l.log.Info("another program changed what is ours: putting it right", zap.Int("differences", a.found), zap.String("first", a.first))
	}
	l.opt.Health.Audited(a.cost, a.found)
	a.busy, a.facts = false, nil
	l.heal.apart = max(l.opt.AuditPeriod, time.Duration(float64(a.cost)/l.opt.AuditCPU))
	a.next = l.now().Add(l.heal.apart)
	return false
}

// compare holds a piece of what the kernel has against the mirror.
func (l *Loop) compare(k ipvs.Key, piece *ipvs.Frontend) {
	pass := l.audits.pass
	c := l.cells[k]
	if piece.Server.Exists() && (c != nil || l.want(k).Frontend != nil) {
		switch {
		case c == nil || c.have == nil || !looksLike(piece.Server, c.have.Server):
			l.differs(k)
		default:
			c.seen.server = pass
			if c.have.Server.Flags != 0 && !c.unknown {
				l.doubt(k) // flags and time-outs show only in a proper read
			}
		}
	}
	if piece.Guard.Owned && k == ipvs.Adopted {
		l.audits.adopted = true
	} else {
		l.compareGuard(k, c, &piece.Guard)
	}
	ipvs.FactsOf(k, piece, func(f ipvs.Fact) {
		l.audits.facts[f] = true
		if !l.present[f] {
			l.present[f] = true
			if !l.needs(f) {
				l.audits.found++
				l.queue.add(ipvs.AddrKey(f.Addr), classBulk)
			}
		}
	})
}

// compareGuard holds facts of the guard that are the Key's own against the mirror.
func (l *Loop) compareGuard(k ipvs.Key, c *cell, piece *ipvs.Guard) {
	known := func(is func(have *ipvs.Guard) bool) bool {
		if c == nil || c.have == nil || !is(&c.have.Guard) {
			l.differs(k)
			return false
		}
		return true
	}
	pass := l.audits.pass
	for i, s := range ipvs.KeySets {
		if piece.Has(s) && known(func(have *ipvs.Guard) bool {
			return have.Has(s) && (s != ipvs.SetRedirect || have.Redirect == piece.Redirect)
		}) {
			c.seen.sets[i] = pass
		}
	}
	for _, r := range piece.Ranges {
		if known(func(have *ipvs.Guard) bool { return slices.Contains(have.Ranges, r) }) {
			c.seen.sawRange(pass)
		}
	}
}

// looksLike compares what the detector sees of a virtual server.
func looksLike(seen, have ipvs.Server) bool {
	have.Timeout, have.Flags = 0, have.Flags&ipvs.Persistent
	seen.Timeout, seen.Flags = 0, seen.Flags&ipvs.Persistent
	return (&ipvs.Frontend{Server: seen}).Equal(&ipvs.Frontend{Server: have})
}

// missing ends a pass: what should have been seen and was not, is gone.
func (l *Loop) missing(ctx context.Context) {
	pass := l.audits.pass
	var missed []ipvs.Key
	for _, k := range sorted(l.cells) {
		c := l.cells[k]
		if l.pending(k) {
			continue
		}
		if c.unknown {
			l.doubt(k)
			continue
		}
		if c.have != nil && c.seen.missed(c.have, pass) {
			missed = append(missed, k)
		}
	}
	for _, k := range l.indeed(ctx, missed) {
		l.differs(k)
	}
	if l.adopted && !l.audits.adopted {
		l.adopted = false
		l.audits.found++
		l.queue.add(ipvs.Adopted, classBulk)
	}
	maps.DeleteFunc(l.present, func(f ipvs.Fact, _ bool) bool { return !l.audits.facts[f] })
	l.audits.found += l.lack(func(f ipvs.Fact) bool { return !l.audits.facts[f] })
}

// askAtMost is how many missed Keys are asked for at once: about what one slice of work reads.
const askAtMost = 64

// indeed leaves out of missed Keys those that the kernel holds all the same. Up to Linux 7.0 its list of virtual servers
// (ip_vs_info_seq_next in net/netfilter/ipvs/ip_vs_ctl.c) leaves some out where another network namespace has IPVS, too:
// read on after a page, it counts those of all namespaces and skips as many of ours. Of many missed ones some are gone
// for certain, and each is read at its turn anyway.
func (l *Loop) indeed(ctx context.Context, missed []ipvs.Key) []ipvs.Key {
	if len(missed) == 0 || len(missed) > askAtMost {
		return missed
	}
	found, err := l.kernel.Observe(ctx, missed)
	if err != nil {
		return missed // their turn will say why
	}
	return slices.DeleteFunc(missed, func(k ipvs.Key) bool {
		is, have := found[k].Have, l.cells[k].have
		return is != nil && own(is).Equal(own(have))
	})
}

// own is what of a Frontend is its Key's alone.
func own(f *ipvs.Frontend) *ipvs.Frontend {
	return &ipvs.Frontend{Server: f.Server, Guard: f.Guard.Own()}
}

// lack queues the Keys that need one of some shared facts, which the kernel does not hold, and counts them.
func (l *Loop) lack(gone func(ipvs.Fact) bool) int {
	var lacking []ipvs.Key
	for k := range l.desk.Keys() {
		if l.pending(k) {
			continue // is looked at anyway
		}
		lacks := false
		ipvs.FactsOf(k, l.want(k).Frontend, func(f ipvs.Fact) { lacks = lacks || gone(f) })
		if lacks {
			lacking = append(lacking, k)
		}
	}
	slices.SortFunc(lacking, ipvs.Key.Compare)
	for _, k := range lacking {
		l.queue.add(k, classBulk)
	}
	return len(lacking)
}

// differs queues a Key of which the kernel does not hold what it should. Where the mirror is not sure itself, as of
// what is withheld while parts of the cluster are missing, a difference is nobody's work.
func (l *Loop) differs(k ipvs.Key) {
	if c := l.cells[k]; c != nil && c.unknown {
		if !l.pending(k) { // else it is looked at anyway
			l.doubt(k)
		}
		return
	}
	if l.audits.found++; l.audits.first == "" {
		l.audits.first = k.String()
	}
	l.doubt(k)
}

// doubt has a Key read properly at its next turn.
func (l *Loop) doubt(k ipvs.Key) {
	if l.cells[k] == nil {
		l.cells[k] = &cell{}
	}
	l.cells[k].unknown = true
	l.queue.add(k, classBulk)
}

// pending reports whether a Key will have its turn anyway.
func (l *Loop) pending(k ipvs.Key) bool {
	_, queued := l.queue.where[k]
	return queued
}
