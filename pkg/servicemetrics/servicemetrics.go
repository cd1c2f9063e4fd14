// Package servicemetrics says what the kernel has counted of Services: it joins what it counts of virtual servers, which come
// and go, into numbers of a Service's ports, which never go backwards. It reads when it is asked, and keeps nothing of
// Services of which no metrics are kept.
package servicemetrics

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Services is where it is known of which Services metrics are kept.
type Services interface {
	// Measured gives those that ask for it, or all; in order, the first most. Left counts the others. Stamp is another one
	// whenever the answer may be.
	Measured(all bool, most int) (chosen []cluster.Measurable, left int, stamp uint64)
	// MeasuredStamp is the stamp that Measured would give.
	MeasuredStamp() uint64
}

// Owners says which Keys Services have.
type Owners interface {
	Owned(ctx context.Context, services []cluster.ID) ([]Owned, error)
}

// Owned is a Key that a Service has, for one of its ports.
type Owned struct {
	Key     ipvs.Key
	Service cluster.ID
	Port    cluster.Port
}

// Kernel is what counts.
type Kernel interface {
	// Servers visits every virtual server, without its real servers.
	Servers(ctx context.Context, visit func(ipvs.Counted) error) error
	// Brief visits some virtual servers with their real servers, of which nothing is counted but connections. One that is not
	// there is left out.
	Brief(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error
}

// Options say of which Services there are metrics.
type Options struct {
	All   bool // not only of those that ask for it
	Limit int  // of how many
}

// Reader reads the traffic of Services. It is for one goroutine at a time. Its memory is in proportion to the Services of
// which metrics are kept, and 8 bytes for each virtual server that Prime finds.
type Reader struct {
	opt      Options
	services Services
	owners   Owners
	kernel   Kernel

	stamp  uint64
	asked  bool // stamp is that of chosen
	chosen []cluster.ID
	left   int
	totals map[port]*total
	last   map[ipvs.Key]ipvs.Counters // what was read of each Key, the last time

	// found are the virtual servers that were there before this process counted: what they had counted until then is not
	// told again. Sorted; nil: not known, and then all are taken for such.
	found  []uint64
	primed bool
	seed   maphash.Seed
}

// port is what has numbers of its own: a port of a Service. Ports of one name have theirs together.
type port struct {
	service cluster.ID
	name    string // its number, where it has none
}

// total is what a port comes to.
type total struct {
	counted          healthz.Counted
	active, inactive int
	backends         map[netip.AddrPort]bool // true: gets new connections
}

// New makes a Reader.
func New(s Services, o Owners, k Kernel, opt Options) *Reader {
	return &Reader{opt: opt, services: s, owners: o, kernel: k, totals: map[port]*total{}, last: map[ipvs.Key]ipvs.Counters{},
		seed: maphash.MakeSeed()}
}

// Prime notes which virtual servers there are before this process makes any. It is to be called once, at the start. Where it
// fails, what is first read of a virtual server is where counting begins.
func (r *Reader) Prime(ctx context.Context) error {
	var found []uint64
	err := r.kernel.Servers(ctx, func(c ipvs.Counted) error {
		found = append(found, maphash.Comparable(r.seed, c.Key))
		return nil
	})
	if err != nil {
		return fmt.Errorf("see which virtual servers there are at the start: %w", err)
	}
	slices.Sort(found)
	r.found, r.primed = slices.Clip(found), true
	return nil
}

// before reports whether a virtual server counted before this process was there.
func (r *Reader) before(k ipvs.Key) bool {
	_, found := slices.BinarySearch(r.found, maphash.Comparable(r.seed, k))
	return found || !r.primed
}

// gone takes in that a virtual server is not there: when it is again, it is a new one.
func (r *Reader) gone(k ipvs.Key) {
	if at, found := slices.BinarySearch(r.found, maphash.Comparable(r.seed, k)); found {
		r.found = slices.Delete(r.found, at, at+1)
	}
}

// Read gives the traffic of each port, in order.
func (r *Reader) Read(ctx context.Context) (all healthz.ServicesTraffic, err error) {
	r.choose()
	owned, err := r.owners.Owned(ctx, r.chosen)
	if err != nil {
		return all, fmt.Errorf("ask whose the virtual servers are: %w", err)
	}
	owners := make(map[ipvs.Key]*total, len(owned))
	keys := make([]ipvs.Key, 0, len(owned))
	for _, o := range owned {
		t := r.totals[portOf(o.Service, o.Port)]
		if _, twice := owners[o.Key]; t == nil || twice { // a port that came since: the next time
			continue
		}
		owners[o.Key] = t
		keys = append(keys, o.Key)
	}
	for _, t := range r.totals {
		t.active, t.inactive = 0, 0
		clear(t.backends)
	}
	there := make(map[ipvs.Key]ipvs.Counters, len(keys))
	err = r.kernel.Brief(ctx, keys, func(c ipvs.Counted) error {
		if t := owners[c.Key]; t != nil {
			t.add(c)
			there[c.Key] = c.Counters
		}
		return nil
	})
	if err != nil {
		return all, err // nothing of it was counted: the next time it is
	}
	for _, k := range keys {
		if _, is := there[k]; !is {
			r.gone(k)
		}
	}
	for k, now := range there {
		last, known := r.last[k]
		owners[k].count(since(now, last, known, !known && r.before(k)))
	}
	r.last = there
	return healthz.ServicesTraffic{List: r.list(), Left: r.left}, nil
}

// choose sees of which Services metrics are kept now, and forgets the others.
func (r *Reader) choose() {
	if r.asked && r.services.MeasuredStamp() == r.stamp {
		return
	}
	chosen, left, stamp := r.services.Measured(r.opt.All, r.opt.Limit)
	r.chosen, r.left, r.stamp, r.asked = r.chosen[:0], left, stamp, true
	keep := make(map[port]*total, len(chosen))
	for _, s := range chosen {
		r.chosen = append(r.chosen, s.ID)
		for _, p := range s.Ports {
			at := portOf(s.ID, p)
			switch {
			case keep[at] != nil: // another of this name
			case r.totals[at] != nil:
				keep[at] = r.totals[at]
			default:
				keep[at] = &total{backends: map[netip.AddrPort]bool{}}
			}
		}
	}
	r.totals = keep
}

// portOf is what a port of a Service counts for.
func portOf(service cluster.ID, p cluster.Port) port {
	return port{service, cmp.Or(p.Name, fmt.Sprint(p.Port))}
}

// since is what was counted since the last reading. A virtual server that was made anew began at 0; of one that was there
// before counting began, that is what begins now.
func since(now, last ipvs.Counters, known, before bool) ipvs.Counters {
	switch again := now.Conns < last.Conns || now.In.Packets < last.In.Packets || now.Out.Packets < last.Out.Packets ||
		now.In.Bytes < last.In.Bytes || now.Out.Bytes < last.Out.Bytes; {
	case before:
		return ipvs.Counters{}
	case known && !again:
		now.Conns -= last.Conns
		now.In, now.Out = less(now.In, last.In), less(now.Out, last.Out)
	}
	return now
}

func less(a, b ipvs.Volume) ipvs.Volume {
	return ipvs.Volume{Packets: a.Packets - b.Packets, Bytes: a.Bytes - b.Bytes}
}

// count adds to what never goes backwards.
func (t *total) count(c ipvs.Counters) {
	t.counted.Conns += c.Conns
	for _, v := range []struct {
		to *healthz.Volume
		by ipvs.Volume
	}{{&t.counted.In, c.In}, {&t.counted.Out, c.Out}} {
		v.to.Packets += v.by.Packets
		v.to.Bytes += v.by.Bytes
	}
}

// add takes what is so now.
func (t *total) add(c ipvs.Counted) {
	for _, real := range c.Reals {
		t.active += int(real.Active)
		t.inactive += int(real.Inactive)
		t.backends[real.Addr] = t.backends[real.Addr] || real.Weight > 0
	}
}

func (r *Reader) list() (list []healthz.ServiceTraffic) {
	list = make([]healthz.ServiceTraffic, 0, len(r.totals))
	for _, at := range slices.SortedFunc(maps.Keys(r.totals), func(a, b port) int {
		return cmp.Or(a.service.Compare(b.service), cmp.Compare(a.name, b.name))
	}) {
		t := r.totals[at]
		s := healthz.ServiceTraffic{Namespace: at.service.Namespace, Service: at.service.Name, Port: at.name,
			Counted: t.counted, Active: t.active, Inactive: t.inactive}
		for _, ready := range t.backends {
			if ready {
				s.Ready++
			} else {
				s.Draining++
			}
		}
		list = append(list, s)
	}
	return list
}
