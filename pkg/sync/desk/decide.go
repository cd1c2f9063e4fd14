package desk

import (
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Decision is what follows from deciding a Service anew.
type Decision struct {
	// Touched are the Keys of which something else is wanted than before, in canonical order.
	Touched []ipvs.Key
	// Freed are the pods whose hairpin fact nobody needs any more. They are good until the next Decide.
	Freed []netip.Addr
	// Also are other Services that have to be decided at once: between the two something would be wanted that nobody
	// wants. Sorted.
	Also []cluster.ID
	// Urgent: nothing in the cluster works without the Service.
	Urgent bool
	// Problems are what of the Service is not served as it asks.
	Problems []Problem
	// NoLocal says which of its Local policies find no endpoint here.
	NoLocal NoLocal
	// Check is how its healthCheckNodePort is answered.
	Check Check
}

// Decide compiles a Service as it is now, and puts it in the place of what it was.
func (d *Desk) Decide(id cluster.ID, now time.Time) (is Decision) {
	d.ledger.freed = d.ledger.freed[:0]
	frag, problems := d.compile(id)
	frag.Claims = slices.DeleteFunc(frag.Claims, func(c KeyClaim) bool { return d.isLate(id, c) })
	watch := d.vipsBefore(id, frag)
	d.order.enlist(id, len(d.ledger.byService[id]) > 0, frag.Ours, len(frag.Claims))
	others := d.startAnew(id, frag, now)
	touched, beaten, also := d.ledger.replace(id, frag) // who won or lost a Key has to say so
	also = append(also, slices.DeleteFunc(d.outlived(frag), func(other cluster.ID) bool { return other == id })...)
	is.NoLocal = frag.NoLocal
	mark(d.sensitive, id, frag.Sensitive)
	mark(d.zonal, id, frag.Zonal)
	mark(d.dns, id, frag.DNS)
	d.schedules(id, frag.Schedulers)
	is.Urgent = d.Urgent(id)
	also = append(also, d.checkPorts.replace(id, frag.Local)...)
	also = append(also, d.checkedAt(touched, id)...)
	var unchecked []Problem
	is.Check, unchecked = d.check(id, frag.Local)
	problems = noteAll(problems, unchecked)
	is.Freed = slices.DeleteFunc(d.ledger.freed, func(a netip.Addr) bool { return d.ledger.needs[a][ipvs.FactHairpin] > 0 })
	for a, was := range watch {
		if is := d.ledger.isVIP(a); is != was {
			touched = d.withHeld(touched, d.KeysAt(a))
			also = append(also, d.servicesWithEndpoint(a, is)...)
		}
	}
	for _, b := range beaten {
		own := slices.Contains(d.site.Node.Addrs, b.key.Addr) // one that is not in the Node object may stand on every node
		problems = note(problems, Problem{Reason: ReasonAddressTaken, Here: own, Anywhere: !own},
			func() string { return b.key.String() + " belongs to Service " + b.owner.String() })
	}
	if others {
		touched = append(touched, d.ledger.byService[id]...)
		slices.SortFunc(touched, ipvs.Key.Compare)
		touched = slices.Compact(touched)
	}
	is.Touched = d.withHeld(touched, slices.Values(d.ledger.byService[id]))
	is.Problems = counted(d.withObjects(id, problems))
	slices.SortFunc(also, cluster.ID.Compare)
	is.Also = slices.Compact(also)
	return is
}

// mark puts a Service into a set or takes it out.
func mark(set map[cluster.ID]struct{}, id cluster.ID, in bool) {
	if in {
		set[id] = struct{}{}
	} else {
		delete(set, id)
	}
}

// dnsNames are those of the cluster's DNS: kubeadm, kops and the clouds call the Service kube-dns, whatever serves it.
var dnsNames = map[cluster.ID]bool{{Namespace: systemNamespace, Name: "kube-dns"}: true, {Namespace: systemNamespace, Name: "coredns"}: true}

// systemNamespace is where what every cluster needs is kept. Its users are not the cluster's users: none of those may
// come before the others.
const systemNamespace = "kube-system"

// isDNS: a Service is the cluster's DNS by the label that charts set who name it after their release.
func isDNS(svc *cluster.Service) bool { return svc.DNSLabel && svc.ID.Namespace == systemNamespace }

// Urgent reports whether nothing in the cluster works without a Service: it is the API server's or the cluster's DNS. A
// DNS Service that is known by its label alone is not before it was decided once.
func (d *Desk) Urgent(id cluster.ID) bool {
	_, labelled := d.dns[id]
	return id == kubernetes || dnsNames[id] || labelled
}

// compile says what a Service wants. Endpoints that are virtual IPs of ours are left out: IPVS would send the
// connection to itself.
func (d *Desk) compile(id cluster.ID) (frag Fragment, problems []Problem) {
	for _, a := range d.refusedOf[id] {
		if delete(d.refused[a], id); len(d.refused[a]) == 0 {
			delete(d.refused, a)
		}
	}
	svc, eps := d.cluster.Get(id)
	frag, bad := d.withoutVIPs(svc, eps)
	if svc == nil {
		frag.Holds, frag.Created = d.cluster.Held(id)
	}
	if d.refusedOf[id] = bad; len(bad) == 0 {
		delete(d.refusedOf, id)
	}
	here, unknown := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	if len(bad) > 0 {
		for _, ep := range eps {
			here[ep.Addr] = here[ep.Addr] || ep.NodeName == d.site.Node.Name
			unknown[ep.Addr] = unknown[ep.Addr] || ep.NodeName == ""
		}
	}
	for _, a := range bad {
		if d.refused[a] == nil {
			d.refused[a] = map[cluster.ID]struct{}{}
		}
		d.refused[a][id] = struct{}{}
		problems = note(problems, Problem{Reason: ReasonVirtualIPEndpoint, Here: here[a], Anywhere: unknown[a]},
			func() string { return "endpoint " + a.String() + " is a virtual IP of a Service: left out" })
	}
	return frag, noteAll(problems, frag.Problems)
}

// withoutVIPs compiles a Service without those of its endpoints that are virtual IPs, and lists these.
func (d *Desk) withoutVIPs(svc *cluster.Service, eps []cluster.Endpoint) (frag Fragment, vips []netip.Addr) {
	named := NamedOf(svc, d.cluster.Named)
	for {
		frag = Compile(svc, eps, named, d.site, d.opt)
		bad := d.vipsAmong(frag)
		if len(bad) == 0 {
			return frag, vips
		}
		vips = append(vips, bad...)
		var good []cluster.Endpoint
		for _, ep := range eps {
			if _, is := slices.BinarySearchFunc(bad, ep.Addr, netip.Addr.Compare); !is {
				good = append(good, ep)
			}
		}
		eps = good
	}
}

// served are the addresses of a Service's real servers, which its frontends share.
func (f Fragment) served() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		seen := map[*ipvs.Real]bool{}
		for _, c := range f.Claims {
			reals := c.Claim.Want.Server.Reals
			if len(reals) == 0 || seen[&reals[0]] {
				continue
			}
			seen[&reals[0]] = true
			for _, r := range reals {
				if !yield(r.Addr.Addr()) {
					return
				}
			}
		}
	}
}

