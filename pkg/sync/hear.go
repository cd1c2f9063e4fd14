package sync

import (
	"net/netip"
	"strings"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// hear takes what changed in the cluster and decides anew for the Services concerned.
func (l *Loop) hear() {
	dirty, _, synced := l.model.Take()
	l.synced = l.synced || synced
	if !l.complete && l.model.Complete() {
		l.complete, l.started = true, false // read the kernel again, for what may now be removed
	}
	for len(dirty) > 0 {
		var next []cluster.ID
		for _, id := range dirty {
			next = append(next, l.decide(id)...)
		}
		dirty = next
	}
}

// decide compiles a Service and queues the Keys whose wanted state changed. It returns other Services that
// must be decided anew because a virtual IP came or went that is an endpoint of theirs.
func (l *Loop) decide(id cluster.ID) (also []cluster.ID) {
	svc, eps := l.model.Get(id)
	eps, problems := l.withoutVIPs(id, svc, eps)
	frag := Compile(svc, eps, l.model.Node(), l.opt.Compile)
	watch := l.vipsBefore(id, frag)
	touched, beaten := l.ledger.replace(id, frag)
	class := l.classOf(id, classChange)
	for _, k := range touched {
		if l.started {
			l.queue.add(k, class)
		}
	}
	for a, was := range watch {
		if is := l.ledger.isVIP(a); is != was {
			also = append(also, l.servicesWithEndpoint(a, is)...)
		}
	}
	for _, b := range beaten {
		problems = append(problems, b.key.String()+" belongs to Service "+b.owner.String())
	}
	l.tell(id, problems)
	return also
}

// classOf makes the API server's and DNS Services urgent: nothing in the cluster works without them.
func (l *Loop) classOf(id cluster.ID, otherwise class) class {
	if id == (cluster.ID{Namespace: "default", Name: "kubernetes"}) {
		return classUrgent
	}
	for _, k := range l.ledger.byService[id] {
		if k.Port == 53 {
			return classUrgent
		}
	}
	return otherwise
}

// withoutVIPs leaves out endpoints that are virtual IPs of ours: IPVS would send the connection to itself.
func (l *Loop) withoutVIPs(id cluster.ID, svc *cluster.Service, eps []cluster.Endpoint) (good []cluster.Endpoint, problems []string) {
	for a, ids := range l.refused {
		delete(ids, id)
		if len(ids) == 0 {
			delete(l.refused, a)
		}
	}
	own := map[netip.Addr]bool{}
	if svc != nil {
		for _, a := range svc.ClusterIPs {
			own[a] = true
		}
	}
	bad := func(a netip.Addr) bool { return own[a] || l.ledger.isVIP(a) }
	clean := true
	for i, ep := range eps {
		if !bad(ep.Addr) {
			if !clean {
				good = append(good, ep)
			}
			continue
		}
		if clean {
			good, clean = append([]cluster.Endpoint(nil), eps[:i]...), false
		}
		if l.refused[ep.Addr] == nil {
			l.refused[ep.Addr] = map[cluster.ID]struct{}{}
		}
		l.refused[ep.Addr][id] = struct{}{}
		problems = append(problems, "endpoint "+ep.Addr.String()+" is a virtual IP of a Service: left out")
	}
	if clean {
		return eps, nil
	}
	return good, problems
}

// vipsBefore notes of each address that a Service has or gets whether it is a virtual IP now.
func (l *Loop) vipsBefore(id cluster.ID, f Fragment) map[netip.Addr]bool {
	watch := map[netip.Addr]bool{}
	note := func(k ipvs.Key) { watch[k.Addr] = l.ledger.isVIP(k.Addr) }
	for _, k := range l.ledger.byService[id] {
		note(k)
	}
	for _, c := range f.Claims {
		note(c.Key)
	}
	return watch
}

// servicesWithEndpoint finds the Services for which it matters that an address became a virtual IP or is
// one no more. Only where there are any does it look at more than a map entry.
func (l *Loop) servicesWithEndpoint(a netip.Addr, isVIP bool) (ids []cluster.ID) {
	if !isVIP {
		for id := range l.refused[a] {
			ids = append(ids, id)
		}
		return ids
	}
	if l.ledger.reals[a] == 0 {
		return nil
	}
	found := map[cluster.ID]bool{}
	for _, claims := range l.ledger.claims {
		for _, c := range claims {
			for _, r := range c.Want.Server.Reals {
				if r.Addr.Addr() == a && !found[c.Service] {
					found[c.Service] = true
					ids = append(ids, c.Service)
				}
			}
		}
	}
	return ids
}

// tell logs what is wrong with a Service when it changes, and when it is mended.
func (l *Loop) tell(id cluster.ID, problems []string) {
	for _, p := range l.model.Problems(id) {
		problems = append(problems, p.String())
	}
	text := strings.Join(problems, "; ")
	if text == l.told[id] {
		return
	}
	if text == "" {
		delete(l.told, id)
		l.log.Info("Service is in order again", zap.Stringer("service", id))
		return
	}
	l.told[id] = text
	l.log.Warn("parts of a Service cannot be used", zap.Stringer("service", id), zap.Strings("problems", problems))
}
