package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// requestTimeout is how long one exchange with the kernel may take. The kernel answers within
// microseconds; what takes longer is a lost message or a lock held elsewhere.
const requestTimeout = 5 * time.Second

// errTimeout: the kernel did not answer in time; whether it did what was asked is unknown.
var errTimeout = errors.New("no answer from the kernel in time")

// socket is a netlink socket through which many requests go in one buffer. It is not safe for concurrent
// use. After an error that leaves answers outstanding it closes itself and the next use opens it anew, so
// that a late answer never meets a later question.
type socket struct {
	protocol int
	fd       int // -1 when closed
	seq      uint32
	buf      []byte
}

func newSocket(protocol int) *socket { return &socket{protocol: protocol, fd: -1} }

func (s *socket) open() error {
	if s.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, s.protocol)
	if err != nil {
		return fmt.Errorf("open a netlink socket of protocol %d: %w", s.protocol, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("bind a netlink socket of protocol %d: %w", s.protocol, err)
	}
	// Without it an error comes back with the whole request in it: needless bytes in the receive buffer.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	s.fd = fd
	if s.buf == nil {
		s.buf = make([]byte, 64<<10)
	}
	return nil
}

func (s *socket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// batch collects requests to be sent in one buffer.
type batch struct {
	data  []byte
	start int // of the last message
	count uint32
	// transaction: an error of the first message ends it, whatever else is outstanding.
	transaction bool
	// last is the place, from 1, of the message that is acknowledged; 0 means the last one.
	last uint32
}

// begin starts a message; attributes are appended to b.data until the next begin or the exchange.
func (b *batch) begin(typ, flags uint16, header []byte) {
	b.finish()
	b.start = len(b.data)
	b.count++
	b.data = binary.NativeEndian.AppendUint32(b.data, 0)
	b.data = binary.NativeEndian.AppendUint16(b.data, typ)
	b.data = binary.NativeEndian.AppendUint16(b.data, flags|unix.NLM_F_REQUEST)
	b.data = binary.NativeEndian.AppendUint32(b.data, b.count) // its place, made a sequence number when sent
	b.data = binary.NativeEndian.AppendUint32(b.data, 0)
	b.data = append(b.data, header...)
}

// finish writes the length of the last message.
func (b *batch) finish() {
	if b.count == 0 {
		return
	}
	for len(b.data)%unix.NLMSG_ALIGNTO != 0 {
		b.data = append(b.data, 0)
	}
	binary.NativeEndian.PutUint32(b.data[b.start:], uint32(len(b.data)-b.start))
}

// acknowledge asks for an acknowledgement of the last message, which speaks for all before it.
func (b *batch) acknowledge() {
	flags := binary.NativeEndian.Uint16(b.data[b.start+6:])
	binary.NativeEndian.PutUint16(b.data[b.start+6:], flags|unix.NLM_F_ACK)
}

func (b *batch) reset() { b.data, b.count, b.start = b.data[:0], 0, 0 }

// attr appends an attribute.
func (b *batch) attr(typ uint16, value []byte) {
	b.data = binary.NativeEndian.AppendUint16(b.data, uint16(4+len(value)))
	b.data = binary.NativeEndian.AppendUint16(b.data, typ)
	b.data = append(b.data, value...)
	for len(b.data)%unix.NLA_ALIGNTO != 0 {
		b.data = append(b.data, 0)
	}
}

func (b *batch) attrU16(typ, v uint16) {
	var x [2]byte
	binary.NativeEndian.PutUint16(x[:], v)
	b.attr(typ, x[:])
}

func (b *batch) attrU32(typ uint16, v uint32) {
	var x [4]byte
	binary.NativeEndian.PutUint32(x[:], v)
	b.attr(typ, x[:])
}

func (b *batch) attrString(typ uint16, v string) {
	var x [64]byte
	n := copy(x[:63], v)
	b.attr(typ, x[:n+1])
}

// nest appends an attribute that holds what f appends.
func (b *batch) nest(typ uint16, f func()) {
	at := len(b.data)
	b.data = append(b.data, 0, 0, 0, 0)
	f()
	binary.NativeEndian.PutUint16(b.data[at:], uint16(len(b.data)-at))
	binary.NativeEndian.PutUint16(b.data[at+2:], typ|unix.NLA_F_NESTED)
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
		data, err := s.receive(ctx, deadline)
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
		done := false
		err = eachMessage(data, func(typ, _ uint16, seq uint32, body []byte) {
			i := seq - first
			if i >= b.count {
				return // an answer to somebody who gave up waiting
			}
			if typ != unix.NLMSG_ERROR {
				replies[i].messages = append(replies[i].messages, append([]byte(nil), body...))
				return
			}
			replies[i].err = errnoOf(body)
			done = done || seq == last || b.transaction && seq == first
		})
		if err != nil {
			return nil, fmt.Errorf("netlink answer: %w", err)
		}
		if done {
			return replies, nil
		}
	}
}

