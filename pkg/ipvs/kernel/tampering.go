package kernel

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// tampering gathers what is heard of other programs' changes to what is ours, until the loop asks for it.
type tampering struct {
	mu    sync.Mutex
	heard ipvs.Tampering
	token chan struct{}
}

func newTampering() *tampering { return &tampering{token: make(chan struct{}, 1)} }

// hear notes a change.
func (t *tampering) hear(what ipvs.Tampering) {
	if what == (ipvs.Tampering{}) {
		return
	}
	t.mu.Lock()
	t.heard = t.heard.And(what)
	t.mu.Unlock()
	signal(t.token)
}

// take gives what was heard and forgets it.
func (t *tampering) take() ipvs.Tampering {
	t.mu.Lock()
	defer t.mu.Unlock()
	heard := t.heard
	t.heard = ipvs.Tampering{}
	return heard
}

func signal(token chan struct{}) {
	select {
	case token <- struct{}{}:
	default: // a token is there already
	}
}

// Tampered has a token when there is something in Tampering.
func (k *Kernel) Tampered() <-chan struct{} { return k.watch.tampering.token }

// Tampering takes what was heard of other programs' changes to what is ours.
func (k *Kernel) Tampering() ipvs.Tampering { return k.watch.tampering.take() }

// ownPorts are the netlink ports of our own sockets of one protocol. A notification carries the port of who asked for
// the change, so that our own changes can be told from others'. The last few are kept: what a socket did may be heard
// after it was closed and opened anew.
type ownPorts struct {
	mu   sync.Mutex
	last [4]uint32
	n    int
	ear  *ear // which is told of each
}

// add notes the port of a socket. What is no netlink socket, as in tests, has none.
func (p *ownPorts) add(fd int) {
	if p == nil {
		return
	}
	addr, err := unix.Getsockname(fd)
	if nl, ok := addr.(*unix.SockaddrNetlink); err == nil && ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.last[p.n%len(p.last)] = nl.Pid
		p.n++
		if p.ear != nil {
			p.ear.ignore(nl.Pid)
		}
	}
}

// has reports whether a port is one of ours. Port 0 is the kernel itself.
func (p *ownPorts) has(port uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, own := range p.last {
		if own == port && port != 0 {
			return true
		}
	}
	return false
}

// expected are the IPv6 addresses that we are about to take off our interface: the kernel tells of them without the
// port of who asked (inet6_ifa_notify). One that comes back may be taken off again before the first time is heard.
type expected struct {
	mu    sync.Mutex
	times map[netip.Addr]int
}

// add expects the removal of an address.
func (e *expected) add(a netip.Addr) {
	if e == nil || !a.Is6() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.times == nil {
		e.times = map[netip.Addr]int{}
	}
	e.times[a]++
}

// take reports whether the removal of an address was expected, and expects it once less.
func (e *expected) take(a netip.Addr) bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.times[a]
	if n > 1 {
		e.times[a] = n - 1
	} else {
		delete(e.times, a)
	}
	return n > 0
}

// clear expects nothing more: notifications were lost.
func (e *expected) clear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.times = nil
}
