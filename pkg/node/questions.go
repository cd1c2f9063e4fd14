package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What is said on the agent's socket. Whoever connects and is silent, or closes his side, gets one line that says for which
// Services the agent is, and then the end: that is all that an older agent asks and answers. Whoever speaks first speaks
// HTTP, and is answered if he is user 0. Anybody else gets the line, at once: nobody but root can make the agent wait.

// greeting is how that line begins.
const greeting = "service-proxy-name="

const (
	// silence is how long one may be silent before he gets the line. An older agent gives up after a second.
	silence = 400 * time.Millisecond
	// undecided is how many may be silent at a time.
	undecided = 64
)

// Questions gives the connections of those who have a question, for an HTTP server. It ends when Hold does.
func (p *Place) Questions() net.Listener { return p.desk }

// answer tells whoever asks for which Services this agent is, and passes on who asks for more.
func (p *Place) answer(l net.Listener) {
	room := make(chan struct{}, undecided)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(claimAgain) // out of files, for now
			continue
		}
		if uid, err := peer(c); err != nil || uid != 0 {
			p.greet(c)
			continue
		}
		room <- struct{}{}
		go func() {
			first := firstOf(c)
			<-room
			if len(first) == 0 || !p.desk.take(&spoken{Conn: c, first: first}) {
				p.greet(c)
			}
		}()
	}
}

// greet says for which Services the agent is, and ends.
func (p *Place) greet(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(askTime))
	_, _ = io.WriteString(c, greeting+p.name+"\n") // who asked may be gone
	_ = c.Close()
}

// firstOf is what one says first; nothing, where he is silent or has closed his side.
func firstOf(c net.Conn) []byte {
	_ = c.SetReadDeadline(time.Now().Add(silence))
	first := make([]byte, 512)
	n, _ := c.Read(first)
	_ = c.SetReadDeadline(time.Time{})
	return first[:n]
}

// peer is the user at the other end, as the user namespace of this process has him: root of another one is somebody else.
func peer(c net.Conn) (uid uint32, err error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if failed := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); failed != nil {
		return 0, failed
	}
	if err != nil {
		return 0, fmt.Errorf("who asks on the agent's socket: %w", err)
	}
	return cred.Uid, nil
}

// spoken is a connection of which the beginning was read.
type spoken struct {
	net.Conn
	first []byte
}

func (s *spoken) Read(b []byte) (int, error) {
	if len(s.first) == 0 {
		return s.Conn.Read(b)
	}
	n := copy(b, s.first)
	s.first = s.first[n:]
	return n, nil
}

// desk is where connections with questions wait for the server. It is a net.Listener.
type desk struct {
	waiting chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func newDesk() *desk {
	return &desk{waiting: make(chan net.Conn, undecided), closed: make(chan struct{})}
}

// take takes one, and reports whether there is room for him.
func (d *desk) take(c net.Conn) bool {
	select {
	case <-d.closed:
		return false
	default:
	}
	select {
	case d.waiting <- c:
		return true
	default:
		return false
	}
}

// Accept waits for the next one.
func (d *desk) Accept() (net.Conn, error) {
	select {
	case c := <-d.waiting:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

// Close ends it.
func (d *desk) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Addr is the socket's name.
func (d *desk) Addr() net.Addr { return &net.UnixAddr{Name: presenceName, Net: "unix"} }

// ErrNoAgent: nobody has the socket of this network namespace's agent.
var ErrNoAgent = errors.New("no agent is at work in this network namespace (nobody has the unix socket " + presenceName + ")")

// ErrNotAnswered: whoever has the socket does not answer questions of this process.
var ErrNotAnswered = errors.New("the agent on this node does not answer: it answers user 0 of its own user namespace alone, and an older one answers nobody")

// Dial connects to the agent of this network namespace. Its error is ErrNoAgent where there is none. A read gives
// ErrNotAnswered where there is one that says only for which Services it is.
func Dial(ctx context.Context) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", presenceName)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, ErrNoAgent
	case err != nil:
		return nil, fmt.Errorf("ask the agent at %s: %w", presenceName, err)
	}
	return &asking{Conn: c}, nil
}

// asking is a connection to whoever may only greet.
type asking struct {
	net.Conn
	heard atomic.Bool // something was
}

// Write gives ErrNotAnswered where the greeting and the end came before the question was written.
func (a *asking) Write(b []byte) (int, error) {
	n, err := a.Conn.Write(b)
	if !a.heard.Load() && (errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)) {
		err = ErrNotAnswered
	}
	return n, err
}

func (a *asking) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if !a.heard.Load() && n == 0 && errors.Is(err, unix.ECONNRESET) {
		return 0, ErrNotAnswered
	}
	if !a.heard.Load() && n > 0 {
		a.heard.Store(true)
		if len(b) > 0 && b[0] == greeting[0] { // HTTP begins with an H
			return 0, ErrNotAnswered
		}
	}
	return n, err
}

// KernelRelease is the running kernel's release, such as 6.1.0-18-amd64.
func KernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}
