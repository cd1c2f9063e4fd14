package mirror

import (
	"maps"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Pass holds the kernel against a Mirror, piece by piece, as the audit meets them: how far it has come.
type Pass struct {
	mirror *Mirror
	number uint32 // 0: none was begun yet
	busy   bool   // one is under way
	void   bool   // and concludes nothing: the Mirror was made anew since it began
	// facts are the shared facts that it met, or that were written meanwhile.
	facts map[ipvs.Fact]bool
	// adopted: so was the record of the adoption.
	adopted bool
}

// meeting says in which pass the parts of a Key were last met as they should be, or written by us.
type meeting struct {
	server uint32
	sets   [len(ipvs.KeySets)]uint32 // of ipvs.KeySets
	// ranges are how many of the source ranges were met in the pass; -1: all of them.
	ranges     int
	rangesPass uint32
}

// all is the meeting of a Key that was just written.
func (p *Pass) all() meeting {
	s := meeting{server: p.number, ranges: -1, rangesPass: p.number}
	for i := range s.sets {
		s.sets[i] = p.number
	}
	return s
}

// meetFact notes a shared fact that the kernel holds by other evidence than the pass under way: it may have come
// after the pass had been there.
func (p *Pass) meetFact(f ipvs.Fact) {
	if p.busy {
		p.facts[f] = true
	}
}

// meetRange notes another source range.
func (s *meeting) meetRange(pass uint32) {
	if s.rangesPass != pass {
		s.ranges, s.rangesPass = 0, pass
	}
	if s.ranges >= 0 {
		s.ranges++
	}
}

// missed reports whether a part that a Key should have was not met in a pass.
func (s *meeting) missed(have *ipvs.Frontend, pass uint32) bool {
	for i, set := range ipvs.KeySets {
		if have.Guard.Has(set) && s.sets[i] != pass {
			return true
		}
	}
	n := len(have.Guard.Ranges)
	return have.Server.Exists() && s.server != pass || n > 0 && (s.rangesPass != pass || s.ranges >= 0 && s.ranges != n)
}

// Pass is the one that holds the kernel against this Mirror.
func (m *Mirror) Pass() *Pass { return &m.pass }

// Begin begins anew.
func (p *Pass) Begin() {
	*p = Pass{mirror: p.mirror, number: p.number + 1, busy: true, facts: map[ipvs.Fact]bool{}}
}

// Busy reports whether a pass is under way.
func (p *Pass) Busy() bool { return p.busy }

// Number counts the passes that were begun.
func (p *Pass) Number() uint32 { return p.number }

// Void reports whether the pass under way must conclude nothing from what it did not meet.
func (p *Pass) Void() bool { return p.void }

// Verdict is what comes of a piece of what the kernel has, held against the Mirror.
type Verdict uint8

// The verdicts.
const (
	// Same: it is as it is known.
	Same Verdict = iota
	// Unread: as far as it shows. Flags and time-outs show only in a proper read.
	Unread
	// Stranger: a virtual server of which nothing is known.
	Stranger
	// Other: it is not as it is known.
	Other
)

// Meet holds a piece of what the kernel has against the Mirror. Fresh hears of each shared fact that was not known. It
// is known from then on.
func (p *Pass) Meet(k ipvs.Key, piece *ipvs.Frontend, fresh func(ipvs.Fact)) (v Verdict) {
	c := p.mirror.cells[k]
	if piece.Server.Exists() {
		v = p.meetServer(c, piece.Server)
	}
	if piece.Guard.Owned && k == ipvs.Adopted {
		p.adopted = true
	} else if !p.meetGuard(c, &piece.Guard) {
		v = Other
	}
	ipvs.FactsOf(k, piece, func(f ipvs.Fact) {
		p.facts[f] = true
		if !p.mirror.facts[f] {
			p.mirror.facts[f] = true
			fresh(f)
		}
	})
	return v
}

func (p *Pass) meetServer(c *cell, s ipvs.Server) Verdict {
	switch {
	case c == nil:
		return Stranger
	case c.have == nil || !looksLike(s, c.have.Server):
		return Other
	}
	c.met.server = p.number
	if c.have.Server.Hidden() && !c.doubted {
		return Unread
	}
	return Same
}

// meetGuard holds facts of the guard that are the Key's own against the Mirror.
func (p *Pass) meetGuard(c *cell, piece *ipvs.Guard) (same bool) {
	same = true
	known := func(is func(have *ipvs.Guard) bool) bool {
		ok := c != nil && c.have != nil && is(&c.have.Guard)
		same = same && ok
		return ok
	}
	for i, s := range ipvs.KeySets {
		if piece.Has(s) && known(func(have *ipvs.Guard) bool {
			return have.Has(s) && (s != ipvs.SetRedirect || have.Redirect == piece.Redirect)
		}) {
			c.met.sets[i] = p.number
		}
	}
	for _, r := range piece.Ranges {
		if known(func(have *ipvs.Guard) bool { return slices.Contains(have.Ranges, r) }) {
			c.met.meetRange(p.number)
		}
	}
	return same
}

// looksLike compares what an audit meets of a virtual server.
func looksLike(met, have ipvs.Server) bool {
	return met.Scheduler == have.Scheduler && met.Flags&ipvs.Persistent == have.Flags&ipvs.Persistent &&
		slices.EqualFunc(met.Reals, have.Reals, func(m, h ipvs.Real) bool { h.Most = 0; return m == h })
}

// Missed lists the Keys of which the pass did not meet all that should be there, and those that are doubted anyway; in
// the order of their use, without those that are left out.
func (p *Pass) Missed(leave func(ipvs.Key) bool) (missed, doubted []ipvs.Key) {
	for k, c := range p.mirror.cells {
		switch {
		case leave(k):
		case c.doubted:
			doubted = append(doubted, k)
		case c.have != nil && c.met.missed(c.have, p.number):
			missed = append(missed, k)
		}
	}
	slices.SortFunc(missed, p.mirror.ByUse) // few, where all are many
	slices.SortFunc(doubted, ipvs.Key.Compare)
	return missed, doubted
}

// Conclude takes as gone what a pass did not meet of the shared facts and of the adoption, and reports whether that was
// so with the latter.
func (p *Pass) Conclude() (unadopted bool) {
	m := p.mirror
	maps.DeleteFunc(m.facts, func(f ipvs.Fact, _ bool) bool { return !p.facts[f] })
	unadopted = m.adopted && !p.adopted
	m.adopted = m.adopted && p.adopted
	return unadopted
}

// Met reports whether the pass met a shared fact.
func (p *Pass) Met(f ipvs.Fact) bool { return p.facts[f] }

// End ends it.
func (p *Pass) End() { p.busy, p.facts = false, nil }
