// Package fake is a node's kernel in memory, with the manners of the real one: what it refuses and how. It
// passes the same contract test as the real kernel (package contract).
package fake

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Kernel is a kernel in memory. What its methods promise is said by their user, package sync.
type Kernel struct {
	Servers map[ipvs.Key]ipvs.Server
	Conns   map[ipvs.Key]map[netip.AddrPort]ipvs.Conns
	Sets    map[ipvs.Set]map[ipvs.Key]bool // but for Ranges
	// Redirects are the values of the set Redirect, Ranges the elements of the set Ranges.
	Redirects map[ipvs.Key]netip.AddrPort
	Ranges    map[ipvs.Key][]ipvs.Range
	Addrs     map[netip.Addr]bool
	// Misbound are addresses that stand on the interface in a form that is not configured.
	Misbound map[netip.Addr]bool
	Link     bool
	Table    bool
	// Schedulers are the ones that the kernel has.
	Schedulers []string

	// Fail, where set, is asked before every write; its error is the outcome and nothing is written.
	Fail func(ipvs.Op) error
	// FailRead likewise for Observe, Scan and Base.
	FailRead func() error
	// Overlooks, where set, says what Detect leaves out, as a kernel's list does at times.
	Overlooks func(ipvs.Key) bool
	// Log records the writes that took place.
	Log []ipvs.Op
	// Stale are conntrack entries that bypass a virtual server, counted by its Key; Forget deletes them.
	Stale map[ipvs.Key]int
	// Node is what Local gives.
	Node ipvs.Local
	// Pods are the ranges last set.
	Pods []netip.Prefix

	detected []ipvs.Key // what Detect has not delivered yet
	changed  chan struct{}
	heard    ipvs.Tampering
	tampered chan struct{}
	counting bool // Canary was called
	counted  int  // virtual servers then, and what was written since
}

// New makes an empty kernel: no interface, no table.
func New() *Kernel {
	return &Kernel{
		Servers:    map[ipvs.Key]ipvs.Server{},
		Conns:      map[ipvs.Key]map[netip.AddrPort]ipvs.Conns{},
		Sets:       emptySets(),
		Redirects:  map[ipvs.Key]netip.AddrPort{},
		Ranges:     map[ipvs.Key][]ipvs.Range{},
		Addrs:      map[netip.Addr]bool{},
		Misbound:   map[netip.Addr]bool{},
		changed:    make(chan struct{}, 1),
		tampered:   make(chan struct{}, 1),
		Schedulers: []string{"rr", "wrr", "lc", "wlc", "sh", "mh"},
	}
}

func emptySets() map[ipvs.Set]map[ipvs.Key]bool {
	sets := map[ipvs.Set]map[ipvs.Key]bool{}
	for _, s := range ipvs.Sets {
		sets[s] = map[ipvs.Key]bool{}
	}
	return sets
}

// DropLink deletes the interface, as another program might.
func (k *Kernel) DropLink() {
	k.Link, k.Addrs, k.Misbound = false, map[netip.Addr]bool{}, map[netip.Addr]bool{}
}

// DropTable deletes the nftables table, as another program might.
func (k *Kernel) DropTable() {
	k.Table, k.Sets = false, emptySets()
	clear(k.Redirects)
	clear(k.Ranges)
}

// Hear tells that another program changed something. A change of which it does not tell is a notification lost.
func (k *Kernel) Hear(t ipvs.Tampering) {
	k.heard = k.heard.And(t)
	select {
	case k.tampered <- struct{}{}:
	default:
	}
}

// Tampered has a token after Hear.
func (k *Kernel) Tampered() <-chan struct{} { return k.tampered }

// Tampering takes what was heard.
func (k *Kernel) Tampering() ipvs.Tampering {
	heard := k.heard
	k.heard = ipvs.Tampering{}
	return heard
}

// Canary counts the virtual servers.
func (k *Kernel) Canary(context.Context) (changed bool, err error) {
	if err := k.readable(); err != nil {
		return false, err
	}
	changed = k.counting && k.counted != len(k.Servers)
	k.counting, k.counted = true, len(k.Servers)
	return changed, nil
}

// Local gives Node.
func (k *Kernel) Local(context.Context) (ipvs.Local, error) {
	if err := k.readable(); err != nil {
		return ipvs.Local{}, err
	}
	return k.Node, nil
}

// LocalChanged has a token after SetNode.
func (k *Kernel) LocalChanged() <-chan struct{} { return k.changed }