// vipsAmong lists the endpoints of a Service that are virtual IPs of ours, or would be.
func (d *Desk) vipsAmong(f Fragment) (vips []netip.Addr) {
	own := func(a netip.Addr) bool {
		i, _ := slices.BinarySearchFunc(f.Claims, a, func(c KeyClaim, a netip.Addr) int { return c.Key.Addr.Compare(a) })
		return i < len(f.Claims) && f.Claims[i].Key.Addr == a && f.Claims[i].Claim.Want.Guard.VIP && !d.ledger.heldElsewhere(a, f.Claims[i].Claim)
	}
	for a := range f.served() {
		if d.staysVIP(a) || own(a) {
			vips = append(vips, a)
		}
	}
	for _, a := range f.Considered {
		if d.staysVIP(a) || own(a) {
			vips = append(vips, a)
		}
	}
	return ipvs.SortAddrs(vips)
}

// staysVIP: an address is a virtual IP, and not one that somebody loses because it is a pod's by now: such a claim is
// decided anew at once, see outlived.
func (d *Desk) staysVIP(a netip.Addr) bool { return d.ledger.isVIP(a) && !d.outlives(a) }

// outlives: an address is a pod's, and nobody's ClusterIP, so that no claim on it holds.
func (d *Desk) outlives(a netip.Addr) bool {
	return d.ledger.holder(a) == (holder{}) && d.cluster.Named(a).Pod != (cluster.ID{})
}

// outlived are the Services with claims on addresses that are pods' by now, of those that a Service has as endpoints.
func (d *Desk) outlived(f Fragment) (ids []cluster.ID) {
	for a := range f.served() {
		if d.ledger.isVIP(a) {
			for k := range d.ledger.external[a] {
				for _, claim := range d.ledger.claims[k] {
					ids = append(ids, claim.Service)
				}
			}
		}
	}
	return ids
}

// vipsBefore notes of each address that a Service has or gets whether it is a virtual IP now.
func (d *Desk) vipsBefore(id cluster.ID, f Fragment) map[netip.Addr]bool {
	watch := map[netip.Addr]bool{}
	note := func(k ipvs.Key) { watch[k.Addr] = d.ledger.isVIP(k.Addr) }
	for _, k := range d.ledger.byService[id] {
		note(k)
	}
	for _, c := range f.Claims {
		note(c.Key)
	}
	for _, a := range slices.Concat(d.ledger.holds[id], f.Holds) {
		note(ipvs.AddrKey(a))
	}
	return watch
}

// servicesWithEndpoint finds the Services for which it matters that an address became a virtual IP or is
// one no more.
func (d *Desk) servicesWithEndpoint(a netip.Addr, isVIP bool) (ids []cluster.ID) {
	if isVIP {
		return d.ledger.users[a].ids()
	}
	for id := range d.refused[a] {
		ids = append(ids, id)
	}
	return ids
}
