package sync

import (
	"net/netip"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// reap lists the removals of real servers whose drain is over: no connection left, or no patience.
func (l *Loop) reap(k ipvs.Key, c *cell, want *ipvs.Frontend, seen ipvs.Observed) (ops []ipvs.Op) {
	now := time.Now()
	for _, r := range extraReals(c.have, want) {
		deadline, draining := c.drains[r.Addr]
		if draining && r.Weight == 0 && (seen.Conns[r.Addr] == ipvs.Conns{} || !now.Before(deadline)) {
			ops = append(ops, ipvs.DelReal{Key: k, Addr: r.Addr})
			if c.reaped == nil {
				c.reaped = map[netip.AddrPort]bool{}
			}
			c.reaped[r.Addr] = true
		}
	}
	return ops
}

// settleDrains makes the mirror of what was confirmed: what is wanted, and the real servers that drain.
func (l *Loop) settleDrains(k ipvs.Key, c *cell, want *ipvs.Frontend) {
	left := c.staying(k, want)
	if len(left) == 0 {
		c.have, c.drains = want, nil
		return
	}
	now := time.Now()
	drains := make(map[netip.AddrPort]time.Time, len(left))
	fe := *want
	fe.Server.Reals = append([]ipvs.Real(nil), want.Server.Reals...)
	for _, r := range left {
		r.Weight = 0
		fe.Server.Reals = append(fe.Server.Reals, r)
		deadline, ok := c.drains[r.Addr]
		if !ok {
			deadline = now.Add(l.opt.DrainDeadline)
		}
		drains[r.Addr] = deadline
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
