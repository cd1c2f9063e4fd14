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
}

// quietTime is how long a real server that has left the cluster must be without active connections before
// its inactive ones (half closed, or closed and remembered by the kernel for 2 min) are given up.
const quietTime = 10 * time.Second

// Reap lists the removals of a Key's real servers whose drain is over, by the connections that were read now. Left says
// whether a real server has left the cluster altogether: while it has not, its pod may still be finishing what it has
// half closed. It lists so many at most.
func (m *Mirror) Reap(k ipvs.Key, want *ipvs.Frontend, conns map[netip.AddrPort]ipvs.Conns, now time.Time, most int, left func(netip.AddrPort) bool) (ops []ipvs.Op) {
	c := m.cells[k]
	if c == nil {
		return nil
	}
	for _, r := range extraReals(c.have, want) {
		d, draining := c.drains[r.Addr]
		if !draining || r.Weight != 0 {
			continue
		}
		conns := conns[r.Addr]
		switch {
		case conns.Active > 0:
			d.quiet = time.Time{}
		case d.quiet.IsZero():
			d.quiet = now
		}
		c.drains[r.Addr] = d
		quiet := !d.quiet.IsZero() && now.Sub(d.quiet) >= quietTime
		over := conns == ipvs.Conns{} || !now.Before(d.deadline) || quiet && left(r.Addr)
		if !over || len(ops) >= most || !m.trash.take(now) {
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

// Deadline is when the first of a Key's real servers that drain has to go; zero: all of them have to, and wait for their
// place among what the kernel removes.
func (m *Mirror) Deadline(k ipvs.Key, now time.Time) (at time.Time) {
	c := m.cells[k]
	if c == nil {
		return at
	}
	room := m.trash.room(now)
	for _, d := range c.drains {
		if (room || !d.deadline.Before(now)) && (at.IsZero() || d.deadline.Before(at)) {
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
