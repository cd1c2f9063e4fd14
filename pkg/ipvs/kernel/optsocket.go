package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// optSocket asks IPVS by its socket options, which it answers on every kind of IPv4 socket; this one needs no right to raw
// packets.
type optSocket struct{ fd int } // -1 when closed

// closedOptSocket is one that is not open yet.
var closedOptSocket = optSocket{-1}

// Options of include/uapi/linux/ip_vs.h.
const (
	baseCtl     = 64 + 1024 + 64 // IP_VS_BASE_CTL
	getInfo     = baseCtl + 1    // IP_VS_SO_GET_INFO
	optGetDests = baseCtl + 4    // IP_VS_SO_GET_DESTS
)

// open opens it in this thread's network namespace; purpose is for the error.
func (s *optSocket) open(purpose string) (err error) {
	s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.fd = -1
		return fmt.Errorf("open a socket to %s: %w", purpose, err)
	}
	return nil
}

func (s *optSocket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}
