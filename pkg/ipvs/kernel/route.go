package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// routeProto marks our routes. Those of addresses have the kernel's own number, so they are told apart.
const routeProto = unix.RTPROT_STATIC

// ifaddrmsg is struct ifaddrmsg of include/uapi/linux/if_addr.h.
func ifaddrmsg(family, bits, flags, scope byte, index int) []byte {
	return binary.NativeEndian.AppendUint32([]byte{family, bits, flags, scope}, uint32(index))
}

// rtmsg is struct rtmsg of include/uapi/linux/rtnetlink.h, of a route of table local. Scope is 0 in questions.
func rtmsg(family byte, bits int, proto, scope byte) []byte {
	return []byte{family, byte(bits), 0, 0, unix.RT_TABLE_LOCAL, proto, scope, unix.RTN_LOCAL, 0, 0, 0, 0}
}

// putAddr appends the request to add or remove an address of the interface.
func (l *linkDoor) putAddr(typ, flags uint16, a netip.Addr) {
	var addrFlags, scope byte = 0, unix.RT_SCOPE_UNIVERSE
	if a.Is6() {
		addrFlags = unix.IFA_F_NODAD // usable at once; nobody else may have it
	}
	if a.IsLoopback() {
		scope = unix.RT_SCOPE_HOST
	}
	l.b.begin(typ, flags, ifaddrmsg(byte(af(a)), byte(a.BitLen()), addrFlags, scope, l.index))
	l.b.attr(unix.IFA_LOCAL, a.AsSlice())
	l.b.attr(unix.IFA_ADDRESS, a.AsSlice())
	if a.Is6() && typ == unix.RTM_NEWADDR {
		// Preferred for 0 s, valid for ever: where the uplink has a link-local address alone, the kernel would choose a
		// virtual IP as the source of the node's own connections.
		const lives = 4 * 4 // struct ifa_cacheinfo, with two dates that the kernel sets
		l.b.attr(unix.IFA_CACHEINFO, append(binary.NativeEndian.AppendUint32(make([]byte, 4, lives), math.MaxUint32), make([]byte, 8)...))
	}
}

// putRoute appends the request to add or remove our local route to an address. Its source is what the node's
// own connections carry: without one, IPv4 gives them the virtual IP itself.
func (l *linkDoor) putRoute(typ, flags uint16, a, source netip.Addr) {
	scope := byte(unix.RT_SCOPE_HOST)
	if typ == unix.RTM_DELROUTE {
		scope = unix.RT_SCOPE_NOWHERE // any
	}
	l.b.begin(typ, flags, rtmsg(byte(af(a)), a.BitLen(), routeProto, scope))
	l.b.attr(unix.RTA_DST, a.AsSlice())
	l.b.attrU32(unix.RTA_OIF, uint32(l.index))
	if source.IsValid() {
		l.b.attr(unix.RTA_PREFSRC, source.AsSlice())
	}
}

// route is one of our local routes.
type route struct{ dst, source netip.Addr }

