package fake

import (
	"net/netip"
	"slices"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Fate is what becomes of a packet.
type Fate string

// The fates.
const (
	Served  Fate = "served"
	Refused Fate = "refused"
	Dropped Fate = "dropped"
	Passes  Fate = "passes" // neither guard nor IPVS takes it
)

// Rules is what the constant rules of the real kernel's table depend on.
type Rules struct {
	// Pods are the ranges of the cluster's pods; without any of a family, its pods are strangers.
	Pods          []netip.Prefix
	MasqueradeAll bool
}

// Packet is the first one of a connection.
type Packet struct {
	From netip.Addr
	To   ipvs.Key
	// Own: the node sends it itself.
	Own bool
}

// journey is a Packet on its way, rule by rule as pkg/ipvs/kernel/testdata/table.nft has them.
type journey struct {
	k     *Kernel
	rules Rules
	Packet
	now ipvs.Key // the destination by now
}

// Send follows a packet. Of one that is served it gives the real servers that may get it, and which of them see an address
// of this node in place of the client's.
func (k *Kernel) Send(rules Rules, p Packet) (is Fate, masqueraded map[netip.AddrPort]bool) {
	j := &journey{k, rules, p, p.To}
	if p.Own {
		if is := j.check(); is != "" { // output -150
			return is, nil
		}
		j.redirect()                             // output -100
		if is, reals := j.schedule(); is != "" { // output -98
			return is, j.post(reals)
		}
	} else if !j.stranger() { // prerouting -100
		j.redirect()
	}
	if !slices.Contains(k.Node.Addrs, j.now.Addr) && !k.Addrs[j.now.Addr] {
		return Passes, nil // not for this node
	}
	if is := j.check(); is != "" { // input 0
		return is, nil
	}
	if is, reals := j.schedule(); is != "" { // input 99
		return is, j.post(reals)
	}
	return Passes, nil
}

func (j *journey) in(s ipvs.Set, k ipvs.Key) bool { return j.k.Sets[s][k] }

// vip: the address is in the set of those on which all is refused that is not open.
func (j *journey) vip(a netip.Addr) bool { return j.k.Sets[ipvs.SetVIPs][ipvs.AddrKey(a)] }

// hairpin: an address is in the set of pairs with itself.
func (j *journey) hairpin(a netip.Addr) bool { return j.k.Sets[ipvs.SetHairpin][ipvs.AddrKey(a)] }

// known: there is a range of the packet's family, so that rules tell pods from others.
func (j *journey) known() bool {
	return slices.ContainsFunc(j.rules.Pods, func(p netip.Prefix) bool { return p.Addr().Is4() == j.From.Is4() })
}

func (j *journey) stranger() bool {
	return !slices.ContainsFunc(j.rules.Pods, func(p netip.Prefix) bool { return p.Contains(j.From) })
}

// local: the source is an address of the node, as "fib saddr type local" has it.
func (j *journey) local() bool {
	return j.Own || slices.Contains(j.k.Node.Addrs, j.From) || j.k.Addrs[j.From]
}

func (j *journey) redirect() {
	if to, is := j.k.Redirects[j.now]; is {
		j.now.Addr, j.now.Port = to.Addr(), to.Port()
	}
}

// check is the chain of that name.
func (j *journey) check() Fate {
	policies := func() Fate {
		if j.in(ipvs.SetDropped, j.now) || j.in(ipvs.SetInside, j.now) && !j.local() && j.stranger() {
			return Dropped
		}
		return ""
	}
	if j.now.Proto == ipvs.UDP && policies() != "" {
		return Dropped
	}
	switch {
	case j.now == j.To && j.in(ipvs.SetOpen, j.now) && !j.in(ipvs.SetLimited, j.now) && !j.in(ipvs.SetDropped, j.now) && !j.in(ipvs.SetInside, j.now):
		return ""
	case !j.in(ipvs.SetOwned, j.now):
		if j.vip(j.now.Addr) {
			return Refused
		}
		return ""
	case j.in(ipvs.SetLimited, j.To) && !slices.ContainsFunc(j.k.Ranges[j.To], func(r ipvs.Range) bool { return r.Contains(j.From) }):
		return Dropped
	}
	if is := policies(); is != "" {
		return is
	}
	if !j.in(ipvs.SetOpen, j.now) {
		return Refused
	}
	return ""
}

// schedule is IPVS: real servers with a weight may get the packet.
func (j *journey) schedule() (is Fate, reals []netip.AddrPort) {
	server, stands := j.k.Servers[j.now]
	if !stands {
		return "", nil
	}
	for _, r := range server.Reals {
		if r.Weight > 0 {
			reals = append(reals, r.Addr)
		}
	}
	if len(reals) == 0 {
		return Refused, nil
	}
	return Served, reals
}

// post is the chain of that name, for each real server. What is for the node itself does not come by.
func (j *journey) post(reals []netip.AddrPort) map[netip.AddrPort]bool {
	seen := map[netip.AddrPort]bool{}
	for _, r := range reals {
		seen[r] = (j.Own || !slices.Contains(j.k.Node.Addrs, r.Addr())) && j.masquerades(r.Addr())
	}
	return seen
}

func (j *journey) masquerades(real netip.Addr) bool {
	kept := j.in(ipvs.SetKept, j.To)
	switch {
	case !j.in(ipvs.SetOwned, j.To):
		return false
	case j.in(ipvs.SetMasqueraded, j.To), j.local(), j.From == real && j.hairpin(real):
		return true
	case kept:
		return !j.vip(j.To.Addr) && !j.hairpin(real)
	case j.rules.MasqueradeAll:
		return true
	}
	return j.known() && j.stranger()
}