// SetNode changes what Local gives, as the node's administrator might.
func (k *Kernel) SetNode(l ipvs.Local) {
	k.Node = l
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// HasScheduler says what is in Schedulers.
func (k *Kernel) HasScheduler(_ context.Context, name string) (bool, error) {
	return slices.Contains(k.Schedulers, name), nil
}

// SetPods keeps the ranges.
func (k *Kernel) SetPods(pods []netip.Prefix) error {
	k.Pods = pods
	return nil
}

func (k *Kernel) readable() error {
	if k.FailRead != nil {
		return k.FailRead()
	}
	return nil
}

// Base makes interface and table.
func (k *Kernel) Base(context.Context) (r ipvs.BaseReport, err error) {
	if err := k.readable(); err != nil {
		return r, err
	}
	return k.base(), nil
}

func (k *Kernel) base() (r ipvs.BaseReport) {
	if !k.Link {
		k.Link, r.LinkCreated = true, true
		r.Wrote = append(r.Wrote, "ip link add kube-ipvs0 type dummy")
	}
	if !k.Table {
		k.Table, r.TableCreated = true, true
		r.Wrote = append(r.Wrote, "nft add table inet ipvs-proxy")
	}
	return r
}

// Observe reads some Keys.
func (k *Kernel) Observe(_ context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	if err := k.readable(); err != nil {
		return nil, err
	}
	out := map[ipvs.Key]ipvs.Observed{}
	for _, key := range keys {
		if o := k.look(key); o.Have != nil {
			out[key] = o
		}
	}
	return out, nil
}

// Scan reads everything.
func (k *Kernel) Scan(_ context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	if err := k.readable(); err != nil {
		return err
	}
	all := k.all()
	for _, key := range slices.SortedFunc(maps.Keys(all), ipvs.Key.Compare) {
		f(key, all[key])
	}
	return nil
}

// Detect reads everything, a part at a time.
func (k *Kernel) Detect(_ context.Context, f func(ipvs.Key, *ipvs.Frontend)) (done bool, err error) {
	if err := k.readable(); err != nil {
		k.detected = nil
		return false, err
	}
	all := k.all()
	if k.detected == nil {
		k.detected = slices.SortedFunc(maps.Keys(all), ipvs.Key.Compare)
	}
	n := min(detectPart, len(k.detected))
	for _, key := range k.detected[:n] {
		o, ok := all[key]
		if !ok || k.Overlooks != nil && k.Overlooks(key) {
			continue
		}
		o.Have.Server.Timeout = 0
		o.Have.Server.Flags &= ipvs.Persistent
		f(key, o.Have)
	}
	k.detected = k.detected[n:]
	if len(k.detected) == 0 {
		k.detected = nil
		return true, nil
	}
	return false, nil
}

// detectPart is how many Keys a part of Detect has: few, so that tests see several.
const detectPart = 3

func (k *Kernel) all() map[ipvs.Key]ipvs.Observed {
	out := map[ipvs.Key]ipvs.Observed{}
	at := func(key ipvs.Key) { out[key] = k.look(key) }
	for key := range k.Servers {
		at(key)
	}
	for _, set := range k.Sets {
		for key := range set {
			at(key)
		}
	}
	for key := range k.Ranges {
		at(key)
	}
	for _, addrs := range []map[netip.Addr]bool{k.Addrs, k.Misbound} {
		for a := range addrs {
			at(ipvs.AddrKey(a))
		}
	}
	return out
}

// look reads one Key at a cost that does not depend on how many there are.
func (k *Kernel) look(key ipvs.Key) ipvs.Observed {
	s, served := k.Servers[key]
	s.Reals = slices.Clone(s.Reals)
	f := &ipvs.Frontend{Server: s}
	for _, s := range ipvs.Sets {
		if k.Sets[s][key] && (!s.OfAddr() || !key.HasServer()) {
			f.Guard.Put(ipvs.Element{Set: s, Key: key, To: k.Redirects[key]})
		}
	}
	f.Guard.Ranges = slices.Clone(k.Ranges[key])
	if !key.HasServer() {
		f.Misbound = k.Misbound[key.Addr]
		f.Bind = k.Addrs[key.Addr] && !f.Misbound
	}
	if f.Equal(&ipvs.Frontend{}) {
		return ipvs.Observed{}
	}
	o := ipvs.Observed{Have: f}
	if served {
		o.Conns = maps.Clone(k.Conns[key])
	}
	return o
}

// Do writes a Plan.
func (k *Kernel) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	return ipvs.Execute(ctx, plan, func(_ context.Context, steps []ipvs.Step) []ipvs.Outcome {
		out := make([]ipvs.Outcome, len(steps))
		for i, s := range steps {
			if err := k.write(s.Op); err != nil {
				out[i].Err = fmt.Errorf("%s: %w", s.Op, err)
			}
		}
		return out
	})
}

func (k *Kernel) write(op ipvs.Op) error {
	if k.Fail != nil {
		if err := k.Fail(op); err != nil {
			return err
		}
	}
	if err := k.apply(op); err != nil {
		return err
	}
	k.Log = append(k.Log, op)
	return nil
}

