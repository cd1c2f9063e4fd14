package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Sockets are made by hand, not by net.Dialer: only socket(2) has to happen in
// the namespace, so the thread is back before anything waits. A Dialer would
// hold the locked thread until the answer, and package net probes once per
// process, in whatever namespace it happens to be, which families there are.

// socket opens a non-blocking socket in the namespace.
func (h *Host) socket(domain, typ, proto int) (fd int, err error) {
	err = h.Do(func() error {
		fd, err = unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// listen opens a listening socket of a protocol, 0 for TCP. An invalid address
// stands for the wildcard of both families on one socket; [::] itself is IPv6
// only.
func (h *Host) listen(proto int, addr netip.Addr, port uint16) (net.Listener, error) {
	dual := !addr.IsValid()
	if dual {
		addr = netip.IPv6Unspecified()
	}
	fd, err := h.socket(domain(addr), unix.SOCK_STREAM, proto)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // net.FileListener has its own copy
	if err := bindListen(fd, netip.AddrPortFrom(addr, port), dual); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

func bindListen(fd int, at netip.AddrPort, dual bool) error {
	if at.Addr().Is6() {
		if err := v6only(fd, !dual); err != nil {
			return err
		}
	}
	// A server that comes back finds connections of the last one in TIME_WAIT.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("listen", unix.Listen(fd, 1024))
}

func v6only(fd int, only bool) error {
	value := 0
	if only {
		value = 1
	}
	return os.NewSyscallError("setsockopt IPV6_V6ONLY", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, value))
}

// dial opens a connection of a protocol, 0 for TCP, from a local address (its
// zero parts are the kernel's choice). It returns the local port as soon as
// there is one, and the socket also when it got as far as waiting for its peer:
// what became of it can be read there. Who calls closes it.
func (h *Host) dial(proto int, from, to netip.AddrPort, deadline time.Time) (conn *os.File, port uint16, err error) {
	fd, err := h.socket(domain(to.Addr()), unix.SOCK_STREAM, proto)
	if err != nil {
		return nil, 0, err
	}
	if to.Addr().Is6() {
		// SCTP tells its peer all addresses of the socket, and an IPv6 socket has those of IPv4, too.
		err = v6only(fd, true)
	}
	switch {
	case err != nil:
	case !from.Addr().IsValid() && proto == 0:
		err = h.bindFresh(fd, to.Addr())
	default:
		err = bindFrom(fd, from)
	}
	if err != nil {
		unix.Close(fd)
		return nil, 0, err
	}
	// Connect before the poller sees the socket: an unconnected one is
	// reported ready at once.
	connErr := unix.Connect(fd, sockaddr(to))
	port = localPort(fd)
	if connErr != nil && connErr != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, port, os.NewSyscallError("connect", connErr)
	}
	conn = os.NewFile(uintptr(fd), "connection")
	return conn, port, waitConnected(conn, deadline)
}

func bindFrom(fd int, from netip.AddrPort) error {
	if !from.Addr().IsValid() {
		return nil
	}
	if from.Port() != 0 {
		// A named port may still be in TIME_WAIT: using it again is what such
		// a test is about.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return fmt.Errorf("from %s: %w", from, os.NewSyscallError("bind", err))
	}
	return nil
}

func localPort(fd int) uint16 {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	return 0
}

func waitConnected(conn *os.File, deadline time.Time) error {
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = rc.Write(func(fd uintptr) bool {
		// Only what wakes a sleeping client counts. Asked for too early, SO_ERROR also tells of ICMP errors that
		// the kernel takes for passing ones, and of which a client that waits hears nothing.
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(ready, 0); n == 0 || err == unix.EINTR {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			result = os.NewSyscallError("getsockopt SO_ERROR", err)
			return true
		case code != 0:
			result = os.NewSyscallError("connect", unix.Errno(code))
			return true
		}
		// No error may also mean no answer yet.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	runtime.KeepAlive(conn)
	return errors.Join(err, result)
}

// sentAgain tells whether a connection on which nothing was sent yet had to repeat its SYN.
func sentAgain(conn *os.File) (again bool) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	_ = rc.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		again = err == nil && info.Total_retrans > 0
	})
	return again
}
