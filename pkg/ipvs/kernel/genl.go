package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// IPVS's generic netlink interface: include/uapi/linux/ip_vs.h.
const (
	cmdNewService = 1
	cmdSetService = 2
	cmdDelService = 3
	cmdGetService = 4
	cmdNewDest    = 5
	cmdSetDest    = 6
	cmdDelDest    = 7
	cmdGetDest    = 8

	attrService = 1
	attrDest    = 2

	svcAF       = 1
	svcProtocol = 2
	svcAddr     = 3
	svcPort     = 4
	svcFwmark   = 5
	svcSched    = 6
	svcFlags    = 7
	svcTimeout  = 8
	svcNetmask  = 9

	destAddr     = 1
	destPort     = 2
	destForward  = 3
	destWeight   = 4
	destUThresh  = 5
	destLThresh  = 6
	destActive   = 7
	destInactive = 8
	destFamily   = 11

	// flagHashed is the kernel's own mark on a virtual server in its table; it is no setting.
	flagHashed = 0x2
)

// familyName is IPVS's name in generic netlink; asking for it makes the kernel load ip_vs by itself where
// it can (module alias since 5.16).
const familyName = "IPVS"

// resolveFamily asks generic netlink for the number of a family.
func resolveFamily(ctx context.Context, s *socket, name string) (uint16, error) {
	var b batch
	b.begin(unix.GENL_ID_CTRL, unix.NLM_F_ACK, []byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0})
	b.attrString(unix.CTRL_ATTR_FAMILY_NAME, name)
	replies, err := s.exchange(ctx, &b)
	if err == nil {
		err = replies[0].err
	}
	if err != nil {
		return 0, fmt.Errorf("generic netlink family %s: %w", name, err)
	}
	var id uint16
	for _, m := range replies[0].messages {
		err = errors.Join(err, eachAttr(skip(m, unix.GENL_HDRLEN), func(typ uint16, v []byte) error {
			if typ == unix.CTRL_ATTR_FAMILY_ID && len(v) >= 2 {
				id = binary.NativeEndian.Uint16(v)
			}
			return nil
		}))
	}
	if err != nil || id == 0 {
		return 0, fmt.Errorf("generic netlink family %s: no number in the answer: %w", name, errors.Join(err, unix.EBADMSG))
	}
	return id, nil
}

func skip(b []byte, n int) []byte { return b[min(n, len(b)):] }

// begin starts an IPVS command in a batch.
func (v *ipvsDoor) begin(b *batch, cmd uint8, flags uint16) {
	b.begin(v.family, flags, []byte{cmd, 1, 0, 0})
}

