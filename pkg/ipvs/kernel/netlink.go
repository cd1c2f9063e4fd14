package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// requestTimeout is how long one exchange with the kernel may take. The kernel answers within
// microseconds; what takes longer is a lost message or a lock held elsewhere.
// A variable for tests on machines that are slower than any node.
var requestTimeout = 5 * time.Second

// errTimeout: the kernel did not answer in time; whether it did what was asked is unknown.
var errTimeout = errors.New("no answer from the kernel in time")

// socket is a netlink socket through which many requests go in one buffer. It is not safe for concurrent
// use. After an error that leaves answers outstanding it closes itself and the next use opens it anew, so
// that a late answer never meets a later question.
type socket struct {
	protocol int
	dial     func(protocol int) (fd int, err error) // tests put themselves in the kernel's place
	ports    *ownPorts                              // where each port that the socket gets is noted; nil: nowhere
	fd       int                                    // -1 when closed
	most     int                                    // bytes of a request that it takes at once, as long as it is open; 0: not known
	seq      uint32
	buf      []byte
}

func newSocket(protocol int) *socket { return &socket{protocol: protocol, dial: dial, fd: -1} }

// answerBytes is the room for answers that were not read yet: for one of each request of a batch, of which batchBytes
// may hold 400.
const answerBytes = 1 << 20

// dial opens a netlink socket to the kernel.
func dial(protocol int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("open a netlink socket of protocol %d: %w", protocol, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind a netlink socket of protocol %d: %w", protocol, err)
	}
	// Each answer of a batch has a buffer of its own there; those of 300 requests did not find room.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, answerBytes)
	// Without it an error comes back with the whole request in it: needless bytes in the receive buffer.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	// rtnetlink filters a dump by device and table only for who asks strictly (5.0).
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return fd, nil
}

func (s *socket) open() error {
	if s.fd >= 0 {
		return nil
	}
	fd, err := s.dial(s.protocol)
	if err != nil {
		return err
	}
	s.fd, s.most = fd, 0
	if buffer, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil {
		s.most = buffer - 32 // the kernel keeps 32 bytes for itself
	}
	s.ports.add(fd)
	if s.buf == nil {
		s.buf = make([]byte, 64<<10)
	}
	return nil
}

// note has the socket's port noted, the one that it has already as well as those that it will get.
func (s *socket) note(ports *ownPorts) {
	if s.ports = ports; s.fd >= 0 {
		ports.add(s.fd)
	}
}

