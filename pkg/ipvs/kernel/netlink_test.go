package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// script plays the kernel's part: it is told how many sockets were opened so far and the sequence numbers of
// the requests of one buffer, and sends datagrams.
type script func(opened int, seqs []uint32, send func(datagram []byte))

// faulty is a socket with a script at its other end. Like a netlink socket it keeps datagrams apart.
func faulty(t *testing.T, play script) *socket {
	t.Helper()
	return faultyRaw(t, func(opened int, sent []byte, send func([]byte)) { play(opened, seqsOf(sent), send) })
}

// seqsOf are the sequence numbers of the requests of one buffer.
func seqsOf(sent []byte) (seqs []uint32) {
	_ = eachMessage(sent, func(_, _ uint16, seq uint32, _ []byte) { seqs = append(seqs, seq) })
	return seqs
}

// faultyRaw is faulty for who looks at the requests themselves.
func faultyRaw(t *testing.T, play func(opened int, sent []byte, send func([]byte))) *socket {
	t.Helper()
	s := newSocket(unix.NETLINK_GENERIC)
	opened := 0
	s.dial = func(int) (int, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		opened++
		go serve(fds[1], opened, play)
		return fds[0], nil
	}
	t.Cleanup(s.close)
	return s
}

func serve(fd, opened int, play func(opened int, sent []byte, send func([]byte))) {
	defer unix.Close(fd)
	buf := make([]byte, 256<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		play(opened, buf[:n], func(d []byte) { _, _ = unix.Write(fd, d) })
	}
}

// answer is an NLMSG_ERROR: an acknowledgement with errno 0.
func answer(seq uint32, errno unix.Errno) []byte {
	var b batch
	b.begin(unix.NLMSG_ERROR, 0, binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno))))
	b.finish()
	binary.NativeEndian.PutUint32(b.data[8:], seq)
	return b.data
}

// requests is a batch of n requests, the last acknowledged.
func requests(n int) *batch {
	var b batch
	for range n {
		b.begin(30, 0, []byte{1, 1, 0, 0})
	}
	b.acknowledge()
	return &b
}

// soon is a deadline for what does not come. What comes before it must have the time, on a busy machine too.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestExchangeFaults: whatever happens to the answers, what was refused is known to be refused, the rest is
// unknown, and the socket is not used again.
func TestExchangeFaults(t *testing.T) {
	cut := answer(0, 0)[:18]
	for _, c := range []struct {
		name string
		play func(seqs []uint32, send func([]byte))
		want error
	}{
		{"no answer", func([]uint32, func([]byte)) {}, errTimeout},
		{"garbage", func(_ []uint32, send func([]byte)) { send([]byte("garbage garbage garbage")) }, unix.EBADMSG},
		{"shorter than a header", func(_ []uint32, send func([]byte)) { send([]byte("x")) }, unix.EBADMSG},
		{"cut short", func(_ []uint32, send func([]byte)) { send(cut) }, unix.EBADMSG},
		{"no errno", func(seqs []uint32, send func([]byte)) {
			d := answer(seqs[2], 0)[:unix.SizeofNlMsghdr]
			binary.NativeEndian.PutUint32(d, unix.SizeofNlMsghdr)
			send(d)
		}, errTruncated},
		{"larger than the buffer", func(_ []uint32, send func([]byte)) { send(make([]byte, 80<<10)) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := faulty(t, func(_ int, seqs []uint32, send func([]byte)) {
				send(answer(seqs[1], unix.ENOENT))
				c.play(seqs, send)
			})
			ctx := t.Context() // a machine that stands still must not make a time-out of another fault
			if c.want == errTimeout || c.want == nil {
				ctx = soon(t)
			}
			replies, err := s.exchange(ctx, requests(3))
			if err != nil {
				t.Fatal(err)
			}
			if replies[1].err != unix.ENOENT || replies[1].unknown {
				t.Errorf("what was refused: %+v", replies[1])
			}
			for _, i := range []int{0, 2} {
				if r := replies[i]; r.err == nil || !r.unknown || c.want != nil && !errors.Is(r.err, c.want) {
					t.Errorf("request %d: %+v, want unknown with %v", i, r, c.want)
				}
			}
			if s.fd >= 0 {
				t.Error("the socket is still in use")
			}
		})
	}
}

// TestLateAnswer: an answer to a question that was given up is never taken for that to a later one, be it
// that it comes through the new socket.
func TestLateAnswer(t *testing.T) {
	given := make(chan []uint32, 1)
	s := faulty(t, func(opened int, seqs []uint32, send func([]byte)) {
		if opened == 1 {
			given <- seqs
			return
		}
		for _, late := range <-given {
			send(answer(late, unix.EPERM))
		}
		send(answer(seqs[0], unix.EEXIST))
		send(answer(seqs[2], 0))
	})
	replies, err := s.exchange(soon(t), requests(3))
	if err != nil || !replies[0].unknown {
		t.Fatalf("%+v, %v", replies, err)
	}
	replies, err = s.exchange(t.Context(), requests(3))
	if err != nil {
		t.Fatal(err)
	}
	if replies[0].err != unix.EEXIST || replies[1].err != nil || replies[2].err != nil {
		t.Errorf("got %+v, want the first refused with EEXIST and the rest done", replies)
	}
}

