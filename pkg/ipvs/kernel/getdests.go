package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// getDests asks for the real servers of a virtual server of IPv4, which needs CAP_NET_ADMIN. Over netlink the kernel writes
// each with more than thirty attributes, counters twice among them; this copies one structure.
type getDests struct {
	optSocket
	buf []byte
}

// Layout of struct ip_vs_get_dests and struct ip_vs_dest_entry on 64-bit machines, for which alone the agent is built.
const (
	destsHead    = 24
	destsEntry   = 96
	destsAtFirst = 64
)

// read appends the real servers, without their counters; of a virtual server that is not there it finds none.
func (g *getDests) read(k ipvs.Key, to []ipvs.CountedReal) ([]ipvs.CountedReal, error) {
	for room := destsAtFirst; ; room *= 2 {
		if n := destsHead + room*destsEntry; len(g.buf) < n {
			g.buf = make([]byte, n)
		}
		err := g.ask(k, room)
		if errors.Is(err, unix.ESRCH) {
			return to, nil
		}
		if err != nil {
			return to, err
		}
		// The kernel does not say how many it has written: as many as there is room for, and the rest stays as it was.
		entries := g.buf[destsHead:][:room*destsEntry]
		if !ends(entries[len(entries)-destsEntry:]) {
			continue // there may be more
		}
		for ; !ends(entries); entries = entries[destsEntry:] {
			to = append(to, destOf(entries))
		}
		return to, nil
	}
}

// ask has the kernel fill the buffer.
func (g *getDests) ask(k ipvs.Key, room int) error {
	clear(g.buf[:destsHead])
	for i := range room {
		clear(g.buf[destsHead+i*destsEntry:][:4])
	}
	ip := k.Addr.As4()
	binary.NativeEndian.PutUint16(g.buf, uint16(k.Proto))
	copy(g.buf[4:], ip[:])
	binary.BigEndian.PutUint16(g.buf[8:], k.Port)
	binary.NativeEndian.PutUint32(g.buf[16:], uint32(room))
	n := uint32(destsHead + room*destsEntry)
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(g.fd), unix.IPPROTO_IP, optGetDests,
		uintptr(unsafe.Pointer(&g.buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return e
	}
	return nil
}

// ends: no real server has the address 0.0.0.0.
func ends(entry []byte) bool { return binary.NativeEndian.Uint32(entry) == 0 }

func destOf(entry []byte) (r ipvs.CountedReal) {
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(entry[at:]) }
	r.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte(entry)), binary.BigEndian.Uint16(entry[4:]))
	r.Forward = ipvs.Forward(word(8) & 7) // IP_VS_CONN_F_FWD_MASK
	r.Weight = uint16(min(word(12), 65535))
	r.Most = word(16)
	r.Active, r.Inactive, r.Persistent = word(24), word(28), word(32)
	return r
}
