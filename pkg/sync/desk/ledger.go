package desk

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Claim is one Service's wish for a Key.
type Claim struct {
	Rank    Rank  // the lower owns
	Created int64 // Unix seconds; the older owns
	Service cluster.ID
	Want    *ipvs.Frontend
	Drain   cluster.Deadline // of its real servers, where it is not the node's
	// SlowStart is over how long the weights of new real servers grow to those wanted; 0: they do not.
	SlowStart time.Duration
}

// compare puts the owner first.
func (c Claim) compare(o Claim) int {
	return cmp.Or(cmp.Compare(c.Rank, o.Rank), cmp.Compare(c.Created, o.Created), c.Service.Compare(o.Service))
}

// needs counts, of each kind, how many owning claims need a shared fact of an address.
type needs [ipvs.FactHairpin + 1]int

// lost is a claim that another Service's claim beats.
type lost struct {
	key   ipvs.Key
	loser cluster.ID
	owner cluster.ID
}

// holder is a Service that has an address as its ClusterIP.
type holder struct {
	created int64
	service cluster.ID
}

func (h holder) compare(o holder) int {
	return cmp.Or(cmp.Compare(h.created, o.created), h.service.Compare(o.service))
}

// ledger knows who owns which Key: the only state that crosses Services. Every change costs the size of the
// Service concerned, and where an address is contested, that of the others with claims on it.
type ledger struct {
	claims    map[ipvs.Key][]Claim // sorted; nearly always one
	byService map[cluster.ID][]ipvs.Key
	// holding are the Services that have an address as their ClusterIP, sorted. The first one owns every port
	// of the address: nobody else may have even a free one (B60).
	holding map[netip.Addr][]holder
	// external are the Keys of an address that are claimed as anything but a ClusterIP.
	external map[netip.Addr]map[ipvs.Key]struct{}
	needs    map[netip.Addr]needs
	// users are the Services to which an address is a real server's, in any claim, or is considered.
	users map[netip.Addr]users
	// considered are the addresses of endpoints that matter to a Service beside its real servers.
	considered map[cluster.ID][]netip.Addr
	// holds are the addresses that Services of other proxies hold, which claim no Key.
	holds map[cluster.ID][]netip.Addr
	// sizes counts the claimed Keys by family, IPv4 and IPv6.
	sizes     [2]int
	nodePorts portClaims
	// freed are the pods whose hairpin fact nobody needs any more since the last look, maybe more than once.
	freed []netip.Addr
}

func newLedger() *ledger {
	return &ledger{
		claims:    map[ipvs.Key][]Claim{},
		byService: map[cluster.ID][]ipvs.Key{},
		holding:   map[netip.Addr][]holder{},
		external:  map[netip.Addr]map[ipvs.Key]struct{}{},
		needs:     map[netip.Addr]needs{},
		users:     map[netip.Addr]users{},

		considered: map[cluster.ID][]netip.Addr{},
		holds:      map[cluster.ID][]netip.Addr{},
		nodePorts:  portClaims{claims: map[uint16]int{}},
	}
}

// owner is the claim that a Key goes to; nil when nobody may have it.
func (l *ledger) owner(k ipvs.Key) *Claim {
	cs := l.claims[k]
	if len(cs) == 0 {
		return nil
	}
	h := l.holder(k.Addr)
	if h == (holder{}) {
		return &cs[0]
	}
	for i := range cs {
		if cs[i].Service == h.service {
			return &cs[i]
		}
	}
	return nil
}

// want is what the owner of a Key wants; nil when nobody does.
func (l *ledger) want(k ipvs.Key) *ipvs.Frontend {
	if c := l.owner(k); c != nil {
		return c.Want
	}
	return nil
}

// holders are the Services with an address as their ClusterIP.
func (l *ledger) holders(a netip.Addr) (ids []cluster.ID) {
	for _, h := range l.holding[a] {
		ids = append(ids, h.service)
	}
	return ids
}

