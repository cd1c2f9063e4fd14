package inspect

import (
	"net/netip"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// reasonOf is what a code stands for.
func reasonOf(c desk.Code) Reason { return Reason(preview.Coded(c)) }

// ServiceOf says what the loop knows of a Service; what the kernel counts is added by Count. Nil: there is none that is
// ours.
func ServiceOf(served sync.Served) *Service {
	svc := served.Snapshot.Service
	if svc == nil {
		return nil
	}
	s := &Service{Service: served.ID.String(), Type: svc.Type.String(), InternalPolicy: svc.InternalPolicy(), ExternalPolicy: svc.ExternalPolicy(), Frontends: []Frontend{}, Problems: []Problem{}}
	explained := served.Snapshot.Explain()
	known := map[ipvs.Key]sync.Frontend{}
	for _, f := range served.Frontends {
		known[f.Key] = f
	}
	for _, e := range explained.Frontends {
		s.Frontends = append(s.Frontends, frontendOf(served, e, known[e.Key]))
	}
	for _, r := range explained.Refused {
		s.Problems = append(s.Problems, Problem{What: r.What(), Reason: reasonOf(r.Why)})
	}
	return s
}

func frontendOf(served sync.Served, e desk.Explained, is sync.Frontend) Frontend {
	f := Frontend{Row: Row{Service: served.ID.String(), Port: desk.PortOf(served.Snapshot.Service.Ports, e.Key, e.Rank).Name,
		Protocol: strings.ToUpper(e.Key.Proto.String()), Frontend: addressOf(e.Key), By: e.Rank.String(), State: Open, Reason: reasonOf(e.Why)}}
	if e.Redirect.IsValid() {
		f.Inside = e.Redirect.String()
	}
	if w := is.Want; w != nil && is.Owner == served.ID {
		f.Scheduler = w.Server.Scheduler
		if w.Server.Flags&ipvs.Persistent != 0 {
			f.Affinity = w.Server.Timeout
		}
	}
	f.Scheduling = preview.SchedulingOf(e.Shares)
	f.State = stateOf(e, is)
	switch f.State {
	case Taken:
		f.Why = "It is " + e.Owner.String() + "'s. " + f.Why
		return f
	case Failing:
		f.Reason = Reason{Why: "The kernel refuses it: " + is.Err, Do: "It is tried again by itself; see log " + f.Service + " and check."}
	case Waiting:
		if f.Reason == (Reason{}) {
			f.Why = "The kernel does not have it as it is wanted yet."
		}
	}
	f.backends(e, is, served.Snapshot.Site.Node.Name)
	return f
}

// stateOf is the worst that can be said of a frontend.
func stateOf(e desk.Explained, is sync.Frontend) State {
	switch {
	case e.Owner != cluster.ID{}:
		return Taken
	case is.Tries > 0:
		return Failing
	case !is.Settled:
		return Waiting
	case e.Why == desk.NoEndpoint:
		return NoEndpoints
	case e.Why == desk.NoneForSome:
		return NoLocal
	}
	return Open
}

// backends puts down the endpoints, those that are used and those that are not, and what drains beside them.
func (f *Frontend) backends(e desk.Explained, is sync.Frontend, here string) {
	f.Of = []Backend{}
	drains := map[netip.AddrPort]sync.Draining{}
	for _, d := range is.Drains {
		drains[d.Addr] = d
	}
	grows := desk.GrowingByAddr(is.Grows)
	for _, ep := range e.Endpoints {
		b := Backend{Address: ep.Addr.String(), Node: ep.Node, State: Ready, Reason: reasonOf(ep.Why)}
		d, draining := drains[ep.Addr]
		switch {
		case draining:
			b.drains(d)
			delete(drains, ep.Addr)
		case !ep.Used():
			b.State = LeftOut
		default:
			if g, is := grows[ep.Addr]; is {
				b.Full, b.Grows = g.Of, when(g.Until)
			}
			f.Backends++
			if ep.Node == here && here != "" {
				f.Here++
			}
		}
		f.Of = append(f.Of, b)
	}
	for _, d := range is.Drains {
		if _, unlisted := drains[d.Addr]; unlisted {
			b := Backend{Address: d.Addr.String(), Reason: Reason{Why: "No EndpointSlice has it any more; its connections go on."}}
			b.drains(d)
			f.Of = append(f.Of, b)
		}
	}
}

func (b *Backend) drains(d sync.Draining) {
	b.State, b.Since, b.Until = Draining, when(d.Since), when(d.Until)
}

// when is a time, if there is one.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func addressOf(k ipvs.Key) string { return netip.AddrPortFrom(k.Addr, k.Port).String() }

// Key is the Key of a frontend; false: it is none, as an address that is forbidden as a whole.
func (r *Row) Key() (k ipvs.Key, is bool) {
	proto, known := map[string]ipvs.Proto{"TCP": ipvs.TCP, "UDP": ipvs.UDP, "SCTP": ipvs.SCTP}[r.Protocol]
	at, err := netip.ParseAddrPort(r.Frontend)
	return ipvs.Key{Addr: at.Addr(), Port: at.Port(), Proto: proto}, err == nil && known
}

// Rows are the frontends of a Service, and the addresses that it may not have.
func (s *Service) Rows() (rows []Row) {
	for _, f := range s.Frontends {
		rows = append(rows, f.Row)
	}
	for _, p := range s.Problems {
		address, _, _ := strings.Cut(p.What, " ")
		rows = append(rows, Row{Service: s.Service, Frontend: address, State: Forbidden, Reason: p.Reason})
	}
	return rows
}
