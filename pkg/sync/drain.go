package sync

import (
	"net/netip"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// drain is a real server on its way out: weight 0, no new connections.
type drain struct {
	deadline time.Time // when patience ends
	quiet    time.Time // since when it was seen without an active connection; zero: it has some
}

// quietTime is how long a real server that has left the cluster must be without active connections before
// its inactive ones (half closed, or closed and remembered by the kernel for 2 min) are given up.
const quietTime = 10 * time.Second

// reap lists the removals of real servers whose drain is over.
func (l *Loop) reap(k ipvs.Key, c *cell, want *ipvs.Frontend, seen ipvs.Observed) (ops []ipvs.Op) {
	now := l.now()
	for _, r := range extraReals(c.have, want) {
		d, draining := c.drains[r.Addr]
		if !draining || r.Weight != 0 {
			continue
		}
		conns := seen.Conns[r.Addr]
		switch {
		case conns.Active > 0:
			d.quiet = time.Time{}
		case d.quiet.IsZero():
			d.quiet = now
		}
		c.drains[r.Addr] = d
		quiet := !d.quiet.IsZero() && now.Sub(d.quiet) >= quietTime
		over := conns == ipvs.Conns{} || !now.Before(d.deadline) || quiet && l.leftEverySlice(k, r.Addr)
		if !over || !l.trash.take(now) {
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

// leftEverySlice: no slice of the Service names the endpoint any more, ready or not. While one does, the
// pod may still be finishing what it has half closed.
func (l *Loop) leftEverySlice(k ipvs.Key, addr netip.AddrPort) bool {
	wish := l.want(k)
	return wish.Frontend == nil || !l.desk.Lists(wish.Service, addr)
}

// settleDrains makes the mirror of what was confirmed: what is wanted, and the real servers that drain.
func (l *Loop) settleDrains(k ipvs.Key, c *cell, want *ipvs.Frontend) {
	left := c.staying(k, want)
	l.standing.draining += len(left) - len(c.drains)
	if len(left) == 0 {
		c.have, c.drains = want, nil
		return
	}
	now := l.now()
	drains := make(map[netip.AddrPort]drain, len(left))
	fe := *want
	fe.Server.Reals = append([]ipvs.Real(nil), want.Server.Reals...)
	for _, r := range left {
		r.Weight = 0
		fe.Server.Reals = append(fe.Server.Reals, r)
		d, ok := c.drains[r.Addr]
		if !ok {
			d = drain{deadline: now.Add(l.opt.DrainDeadline)}
		}
		drains[r.Addr] = d
	}
	fe.Server.Reals = ipvs.SortReals(fe.Server.Reals)
	c.have, c.drains = &fe, drains
	l.queue.addAt(k, now.Add(l.opt.DrainPoll))
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

// trash paces the removal of real servers. The kernel keeps each for at least 120 s in a list that every
// later add scans (ip_vs_trash_get_dest in ip_vs_ctl.c): 10,000 in it make an add 11 times slower. Draining
// ones can wait at weight 0, where they cost nothing.
type trash struct{ removed []time.Time }

const (
	trashTime = 130 * time.Second // the kernel's timer may be late
	trashRoom = 900
)

// take takes a place in the list for a removal that can wait; false: there is none.
func (t *trash) take(now time.Time) bool {
	for len(t.removed) > 0 && now.Sub(t.removed[0]) > trashTime {
		t.removed = t.removed[1:]
	}
	if len(t.removed) >= trashRoom {
		return false
	}
	t.removed = append(t.removed, now)
	return true
}

// note counts what a confirmed operation put into the list without asking: a Service and a UDP endpoint go
// at once, however full it is.
func (t *trash) note(now time.Time, op ipvs.Op, c *cell) {
	n := 0
	switch o := op.(type) {
	case ipvs.DelReal:
		if !o.Key.Proto.Drains() {
			n = 1
		}
	case ipvs.DelServer:
		if c != nil && c.have != nil {
			n = len(c.have.Server.Reals)
		}
	}
	for range min(n, trashRoom) {
		t.removed = append(t.removed, now)
	}
	if extra := len(t.removed) - trashRoom; extra > 0 {
		t.removed = t.removed[extra:]
	}
}