// apply carries out one operation or refuses it as the kernel does (kernel source: ip_vs_ctl.c).
func (k *Kernel) apply(op ipvs.Op) error {
	switch o := op.(type) {
	case ipvs.Element:
		return k.element(o)
	case ipvs.Bind:
		return k.bind(o.Addr, true)
	case ipvs.Unbind:
		return k.bind(o.Addr, false)
	case ipvs.AddServer:
		if _, ok := k.Servers[o.Key]; ok {
			return syscall.EEXIST
		}
		if err := k.setServer(o); err != nil {
			return err
		}
		k.counted++
		return nil
	case ipvs.SetServer:
		if _, ok := k.Servers[o.Key]; !ok {
			return syscall.ESRCH
		}
		return k.setServer(ipvs.AddServer(o))
	case ipvs.DelServer:
		if _, ok := k.Servers[o.Key]; !ok {
			return syscall.ESRCH
		}
		delete(k.Servers, o.Key)
		delete(k.Conns, o.Key)
		k.counted--
		return nil
	case ipvs.AddReal:
		return k.real(o.Key, o.Real.Addr, &o.Real, true)
	case ipvs.SetReal:
		return k.real(o.Key, o.Real.Addr, &o.Real, false)
	case ipvs.DelReal:
		return k.real(o.Key, o.Addr, nil, false)
	case ipvs.Forget:
		delete(k.Stale, o.Key)
		return nil
	}
	panic(fmt.Sprintf("no operation: %T", op))
}

func (k *Kernel) setServer(o ipvs.AddServer) error {
	if !slices.Contains(k.Schedulers, o.Scheduler) {
		return syscall.ENOENT
	}
	k.Servers[o.Key] = ipvs.Server{Scheduler: o.Scheduler, Flags: o.Flags, Timeout: o.Timeout, Reals: k.Servers[o.Key].Reals}
	return nil
}

// real adds, changes or, with r nil, removes a real server.
func (k *Kernel) real(key ipvs.Key, addr netip.AddrPort, r *ipvs.Real, add bool) error {
	s, ok := k.Servers[key]
	if !ok {
		return syscall.ESRCH
	}
	if r != nil && addr.Addr().Is4() != key.Addr.Is4() && r.Forward != ipvs.Tunnel || add && !unicast(addr.Addr()) {
		return syscall.EINVAL
	}
	at := slices.IndexFunc(s.Reals, func(r ipvs.Real) bool { return r.Addr == addr })
	s.Reals = slices.Clone(s.Reals)
	switch {
	case add && at >= 0:
		return syscall.EEXIST
	case add:
		s.Reals = ipvs.SortReals(append(s.Reals, *r))
	case at < 0:
		return syscall.ENOENT
	case r != nil:
		s.Reals[at] = *r
	default:
		s.Reals = slices.Delete(s.Reals, at, at+1)
		delete(k.Conns[key], addr)
	}
	k.Servers[key] = s
	return nil
}

// unicast is what the kernel takes for the address of a new real server (ip_vs_new_dest).
func unicast(a netip.Addr) bool {
	broadcast := a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return !a.IsUnspecified() && !a.IsMulticast() && !broadcast && !(a.Is6() && a.IsLinkLocalUnicast())
}

// Tamper adds or removes an element, as another program might.
func (k *Kernel) Tamper(o ipvs.Element) {
	if err := k.element(o); err != nil {
		panic(fmt.Sprintf("%s: %v", o, err))
	}
}

func (k *Kernel) element(o ipvs.Element) error {
	if !k.Table {
		return syscall.ENOENT
	}
	if o.Set == ipvs.SetRanges {
		return k.rangeElement(o)
	}
	there := k.Sets[o.Set][o.Key]
	if o.Remove {
		if !there {
			return syscall.ENOENT
		}
		delete(k.Sets[o.Set], o.Key)
		if o.Set == ipvs.SetRedirect {
			delete(k.Redirects, o.Key)
		}
		return nil
	}
	if o.Set == ipvs.SetRedirect {
		if there && k.Redirects[o.Key] != o.To {
			return syscall.EBUSY
		}
		k.Redirects[o.Key] = o.To
	}
	k.Sets[o.Set][o.Key] = true // adding what is there is no error
	return nil
}

// rangeElement: ranges of one frontend may not overlap (nft_pipapo_insert).
func (k *Kernel) rangeElement(o ipvs.Element) error {
	have := k.Ranges[o.Key]
	at, there := slices.BinarySearchFunc(have, o.From, ipvs.Range.Compare)
	switch {
	case o.Remove && !there:
		return syscall.ENOENT
	case o.Remove:
		have = slices.Delete(slices.Clone(have), at, at+1)
	case there:
		return nil
	case slices.ContainsFunc(have, func(r ipvs.Range) bool { return r.Contains(o.From.First) || r.Contains(o.From.Last) }):
		return syscall.ENOTEMPTY
	default:
		have = slices.Insert(slices.Clone(have), at, o.From)
	}
	if k.Ranges[o.Key] = have; len(have) == 0 {
		delete(k.Ranges, o.Key)
	}
	return nil
}

func (k *Kernel) bind(a netip.Addr, add bool) error {
	switch {
	case !k.Link:
		return syscall.ENODEV
	case add && k.Addrs[a] && !k.Misbound[a]:
		return syscall.EEXIST
	case !add && !k.Addrs[a] && !k.Misbound[a]:
		return syscall.EADDRNOTAVAIL
	case add:
		k.Addrs[a] = true
	default:
		delete(k.Addrs, a)
	}
	delete(k.Misbound, a)
	return nil
}
