package ipvs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Phase orders the operations of a Plan. The order has traffic reasons: every prefix of a Plan must be a
// safe place to crash (architecture, I3).
type Phase uint8

const (
	// PhaseGuard records ownership, refuses what is not open, and closes what loses its endpoints: before
	// anything is bound or removed, so that no connection reaches a listener of the node through a VIP, and
	// no conntrack entry is confirmed for a VIP that has no server yet.
	PhaseGuard Phase = iota
	// PhaseServe adds and changes virtual and real servers, new capacity before old goes.
	PhaseServe
	// PhaseBind puts addresses on the interface, once there is something behind them.
	PhaseBind
	// PhaseUnbind takes addresses away while their virtual server still stands: packets in flight find it.
	PhaseUnbind
	// PhaseDrain sets weight 0: new connections go elsewhere, old ones live.
	PhaseDrain
	// PhaseDelete removes real servers and virtual servers.
	PhaseDelete
	// PhaseOpen lets new connections in, now that all is in place, and forgets what is gone.
	PhaseOpen
	// PhaseForget deletes conntrack entries that bypass a virtual server which now takes the traffic.
	PhaseForget
	phases
)

// Phases are all phases in the order in which a Plan goes through them.
func Phases() []Phase {
	ps := make([]Phase, phases)
	for i := range ps {
		ps[i] = Phase(i)
	}
	return ps
}

// Op is one write to the kernel. It prints the ipvsadm, ip or nft line that a person would type. The set is
// closed: the types of this file, whose effects stand in effect.go. All are comparable; two equal Ops are the same write.
type Op interface {
	fmt.Stringer
	// Phase is the place in a Plan.
	Phase() Phase
	// Effect is what it does.
	Effect() Effect
	// change notes what it does in what is known of its Key.
	change(*after)
}

// Step is an Op and the Key for whose sake it is done.
type Step struct {
	Key Key
	Op  Op
}

// Plan is an ordered list of writes: by Phase, and within a Phase in the order given.
type Plan []Step

// Set names a pair of nftables sets of our table, one a family (owned4 and owned6, …).
type Set string

// The sets. VIPs and Hairpin hold addresses, the others {address . protocol . port}, and Ranges {address . protocol
// . port . sources}. Redirect is a map to {address . port}.
const (
	SetOwned   Set = "owned"
	SetOpen    Set = "open"
	SetVIPs    Set = "vips"
	SetHairpin Set = "hairpin"
	// SetAnswered are the frontends that a process of this node answers, without a virtual server.
	SetAnswered Set = "answered"
	// SetMasqueraded and SetKept are the frontends whose Sources are those.
	SetMasqueraded Set = "masqueraded"
	SetKept        Set = "kept"
	// SetInside and SetDropped are those that bar clients from outside, or all.
	SetInside   Set = "inside"
	SetDropped  Set = "dropped"
	SetRedirect Set = "redirect"
	// SetLimited are the frontends to which only SetRanges lets in. Ranges have a set of their own because the
	// kernel copies a set of intervals as a whole with every change.
	SetLimited Set = "limited"
	SetRanges  Set = "ranges"
)

// Sets are all of them.
var Sets = append(slices.Clone(KeySets[:]), SetVIPs, SetHairpin, SetRanges)

// KeySets are those that have at most one element of a Key.
var KeySets = [...]Set{SetOwned, SetOpen, SetAnswered, SetMasqueraded, SetKept, SetInside, SetDropped, SetRedirect, SetLimited}

// OfAddr reports whether the set's elements are bare addresses.
func (s Set) OfAddr() bool { return s == SetVIPs || s == SetHairpin }

// Bars reports whether an element of the set takes a frontend out of service for some clients: the opposite of what
// an element of the others does.
func (s Set) Bars() bool { return s == SetInside || s == SetDropped || s == SetLimited }

// Element adds or removes an element of one of our sets.
type Element struct {
	Set Set
	// Key is the element; of an address set only its Addr counts and the rest is zero.
	Key Key
	// To is what SetRedirect has for the Key; it is not needed to remove the element.
	To netip.AddrPort
	// From is the rest of an element of SetRanges.
	From   Range
	Remove bool
	// Early: together with the guard, not at the end. A frontend opens early when its virtual server serves already. A
	// redirection comes early to a frontend that is open, and goes early with one that is closed.
	Early bool
}

