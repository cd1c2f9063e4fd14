package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A case is counted so often, after some that are not.
const (
	warm  = 20
	count = 101
)

// pause lets the kernel do between two counts what it put off: memory of connections that ended, above all.
const pause = 2 * time.Millisecond

// message is what a request and an answer have, in bytes.
const message = 100

// listener listens for TCP on a place's address, and is served by who connects: one thread is client and server, so that
// nothing but the packets' way and the system calls is counted.
func (p *place) listener(family int, port uint16) (fd int, err error) {
	err = p.in(func() error {
		if fd, err = tcpSocket(family); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(p.addrs[family].Addr(), port))); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		return unix.Listen(fd, 1024)
	})
	return fd, err
}

func tcpSocket(family int) (int, error) {
	fd, err := unix.Socket([]int{unix.AF_INET, unix.AF_INET6}[family], unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	// An answer that does not come ends the bench, not the machine.
	tv := unix.Timeval{Sec: 10}
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &tv); err != nil {
			return 0, fmt.Errorf("time-out of a socket: %w", err)
		}
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// traveller sends what is counted: from its place to an address, behind which a listener is.
type traveller struct {
	from   *place
	family int
	to     netip.AddrPort
	listen int
}

// counted calls f so often and gives the lower quartile of what the calls return.
func (t traveller) counted(f func() (time.Duration, error)) (took time.Duration, err error) {
	err = t.from.in(func() error {
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		runtime.GC()
		var all []time.Duration
		for i := range warm + count {
			d, err := f()
			if err != nil {
				return fmt.Errorf("from the %s to %s: %w", t.from.name, t.to, err)
			}
			if i >= warm {
				all = append(all, d)
			}
			time.Sleep(pause)
		}
		// What interrupts a count only adds to it: the clock's tick, the loop's turn.
		slices.Sort(all)
		took = all[len(all)/4]
		return nil
	})
	return took, err
}

// open makes a connection, and says what connect and accept took: three packets. Each has a source port of its own, which
// no connection that the kernel remembers has, and for which nobody has to look.
func (t traveller) open() (client, server int, took time.Duration, err error) {
	if client, err = tcpSocket(t.family); err != nil {
		return 0, 0, 0, err
	}
	t.from.port++
	if err := unix.Bind(client, sockaddr(netip.AddrPortFrom(t.from.addrs[t.family].Addr(), t.from.port))); err != nil {
		return 0, 0, 0, fmt.Errorf("bind: %w", err)
	}
	to := sockaddr(t.to)
	began := time.Now()
	if err := unix.Connect(client, to); err != nil {
		return 0, 0, 0, fmt.Errorf("connect: %w", err)
	}
	if server, _, err = unix.Accept4(t.listen, unix.SOCK_CLOEXEC); err != nil {
		return 0, 0, 0, fmt.Errorf("accept: %w", err)
	}
	return client, server, time.Since(began), nil
}

// abort ends a connection by a reset: nothing of it is remembered for minutes.
func abort(fds ...int) {
	for _, fd := range fds {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
	}
}

// connect counts a new connection until both sides have it.
func (t traveller) connect() (time.Duration, error) {
	return t.counted(func() (time.Duration, error) {
		client, server, took, err := t.open()
		if err == nil {
			abort(client, server)
		}
		return took, err
	})
}

// exchange sends a message there and one back.
func exchange(client, server int, buf []byte) error {
	for _, way := range [][2]int{{client, server}, {server, client}} {
		if n, err := unix.Write(way[0], buf); err != nil || n != len(buf) {
			return fmt.Errorf("write: %d of %d bytes, %w", n, len(buf), err)
		}
		if n, err := unix.Read(way[1], buf); err != nil || n != len(buf) {
			return fmt.Errorf("read: %d of %d bytes, %w", n, len(buf), err)
		}
	}
	return nil
}

// roundTrip counts a message there and one back, on a connection that has had some.
func (t traveller) roundTrip() (time.Duration, error) {
	client, server, buf := -1, -1, make([]byte, message)
	took, err := t.counted(func() (time.Duration, error) {
		if client < 0 {
			var err error
			if client, server, _, err = t.open(); err != nil {
				return 0, err
			}
		}
		began := time.Now()
		err := exchange(client, server, buf)
		return time.Since(began), err
	})
	abort(client, server)
	return took, err
}

// visit counts all of a short visit: connect, request, answer, and the end from both sides.
func (t traveller) visit() (time.Duration, error) {
	buf := make([]byte, message)
	return t.counted(func() (time.Duration, error) {
		began := time.Now()
		client, server, _, err := t.open()
		if err != nil {
			return 0, err
		}
		if err := exchange(client, server, buf); err != nil {
			return 0, err
		}
		unix.Close(client)
		if n, err := unix.Read(server, buf); n != 0 || err != nil {
			return 0, fmt.Errorf("end of the connection: %d bytes, %w", n, err)
		}
		unix.Close(server)
		return time.Since(began), nil
	})
}
