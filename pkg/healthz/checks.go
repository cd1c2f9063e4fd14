package healthz

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Check is what a load balancer asks a node's healthCheckNodePort: does this node have endpoints of the Service?
type Check struct {
	// Port is the healthCheckNodePort; 0: the Service has none.
	Port uint16
	// Local counts the addresses of its ready endpoints on this node, by family. Those that terminate do not count:
	// new connections had better go elsewhere.
	Local [families]int
	// At are the load balancer's own addresses: one that passes packets on as they are asks there.
	At []netip.Addr
}

// ServiceName names a Service.
type ServiceName struct{ Namespace, Name string }

// checks are the healthCheckNodePorts of all Services. Setting one costs a map entry; one goroutine listens.
type checks struct {
	wake  chan struct{}
	crowd *crowd // of all ports together

	mu    sync.Mutex
	want  map[ServiceName]Check
	addrs []netip.Addr // on which they are served
	dirty map[ServiceName]struct{}
	again bool // all of them: the addresses changed
	// faults say why a port cannot be served, of those that cannot; changed are the Services whose fault came, changed or
	// went since somebody looked.
	faults  map[ServiceName]string
	changed map[ServiceName]struct{}
	told    chan struct{}
}

func newChecks() *checks {
	return &checks{
		wake: make(chan struct{}, 1), crowd: newCrowd(), want: map[ServiceName]Check{}, dirty: map[ServiceName]struct{}{},
		told: make(chan struct{}, 1), faults: map[ServiceName]string{}, changed: map[ServiceName]struct{}{},
	}
}

// nudge leaves a token.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// SetCheck says what a Service's healthCheckNodePort is to answer from now on.
func (h *Health) SetCheck(namespace, name string, check Check) {
	if h == nil {
		return
	}
	c, id := h.checks, ServiceName{namespace, name}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.want[id]
	if check.Port == 0 {
		delete(c.want, id)
	} else {
		c.want[id] = check
	}
	if old.Port != check.Port {
		delete(c.faults, id) // of the old port
	}
	if old.Port != check.Port || !slices.Equal(old.At, check.At) {
		c.dirty[id] = struct{}{}
		nudge(c.wake)
	}
}

// SetCheckAddresses says on which addresses of the node healthCheckNodePorts are served: unspecified ones stand for
// all of their family.
func (h *Health) SetCheckAddresses(addrs []netip.Addr) {
	if h == nil {
		return
	}
	c := h.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.addrs, addrs) {
		c.addrs, c.again = slices.Clone(addrs), true
		nudge(c.wake)
	}
}

// CheckFault says why a Service's healthCheckNodePort cannot be served, on an address at least; empty: it can, or was
// not tried yet.
func (h *Health) CheckFault(namespace, name string) string {
	if h == nil {
		return ""
	}
	c := h.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.faults[ServiceName{namespace, name}]
}

// CheckNews has a token whenever there is something new for [Health.TakeCheckNews].
func (h *Health) CheckNews() <-chan struct{} {
	if h == nil {
		return nil
	}
	return h.checks.told
}

// TakeCheckNews lists the Services whose fault came, changed or went since the last call.
func (h *Health) TakeCheckNews() (ids []ServiceName) {
	if h == nil {
		return nil
	}
	c := h.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.changed {
		ids = append(ids, id)
	}
	clear(c.changed)
	return ids
}

// fault notes how serving a Service's port fared. What is said of a port that nobody wants any more does not count.
func (c *checks) fault(id ServiceName, port uint16, fault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.want[id].Port != port || c.faults[id] == fault {
		return
	}
	if fault == "" {
		delete(c.faults, id)
	} else {
		c.faults[id] = fault
	}
	c.changed[id] = struct{}{}
	nudge(c.told)
}

// listening is a healthCheckNodePort that is open on some addresses.
type listening struct {
	port    uint16
	servers map[netip.Addr]*http.Server
}

// keep closes what is open on other addresses.
func (l *listening) keep(addrs []netip.Addr) {
	for a, s := range l.servers {
		if !slices.Contains(addrs, a) {
			_ = s.Close()
			delete(l.servers, a)
		}
	}
}