// A process that stood still until the deadline had passed still takes the answer that has been waiting for it.
func TestAnswerThatWaited(t *testing.T) {
	s := faulty(t, func(_ int, seqs []uint32, send func([]byte)) { send(answer(seqs[0], 0)) })
	b := requests(1)
	b.finish()
	if _, err := s.send(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	for n := 0; n == 0; {
		var err error
		if n, err = unix.Poll(fds, 10_000); err != nil && err != unix.EINTR || n == 0 && err == nil {
			t.Fatalf("the answer does not come: %v", err)
		}
	}
	passed := time.Now().Add(-time.Second)
	if _, err := s.receive(context.Background(), passed); err != nil {
		t.Errorf("an answer that was there: %v", err)
	}
	if _, err := s.receive(context.Background(), passed); !errors.Is(err, errTimeout) {
		t.Errorf("nothing there and the deadline passed: %v, want %v", err, errTimeout)
	}
}

// TestLostAcknowledgement: the loop is told Unknown, so that it looks before it writes again.
func TestLostAcknowledgement(t *testing.T) {
	s := faulty(t, func(_ int, seqs []uint32, send func([]byte)) { send(answer(seqs[0], unix.EEXIST)) })
	v := &ipvsDoor{sock: s, family: 30}
	out := v.write(soon(t), []ipvs.Op{ipvs.AddServer{Key: key("10.96.0.10", 80), Scheduler: "rr"}, ipvs.DelServer{Key: key("10.96.0.11", 80)}})
	if !errors.Is(out[0].Err, unix.EEXIST) || out[0].Unknown {
		t.Errorf("refused: %+v", out[0])
	}
	if !errors.Is(out[1].Err, errTimeout) || !out[1].Unknown {
		t.Errorf("not acknowledged: %+v", out[1])
	}
}

// TestNothingSent: a request that never left is known not to have happened.
func TestNothingSent(t *testing.T) {
	s := faulty(t, func(int, []uint32, func([]byte)) { t.Error("something was sent") })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.exchange(ctx, requests(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestInterruptedWait: a signal to the thread does not end the wait.
func TestInterruptedWait(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	s := faulty(t, func(_ int, seqs []uint32, send func([]byte)) {
		for range 20 {
			time.Sleep(5 * time.Millisecond)
			_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG) // the runtime's own, which it ignores
		}
		send(answer(seqs[0], 0))
	})
	replies, err := s.exchange(context.Background(), requests(1))
	if err != nil || replies[0].err != nil {
		t.Errorf("%+v, %v", replies, err)
	}
}

// TestDroppedAnswers: where the kernel had no room for its answers (ENOBUFS), what it could not say is
// unknown. This is the real rtnetlink: every request is refused, so no answer is an acknowledgement.
func TestDroppedAnswers(t *testing.T) {
	inNetns(t)
	l := &linkDoor{sock: newSocket(unix.NETLINK_ROUTE), index: 1 << 30}
	t.Cleanup(l.sock.close)
	l.sock.dial = func(protocol int) (int, error) {
		fd, err := dial(protocol)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) // the least that the kernel allows
		}
		return fd, err
	}
	addrs := make([]netip.Addr, 100)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{10, 96, 0, byte(i)})
	}
	refused, unknown := 0, 0
	for _, r := range l.each(context.Background(), addrs, func(a netip.Addr) { l.putAddr(unix.RTM_DELADDR, 0, a) }) {
		switch {
		case r.unknown && errors.Is(r.err, unix.ENOBUFS):
			unknown++
		case r.err == unix.ENODEV && !r.unknown:
			refused++
		default:
			t.Fatalf("%+v", r)
		}
	}
	if unknown == 0 || l.sock.fd >= 0 {
		t.Errorf("%d refused, %d unknown, socket %d; want some unknown and the socket closed", refused, unknown, l.sock.fd)
	}
	if r := l.each(context.Background(), addrs[:1], func(a netip.Addr) { l.putAddr(unix.RTM_DELADDR, 0, a) })[0]; r.err != unix.ENODEV || r.unknown {
		t.Errorf("after that: %+v", r)
	}
}

// TestDumpFaults: a dump that did not come whole is an error, and the rest of it meets nobody.
func TestDumpFaults(t *testing.T) {
	message := func(seq uint32, typ, flags uint16, body []byte) []byte {
		var b batch
		b.begin(typ, flags, body)
		b.finish()
		binary.NativeEndian.PutUint32(b.data[8:], seq)
		return b.data
	}
	for _, c := range []struct {
		name string
		play func(seq uint32, send func([]byte))
		want error
	}{
		{"no end", func(seq uint32, send func([]byte)) { send(message(seq, 30, 0, make([]byte, 4))) }, errTimeout},
		{"interrupted", func(seq uint32, send func([]byte)) { send(message(seq, 30, unix.NLM_F_DUMP_INTR, make([]byte, 4))) }, unix.EINTR},
		{"an errno at the end", func(seq uint32, send func([]byte)) {
			send(message(seq, unix.NLMSG_DONE, 0, binary.NativeEndian.AppendUint32(nil, ^uint32(unix.EMSGSIZE)+1)))
		}, unix.EMSGSIZE},
		{"an end cut short", func(seq uint32, send func([]byte)) { send(message(seq, unix.NLMSG_DONE, 0, nil)) }, errTruncated},
		{"garbage", func(_ uint32, send func([]byte)) { send([]byte("garbage garbage garbage")) }, unix.EBADMSG},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := faulty(t, func(opened int, seqs []uint32, send func([]byte)) {
				if opened == 1 {
					c.play(seqs[0], send)
					return
				}
				send(message(seqs[0]-1, 30, 0, make([]byte, 4))) // late
				send(message(seqs[0], unix.NLMSG_DONE, 0, make([]byte, 4)))
			})
			if err := s.dump(soon(t), requests(1), func([]byte) error { return nil }); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			n := 0
			if err := s.dump(soon(t), requests(1), func([]byte) error { n++; return nil }); err != nil || n != 0 {
				t.Errorf("the next dump: %d messages, %v", n, err)
			}
		})
	}
}
