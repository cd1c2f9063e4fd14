package kernel

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

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

// errTruncated: an answer ends where its errno should be, so it says nothing.
var errTruncated = fmt.Errorf("netlink answer without an errno: %w", unix.EBADMSG)

// eachMessage walks the messages of a datagram.
func eachMessage(data []byte, f func(typ, flags uint16, seq uint32, body []byte)) error {
	return eachHeader(data, func(h, body []byte) {
		f(binary.NativeEndian.Uint16(h[4:]), binary.NativeEndian.Uint16(h[6:]), binary.NativeEndian.Uint32(h[8:]), body)
	})
}

// eachNotice walks the notifications of a datagram, each with the port of who asked for what happened.
func eachNotice(data []byte, f func(typ uint16, port uint32, body []byte)) error {
	return eachHeader(data, func(h, body []byte) {
		f(binary.NativeEndian.Uint16(h[4:]), binary.NativeEndian.Uint32(h[12:]), body)
	})
}

func eachHeader(data []byte, f func(header, body []byte)) error {
	for len(data) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(data))
		if n < unix.SizeofNlMsghdr || n > len(data) {
			return fmt.Errorf("message of %d bytes in a datagram of %d: %w", n, len(data), unix.EBADMSG)
		}
		f(data[:unix.SizeofNlMsghdr], data[unix.SizeofNlMsghdr:n])
		data = data[min(len(data), (n+3)&^3):]
	}
	if len(data) > 0 {
		return fmt.Errorf("%d bytes after the last message: %w", len(data), unix.EBADMSG)
	}
	return nil
}

// errnoOf reads the errno of an NLMSG_ERROR or NLMSG_DONE: 0 is an acknowledgement. One that is cut short
// acknowledges nothing.
func errnoOf(body []byte) error {
	if len(body) < 4 {
		return errTruncated
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
			return fmt.Errorf("attribute of %d bytes in %d: %w", n, len(data), unix.EBADMSG)
		}
		if err := f(binary.NativeEndian.Uint16(data[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[4:n]); err != nil {
			return err
		}
		data = data[min(len(data), (n+3)&^3):]
	}
	return nil
}
