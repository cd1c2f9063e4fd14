package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// server answers HTTP by hand: the half of net/http that is left out here is
// most of its cost, and the machine is slow.
type server struct {
	name string
	wait time.Duration // before each answer
	done chan struct{}

	mu    sync.Mutex
	ended bool
	lns   []net.Listener
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// ServeHTTP answers on a port of the namespace as a process of the host would:
// on the given addresses, or on the wildcard of both families. Any path is
// answered with "pod=NAME source=ADDRESS"; ?wait=2s holds the answer back that
// long. stop ends the server and its connections as the end of the process
// would.
func (h *Host) ServeHTTP(name string, port uint16, addrs ...netip.Addr) (stop func(), err error) {
	if len(addrs) == 0 {
		addrs = []netip.Addr{{}}
	}
	return h.serve(0, name, port, 0, addrs)
}

// ServeSlowHTTP is ServeHTTP by a process that takes a while for every answer.
func (h *Host) ServeSlowHTTP(name string, port uint16, wait time.Duration) (stop func(), err error) {
	return h.serve(0, name, port, wait, []netip.Addr{{}})
}

// serve answers HTTP over a protocol, 0 for TCP.
func (h *Host) serve(proto int, name string, port uint16, wait time.Duration, addrs []netip.Addr) (stop func(), err error) {
	s := &server{name: name, wait: wait, done: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	for _, a := range addrs {
		ln, err := h.listen(proto, a, port)
		if err != nil {
			s.stop()
			return nil, fmt.Errorf("%s serving HTTP on port %d of %s (address %s): %w", name, port, h.Name, a, err)
		}
		s.lns = append(s.lns, ln)
	}
	for _, ln := range s.lns {
		s.wg.Go(func() { s.accept(ln) })
	}
	forget := h.onClose(s.stop)
	return func() { forget(); s.stop() }, nil
}

func (s *server) stop() {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended = true
	close(s.done)
	for _, ln := range s.lns {
		ln.Close()
	}
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *server) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// A connection that was reset in the queue, or no file left: the
			// listener lives on.
			time.Sleep(time.Millisecond)
			continue
		}
		if !s.add(conn) {
			conn.Close()
			return
		}
		s.wg.Go(func() { s.serve(conn) })
	}
}

func (s *server) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *server) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	r := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if !s.hold(req) {
			return
		}
		if _, err := conn.Write(s.answer(conn, req)); err != nil || req.Close {
			return
		}
	}
}

// hold keeps the answer back as long as the server takes for one, and the request asks for; false when the server
// ended meanwhile.
func (s *server) hold(req *http.Request) bool {
	wait, err := time.ParseDuration(req.FormValue("wait"))
	if err != nil || wait < 0 {
		wait = 0
	}
	if wait += s.wait; wait == 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.done:
		return false
	}
}

func (s *server) answer(conn net.Conn, req *http.Request) []byte {
	var source netip.Addr
	if ap, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		source = ap.Addr().Unmap()
	}
	body := fmt.Sprintf("pod=%s source=%s\n", s.name, source)
	connection := ""
	if req.Close {
		connection = "Connection: close\r\n"
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n%s\r\n%s",
		len(body), connection, body)
}