// ServeChecks listens on the healthCheckNodePorts of all Services until ctx ends. A port that another process has is
// tried again and again: see [Health.CheckFault].
func (h *Health) ServeChecks(ctx context.Context, log *zap.Logger) error {
	open := map[ServiceName]*listening{}
	failed := map[ServiceName]bool{}
	defer func() {
		for _, l := range open {
			l.keep(nil)
		}
	}()
	for {
		ids := h.checks.news()
		for _, id := range ids { // what one Service gives up may be another's now
			h.checks.closeOld(id, open)
		}
		for _, id := range ids {
			h.serveCheck(ctx, id, open, failed, log)
		}
		for id := range failed {
			h.serveCheck(ctx, id, open, failed, log)
		}
		var retry <-chan time.Time
		if len(failed) > 0 {
			retry = time.After(retryTime)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.checks.wake:
		case <-retry:
		}
	}
}

// news lists the Services whose listeners may not be right any more.
func (c *checks) news() (ids []ServiceName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again {
		for id := range c.want {
			c.dirty[id] = struct{}{}
		}
	}
	for id := range c.dirty {
		ids = append(ids, id)
	}
	clear(c.dirty)
	c.again = false
	return ids
}

// closeOld closes the port that a Service had before.
func (c *checks) closeOld(id ServiceName, open map[ServiceName]*listening) {
	c.mu.Lock()
	port := c.want[id].Port
	c.mu.Unlock()
	if l := open[id]; l != nil && l.port != port {
		l.keep(nil)
		delete(open, id)
	}
}

// serveCheck makes a Service's listeners what they should be.
func (h *Health) serveCheck(ctx context.Context, id ServiceName, open map[ServiceName]*listening, failed map[ServiceName]bool, log *zap.Logger) {
	h.checks.closeOld(id, open)
	h.checks.mu.Lock()
	want := h.checks.want[id]
	addrs := withOwn(h.checks.addrs, want.At)
	h.checks.mu.Unlock()
	if want.Port == 0 {
		delete(failed, id)
		return
	}
	l := open[id]
	if l == nil {
		l = &listening{port: want.Port, servers: map[netip.Addr]*http.Server{}}
		open[id] = l
	}
	l.keep(addrs)
	var faults []string
	for _, a := range addrs {
		if l.servers[a] != nil {
			continue
		}
		if err := h.listen(ctx, l, id, a, log); err != nil {
			faults = append(faults, err.Error())
		}
	}
	if ctx.Err() != nil {
		return
	}
	mark(failed, id, len(faults) > 0)
	h.checks.fault(id, l.port, strings.Join(faults, ", "))
}

// withOwn adds a Service's own addresses to those of the node on which checks are served, where those are not all.
func withOwn(node, own []netip.Addr) []netip.Addr {
	addrs := slices.Clone(node)
	for _, a := range own {
		all := netip.IPv4Unspecified()
		if a.Is6() {
			all = netip.IPv6Unspecified()
		}
		if !slices.Contains(node, all) && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

func mark(set map[ServiceName]bool, id ServiceName, in bool) {
	if in {
		set[id] = true
	} else {
		delete(set, id)
	}
}

// listen opens a port on an address.
func (h *Health) listen(ctx context.Context, l *listening, id ServiceName, a netip.Addr, log *zap.Logger) error {
	network := [families]string{"tcp4", "tcp6"}[FamilyOf(a)]
	listener, err := (&net.ListenConfig{Control: freely}).Listen(ctx, network, netip.AddrPortFrom(a, l.port).String())
	if err != nil {
		return err
	}
	server := newServer(h.checkHandler(id, FamilyOf(a)), h.checks.crowd, log.Named("healthCheckNodePort"))
	l.servers[a] = server
	go func() { _ = server.Serve(listener) }() // ends when it is closed
	return nil
}

// freely lets a socket be bound to an address that is not there yet, or is a route alone: a load balancer's.
func freely(network, _ string, conn syscall.RawConn) (err error) {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	if failed := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); failed != nil {
		return failed
	}
	return err
}

// checkHandler answers for a Service and family as kube-proxy 1.36 does, byte for byte
// (pkg/proxy/healthcheck/service_health.go).
func (h *Health) checkHandler(id ServiceName, f Family) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h.checks.mu.Lock()
		local := h.checks.want[id].Local[f]
		h.checks.mu.Unlock()
		healthy := h.Healthy()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(local))
		if local == 0 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %t\n}",
			id.Namespace, id.Name, local, healthy)
	})
}