func (s *socket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// reply is what became of one request of a batch.
type reply struct {
	err      error
	unknown  bool // err is no answer of the kernel: nobody can say what it did
	messages [][]byte
}

// exchange sends a batch and returns one reply a request, in order. The last request (or the one that
// b.last names) must carry NLM_F_ACK: requests are handled in order, and errors are always answered, so
// that its acknowledgement says that all others without an error are done. An error is returned only where
// nothing was sent.
func (s *socket) exchange(ctx context.Context, b *batch) ([]reply, error) {
	if b.count == 0 {
		return nil, nil
	}
	b.finish()
	first, err := s.send(ctx, b)
	if err != nil {
		return nil, err
	}
	replies := make([]reply, b.count)
	last := first + b.count - 1
	if b.last != 0 {
		last = first + b.last - 1
	}
	deadline := deadlineOf(ctx)
	for {
		done, err := s.receiveReplies(ctx, deadline, b, replies, first, last)
		if err != nil {
			// Answers are outstanding: what was not refused may or may not have happened.
			s.close()
			for i := range replies {
				if replies[i].err == nil {
					replies[i].err, replies[i].unknown = err, true
				}
			}
			return replies, nil
		}
		if done {
			return replies, nil
		}
	}
}

// receiveReplies files the answers of one datagram and says whether the last one was among them.
func (s *socket) receiveReplies(ctx context.Context, deadline time.Time, b *batch, replies []reply, first, last uint32) (done bool, err error) {
	data, err := s.receive(ctx, deadline)
	if err != nil {
		return false, err
	}
	var truncated error
	err = eachMessage(data, func(typ, _ uint16, seq uint32, body []byte) {
		i := seq - first
		switch {
		case i >= b.count:
			// an answer to somebody who gave up waiting
		case typ != unix.NLMSG_ERROR:
			replies[i].messages = append(replies[i].messages, bytes.Clone(body))
		case len(body) < 4:
			truncated = errTruncated
		default:
			replies[i].err = errnoOf(body)
			done = done || seq == last || b.transaction && seq == first
		}
	})
	if err = errors.Join(err, truncated); err != nil {
		return false, fmt.Errorf("netlink answer: %w", err)
	}
	return done, nil
}

// dump sends one request with NLM_F_DUMP and calls f for each message of the answer.
func (s *socket) dump(ctx context.Context, b *batch, f func(body []byte) error) error {
	first, err := s.ask(ctx, b)
	if err != nil {
		return err
	}
	deadline := deadlineOf(ctx)
	for {
		if _, done, err := s.dumped(ctx, deadline, first, f); err != nil || done {
			return err
		}
	}
}

// ask sends one request with NLM_F_DUMP and gives the number by which its answers are known.
func (s *socket) ask(ctx context.Context, b *batch) (first uint32, err error) {
	b.finish()
	return s.send(ctx, b)
}

// dumped takes the next datagram of a dump, calls f for each message in it, and says how many bytes it had and whether
// it was the last. After an error the socket is closed: the rest may still come.
func (s *socket) dumped(ctx context.Context, deadline time.Time, first uint32, f func(body []byte) error) (size int, done bool, err error) {
	data, err := s.receive(ctx, deadline)
	if err != nil {
		s.close()
		return 0, false, err
	}
	var failed error
	err = eachMessage(data, func(typ, flags uint16, seq uint32, body []byte) {
		switch {
		case seq != first || done:
			return
		case flags&unix.NLM_F_DUMP_INTR != 0:
			// The kernel's table changed under the dump: entries may be missing or repeated.
			failed = errors.Join(failed, unix.EINTR)
		}
		switch typ {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			done = true
			failed = errors.Join(failed, errnoOf(body))
		default:
			if failed == nil {
				failed = f(body)
			}
		}
	})
	if err = errors.Join(err, failed); err != nil {
		s.close()
	}
	return len(data), done, err
}

// again repeats a dump that was interrupted because something changed under it: it may have gaps.
func again(dump func() error) error {
	for range 3 {
		if err := dump(); !errors.Is(err, unix.EINTR) && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return dump()
}

// send gives the requests their sequence numbers and sends them.
func (s *socket) send(ctx context.Context, b *batch) (first uint32, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := s.open(); err != nil {
		return 0, err
	}
	first = s.seq + 1
	s.seq += b.count
	for at, n := 0, uint32(0); at < len(b.data); n++ {
		binary.NativeEndian.PutUint32(b.data[at+8:], first+n)
		at += int(binary.NativeEndian.Uint32(b.data[at:]))
	}
	for {
		_, err = unix.Write(s.fd, b.data) // without an address it goes to the kernel
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		s.close()
		return 0, fmt.Errorf("send %d bytes over netlink protocol %d: %w", len(b.data), s.protocol, err)
	}
	return first, nil
}

// receive waits for the next datagram. It looks before it gives up: the kernel answers most requests while they
// are sent, and then it was this process or the whole machine that stood still until the deadline had passed.
func (s *socket) receive(ctx context.Context, deadline time.Time) ([]byte, error) {
	for {
		if ctx.Err() != nil {
			return nil, errTimeout
		}
		n, _, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			// ENOBUFS: the kernel dropped an answer for want of room.
			return nil, fmt.Errorf("read a netlink answer: %w", err)
		case n > len(s.buf):
			return nil, fmt.Errorf("netlink answer of %d bytes is larger than the buffer", n)
		default:
			return s.buf[:n], nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, errTimeout
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left/time.Millisecond)+1); err != nil && err != unix.EINTR {
			return nil, fmt.Errorf("wait for a netlink answer: %w", err)
		}
	}
}

func deadlineOf(ctx context.Context) time.Time {
	deadline := time.Now().Add(requestTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		return d
	}
	return deadline
}
