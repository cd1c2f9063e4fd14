package desk

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Slow start. A new endpoint's weight grows from a tenth to all of it, in tenths, compared with the one that is farthest: that
// has all of its weight. So endpoints that are all new share alike, and a single one has everything.
//
// What the desk has in memory is when each began. A restart finds it by the weights in the kernel: an endpoint's tenths are
// what its weight is of its own full one, against the largest such part in the same virtual server.

// tenths are the steps in which a weight grows, and by what the weights of such a Service are multiplied, so that one of 1
// can be told in tenths. Larger numbers without a common divisor would make wrr send long runs of connections to one
// real server (net/netfilter/ipvs/ip_vs_wrr.c goes down through all weights, by their greatest common divisor).
const tenths = 10

// lapse is for how long an endpoint may be away and go on where it was, as when it moves from one slice to another. After
// that it is new: a container that began anew has the address of the one before.
const lapse = 5 * time.Second

// gradual are the schedulers to which half a weight is half the connections, more or less. To the others a smaller weight
// means none at all (fo), another number of connections (ovf), or nothing (dh, and rr and lc, which have twins).
var gradual = map[string]bool{"wrr": true, "wlc": true, "sed": true, "nq": true, "lblc": true, "lblcr": true, "sh": true, "mh": true, "twos": true}

// slowStart is over how long the weights of new endpoints grow; 0: they do not. That the kernel lacks a twin changes no weight:
// it is found out by a write, and a start would write them twice.
func (c *compiler) slowStart() time.Duration {
	over := c.svc.Scheduling.SlowStart
	if over == 0 {
		return 0
	}
	if name := c.scheduler(true); !gradual[name] {
		lacks := twins[name] != ""
		c.warn(cluster.ReasonScheduling, "metadata.annotations["+cluster.SlowStartAnnotation+"]: the scheduler "+name+
			" cannot give an endpoint a part of its share; new endpoints have theirs at once")
		if !lacks {
			return 0
		}
	}
	return over
}

// target is an endpoint as connections find it.
type target struct {
	addr  netip.AddrPort
	proto ipvs.Proto
}

// starts are when the endpoints of a Service began that are not at their full weight, as far as is known.
type starts struct {
	over time.Duration
	// known: what the kernel had of the Service was taken into account. Until then none is new.
	known bool
	began map[target]time.Time
	until time.Time // when the last of these has all of its weight
	left  map[target]departure
}

// departure is that of an endpoint that may come back.
type departure struct{ at, began time.Time }

// targets are the endpoints that a Fragment's real servers with any weight are.
func targets(claims []KeyClaim) map[target]struct{} {
	found, seen := map[target]struct{}{}, map[*ipvs.Real]bool{}
	for _, c := range claims {
		reals := c.Claim.Want.Server.Reals
		if len(reals) == 0 || seen[&reals[0]] {
			continue // frontends share them
		}
		seen[&reals[0]] = true
		for _, r := range reals {
			if r.Weight > 0 {
				found[target{r.Addr, c.Key.Proto}] = struct{}{}
			}
		}
	}
	return found
}

// claimsOf are a Service's claims as they were decided last.
func (d *Desk) claimsOf(id cluster.ID) (claims []KeyClaim) {
	for _, k := range d.ledger.byService[id] {
		for _, c := range d.ledger.claims[k] {
			if c.Service == id {
				claims = append(claims, KeyClaim{k, c})
			}
		}
	}
	return claims
}

// startAnew notes which endpoints of a Service are new, before its Fragment takes the place of the old one. It reports
// whether weights may be others than before, or change at another time.
func (d *Desk) startAnew(id cluster.ID, f Fragment, now time.Time) (changed bool) {
	s := d.starts[id]
	if f.SlowStart == 0 {
		delete(d.starts, id)
		return s != nil && len(s.began) > 0
	}
	had, is := targets(d.claimsOf(id)), targets(f.Claims)
	if s == nil {
		s = &starts{began: map[target]time.Time{}, left: map[target]departure{}, known: len(had) > 0}
		d.starts[id] = s
	}
	changed = s.over != f.SlowStart && len(s.began) > 0
	s.over = f.SlowStart
	if !s.known {
		return changed
	}
	maps.DeleteFunc(s.left, func(_ target, gone departure) bool { return now.Sub(gone.at) >= lapse })
	for t := range had {
		if _, stays := is[t]; !stays {
			s.left[t] = departure{now, s.began[t]}
			delete(s.began, t)
			changed = true
		}
	}
	for t := range is {
		if _, there := had[t]; there {
			continue
		}
		changed = true
		if gone, back := s.left[t]; !back {
			s.began[t] = now
		} else if !gone.began.IsZero() {
			s.began[t] = gone.began
		}
		delete(s.left, t)
	}
	s.tidy(now)
	return changed
}

