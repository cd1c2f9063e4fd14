package inspect

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Counts are what the kernel counts, by Key.
type Counts map[ipvs.Key]ipvs.Counted

// Count adds what the kernel counts to a row. Where the kernel does not have what should be open, it waits.
func (r *Row) Count(counts Counts) {
	k, is := r.Key()
	c, found := counts[k]
	switch {
	case !is || r.State == Taken || r.State == Forbidden:
	case found:
		r.Load = loadOf(c)
		r.Scheduler = c.Server.Scheduler
	case r.State == Open:
		r.State, r.Reason = Waiting, Reason{Why: "The kernel does not have it."}
	}
}

// loadOf is that of a virtual server.
func loadOf(c ipvs.Counted) Load {
	l := counters(c.Counters)
	for _, r := range c.Reals {
		l.Active += uint64(r.Active)
		l.Inactive += uint64(r.Inactive)
	}
	return l
}

func counters(c ipvs.Counters) Load {
	return Load{Conns: c.Conns, In: c.In.Bytes, Out: c.Out.Bytes, Rate: c.Rates.Conns}
}

// Keys are those of which the kernel may count something.
func (s *Service) Keys() (keys []ipvs.Key) {
	for i := range s.Frontends {
		if k, is := s.Frontends[i].Key(); is && s.Frontends[i].State != Taken {
			keys = append(keys, k)
		}
	}
	return keys
}

// Count adds what the kernel counts.
func (s *Service) Count(counts Counts) {
	for i := range s.Frontends {
		s.Frontends[i].Count(counts)
	}
}

// Count adds what the kernel counts to a frontend and its backends.
func (f *Frontend) Count(counts Counts) {
	f.Row.Count(counts)
	if f.State == Taken {
		return
	}
	k, _ := f.Key()
	c, found := counts[k]
	if !found {
		return
	}
	reals := map[string]ipvs.CountedReal{}
	for _, r := range c.Reals {
		reals[r.Addr.String()] = r
	}
	for i := range f.Of {
		b := &f.Of[i]
		r, has := reals[b.Address]
		switch delete(reals, b.Address); {
		case has:
			b.count(r, c)
		case b.State == Ready:
			b.State = Missing
		}
	}
	for _, r := range c.Reals {
		if _, unknown := reals[r.Addr.String()]; unknown {
			b := Backend{Address: r.Addr.String(), State: Stray}
			b.count(r, c)
			f.Of = append(f.Of, b)
		}
	}
}

func (b *Backend) count(r ipvs.CountedReal, of ipvs.Counted) {
	b.Weight, b.Persistent, b.Load = r.Weight, r.Persistent, counters(r.Counters)
	b.Active, b.Inactive = uint64(r.Active), uint64(r.Inactive)
	if of.Counters.Conns > 0 {
		b.Share = min(float64(r.Counters.Conns)/float64(of.Counters.Conns), 1)
	}
}

// ForeignRow is a virtual server of which nobody knows whose it is.
func ForeignRow(c ipvs.Counted) Row {
	f := ForeignFrontend(c)
	return f.Row
}

// ForeignFrontend is one with its real servers.
func ForeignFrontend(c ipvs.Counted) Frontend {
	f := Frontend{Row: Row{Protocol: strings.ToUpper(c.Key.Proto.String()), Frontend: addressOf(c.Key), Scheduler: c.Server.Scheduler, State: Foreign, Load: loadOf(c)},
		Affinity: c.Server.Timeout, Of: []Backend{}}
	for _, r := range c.Reals {
		b := Backend{Address: r.Addr.String(), State: Ready}
		if r.Weight == 0 {
			b.State = Draining
		} else {
			f.Backends++
		}
		b.count(r, c)
		f.Of = append(f.Of, b)
	}
	slices.SortFunc(f.Of, func(a, b Backend) int {
		x, _ := netip.ParseAddrPort(a.Address)
		y, _ := netip.ParseAddrPort(b.Address)
		return cmp.Or(x.Compare(y), cmp.Compare(a.Address, b.Address))
	})
	return f
}

// UnnamedRow is a virtual server where no agent says whose it is: its state is what the kernel makes of a new connection.
func UnnamedRow(c ipvs.Counted) Row {
	r := ForeignRow(c)
	if r.State = Open; r.Backends == 0 {
		r.State = NoEndpoints
	}
	return r
}
