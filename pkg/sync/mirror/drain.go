package mirror

import (
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// drain is a real server on its way out: weight 0, no new connections.
type drain struct {
	deadline time.Time // when patience ends
	quiet    time.Time // since when it was read without an active connection; zero: it has some
	over     bool      // it may go, by the connections that were read since the Key's last turn
}

// quietTime is how long a real server that has left the cluster must be without active connections before
// its inactive ones (half closed, or closed and remembered by the kernel for 2 min) are given up.
const quietTime = 10 * time.Second

// Count takes the connections of a Key's real servers, as they were read now, and reports whether some of those that
// drain may go by them, in the Key's next turn. Left says whether a real server has left the cluster altogether: while it
// has not, its pod may still be finishing what it has half closed.
func (m *Mirror) Count(k ipvs.Key, conns map[netip.AddrPort]ipvs.Conns, now time.Time, left func(netip.AddrPort) bool) (some bool) {
	c := m.cells[k]
	if c == nil {
		return false
	}
	for a, d := range c.drains {
		conns := conns[a]
		switch {
		case conns.Active > 0:
			d.quiet = time.Time{}
		case d.quiet.IsZero():
			d.quiet = now
		}
		quiet := !d.quiet.IsZero() && now.Sub(d.quiet) >= quietTime
		d.over = conns == ipvs.Conns{} || !now.Before(d.deadline) || quiet && left(a)
		c.drains[a] = d
		some = some || d.over
	}
	return some
}

// Reap lists the removals of a Key's real servers whose drain is over, so many at most, and as far as there is room among
// what the kernel removes.
func (m *Mirror) Reap(k ipvs.Key, want *ipvs.Frontend, now time.Time, most int) (ops []ipvs.Op) {
	c := m.cells[k]
	if c == nil || len(c.drains) == 0 {
		return nil
	}
	for _, r := range extraReals(c.have, want) {
		if !c.drains[r.Addr].over || r.Weight != 0 || len(ops) >= most || !m.trash.take(now) {
			continue
		}
		ops = append(ops, ipvs.DelReal{Key: k, Addr: r.Addr})
		if c.reaped == nil {
			c.reaped = map[netip.AddrPort]bool{}
		}
		c.reaped[r.Addr] = true
	}
	return ops
}

// Draining counts the real servers that drain.
func (m *Mirror) Draining() int { return m.draining }

// Drains reports whether a Key has some.
func (m *Mirror) Drains(k ipvs.Key) bool {
	c := m.cells[k]
	return c != nil && len(c.drains) > 0
}

// Room is how many real servers that drain may go now, by what the kernel still has of those that went; where none may, at
// is when the next may.
func (m *Mirror) Room(now time.Time) (n int, at time.Time) {
	if n = m.trash.room(now); n == 0 {
		at = m.trash.removed[0].Add(trashTime)
	}
	return n, at
}

// Deadline is when the first of a Key's real servers that drain has to go; zero: none drains.
func (m *Mirror) Deadline(k ipvs.Key) (at time.Time) {
	c := m.cells[k]
	if c == nil {
		return at
	}
	for _, d := range c.drains {
		if at.IsZero() || d.deadline.Before(at) {
			at = d.deadline
		}
	}
	return at
}

// Drain is a real server on its way out.
type Drain struct {
	Addr netip.AddrPort
	// Until is when its connections are given up at the latest.
	Until time.Time
}

// DrainsOf gives the real servers of a Key that drain, by address, in a list of its own.
func (m *Mirror) DrainsOf(k ipvs.Key) (list []Drain) {
	c := m.cells[k]
	if c == nil {
		return nil
	}
	for a, d := range c.drains {
		list = append(list, Drain{a, d.deadline})
	}
	slices.SortFunc(list, func(a, b Drain) int { return a.Addr.Compare(b.Addr) })
	return list
}

// Settled reports whether the kernel holds what is wanted of a Key, as far as is known: this process wrote it or found it.
// Right says whether what was wanted last is that.
func (m *Mirror) Settled(k ipvs.Key, right func(was *ipvs.Frontend) bool) bool {
	c := m.cells[k]
	return c != nil && right(c.wanted)
}

func (m *Mirror) setDrains(c *cell, drains map[netip.AddrPort]drain) {
	m.draining += len(drains) - len(c.drains)
	c.drains = drains
}

// settleDrains makes the mirror of what was confirmed: what is wanted, and the real servers that drain.
func (m *Mirror) settleDrains(k ipvs.Key, c *cell, want *ipvs.Frontend, deadline time.Time) {
	left := c.staying(k, want)
	if len(left) == 0 {
		c.have = want
		m.setDrains(c, nil)
		return
	}
	drains := make(map[netip.AddrPort]drain, len(left))
	fe := *want
	fe.Server.Reals = append([]ipvs.Real(nil), want.Server.Reals...)
	for _, r := range left {
		r.Weight = 0
		fe.Server.Reals = append(fe.Server.Reals, r)
		d, ok := c.drains[r.Addr]
		if !ok {
			d = drain{deadline: deadline}
		}
		d.over = false
		drains[r.Addr] = d
	}
	fe.Server.Reals = ipvs.SortReals(fe.Server.Reals)
	c.have = &fe
	m.setDrains(c, drains)
}

// staying lists the real servers that are not wanted and were not removed by the plan just done.
func (c *cell) staying(k ipvs.Key, want *ipvs.Frontend) (left []ipvs.Real) {
	if !k.Proto.Drains() {
		return nil
	}
	for _, r := range extraReals(c.have, want) {
		if !c.reaped[r.Addr] {
			left = append(left, r)
		}
	}
	c.reaped = nil
	return left
}

// extraReals are the real servers that the kernel has and nobody wants.
func extraReals(have, want *ipvs.Frontend) (extra []ipvs.Real) {
	if have == nil {
		return nil
	}
	wanted := want.Server.Reals
	for _, r := range have.Server.Reals {
		for len(wanted) > 0 && wanted[0].Addr.Compare(r.Addr) < 0 {
			wanted = wanted[1:]
		}
		if len(wanted) == 0 || wanted[0].Addr != r.Addr {
			extra = append(extra, r)
		}
	}
	return extra
}