func af(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// attrAddr appends the kernel's union nf_inet_addr: 16 bytes for both families.
func (b *batch) attrAddr(typ uint16, a netip.Addr) {
	var out [16]byte
	if a.Is4() {
		v4 := a.As4()
		copy(out[:], v4[:])
	} else {
		out = a.As16()
	}
	b.attr(typ, out[:])
}

// attrPort appends a port in network byte order.
func (b *batch) attrPort(typ, p uint16) {
	b.attr(typ, []byte{byte(p >> 8), byte(p)})
}

// putKey names a virtual server.
func putKey(b *batch, k ipvs.Key) {
	b.attrU16(svcAF, af(k.Addr))
	b.attrU16(svcProtocol, uint16(k.Proto))
	b.attrAddr(svcAddr, k.Addr)
	b.attrPort(svcPort, k.Port)
}

// putService names a virtual server and gives its whole configuration.
func putService(b *batch, o ipvs.AddServer) {
	b.nest(attrService, func() {
		putKey(b, o.Key)
		b.attrString(svcSched, o.Scheduler)
		var flags [8]byte
		binary.NativeEndian.PutUint32(flags[:4], uint32(o.Flags))
		binary.NativeEndian.PutUint32(flags[4:], ^uint32(0)) // the mask: all flags are said
		b.attr(svcFlags, flags[:])
		b.attrU32(svcTimeout, o.Timeout)
		// The netmask of persistence. One client is one address. The kernel refuses an IPv6 prefix
		// length of 0 even without persistence (ip_vs_ctl.c, ip_vs_add_service).
		mask := ^uint32(0)
		if o.Key.Addr.Is6() {
			mask = 128
		}
		b.attrU32(svcNetmask, mask)
	})
}

// putDest names a real server; with its settings when r is not nil.
func putDest(b *batch, k ipvs.Key, addr netip.AddrPort, r *ipvs.Real) {
	b.nest(attrService, func() { putKey(b, k) })
	b.nest(attrDest, func() {
		b.attrAddr(destAddr, addr.Addr())
		b.attrPort(destPort, addr.Port())
		// Unsaid, the kernel takes the address for one of the virtual server's family.
		b.attrU16(destFamily, af(addr.Addr()))
		if r == nil {
			return
		}
		b.attrU32(destForward, uint32(r.Forward))
		b.attrU32(destWeight, uint32(r.Weight))
		b.attrU32(destUThresh, r.Most)
		b.attrU32(destLThresh, 0)
	})
}

// errForeign marks a virtual server that no Key can name (a firewall mark).
var errForeign = errors.New("virtual server of a firewall mark")

// parseService reads a virtual server from a GET_SERVICE answer.
func parseService(msg []byte) (k ipvs.Key, s ipvs.Server, err error) {
	var family, port uint16
	var addr []byte
	err = nested(msg, attrService, func(typ uint16, v []byte) error {
		switch {
		case typ == svcAF && len(v) >= 2:
			family = binary.NativeEndian.Uint16(v)
		case typ == svcProtocol && len(v) >= 2:
			k.Proto = ipvs.Proto(binary.NativeEndian.Uint16(v))
		case typ == svcAddr:
			addr = v
		case typ == svcPort && len(v) >= 2:
			port = binary.BigEndian.Uint16(v)
		case typ == svcFwmark:
			return errForeign
		case typ == svcSched:
			s.Scheduler = cString(v)
		case typ == svcFlags && len(v) >= 4:
			s.Flags = ipvs.Flags(binary.NativeEndian.Uint32(v) &^ flagHashed)
		case typ == svcTimeout && len(v) >= 4:
			s.Timeout = binary.NativeEndian.Uint32(v)
		}
		return nil
	})
	if err != nil {
		return k, s, err
	}
	k.Port = port
	if k.Addr, err = parseAddr(family, addr); err != nil {
		return k, s, err
	}
	if s.Flags&ipvs.Persistent == 0 {
		s.Timeout = 0 // kept by the kernel and without meaning
	}
	return k, s, nil
}

// parseDest reads a real server from a GET_DEST answer. Its family is the virtual server's, unless it says
// another one (a tunnel).
func parseDest(msg []byte, family uint16) (r ipvs.Real, c ipvs.Conns, err error) {
	var port uint16
	var addr []byte
	err = nested(msg, attrDest, func(typ uint16, v []byte) error {
		switch {
		case typ == destAddr:
			addr = v
		case typ == destPort && len(v) >= 2:
			port = binary.BigEndian.Uint16(v)
		case typ == destFamily && len(v) >= 2:
			family = binary.NativeEndian.Uint16(v)
		case len(v) < 4:
		case typ == destForward:
			r.Forward = ipvs.Forward(binary.NativeEndian.Uint32(v) & 7) // IP_VS_CONN_F_FWD_MASK
		case typ == destWeight:
			// The kernel keeps 32 bits; more than 16 is not ours and must not look like it.
			r.Weight = uint16(min(binary.NativeEndian.Uint32(v), 65535))
		case typ == destUThresh:
			r.Most = binary.NativeEndian.Uint32(v)
		case typ == destActive:
			c.Active = binary.NativeEndian.Uint32(v)
		case typ == destInactive:
			c.Inactive = binary.NativeEndian.Uint32(v)
		}
		return nil
	})
	if err != nil {
		return r, c, err
	}
	a, err := parseAddr(family, addr)
	r.Addr = netip.AddrPortFrom(a, port)
	return r, c, err
}

// nested walks the attributes inside the attribute typ of a generic netlink message.
func nested(msg []byte, typ uint16, f func(typ uint16, value []byte) error) error {
	found := false
	err := eachAttr(skip(msg, unix.GENL_HDRLEN), func(t uint16, v []byte) error {
		if t != typ {
			return nil
		}
		found = true
		return eachAttr(v, f)
	})
	if err == nil && !found {
		return fmt.Errorf("attribute %d missing in an IPVS answer: %w", typ, unix.EBADMSG)
	}
	return err
}

func parseAddr(family uint16, b []byte) (netip.Addr, error) {
	switch {
	case family == unix.AF_INET && len(b) >= 4:
		return netip.AddrFrom4([4]byte(b[:4])), nil
	case family == unix.AF_INET6 && len(b) >= 16:
		return netip.AddrFrom16([16]byte(b[:16])), nil
	}
	return netip.Addr{}, fmt.Errorf("address of %d bytes in family %d: %w", len(b), family, unix.EBADMSG)
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