// replace puts a Service's new Fragment in the place of its old one. It returns the Keys whose wanted state
// changed, the claims of this Service that lose to another's, and the other Services with claims on Keys that
// changed hands.
func (l *ledger) replace(id cluster.ID, f Fragment) (touched []ipvs.Key, beaten []lost, others []cluster.ID) {
	concerned := l.concerned(id, f)
	before := make([]*ipvs.Frontend, len(concerned))
	held := make([]holder, len(concerned))
	for i, k := range concerned {
		before[i], held[i] = l.want(k), l.holder(k.Addr)
	}
	l.write(id, f)
	for i, k := range concerned {
		after := l.want(k)
		if before[i] == after && held[i] == l.holder(k.Addr) {
			continue
		}
		for _, c := range l.claims[k] {
			if c.Service != id {
				others = append(others, c.Service)
			}
		}
		if before[i] == after {
			continue
		}
		touched = append(touched, k)
		ipvs.FactsOf(k, before[i], func(f ipvs.Fact) { l.count(f, -1) })
		ipvs.FactsOf(k, after, func(f ipvs.Fact) { l.count(f, +1) })
	}
	for _, c := range f.Claims {
		if o := l.owner(c.Key); o == nil || o.Service != id {
			owner := l.claims[c.Key][0].Service
			if h := l.holder(c.Key.Addr); h != (holder{}) {
				if c.Claim.Rank == RankNodePort {
					continue // nobody asked for node ports on a ClusterIP that stands on an interface (NodeLocal DNSCache)
				}
				owner = h.service
			}
			beaten = append(beaten, lost{c.Key, id, owner})
		}
	}
	return touched, beaten, others
}

// holder is the Service that owns an address as its ClusterIP; zero: nobody does.
func (l *ledger) holder(a netip.Addr) holder {
	if hs := l.holding[a]; len(hs) > 0 {
		return hs[0]
	}
	return holder{}
}

// heldElsewhere: another proxy's Service has an address as its ClusterIP before a claim on it.
func (l *ledger) heldElsewhere(a netip.Addr, c Claim) bool {
	return slices.ContainsFunc(l.holding[a], func(h holder) bool {
		return len(l.holds[h.service]) > 0 && h.service != c.Service && (c.Rank != RankClusterIP || h.compare(holder{c.Created, c.Service}) < 0)
	})
}

// concerned lists the Keys whose owner may change with a Fragment, in canonical order: those that the Service
// has and gets, and where it gains or loses an address as its ClusterIP, whatever is claimed of that address.
func (l *ledger) concerned(id cluster.ID, f Fragment) []ipvs.Key {
	keys := slices.Clone(l.byService[id])
	for _, c := range f.Claims {
		keys = append(keys, c.Key)
	}
	for _, a := range l.clusterIPs(id, f) {
		for k := range l.external[a] {
			keys = append(keys, k)
		}
		for _, h := range l.holding[a] {
			if h.service == id {
				continue
			}
			for _, k := range l.byService[h.service] {
				if k.Addr == a {
					keys = append(keys, k)
				}
			}
		}
	}
	slices.SortFunc(keys, ipvs.Key.Compare)
	return slices.Compact(keys)
}

// clusterIPs lists the addresses that a Service has as its ClusterIPs, and those that it gets.
func (l *ledger) clusterIPs(id cluster.ID, f Fragment) (addrs []netip.Addr) {
	addrs = slices.Concat(l.holds[id], f.Holds)
	var last netip.Addr // the Keys are sorted by address
	for _, k := range l.byService[id] {
		if k.Addr != last && slices.ContainsFunc(l.holding[k.Addr], func(h holder) bool { return h.service == id }) {
			addrs = append(addrs, k.Addr)
		}
		last = k.Addr
	}
	for _, c := range f.Claims {
		if c.Claim.Rank == RankClusterIP && (len(addrs) == 0 || addrs[len(addrs)-1] != c.Key.Addr) {
			addrs = append(addrs, c.Key.Addr)
		}
	}
	return ipvs.SortAddrs(addrs)
}

