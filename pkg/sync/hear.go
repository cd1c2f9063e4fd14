package sync

import (
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// hear takes what changed in the cluster and decides anew for the Services concerned.
func (l *Loop) hear() {
	dirty, nodeChanged, synced := l.model.Take()
	l.synced = l.synced || synced
	if !l.complete && l.model.Complete() {
		l.complete, l.started = true, false // read the kernel again, for what may now be removed
	}
	l.dirty = append(l.dirty, dirty...)
	if nodeChanged {
		l.opt.Health.SetNode(l.model.Node().Stays())
	}
	if len(dirty) > 0 {
		l.opt.Health.Heard(l.model.Changes())
	}
	for _, name := range l.opt.Health.TakeCheckNews() {
		l.again([]cluster.ID{{Namespace: name.Namespace, Name: name.Name}})
	}
	if !l.local.known {
		return // nothing can be decided before the node's addresses are known
	}
	if nodeChanged || slices.Contains(dirty, kubernetes) {
		l.settleSite(l.site.Local)
	}
	n := min(len(l.dirty), sliceServices)
	for _, id := range l.dirty[:n] {
		// What follows from it for other Services is decided at once: between the two the kernel would be
		// given a state that nobody wants.
		for next := []cluster.ID{id}; len(next) > 0; next = next[1:] {
			next = append(next, l.decide(next[0])...)
		}
	}
	if l.dirty = l.dirty[n:]; len(l.dirty) == 0 {
		l.dirty = nil
	}
	l.tellNode()
}

// sliceServices is how many Services are decided at a time, so that an urgent Key need not wait for all.
const sliceServices = 128

// decide compiles a Service and queues the Keys whose wanted state changed. It returns other Services that
// must be decided anew because a virtual IP came or went that is an endpoint of theirs, or because they share an
// address or a port with it.
func (l *Loop) decide(id cluster.ID) []cluster.ID {
	frag, problems := l.compile(id)
	watch := l.vipsBefore(id, frag)
	touched, beaten, also := l.ledger.replace(id, frag) // who won or lost a Key has to say so
	mark(l.sensitive, id, frag.Sensitive)
	mark(l.zonal, id, frag.Zonal)
	l.countNoLocal(id, frag.NoLocal)
	also = append(also, l.checkPorts.replace(id, frag.Local)...)
	also = append(also, l.checkedAt(touched, id)...)
	problems = append(problems, l.checkHealth(id, frag.Local)...)
	l.awaitKeys(id, touched)
	class := l.classOf(id, classChange)
	for _, k := range touched {
		if l.started {
			l.queue.add(k, class)
		}
	}
	for _, a := range l.ledger.freed {
		// What hangs on the frontend's own address goes with its Key; a pod's fact has no Key of its own.
		if f := (fact{factHairpin, a}); l.started && l.present[f] && l.ledger.needs[f] == 0 {
			l.queue.add(ipvs.AddrKey(a), class)
		}
	}
	l.ledger.freed = l.ledger.freed[:0]
	for a, was := range watch {
		if is := l.ledger.isVIP(a); is != was {
			also = append(also, l.servicesWithEndpoint(a, is)...)
		}
	}
	for _, b := range beaten {
		own := l.site.isOwn(b.key.Addr)
		problems = append(problems, Problem{Reason: ReasonAddressTaken, Text: b.key.String() + " belongs to Service " + b.owner.String(), Here: own, Anywhere: !own})
	}
	l.tell(id, problems)
	slices.SortFunc(also, cluster.ID.Compare)
	return slices.Compact(also)
}

// mark puts a Service into a set or takes it out.
func mark(set map[cluster.ID]struct{}, id cluster.ID, in bool) {
	if in {
		set[id] = struct{}{}
	} else {
		delete(set, id)
	}
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

// compile says what a Service wants. Endpoints that are virtual IPs of ours are left out: IPVS would send the
// connection to itself.
func (l *Loop) compile(id cluster.ID) (frag Fragment, problems []Problem) {
	for a, ids := range l.refused {
		delete(ids, id)
		if len(ids) == 0 {
			delete(l.refused, a)
		}
	}
	svc, eps := l.model.Get(id)
	for {
		frag = Compile(svc, eps, l.site, l.opt.Compile)
		bad := l.vipsAmong(frag)
		if len(bad) == 0 {
			return frag, append(problems, frag.Problems...)
		}
		for _, a := range bad {
			if l.refused[a] == nil {
				l.refused[a] = map[cluster.ID]struct{}{}
			}
			l.refused[a][id] = struct{}{}
			here := slices.ContainsFunc(eps, func(ep cluster.Endpoint) bool { return ep.Addr == a && ep.NodeName == l.site.Node.Name })
			unknown := slices.ContainsFunc(eps, func(ep cluster.Endpoint) bool { return ep.Addr == a && ep.NodeName == "" })
			problems = append(problems, Problem{Reason: ReasonVirtualIPEndpoint, Text: "endpoint " + a.String() + " is a virtual IP of a Service: left out", Here: here, Anywhere: unknown})
		}
		var good []cluster.Endpoint
		for _, ep := range eps {
			if !slices.Contains(bad, ep.Addr) {
				good = append(good, ep)
			}
		}
		eps = good
	}
}

// vipsAmong lists the endpoints of a Service that are virtual IPs of ours, or would be.
func (l *Loop) vipsAmong(f Fragment) (vips []netip.Addr) {
	own := func(a netip.Addr) bool {
		i, _ := slices.BinarySearchFunc(f.Claims, a, func(c KeyClaim, a netip.Addr) int { return c.Key.Addr.Compare(a) })
		return i < len(f.Claims) && f.Claims[i].Key.Addr == a && f.Claims[i].Claim.Want.Guard.VIP
	}
	for _, c := range f.Claims {
		for _, r := range c.Claim.Want.Server.Reals {
			if a := r.Addr.Addr(); l.ledger.isVIP(a) || own(a) {
				vips = append(vips, a)
			}
		}
	}
	for _, a := range f.Considered {
		if l.ledger.isVIP(a) || own(a) {
			vips = append(vips, a)
		}
	}
	return ipvs.SortAddrs(vips)
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
	for id, addrs := range l.ledger.considered {
		if _, is := slices.BinarySearchFunc(addrs, a, netip.Addr.Compare); is {
			found[id] = true
			ids = append(ids, id)
		}
	}
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