// dump sends one request with NLM_F_DUMP and calls f for each message of the answer.
func (s *socket) dump(ctx context.Context, b *batch, f func(body []byte) error) error {
	b.finish()
	first, err := s.send(ctx, b)
	if err != nil {
		return err
	}
	deadline := deadlineOf(ctx)
	for {
		data, err := s.receive(ctx, deadline)
		if err != nil {
			s.close()
			return err
		}
		done, failed := false, error(nil)
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
			s.close() // the rest of the dump may still come
			return err
		}
		if done {
			return nil
		}
	}
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
		err = unix.Sendto(s.fd, b.data, unix.MSG_NOSIGNAL, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
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

// receive waits for the next datagram.
func (s *socket) receive(ctx context.Context, deadline time.Time) ([]byte, error) {
	for {
		left := time.Until(deadline)
		if left <= 0 || ctx.Err() != nil {
			return nil, errTimeout
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, int(left/time.Millisecond)+1); err != nil && err != unix.EINTR {
			return nil, fmt.Errorf("wait for a netlink answer: %w", err)
		}
		n, _, err := unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			continue
		case err != nil:
			// ENOBUFS: the kernel dropped an answer for want of room.
			return nil, fmt.Errorf("read a netlink answer: %w", err)
		case n > len(s.buf):
			return nil, fmt.Errorf("netlink answer of %d bytes is larger than the buffer", n)
		}
		return s.buf[:n], nil
	}
}

func deadlineOf(ctx context.Context) time.Time {
	deadline := time.Now().Add(requestTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		return d
	}
	return deadline
}

// eachMessage walks the messages of a datagram.
func eachMessage(data []byte, f func(typ, flags uint16, seq uint32, body []byte)) error {
	for len(data) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(data))
		if n < unix.SizeofNlMsghdr || n > len(data) {
			return fmt.Errorf("message of %d bytes in a datagram of %d", n, len(data))
		}
		f(binary.NativeEndian.Uint16(data[4:]), binary.NativeEndian.Uint16(data[6:]),
			binary.NativeEndian.Uint32(data[8:]), data[unix.SizeofNlMsghdr:n])
		data = data[min(len(data), (n+3)&^3):]
	}
	return nil
}

// errnoOf reads the errno of an NLMSG_ERROR or NLMSG_DONE: 0 is an acknowledgement.
func errnoOf(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}

// eachAttr walks netlink attributes. A malformed list is an error, never a panic.
func eachAttr(data []byte, f func(typ uint16, value []byte) error) error {
	for len(data) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(data))
		if n < unix.SizeofNlAttr || n > len(data) {
			return fmt.Errorf("attribute of %d bytes in %d", n, len(data))
		}
		if err := f(binary.NativeEndian.Uint16(data[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[4:n]); err != nil {
			return err
		}
		data = data[min(len(data), (n+3)&^3):]
	}
	return nil
}