// tidy forgets those that have all of their weight.
func (s *starts) tidy(now time.Time) {
	s.until = time.Time{}
	for t, began := range s.began {
		switch over := began.Add(s.over); {
		case !now.Before(over):
			delete(s.began, t)
		case over.After(s.until):
			s.until = over
		}
	}
}

// Unknown reports whether the desk has to hear, by Resume, what the kernel has of a Service: it has a slow start, and was
// not decided before by this process.
func (d *Desk) Unknown(id cluster.ID) bool { return d.starts[id] != nil && !d.starts[id].known }

// ResumeAll is Resume for all Services of which the desk does not know it yet.
func (d *Desk) ResumeAll(have func(ipvs.Key) *ipvs.Frontend, now time.Time) {
	for id := range d.starts {
		d.Resume(id, have, now)
	}
}

// Resume takes what the kernel has of a Service's Keys, nil: nothing, and has the endpoints go on where they are: one
// that has less of its weight than the others, or is not there while others are, is not at its full one.
func (d *Desk) Resume(id cluster.ID, have func(ipvs.Key) *ipvs.Frontend, now time.Time) {
	s := d.starts[id]
	if s == nil || s.known {
		return
	}
	s.known = true
	part := map[target]int{}
	for _, c := range d.claimsOf(id) {
		if own := d.ledger.owner(c.Key); c.Key.HasServer() && own != nil && own.Service == id { // another's says nothing of these
			resume(part, c.Key.Proto, c.Claim.Want.Server.Reals, have(c.Key))
		}
	}
	for t, n := range part {
		if n < tenths {
			s.began[t] = now.Add(-s.age(max(n, 1)))
		}
	}
	s.tidy(now)
}

// resume notes how many tenths of its weight each wanted real server of a virtual server has in the kernel. All of it says
// little: one that is the farthest of a virtual server, or alone there, has all of it however far it is. Of what several
// virtual servers say beside that the largest counts: they were written one after the other.
func resume(part map[target]int, proto ipvs.Proto, want []ipvs.Real, have *ipvs.Frontend) {
	weights := map[netip.AddrPort]uint64{}
	if have != nil {
		for _, r := range have.Server.Reals {
			weights[r.Addr] = uint64(r.Weight)
		}
	}
	most, of := uint64(0), uint64(1) // the largest part that one has of its full weight: most/of
	for _, r := range want {
		if w := weights[r.Addr]; r.Weight > 0 && w*of > most*uint64(r.Weight) {
			most, of = w, uint64(r.Weight)
		}
	}
	for _, r := range want {
		if r.Weight == 0 {
			continue
		}
		n := 0
		if most > 0 {
			n = int(tenths * weights[r.Addr] * of / (uint64(r.Weight) * most))
		}
		t := target{r.Addr, proto}
		if is, said := part[t]; !said || n > 0 && n < tenths && (is >= tenths || n > is) || n >= tenths && is == 0 {
			part[t] = n
		}
	}
}

// age is for how long an endpoint has begun that has just come to so many tenths beside one with all of its weight.
func (s *starts) age(n int) time.Duration {
	return (s.over*time.Duration(n-1) + tenths - 2) / (tenths - 1)
}

// since is for how long an endpoint has begun, and no longer than it takes.
func (s *starts) since(t target, now time.Time) time.Duration {
	began, starts := s.began[t]
	if !starts {
		return s.over
	}
	return min(max(now.Sub(began), 0), s.over)
}

