package desk

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Snapshot is all that decides what one Service becomes: a value that can be asked elsewhere and later, while the desk
// goes on. It costs the size of the Service.
type Snapshot struct {
	// Service is nil where there is none that is ours.
	Service   *cluster.Service
	Endpoints []cluster.Endpoint
	Named     Named
	Site      Site
	Options   Options
	// Owners are the Services that have the Keys which it claims, where that is another.
	Owners map[ipvs.Key]Owner
	// CheckTaken: another Service has its healthCheckNodePort.
	CheckTaken bool
	// Virtual are the addresses of endpoints that are left out because they are virtual IPs.
	Virtual []netip.Addr
}

// Owner is another Service that has a Key.
type Owner struct {
	Service cluster.ID
	// Why is KeyTaken or ClusterIPTaken.
	Why Code
}

// Explanation says what becomes of a Service on this node, and why.
type Explanation struct {
	Frontends []Explained // in the order of the Keys
	Refused   []Refused   // what it may not have at all, in the order of its fields
}

// Explained is one frontend of a Service, or one that another Service has.
type Explained struct {
	Key  ipvs.Key
	Rank Rank
	// Owner is the other Service that has the Key; zero: it is this one's.
	Owner cluster.ID
	// Why it does not serve, or not every client; None: it does.
	Why Code
	// Redirect is where clients inside the cluster are sent in place of this frontend; zero: nowhere.
	Redirect netip.AddrPort
	// Endpoints are all of the port and the family.
	Endpoints []Judged
	// Shares is how connections are shared out among them.
	Shares Shares
}

// Judged is an endpoint of a frontend.
type Judged struct {
	Addr netip.AddrPort
	Node string
	// Why it is left out, or used all the same; None: it is used.
	Why Code
}

// Used reports whether the frontend leads to the endpoint.
func (j Judged) Used() bool { return j.Why == None || j.Why == LastOnes }

// Refused is an address, or the healthCheckNodePort, that a Service may not have.
type Refused struct {
	Addr  netip.Addr // not valid where it is the port
	Field string
	Why   Code
}

// What names it.
func (r Refused) What() string {
	if r.Addr.IsValid() {
		return r.Addr.String() + " of " + r.Field
	}
	return r.Field
}

func (e *Explanation) refuse(r Refused) {
	if e != nil {
		e.Refused = append(e.Refused, r)
	}
}

// Snapshot takes what decides what a Service becomes now.
func (d *Desk) Snapshot(id cluster.ID) Snapshot {
	svc, eps := d.cluster.Get(id)
	s := Snapshot{Service: svc, Endpoints: eps, Named: NamedOf(svc, d.cluster.Named), Site: d.site, Options: d.opt}
	frag, virtual := d.withoutVIPs(svc, eps)
	s.Virtual = virtual
	if port := frag.Local.HealthCheckNodePort; len(d.checkPorts.asking[port]) > 0 {
		check, _ := d.check(id, frag.Local)
		s.CheckTaken = check.Port == 0
	}
	for _, c := range frag.Claims {
		if owner := d.beatenBy(id, c.Key); owner.Why != None {
			if s.Owners == nil {
				s.Owners = map[ipvs.Key]Owner{}
			}
			s.Owners[c.Key] = owner
		}
	}
	return s
}

// beatenBy is who has a Key that a Service claims; its Why is None where that is the Service itself.
func (d *Desk) beatenBy(id cluster.ID, k ipvs.Key) Owner {
	if h := d.ledger.holder(k.Addr); h != (holder{}) && h.service != id {
		return Owner{h.service, ClusterIPTaken}
	}
	if c := d.ledger.owner(k); c != nil && c.Service != id {
		return Owner{c.Service, KeyTaken}
	}
	return Owner{}
}

// Explain says why.
func (s Snapshot) Explain() (e Explanation) {
	if s.Service == nil {
		return e
	}
	c := compiler{svc: s.Service, named: s.Named, site: s.Site, opt: s.Options, asked: &e}
	virtual := ipvs.SortAddrs(slices.Clone(s.Virtual))
	var rest []cluster.Endpoint
	for _, ep := range s.Endpoints {
		if _, is := slices.BinarySearchFunc(virtual, ep.Addr, netip.Addr.Compare); is {
			c.virtual = append(c.virtual, ep)
		} else {
			rest = append(rest, ep)
		}
	}
	c.compile(rest)
	slices.SortStableFunc(e.Frontends, func(a, b Explained) int {
		return cmp.Or(a.Key.Compare(b.Key), cmp.Compare(a.Rank, b.Rank))
	})
	e.Frontends = slices.CompactFunc(e.Frontends, func(a, b Explained) bool { return a.Key == b.Key })
	if s.CheckTaken {
		e.refuse(Refused{Field: "spec.healthCheckNodePort", Why: CheckPortTaken})
	}
	for i := range e.Frontends {
		if owner, taken := s.Owners[e.Frontends[i].Key]; taken {
			e.Frontends[i].Owner, e.Frontends[i].Why = owner.Service, owner.Why
		}
	}
	return e
}

// explain notes why a frontend is what it has become.
func (c *portCompiler) explain(claim KeyClaim, b *backends, w way) {
	is := Explained{Key: claim.Key, Rank: claim.Claim.Rank, Redirect: b.redirect, Shares: c.shares(b, claim.Claim.Want.Server)}
	switch {
	case b.barred != ipvs.BarredNobody:
		is.Why = NoneForSome
	case !b.open:
		is.Why = NoEndpoint
	}
	judge := func(eps []cluster.Endpoint, why func(cluster.Endpoint) Code) {
		for _, ep := range eps {
			if ep.Addr.Is4() == claim.Key.Addr.Is4() {
				is.Endpoints = append(is.Endpoints, Judged{netip.AddrPortFrom(ep.Addr, ep.Port), ep.NodeName, why(ep)})
			}
		}
	}
	judge(c.eps, func(ep cluster.Endpoint) Code {
		if why := b.by.why(ep); why != Elsewhere || w == outward {
			return why
		}
		return ElsewhereInside
	})
	judge(portEndpoints(c.port, c.virtual), func(cluster.Endpoint) Code { return VirtualEndpoint })
	judge(portEndpoints(c.port, c.hostless), func(cluster.Endpoint) Code { return NoHost })
	c.asked.Frontends = append(c.asked.Frontends, is)
}

// Closed says why a new connection to a Key is not served, or not every one, and whose address it is. None: it is, or
// the address is nobody's.
func (d *Desk) Closed(k ipvs.Key) (id cluster.ID, why Code) {
	if c := d.ledger.owner(k); c != nil {
		switch g := c.Want.Guard; {
		case g.Barred != ipvs.BarredNobody:
			return c.Service, NoneForSome
		case !g.Open:
			return c.Service, NoEndpoint
		}
		return c.Service, None
	}
	if !d.ledger.isVIP(k.Addr) {
		return id, None
	}
	if h := d.ledger.holder(k.Addr); h != (holder{}) {
		return h.service, NoSuchPort
	}
	for _, other := range slices.SortedFunc(d.KeysAt(k.Addr), ipvs.Key.Compare) {
		if c := d.ledger.owner(other); c != nil {
			return c.Service, NoSuchPort
		}
	}
	return id, NoSuchPort
}