// Phase: what guards goes first and is removed last, what opens goes last and is removed first. Which sources a
// frontend takes changes in one transaction, as far as that has room: no client that may come before and after is turned
// away in between.
func (e Element) Phase() Phase {
	switch e.Set {
	case SetLimited, SetRanges:
		return PhaseGuard
	case SetOpen:
		if e.Remove || e.Early {
			return PhaseGuard
		}
		return PhaseOpen
	case SetRedirect:
		if e.Early {
			return PhaseGuard
		}
		return PhaseOpen
	}
	if e.Remove {
		return PhaseOpen
	}
	return PhaseGuard
}

func (e Element) String() string {
	verb, family := "add", "4"
	if e.Remove {
		verb = "delete"
	}
	if e.Key.Addr.Is6() {
		family = "6"
	}
	elem := e.Key.Addr.String()
	switch {
	case e.Set == SetHairpin:
		elem += " . " + elem
	case !e.Set.OfAddr():
		elem = fmt.Sprintf("%s . %s . %d", elem, e.Key.Proto, e.Key.Port)
	}
	switch {
	case e.Set == SetRanges:
		elem += " . " + e.From.String()
	case e.Set == SetRedirect && !e.Remove:
		elem = fmt.Sprintf("%s : %s . %d", elem, e.To.Addr(), e.To.Port())
	}
	return fmt.Sprintf("nft %s element inet ipvs-proxy %s%s { %s }", verb, e.Set, family, elem)
}

// AddServer makes a virtual server without real servers.
type AddServer struct {
	Key       Key
	Scheduler string
	Flags     Flags
	Timeout   uint32 // seconds
}

// SetServer changes a virtual server in place: its connections live.
type SetServer AddServer

// DelServer removes a virtual server with its real servers.
type DelServer struct{ Key Key }

// AddReal adds a real server to a virtual server.
type AddReal struct {
	Key  Key
	Real Real
}

// SetReal changes a real server in place. Weight 0 drains it.
type SetReal AddReal

// DelReal removes a real server; what is left of its connections is reset (expire_nodest_conn=1).
type DelReal struct {
	Key  Key
	Addr netip.AddrPort
}

// Bind puts an address on our interface.
type Bind struct{ Addr netip.Addr }

// Unbind takes an address off our interface.
type Unbind struct{ Addr netip.Addr }

// Forget deletes the conntrack entries of a frontend that were made before its virtual server took the
// packets: original destination the frontend, and replies from the virtual IP itself. IPVS never makes such
// an entry and cannot change one, so its client would stay in the dark for as long as it keeps sending.
type Forget struct {
	Key Key
	// Undirected deletes those as well that were made before clients inside the cluster were redirected, when the
	// frontend has no real server of its own any more.
	Undirected bool
	// Directed deletes the entries of redirected clients as well that another one answers than a real server of Own or
	// Target. The first packet goes through IPVS, which writes the real server into the entry; from then on the
	// redirection itself translates to that (nf_nat_packet takes the reply's tuple), past IPVS, whatever becomes of it.
	Directed bool
	// Own and Target are what is wanted of the frontend and of the one that it redirects to; nil: nothing.
	Own, Target *Frontend
	// Late are UDP real servers that came back soon after they had left. An answer that one of them gave after IPVS had
	// forgotten the connection made an entry of its own, from the real server to the client. It has the place of the
	// reply of that client's next connection to the same real server, whose packets the kernel therefore drops
	// (__nf_conntrack_confirm in net/netfilter/nf_conntrack_core.c) for as long as the entry lives. Such entries,
	// which nobody answered or translated, are deleted.
	Late []netip.AddrPort
}

// ServesItself: a real server has the frontend's own address, as a pod of the host network has that of a node port.
// Its answers come from there whether IPVS translated them or not: what bypasses it cannot be told.
func (o Forget) ServesItself() bool {
	return o.Own != nil && slices.ContainsFunc(o.Own.Server.Reals, func(r Real) bool { return r.Addr.Addr() == o.Key.Addr })
}

