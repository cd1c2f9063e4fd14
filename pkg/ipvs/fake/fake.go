// Package fake is a node's kernel in memory, with the manners of the real one: what it refuses and how. It
// passes the same contract test as the real kernel (package contract).
package fake

import (
	"context"
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
	// Shielded is what Shield last said, Shields how often it was on.
	Shielded bool
	Shields  int

	detected []ipvs.Key // what Detect has not delivered yet
	changed  chan struct{}
	heard    ipvs.Tampering
	tampered chan struct{}
	counting bool // Canary was called
	counted  int  // virtual servers then, and what was written since
	down     bool // the interface was set down
	noIPv6   bool // that IPv6 was switched off when Base last looked
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
	k.down, k.Link, k.Addrs, k.Misbound = false, false, map[netip.Addr]bool{}, map[netip.Addr]bool{}
}

// SetDown sets the interface down, as another program might: its IPv6 addresses are gone for good then.
func (k *Kernel) SetDown() {
	k.down = true
	for _, addrs := range []map[netip.Addr]bool{k.Addrs, k.Misbound} {
		maps.DeleteFunc(addrs, func(a netip.Addr, _ bool) bool { return a.Is6() })
	}
}

// DropTable deletes the nftables table, as another program might.
func (k *Kernel) DropTable() {
	k.Table, k.Sets, k.Shielded = false, emptySets(), false
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
func (k *Kernel) Canary(context.Context) (is ipvs.Census, err error) {
	if err := k.readable(); err != nil {
		return is, err
	}
	switch {
	case !k.counting || k.counted == len(k.Servers):
	case len(k.Servers) == 0:
		is = ipvs.AllGone
	default:
		is = ipvs.Changed
	}
	k.counting, k.counted = true, len(k.Servers)
	return is, nil
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

// Shield keeps what it says. Without a table nothing can be on.
func (k *Kernel) Shield(_ context.Context, on bool) error {
	if on && !k.Table {
		return syscall.ENOENT
	}
	if k.Shielded = on; on {
		k.Shields++
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
	r.Moved, k.noIPv6 = k.noIPv6 != k.Node.NoIPv6, k.Node.NoIPv6
	if !k.Link {
		k.Link, r.LinkCreated = true, true
		r.Wrote = append(r.Wrote, "ip link add kube-ipvs0 type dummy")
	}
	if k.down {
		k.down, r.LinkCreated = false, true
		r.Wrote = append(r.Wrote, "ip link set kube-ipvs0 up")
		r.Standing = map[netip.Addr]bool{}
		for a := range k.Addrs {
			r.Standing[a] = !k.Misbound[a]
		}
	}
	if !k.Table {
		k.Table, r.TableCreated = true, true
		r.Wrote = append(r.Wrote, "nft add table inet ipvs-proxy")
	}
	return r
}
