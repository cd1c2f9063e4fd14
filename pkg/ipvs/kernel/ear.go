package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
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

// ignore has the kernel itself keep back what one of our own sockets asked for, which is most of what there is to hear
// while many Services come. It is no more than cheaper: who hears looks at the port, too.
func (e *ear) ignore(port uint32) {
	const portAt = 12 // nlmsg_pid in struct nlmsghdr; a filter loads it in network order
	swapped := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port))
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: swapped},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
	}
	raw, err := e.f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
}

// close ends run and waits for its end.
func (e *ear) close() {
	e.f.Close()
	<-e.done
}
