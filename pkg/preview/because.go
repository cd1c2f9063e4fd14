package preview

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// because finds out why, from what the desk says of each Service.
type because struct {
	start     *sync.Rehearsal
	explained map[cluster.ID]desk.Explanation
	services  map[cluster.ID]*cluster.Service
	// refused are the addresses that a Service may not have, and the first Service that wants one.
	refused map[netip.Addr]refusal
}

type refusal struct {
	service cluster.ID
	why     desk.Code
}

func newBecause(start *sync.Rehearsal, ids []cluster.ID) *because {
	b := &because{start: start, explained: map[cluster.ID]desk.Explanation{},
		services: map[cluster.ID]*cluster.Service{}, refused: map[netip.Addr]refusal{}}
	for _, id := range ids {
		s := start.Snapshot(id)
		e := s.Explain()
		b.explained[id], b.services[id] = e, s.Service
		for _, r := range e.Refused {
			if _, known := b.refused[r.Addr]; !known && r.Addr.IsValid() {
				b.refused[r.Addr] = refusal{id, r.Why}
			}
		}
	}
	return b
}

// reasons are all there are, by code.
var reasons = func() map[desk.Code]desk.Reason {
	all := map[desk.Code]desk.Reason{}
	for _, r := range desk.Reasons() {
		all[r.Code] = r
	}
	return all
}()

// Coded is the reason that a code stands for.
func Coded(c desk.Code) Reason {
	if c == desk.None {
		return Reason{}
	}
	r := reasons[c]
	return Reason{Code: c.String(), Why: r.Means, Do: r.Do}
}

// write says what a write is, whose, and why.
func (b *because) write(s ipvs.Step) Write {
	is := s.Op.Effect()
	w := Write{Verb: verbOf(is), Kind: kindOf(is), Set: string(is.Set), Line: s.Op.String()}
	if id := b.start.Want(s.Key).Service; id != (cluster.ID{}) {
		w.Service = id.String()
		w.Reason = b.ofService(id, s, is)
	} else if s.Key == ipvs.Adopted {
		w.Reason = Reason{Why: "It records that all that was found is taken over or gone."}
	} else if w.Verb == Go {
		id, why := b.nobodys(s.Key)
		w.Reason = why
		if id != (cluster.ID{}) {
			w.Service = id.String()
		}
	}
	return w
}

// ofService is why a write is done for a Service. What comes needs no reason.
func (b *because) ofService(id cluster.ID, s ipvs.Step, is ipvs.Effect) Reason {
	have := b.start.Found[s.Key].Have
	switch {
	case is.Table == ipvs.TableSets && is.Set == ipvs.SetOpen && is.Gone:
		_, why := b.start.Closed(s.Key)
		return Coded(why)
	case is.Table != ipvs.TableIPVS || have == nil:
		return Reason{}
	case is.Real.IsValid() && verbOf(is) == Go:
		return b.leftOut(id, s.Key, is.Real)
	case is.Kind == ipvs.KindSetReal:
		if i := slices.IndexFunc(have.Server.Reals, func(r ipvs.Real) bool { return r.Addr == is.Real }); i >= 0 {
			return Reason{Why: realServer(have.Server.Reals[i])}
		}
	case is.Kind == ipvs.KindSetServer:
		return Reason{Why: configuration(have.Server)}
	}
	return Reason{}
}

// realServer says how a real server is.
func realServer(r ipvs.Real) string {
	if r.Forward != ipvs.Masquerade && r.Forward != ipvs.LocalNode {
		return fmt.Sprintf("Its weight is %d, and it is not reached by masquerade.", r.Weight)
	}
	return fmt.Sprintf("Its weight is %d.", r.Weight)
}

// configuration says how a virtual server is configured.
func configuration(s ipvs.Server) string {
	affinity := "no affinity"
	if s.Flags&ipvs.Persistent != 0 {
		affinity = fmt.Sprintf("affinity for %d s", s.Timeout)
	}
	return fmt.Sprintf("Its scheduler is %s, with %s.", s.Scheduler, affinity)
}

// leftOut is why a frontend leads to a real server no more.
func (b *because) leftOut(id cluster.ID, k ipvs.Key, real netip.AddrPort) Reason {
	e := b.explained[id]
	for _, f := range e.Frontends {
		if f.Key != k {
			continue
		}
		for _, ep := range f.Endpoints {
			if ep.Addr == real && !ep.Used() {
				return Coded(ep.Why)
			}
		}
	}
	return Reason{Why: "No EndpointSlice of " + id.String() + " has it for this port.", Do: "Nothing: its connections go on until they end."}
}

// nobodys is why nothing is wanted of a Key, and of which Service that is to be said.
func (b *because) nobodys(k ipvs.Key) (cluster.ID, Reason) {
	if r, refused := b.refused[k.Addr]; refused {
		return r.service, Coded(r.why)
	}
	if id, why := b.start.Closed(k); why != desk.None && k.HasServer() {
		return id, Coded(why)
	}
	return cluster.ID{}, Reason{Why: "No Service has it."}
}
