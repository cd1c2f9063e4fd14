package sync

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Claim is one Service's wish for a Key.
type Claim struct {
	Rank    uint8 // the lower owns
	Created int64 // Unix seconds; the older owns
	Service cluster.ID
	Want    *ipvs.Frontend
}

// compare puts the owner first.
func (c Claim) compare(o Claim) int {
	return cmp.Or(cmp.Compare(c.Rank, o.Rank), cmp.Compare(c.Created, o.Created), c.Service.Compare(o.Service))
}

func sortClaims(cs []KeyClaim) {
	slices.SortFunc(cs, func(a, b KeyClaim) int { return a.Key.Compare(b.Key) })
}

// factKind is a kind of fact that the kernel holds once for several Keys.
type factKind uint8

const (
	factBind     factKind = iota // the address is on our interface
	factVIP                      // the guard refuses what is not open on the address
	factHairpin                  // the pod's connections to itself are masqueraded
	factMisbound                 // the address is on our interface in another form than is configured; never needed
)

// fact is one such fact.
type fact struct {
	kind factKind
	addr netip.Addr
}

// factsOf lists the shared facts that a frontend needs.
func factsOf(k ipvs.Key, fe *ipvs.Frontend, f func(fact)) {
	if fe == nil {
		return
	}
	if fe.Bind {
		f(fact{factBind, k.Addr})
	}
	if fe.Misbound {
		f(fact{factMisbound, k.Addr})
	}
	if fe.Guard.VIP {
		f(fact{factVIP, k.Addr})
	}
	for _, a := range fe.Guard.Hairpin {
		f(fact{factHairpin, a})
	}
}

// lost is a claim that another Service's claim beats.
type lost struct {
	key   ipvs.Key
	loser cluster.ID
	owner cluster.ID
}

// ledger knows who owns which Key: the only state that crosses Services. Every change costs the size of the
// Service concerned.
type ledger struct {
	claims    map[ipvs.Key][]Claim // sorted, [0] owns; nearly always one
	byService map[cluster.ID][]ipvs.Key
	needs     map[fact]int       // how many owning claims need a shared fact
	reals     map[netip.Addr]int // how many times an address is a real server's, in any claim
	// freed are the addresses of shared facts that nobody needs any more since the last look.
	freed []netip.Addr
}

func newLedger() *ledger {
	return &ledger{
		claims:    map[ipvs.Key][]Claim{},
		byService: map[cluster.ID][]ipvs.Key{},
		needs:     map[fact]int{},
		reals:     map[netip.Addr]int{},
	}
}

// want is what the owner of a Key wants; nil when nobody claims it.
func (l *ledger) want(k ipvs.Key) *ipvs.Frontend {
	if cs := l.claims[k]; len(cs) > 0 {
		return cs[0].Want
	}
	return nil
}

// replace puts a Service's new Fragment in the place of its old one. It returns the Keys whose wanted state
// changed and the claims of this Service that lose to another's.
func (l *ledger) replace(id cluster.ID, f Fragment) (touched []ipvs.Key, beaten []lost) {
	for _, k := range l.byService[id] {
		if !slices.ContainsFunc(f.Claims, func(c KeyClaim) bool { return c.Key == k }) {
			if l.set(id, k, nil) {
				touched = append(touched, k)
			}
		}
	}
	keys := make([]ipvs.Key, 0, len(f.Claims))
	for _, c := range f.Claims {
		keys = append(keys, c.Key)
		if l.set(id, c.Key, &c.Claim) {
			touched = append(touched, c.Key)
		}
		if owner := l.claims[c.Key][0].Service; owner != id {
			beaten = append(beaten, lost{c.Key, id, owner})
		}
	}
	if len(keys) == 0 {
		delete(l.byService, id)
	} else {
		l.byService[id] = keys
	}
	return touched, beaten
}

// set replaces a Service's claim on a Key and reports whether what is wanted of the Key changed.
func (l *ledger) set(id cluster.ID, k ipvs.Key, c *Claim) bool {
	before := l.want(k)
	cs := l.claims[k]
	if i := slices.IndexFunc(cs, func(c Claim) bool { return c.Service == id }); i >= 0 {
		l.countReals(cs[i].Want, -1)
		if c != nil && c.Want.Equal(cs[i].Want) {
			c.Want = cs[i].Want // one copy of equal content, which the mirror may share
		}
		cs = slices.Delete(slices.Clone(cs), i, i+1)
	}
	if c != nil {
		l.countReals(c.Want, +1)
		at, _ := slices.BinarySearchFunc(cs, *c, Claim.compare)
		cs = slices.Insert(slices.Clone(cs), at, *c)
	}
	if len(cs) == 0 {
		delete(l.claims, k)
	} else {
		l.claims[k] = cs
	}
	after := l.want(k)
	if before == after {
		return false
	}
	factsOf(k, before, func(f fact) { l.count(f, -1) })
	factsOf(k, after, func(f fact) { l.count(f, +1) })
	return true
}

func (l *ledger) count(f fact, by int) {
	if l.needs[f] += by; l.needs[f] == 0 {
		delete(l.needs, f)
		l.freed = append(l.freed, f.addr)
	}
}

func (l *ledger) countReals(fe *ipvs.Frontend, by int) {
	for _, r := range fe.Server.Reals {
		if l.reals[r.Addr.Addr()] += by; l.reals[r.Addr.Addr()] == 0 {
			delete(l.reals, r.Addr.Addr())
		}
	}
}

// isVIP reports whether an address is a virtual IP of ours.
func (l *ledger) isVIP(a netip.Addr) bool { return l.needs[fact{factVIP, a}] > 0 }