// Reaches reports whether a redirected client may be answered by who answers it.
func (o Forget) Reaches(by netip.AddrPort) bool {
	for _, fe := range []*Frontend{o.Own, o.Target} {
		if fe != nil && slices.ContainsFunc(fe.Server.Reals, func(r Real) bool { return r.Addr == by }) {
			return true
		}
	}
	return false
}

func (AddServer) Phase() Phase { return PhaseServe }
func (SetServer) Phase() Phase { return PhaseServe }
func (DelServer) Phase() Phase { return PhaseDelete }
func (AddReal) Phase() Phase   { return PhaseServe }
func (o SetReal) Phase() Phase {
	if o.Real.Weight == 0 {
		return PhaseDrain
	}
	return PhaseServe
}
func (DelReal) Phase() Phase { return PhaseDelete }
func (Bind) Phase() Phase    { return PhaseBind }
func (Unbind) Phase() Phase  { return PhaseUnbind }
func (Forget) Phase() Phase  { return PhaseForget }

// target is ipvsadm's way to name a virtual server.
func target(k Key) string {
	flag := map[Proto]string{TCP: "-t", UDP: "-u", SCTP: "--sctp-service"}[k.Proto]
	return flag + " " + netip.AddrPortFrom(k.Addr, k.Port).String()
}

func (o AddServer) line(verb string) string {
	s := fmt.Sprintf("ipvsadm %s %s -s %s", verb, target(o.Key), o.Scheduler)
	if o.Flags&Persistent != 0 {
		s += fmt.Sprintf(" -p %d", o.Timeout)
	}
	if o.Flags&OnePacket != 0 {
		s += " -o"
	}
	var names []string
	if o.Flags&Fallback != 0 {
		names = append(names, o.Scheduler+"-fallback")
	}
	if o.Flags&ClientPorts != 0 {
		names = append(names, o.Scheduler+"-port")
	}
	if len(names) > 0 {
		s += " -b " + strings.Join(names, ",")
	}
	if rest := o.Flags &^ (Persistent | OnePacket | Fallback | ClientPorts); rest != 0 {
		s += fmt.Sprintf(" # flags %#x", uint32(rest))
	}
	return s
}

func (o AddServer) String() string { return o.line("-A") }
func (o SetServer) String() string { return AddServer(o).line("-E") }
func (o DelServer) String() string { return "ipvsadm -D " + target(o.Key) }

func (o AddReal) line(verb string) string {
	method := map[Forward]string{Masquerade: "-m", LocalNode: "-m", Tunnel: "-i", DirectRt: "-g"}[o.Real.Forward]
	s := fmt.Sprintf("ipvsadm %s %s -r %s %s -w %d", verb, target(o.Key), o.Real.Addr, method, o.Real.Weight)
	if o.Real.Most > 0 {
		s += fmt.Sprintf(" -x %d", o.Real.Most)
	}
	return s
}

func (o AddReal) String() string { return o.line("-a") }
func (o SetReal) String() string { return AddReal(o).line("-e") }
func (o DelReal) String() string { return fmt.Sprintf("ipvsadm -d %s -r %s", target(o.Key), o.Addr) }

func (o Bind) String() string {
	line := "ip addr add " + host(o.Addr) + " dev kube-ipvs0"
	if o.Addr.Is6() {
		line += " preferred_lft 0"
	}
	return line
}
func (o Unbind) String() string { return "ip addr del " + host(o.Addr) + " dev kube-ipvs0" }

func (o Forget) String() string {
	line := fmt.Sprintf("conntrack -D -p %s --orig-dst %s --orig-port-dst %d", o.Key.Proto, o.Key.Addr, o.Key.Port)
	if len(o.Late) > 0 {
		line = fmt.Sprintf("conntrack -D --status UNREPLIED # from %v; ", o.Late) + line
	}
	switch {
	case o.Undirected && o.Directed:
		return line + " # those without destination NAT, and with one to no real server"
	case o.Undirected:
		return line + " # those without destination NAT"
	case o.Directed:
		return line + " --reply-src " + o.Key.Addr.String() + " # and those with destination NAT to no real server"
	case o.Key.Proto.Drains():
		return line + " --reply-src " + o.Key.Addr.String() + " # those that nobody answered"
	}
	return line + " --reply-src " + o.Key.Addr.String()
}

func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
