package healthz

import (
	"net"
	"net/http"
	"sync"

	"golang.org/x/sys/unix"
)

// crowd bounds the connections to a server, or to several servers together. Whoever comes when it is full takes the place of
// the one that has been silent for longest: however many connections somebody opens and leaves open, a probe gets its
// answer, and the agent keeps its memory and its file descriptors.
type crowd struct {
	limit int

	mu   sync.Mutex
	seen uint64 // counts what was heard
	open map[net.Conn]visitor
}

// visitor is a connection: when it was last heard of, and whether it is being answered.
type visitor struct {
	seen   uint64
	active bool
}

// mostConnections is how many connections a crowd has at most. Each costs some 15 KB.
const mostConnections = 100

// newCrowd makes a crowd that leaves most of the file descriptors that the process may have to the agent's own work, of
// which the kernel's sockets, /proc and the API server are part.
func newCrowd() *crowd {
	limit := mostConnections
	var most unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &most) == nil && most.Cur/10 < mostConnections {
		limit = max(int(most.Cur/10), 2)
	}
	return &crowd{limit: limit, open: map[net.Conn]visitor{}}
}

// hear is told what becomes of each connection (http.Server's ConnState).
func (c *crowd) hear(conn net.Conn, s http.ConnState) {
	if out := c.heard(conn, s); out != nil {
		_ = out.Close() // its own goroutine then ends
	}
}

// heard notes it and gives the connection that has to go, nil for none.
func (c *crowd) heard(conn net.Conn, s http.ConnState) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s == http.StateClosed || s == http.StateHijacked {
		delete(c.open, conn)
		return nil
	}
	c.seen++
	c.open[conn] = visitor{c.seen, s == http.StateActive}
	if len(c.open) <= c.limit {
		return nil
	}
	out := c.longest(conn)
	delete(c.open, out)
	return out
}

// longest is who has been silent for longest, or where all are being answered, who has been so for longest. The one that
// has just been heard of is not meant.
func (c *crowd) longest(but net.Conn) (out net.Conn) {
	var found visitor
	for conn, v := range c.open {
		if conn == but {
			continue
		}
		if out == nil || found.active && !v.active || found.active == v.active && v.seen < found.seen {
			out, found = conn, v
		}
	}
	return out
}

// readers lets in who only looks. Nothing here can be changed by a request, and what a method that is none of ours might mean
// is not left to the pages: after an answer of 200 to CONNECT, a server and a proxy before it may take what follows for
// different things (GO-2026-6613). OPTIONS of a page gets the page's answer, as from kube-proxy: it is what HAProxy's
// option httpchk asks with if it is told nothing else, and a balancer would take every node out of service.
func readers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions && r.RequestURI != "*" {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		w.Header().Set("Connection", "close")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
	})
}