// far is how far one has come that began so long ago: from a tenth of it to ten tenths, in parts of the whole time.
func (s *starts) far(age time.Duration) time.Duration { return s.over + (tenths-1)*age }

// grown are the tenths of its weight that one has which began so long ago, beside one that did earlier.
func (s *starts) grown(age, oldest time.Duration) int {
	return int(tenths * s.far(age) / s.far(oldest))
}

// next is in how long one has another tenth. As long as the oldest has not all of its weight itself, both grow.
func (s *starts) next(age, oldest time.Duration) time.Duration {
	n := time.Duration(s.grown(age, oldest) + 1)
	if n < tenths {
		// The least x with tenths * far(age+x) >= n * far(oldest+x).
		rest, slope := n*s.far(oldest)-tenths*s.far(age), (tenths-1)*(tenths-n)
		if x := (rest + slope - 1) / slope; oldest+x <= s.over {
			return x
		}
	}
	return s.age(int(n)) - age
}

// at is what is wanted of a Key now, of what is wanted of it in the end, and when that changes; zero: never.
func (s *starts) at(k ipvs.Key, want *ipvs.Frontend, now time.Time) (is *ipvs.Frontend, next time.Time) {
	reals := want.Server.Reals
	oldest := s.oldest(k, reals, now)
	var grown []ipvs.Real
	for i, r := range reals {
		age := s.since(target{r.Addr, k.Proto}, now)
		n := s.grown(age, oldest)
		if n >= tenths || r.Weight == 0 {
			continue
		}
		if grown == nil {
			grown = slices.Clone(reals)
		}
		grown[i].Weight = uint16((int(r.Weight)*n + tenths - 1) / tenths)
		if due := now.Add(max(s.next(age, oldest), 1)); next.IsZero() || due.Before(next) {
			next = due
		}
	}
	if grown == nil {
		return want, next
	}
	fe := *want
	fe.Server.Reals = grown
	return &fe, next
}

// oldest is for how long the real server has begun that is farthest, of those of a Key that have any weight.
func (s *starts) oldest(k ipvs.Key, reals []ipvs.Real, now time.Time) (age time.Duration) {
	for _, r := range reals {
		if r.Weight > 0 {
			age = max(age, s.since(target{r.Addr, k.Proto}, now))
		}
	}
	return age
}

// Growing is a real server whose weight grows.
type Growing struct {
	Addr netip.AddrPort
	// Weight is what it is to have now, and Of what in the end.
	Weight, Of uint16
	// Until is when it is to have that.
	Until time.Time
}

// GrowingByAddr has them by their addresses.
func GrowingByAddr(list []Growing) map[netip.AddrPort]Growing {
	all := make(map[netip.AddrPort]Growing, len(list))
	for _, g := range list {
		all[g.Addr] = g
	}
	return all
}

// Grown reports whether what was wanted of a Key once is what is wanted in the end, but for weights on their way there.
func (c Claim) Grown(was *ipvs.Frontend) bool {
	if c.SlowStart == 0 || was == nil || len(was.Server.Reals) != len(c.Want.Server.Reals) {
		return was.Equal(c.Want)
	}
	full := *was
	full.Server.Reals = slices.Clone(was.Server.Reals)
	for i, r := range c.Want.Server.Reals {
		if was := &full.Server.Reals[i]; was.Addr == r.Addr && was.Weight > 0 && was.Weight < r.Weight {
			was.Weight = r.Weight
		}
	}
	return full.Equal(c.Want)
}

// Growing gives those of a Key now, by address. They may be a little behind in the kernel, where many grow at once.
func (d *Desk) Growing(k ipvs.Key, now time.Time) (list []Growing) {
	c := d.ledger.owner(k)
	if c == nil || d.starts[c.Service] == nil || c.SlowStart == 0 {
		return nil
	}
	s := d.starts[c.Service]
	is, _ := s.at(k, c.Want, now)
	for i, r := range is.Server.Reals {
		if of := c.Want.Server.Reals[i].Weight; r.Weight < of {
			list = append(list, Growing{r.Addr, r.Weight, of, s.began[target{r.Addr, k.Proto}].Add(s.over)})
		}
	}
	return list
}
