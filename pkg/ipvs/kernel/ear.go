package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ear is a netlink socket that hears the notifications of some multicast groups.
type ear struct {
	f    *os.File
	done chan struct{}
}

// earBytes is the room for notifications that were not read yet. What does not find room is lost, and then
// everything is looked at once.
const earBytes = 4 << 20

// openEar joins multicast groups in this thread's network namespace.
func openEar(protocol int, name string, groups ...int) (*ear, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for notifications of %s: %w", name, err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, earBytes)
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, g := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen for notifications of %s: %w", name, err)
	}
	return &ear{f: os.NewFile(uintptr(fd), "netlink "+name), done: make(chan struct{})}, nil
}

// run gives each datagram to hear, and calls lost when some did not find room, until the ear is closed.
func (e *ear) run(hear func(data []byte), lost func()) {
	defer close(e.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := e.f.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return // closed
		default:
			hear(buf[:n])
		}
	}
}

// close ends run and waits for its end.
func (e *ear) close() {
	e.f.Close()
	<-e.done
}
