package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// somewhere are addresses that only a default route leads to: prefixes for documentation.
var somewhere = [...]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// sources finds the source address of the node's own connections in each family: the one that the kernel
// would choose towards the default route, else the first global one of another interface that is up. An
// invalid address means that there is none.
func (l *linkDoor) sources(ctx context.Context) (v4, v6 netip.Addr, err error) {
	all, err := l.addresses(ctx, 0)
	if err != nil {
		return v4, v6, err
	}
	return l.sourcesAmong(ctx, all)
}

// sourcesAmong does it where all addresses of the node are listed already: to list them again, 10,000 virtual IPs among them,
// would be most of the cost.
func (l *linkDoor) sourcesAmong(ctx context.Context, all []standing) (v4, v6 netip.Addr, err error) {
	mine := map[netip.Addr]bool{}
	for _, s := range all {
		if s.index == l.index {
			mine[s.addr] = true
		}
	}
	for i, out := range []*netip.Addr{&v4, &v6} {
		a, err := l.sourceTo(ctx, somewhere[i])
		if err != nil {
			return v4, v6, err
		}
		if !a.IsValid() || mine[a] || a.IsLinkLocalUnicast() || a.IsLoopback() {
			a = l.anySource(all, somewhere[i].BitLen())
		}
		*out = a
	}
	return v4, v6, nil
}

// sourceTo asks the kernel which source it would choose. Invalid: there is no way.
func (l *linkDoor) sourceTo(ctx context.Context, to netip.Addr) (source netip.Addr, err error) {
	l.b.reset()
	l.b.begin(unix.RTM_GETROUTE, unix.NLM_F_ACK, []byte{byte(af(to)), byte(to.BitLen()), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	l.b.attr(unix.RTA_DST, to.AsSlice())
	replies, err := l.sock.exchange(ctx, &l.b)
	if err != nil {
		return source, fmt.Errorf("ask for the node's source address: %w", err)
	}
	r := replies[0]
	if r.unknown {
		return source, fmt.Errorf("ask for the node's source address: %w", r.err)
	}
	if r.err != nil { // ENETUNREACH and its like
		return source, nil
	}
	for _, m := range r.messages {
		index := 0
		err := eachAttr(skip(m, unix.SizeofRtMsg), func(typ uint16, v []byte) error {
			switch {
			case typ == unix.RTA_PREFSRC:
				source, _ = netip.AddrFromSlice(v)
			case typ == unix.RTA_OIF && len(v) >= 4:
				index = int(binary.NativeEndian.Uint32(v))
			}
			return nil
		})
		if err != nil {
			return netip.Addr{}, fmt.Errorf("ask for the node's source address: %w", err)
		}
		if index == l.index {
			source = netip.Addr{}
		}
	}
	return source, nil
}

// anySource is the first global address of the family on another interface that is up.
func (l *linkDoor) anySource(all []standing, bits int) netip.Addr {
	for _, s := range all {
		if s.addr.BitLen() != bits || s.index == l.index || !s.global {
			continue
		}
		if link, err := l.h.LinkByIndex(s.index); err == nil && link.Attrs().Flags&net.FlagUp != 0 {
			return s.addr
		}
	}
	return netip.Addr{}
}

func sourceFor(a, v4, v6 netip.Addr) netip.Addr {
	if a.Is4() {
		return v4
	}
	return v6
}
