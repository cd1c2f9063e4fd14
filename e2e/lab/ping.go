package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pingID tells this ping's answers from those of others in the namespace: raw
// sockets see every echo.
var pingID atomic.Uint32

// Ping sends one echo request and waits for its answer, 3 s at most (see
// Timeout and From).
func (h *Host) Ping(to netip.Addr, opts ...AskOption) error {
	q := newQuestion(opts)
	if err := h.ping(to, q); err != nil {
		return fmt.Errorf("%s pings %s: %w", h.Name, to, err)
	}
	return nil
}

// icmpKind is what differs between the families.
type icmpKind struct {
	proto          int
	request, reply byte
}

func icmpOf(a netip.Addr) icmpKind {
	if a.Is4() {
		return icmpKind{unix.IPPROTO_ICMP, 8, 0}
	}
	return icmpKind{unix.IPPROTO_ICMPV6, 128, 129}
}

func (h *Host) ping(to netip.Addr, q *question) error {
	kind := icmpOf(to)
	fd, err := h.socket(domain(to), unix.SOCK_RAW, kind.proto)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	if err := bindFrom(fd, netip.AddrPortFrom(q.from, 0)); err != nil {
		return err
	}
	// Connected: the kernel drops packets of others, and a refusal or an
	// unreachable network comes back as an error.
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(to, 0))); err != nil {
		return os.NewSyscallError("connect", err)
	}
	if err := f.SetDeadline(time.Now().Add(q.timeout)); err != nil {
		return err
	}
	echo := echoRequest(kind.request, uint16(pingID.Add(1)))
	if _, err := f.Write(echo); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("no answer within %s: %w", q.timeout, err)
		}
		if err != nil {
			return err
		}
		if isEchoReply(buf[:n], kind, echo) {
			return nil
		}
	}
}

// echoRequest builds a request. The kernel fills in the checksum of ICMPv6
// only, but computing it for both does no harm.
func echoRequest(typ byte, id uint16) []byte {
	b := make([]byte, 8, 16)
	b[0] = typ
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], 1)
	b = append(b, "ipvs-lab"...)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}

func isEchoReply(packet []byte, kind icmpKind, request []byte) bool {
	if kind.proto == unix.IPPROTO_ICMP { // IPv4 raw sockets give the header too
		if len(packet) < 20 {
			return false
		}
		packet = packet[min(len(packet), int(packet[0]&0xf)*4):]
	}
	return len(packet) == len(request) && packet[0] == kind.reply && string(packet[4:]) == string(request[4:])
}