// write puts a Service's claims in the place of its old ones.
func (l *ledger) write(id cluster.ID, f Fragment) {
	for _, k := range l.byService[id] {
		if _, stays := slices.BinarySearchFunc(f.Claims, k, func(c KeyClaim, k ipvs.Key) int { return c.Key.Compare(k) }); !stays {
			l.set(id, k, nil)
		}
	}
	keys := make([]ipvs.Key, 0, len(f.Claims))
	for _, c := range f.Claims {
		keys = append(keys, c.Key)
		l.set(id, c.Key, &c.Claim)
	}
	for _, a := range l.clusterIPs(id, Fragment{}) {
		l.release(id, a)
	}
	for _, c := range f.Claims {
		if c.Claim.Rank == RankClusterIP {
			l.hold(c.Key.Addr, holder{c.Claim.Created, id})
		}
	}
	for _, a := range f.Holds {
		l.hold(a, holder{f.Created, id})
	}
	if l.holds[id] = f.Holds; len(f.Holds) == 0 {
		delete(l.holds, id)
	}
	for _, a := range l.considered[id] {
		l.countUse(id, a, -1)
	}
	for _, a := range f.Considered {
		l.countUse(id, a, +1)
	}
	if l.considered[id] = f.Considered; len(f.Considered) == 0 {
		delete(l.considered, id)
	}
	if len(keys) == 0 {
		delete(l.byService, id)
	} else {
		l.byService[id] = keys
	}
}

// hold notes that a Service has an address as its ClusterIP.
func (l *ledger) hold(a netip.Addr, h holder) {
	hs := l.holding[a]
	if at, found := slices.BinarySearchFunc(hs, h, holder.compare); !found {
		l.holding[a] = slices.Insert(slices.Clone(hs), at, h)
	}
}

// release notes that it has not.
func (l *ledger) release(id cluster.ID, a netip.Addr) {
	hs := l.holding[a]
	if !slices.ContainsFunc(hs, func(h holder) bool { return h.service == id }) {
		return
	}
	hs = slices.DeleteFunc(slices.Clone(hs), func(h holder) bool { return h.service == id })
	if l.holding[a] = hs; len(hs) == 0 {
		delete(l.holding, a)
	}
}

// set replaces a Service's claim on a Key.
func (l *ledger) set(id cluster.ID, k ipvs.Key, c *Claim) {
	cs := l.claims[k]
	was, is := false, c != nil && c.Rank == RankNodePort
	if i := slices.IndexFunc(cs, func(c Claim) bool { return c.Service == id }); i >= 0 {
		l.countReals(id, cs[i].Want, -1)
		was = cs[i].Rank == RankNodePort
		if c != nil && c.Want.Equal(cs[i].Want) {
			c.Want = cs[i].Want // one copy of equal content, which the mirror may share
		}
		cs = slices.Delete(slices.Clone(cs), i, i+1)
	}
	if c != nil {
		l.countReals(id, c.Want, +1)
		at, _ := slices.BinarySearchFunc(cs, *c, Claim.compare)
		cs = slices.Insert(slices.Clone(cs), at, *c)
	}
	if was != is {
		l.nodePorts.count(k.Port, is)
	}
	before := len(l.claims)
	if len(cs) == 0 {
		delete(l.claims, k)
	} else {
		l.claims[k] = cs
	}
	l.sizes[family(k.Addr.Is4())] += len(l.claims) - before
	l.setExternal(k, slices.ContainsFunc(cs, func(c Claim) bool { return c.Rank != RankClusterIP }))
}

func (l *ledger) setExternal(k ipvs.Key, is bool) {
	keys := l.external[k.Addr]
	switch {
	case is && keys == nil:
		l.external[k.Addr] = map[ipvs.Key]struct{}{k: {}}
	case is:
		keys[k] = struct{}{}
	case keys != nil:
		if delete(keys, k); len(keys) == 0 {
			delete(l.external, k.Addr)
		}
	}
}

func (l *ledger) count(f ipvs.Fact, by int) {
	n := l.needs[f.Addr]
	n[f.Kind] += by
	if n == (needs{}) {
		delete(l.needs, f.Addr)
	} else {
		l.needs[f.Addr] = n
	}
	if f.Kind == ipvs.FactHairpin && n[f.Kind] == 0 {
		l.freed = append(l.freed, f.Addr)
	}
}

func (l *ledger) countReals(id cluster.ID, fe *ipvs.Frontend, by int) {
	for _, r := range fe.Server.Reals {
		l.countUse(id, r.Addr.Addr(), by)
	}
}

func (l *ledger) countUse(id cluster.ID, a netip.Addr, by int) {
	u := l.users[a]
	if u.count(id, by); u.n == 0 {
		delete(l.users, a)
	} else {
		l.users[a] = u
	}
}

// isVIP reports whether an address is a virtual IP of ours.
func (l *ledger) isVIP(a netip.Addr) bool { return l.needs[a][ipvs.FactVIP] > 0 }