// routes lists ours, each with its source.
func (l *linkDoor) routes(ctx context.Context) (map[netip.Addr]netip.Addr, error) {
	found := map[netip.Addr]netip.Addr{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := l.dump(ctx, func() {
			l.b.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, rtmsg(family, 0, routeProto, 0))
			l.b.attrU32(unix.RTA_TABLE, unix.RT_TABLE_LOCAL)
			l.b.attrU32(unix.RTA_OIF, uint32(l.index))
		}, func(msg []byte) error {
			r, ours, err := parseRoute(msg, l.index)
			if ours {
				found[r.dst] = r.source
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list local routes of %s: %w", linkName, err)
		}
	}
	return found, nil
}

// parseRoute reads a route and says whether it is one of ours, on the interface with that index. The kernel filters a
// list as well, but for those before 5.0 and where a family is missing.
func parseRoute(msg []byte, ofIndex int) (r route, ours bool, err error) {
	if len(msg) < unix.SizeofRtMsg {
		return r, false, fmt.Errorf("route of %d bytes: %w", len(msg), unix.EBADMSG)
	}
	index := 0
	err = eachAttr(msg[unix.SizeofRtMsg:], func(typ uint16, v []byte) error {
		switch {
		case typ == unix.RTA_DST:
			r.dst, _ = netip.AddrFromSlice(v)
		case typ == unix.RTA_PREFSRC:
			r.source, _ = netip.AddrFromSlice(v)
		case typ == unix.RTA_OIF && len(v) >= 4:
			index = int(binary.NativeEndian.Uint32(v))
		}
		return nil
	})
	ours = msg[4] == unix.RT_TABLE_LOCAL && msg[5] == routeProto && msg[7] == unix.RTN_LOCAL && index == ofIndex &&
		r.dst.IsValid() && int(msg[1]) == r.dst.BitLen()
	return r, ours && err == nil, err
}

// bindRoutes binds addresses as routes. One whose route stands already is looked at: it may have an old
// source. Once the route is right, an address that stands as well is taken off.
func (l *linkDoor) bindRoutes(ctx context.Context, addrs []netip.Addr) []reply {
	v4, v6, err := l.sources(ctx)
	if err != nil {
		return repeat(reply{err: err}, len(addrs))
	}
	put := func(flags uint16) func(netip.Addr) {
		return func(a netip.Addr) { l.putRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flags, a, sourceFor(a, v4, v6)) }
	}
	out := l.each(ctx, addrs, put(unix.NLM_F_EXCL))
	if exist := where(out, unix.EEXIST); len(exist) > 0 {
		have, err := l.routes(ctx)
		if err != nil {
			assign(out, exist, repeat(reply{err: err}, len(exist)))
			return out
		}
		var wrong []int
		for _, i := range exist {
			if source, ok := have[addrs[i]]; !ok || source != sourceFor(addrs[i], v4, v6) {
				wrong = append(wrong, i)
			}
		}
		// Replaced in place: an address's own route, too, so nothing is ever missing.
		assign(out, wrong, l.each(ctx, at(addrs, wrong), put(unix.NLM_F_REPLACE)))
	}
	l.dropOther(ctx, addrs, out)
	return out
}

// dropOther takes away the form of binding that is not configured, of all that is bound rightly by now.
func (l *linkDoor) dropOther(ctx context.Context, addrs []netip.Addr, out []reply) {
	var right []int
	for i, r := range out {
		if r.err == nil || !r.unknown && r.err == unix.EEXIST {
			right = append(right, i)
		}
	}
	places, replies := l.removeOther(ctx, addrs, right)
	for i, r := range replies {
		// What was removed was there to be mended, so the binding was no repetition.
		if r.err == nil || r.unknown || !isMissing(r.err) {
			out[places[i]] = r
		}
	}
}

// removeOther removes the form that is not configured of those addresses, out of some, that may stand in it.
func (l *linkDoor) removeOther(ctx context.Context, addrs []netip.Addr, some []int) (places []int, replies []reply) {
	for _, i := range some {
		if l.other == nil || l.other[addrs[i]] {
			places = append(places, i)
		}
	}
	remove := l.delRoutes
	if l.binding == BindRoute {
		remove = l.delAddrs
	}
	replies = remove(ctx, at(addrs, places))
	for i, r := range replies {
		if r.err == nil {
			delete(l.other, addrs[places[i]])
		}
	}
	return places, replies
}

func (l *linkDoor) delRoutes(ctx context.Context, addrs []netip.Addr) []reply {
	return l.each(ctx, addrs, func(a netip.Addr) { l.putRoute(unix.RTM_DELROUTE, 0, a, netip.Addr{}) })
}

func (l *linkDoor) delAddrs(ctx context.Context, addrs []netip.Addr) []reply {
	out := l.each(ctx, addrs, func(a netip.Addr) {
		l.unbinding.add(a)
		l.putAddr(unix.RTM_DELADDR, 0, a)
	})
	for i, r := range out {
		if r.err != nil && !r.unknown { // nothing happened that would be heard of
			l.unbinding.take(addrs[i])
		}
	}
	return out
}

// isMissing: what was to be removed is not there. Routes and addresses say it differently.
func isMissing(err error) bool { return err == unix.ESRCH || err == unix.EADDRNOTAVAIL }

// unbind removes both forms of binding.
func (l *linkDoor) unbind(ctx context.Context, addrs []netip.Addr) []reply {
	remove := l.delAddrs
	if l.binding == BindRoute {
		remove = l.delRoutes
	}
	out := remove(ctx, addrs)
	all := make([]int, len(addrs))
	for i := range all {
		all[i] = i
		if r := &out[i]; !r.unknown && isMissing(r.err) {
			r.err = unix.EADDRNOTAVAIL // both bindings in the same words
		}
	}
	places, replies := l.removeOther(ctx, addrs, all)
	for i, r := range replies {
		o := &out[places[i]]
		missing := !r.unknown && isMissing(r.err)
		if !missing && (r.err != nil || !o.unknown && isMissing(o.err)) {
			*o = r
		}
	}
	return out
}

