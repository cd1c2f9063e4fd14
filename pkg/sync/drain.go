package sync

import (
	"context"
	"net/netip"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// drain counts the connections of real servers that drain, and gives a Key its turn once some of them may go. Nobody else
// asks for them, and nobody waits for them: they take no new connections. So it asks for no more Keys at once than may
// go by what the kernel has room for, and for none while there is no room.
type drain struct {
	shared
	reader Reader
	last   time.Time // when it last asked
}

const (
	// drainAgain is the least time until what drains is looked at: a deadline may be none at all.
	drainAgain = 100 * time.Millisecond
	// drainKeys is how many Keys are asked for at a time.
	drainKeys = 64
	// drainRate is how many are a second in the long run, where many drain. Of a thousand each is looked at every 10 s; the
	// kernel has room for 7 a second that go.
	drainRate = 100
	// drainPatience is for how long work on Keys goes first, however much there is.
	drainPatience = time.Second
)

// due is when some are to be asked for that may go then. What becomes free of the kernel's room is gathered.
func (d *drain) due(now time.Time) time.Time {
	due := d.draining.next(now)
	if due.IsZero() || !d.stage.complete {
		return time.Time{}
	}
	if room, at := d.mirror.Room(now); room == 0 && due.Before(at.Add(d.opt.DrainPoll)) {
		return at.Add(d.opt.DrainPoll)
	}
	return due
}

// tend asks for some of those whose time has come.
func (d *drain) tend(ctx context.Context) (more bool) {
	now := d.now()
	if due := d.due(now); due.IsZero() || now.Before(due) || d.queue.due != [2]int{} && now.Sub(d.last) < drainPatience {
		return false
	}
	d.last = now
	room, _ := d.mirror.Room(now)
	turns := d.draining.pop(now, min(drainKeys, room))
	var ask []ipvs.Key
	for _, t := range turns {
		if d.mirror.Drains(t.key) {
			ask = append(ask, t.key)
		}
	}
	conns, err := d.reader.Connections(ctx, ask)
	if ctx.Err() != nil {
		d.draining.back(turns)
		return false
	}
	for _, k := range ask {
		switch {
		case err != nil:
			d.doubt(k) // it is read in its turn, which says why it cannot be
			more = true
		case d.mirror.Count(k, conns[k], now, d.leftOf(d.want(k))):
			d.queue.add(k, classBulk)
			more = true
		default:
			d.drainLater(k)
		}
	}
	next := d.due(now)
	return more || !next.IsZero() && !next.After(now)
}

// leftOf says of real servers of a Service whether they have left the cluster altogether.
func (s shared) leftOf(w desk.Wish) func(netip.AddrPort) bool {
	return func(r netip.AddrPort) bool { return !s.desk.Lists(w.Service, r) }
}

// drainLater has the connections of a Key's real servers that drain asked for when it is time.
func (s shared) drainLater(k ipvs.Key) {
	now := s.now()
	at := now.Add(max(s.opt.DrainPoll, time.Duration(s.draining.len())*time.Second/drainRate))
	if last := s.mirror.Deadline(k); !last.IsZero() && last.Before(at) {
		at = last
	}
	if soon := now.Add(drainAgain); at.Before(soon) {
		at = soon
	}
	s.draining.addAt(k, at, classBulk)
}