// bindAddrs binds addresses as such and takes away routes of ours. Those that another proxy bound stay, and are made no
// sources.
func (l *linkDoor) bindAddrs(ctx context.Context, addrs []netip.Addr) []reply {
	put := func(flags uint16) func(netip.Addr) {
		return func(a netip.Addr) { l.putAddr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|flags, a) }
	}
	out := l.each(ctx, addrs, put(unix.NLM_F_EXCL))
	if exist := where(out, unix.EEXIST); slices.ContainsFunc(at(addrs, exist), netip.Addr.Is6) {
		sources, err := l.preferred(ctx)
		if err != nil {
			assign(out, exist, repeat(reply{err: err}, len(exist)))
			return out
		}
		wrong := slices.DeleteFunc(exist, func(i int) bool { return !sources[addrs[i]] })
		assign(out, wrong, l.each(ctx, at(addrs, wrong), put(unix.NLM_F_REPLACE)))
	}
	l.dropOther(ctx, addrs, out)
	return out
}

// preferred are the IPv6 addresses of the interface that the kernel may choose as sources.
func (l *linkDoor) preferred(ctx context.Context) (map[netip.Addr]bool, error) {
	all, err := l.addresses(ctx, l.index)
	if err != nil {
		return nil, err
	}
	found := map[netip.Addr]bool{}
	for _, s := range all {
		if s.addr.Is6() && !s.deprecated {
			found[s.addr] = true
		}
	}
	return found, nil
}

// anchorAddr keeps the interface in IPv4. When its last address goes, the kernel takes all IPv4 routes of the
// interface away as well (fib_inetaddr_event, 6.1): those of virtual IPs that a change of binding has just
// added. It is the node's anyway, and of scope host: nobody chooses it as a source.
var anchorAddr = netip.AddrFrom4([4]byte{127, 127, 127, 127})

// anchor adds it where routes are to outlive addresses.
func (l *linkDoor) anchor(ctx context.Context) error {
	list, err := l.addresses(ctx, l.index)
	if err != nil {
		return err
	}
	needed := false
	for _, s := range list {
		if s.addr == anchorAddr {
			return nil
		}
		needed = needed || s.addr.Is4()
	}
	if !needed {
		return nil
	}
	r := l.each(ctx, []netip.Addr{anchorAddr}, func(a netip.Addr) {
		l.putAddr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a)
	})[0]
	if r.err != nil {
		return fmt.Errorf("add %s to %s, so that routes outlive addresses: %w", anchorAddr, linkName, r.err)
	}
	return nil
}

// write binds or unbinds.
func (l *linkDoor) write(ctx context.Context, ops []ipvs.Op) []ipvs.Outcome {
	var bind, unbind []int
	addrs := make([]netip.Addr, len(ops))
	for i, op := range ops {
		is := op.Effect()
		if addrs[i] = is.Fact.Addr; is.Gone {
			unbind = append(unbind, i)
		} else {
			bind = append(bind, i)
		}
	}
	replies := make([]reply, len(ops))
	if err := l.ready(ctx); err != nil {
		replies = repeat(reply{err: err}, len(ops))
	} else {
		how := l.bindAddrs
		if l.binding == BindRoute {
			how = l.bindRoutes
		}
		assign(replies, bind, how(ctx, at(addrs, bind)))
		assign(replies, unbind, l.unbind(ctx, at(addrs, unbind)))
	}
	out := make([]ipvs.Outcome, len(ops))
	for i, r := range replies {
		if r.err != nil {
			out[i] = ipvs.Outcome{Err: fmt.Errorf("%s: %w", ops[i], r.err), Unknown: r.unknown}
		}
	}
	return out
}

// ready sees to what writes stand on.
func (l *linkDoor) ready(ctx context.Context) error {
	switch {
	case l.index == 0:
		return unix.ENODEV
	case l.binding == BindRoute && (l.other == nil || len(l.other) > 0):
		return l.anchor(ctx)
	}
	return nil
}
