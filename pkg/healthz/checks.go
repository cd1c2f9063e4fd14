package healthz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Check is what a load balancer asks a node's healthCheckNodePort: does this node have endpoints of the Service?
type Check struct {
	// Port is the healthCheckNodePort; 0: the Service has none.
	Port uint16
	// Local counts the addresses of its ready endpoints on this node, by family. Those that terminate do not count:
	// new connections had better go elsewhere.
	Local [families]int
}

// serviceName names a Service.
type serviceName struct{ namespace, name string }

func (n serviceName) String() string { return n.namespace + "/" + n.name }

// checks are the healthCheckNodePorts of all Services. Setting one costs a map entry; one goroutine listens.
type checks struct {
	wake chan struct{}

	mu    sync.Mutex
	want  map[serviceName]Check
	addrs []netip.Addr // on which they are served
	dirty map[serviceName]struct{}
	again bool // all of them: the addresses changed
}

func newChecks() *checks {
	return &checks{wake: make(chan struct{}, 1), want: map[serviceName]Check{}, dirty: map[serviceName]struct{}{}}
}

func (c *checks) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// SetCheck says what a Service's healthCheckNodePort is to answer from now on.
func (h *Health) SetCheck(namespace, name string, check Check) {
	if h == nil {
		return
	}
	c, id := h.checks, serviceName{namespace, name}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.want[id]
	if check.Port == 0 {
		delete(c.want, id)
	} else {
		c.want[id] = check
	}
	if old.Port != check.Port {
		c.dirty[id] = struct{}{}
		c.nudge()
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
		c.nudge()
	}
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

// ServeChecks listens on the healthCheckNodePorts of all Services until ctx ends. A port that is taken is tried
// again, and said once.
func (h *Health) ServeChecks(ctx context.Context, log *zap.Logger) error {
	open := map[serviceName]*listening{}
	failed := map[serviceName]string{}
	defer func() {
		for _, l := range open {
			l.keep(nil)
		}
	}()
	for {
		for _, id := range h.checks.news() {
			h.serveCheck(ctx, id, open, failed, log)
		}
		for id := range failed { // also those whose port has just been given up by another
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

// news lists the Services whose listeners may not be right any more, those first that need none: their port may be
// another's now.
func (c *checks) news() (ids []serviceName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again {
		for id := range c.want {
			c.dirty[id] = struct{}{}
		}
	}
	for _, gone := range []bool{true, false} {
		for id := range c.dirty {
			if (c.want[id].Port == 0) == gone {
				ids = append(ids, id)
			}
		}
	}
	clear(c.dirty)
	c.again = false
	return ids
}

// serveCheck makes a Service's listeners what they should be.
func (h *Health) serveCheck(ctx context.Context, id serviceName, open map[serviceName]*listening, failed map[serviceName]string, log *zap.Logger) {
	h.checks.mu.Lock()
	want, addrs := h.checks.want[id], h.checks.addrs
	h.checks.mu.Unlock()
	l := open[id]
	if l == nil {
		l = &listening{servers: map[netip.Addr]*http.Server{}}
		open[id] = l
	}
	if l.port != want.Port {
		l.keep(nil)
		l.port = want.Port
	}
	if want.Port == 0 {
		delete(open, id)
		delete(failed, id)
		return
	}
	l.keep(addrs)
	var errs error
	for _, a := range addrs {
		if l.servers[a] == nil {
			errs = errors.Join(errs, h.listen(ctx, l, id, a, log))
		}
	}
	if errs == nil {
		delete(failed, id)
		return
	}
	if failed[id] != errs.Error() && ctx.Err() == nil {
		log.Error("healthCheckNodePort cannot be served, trying again", zap.Stringer("service", id), zap.Error(errs))
	}
	failed[id] = errs.Error()
}

// listen opens a port on an address.
func (h *Health) listen(ctx context.Context, l *listening, id serviceName, a netip.Addr, log *zap.Logger) error {
	network := [families]string{"tcp4", "tcp6"}[FamilyOf(a)]
	listener, err := (&net.ListenConfig{}).Listen(ctx, network, netip.AddrPortFrom(a, l.port).String())
	if err != nil {
		return err
	}
	server := newServer(h.checkHandler(id, FamilyOf(a)), log.Named("healthCheckNodePort"))
	l.servers[a] = server
	go func() { _ = server.Serve(listener) }() // ends when it is closed
	return nil
}

// checkHandler answers for a Service and family as kube-proxy 1.36 does, byte for byte
// (pkg/proxy/healthcheck/service_health.go).
func (h *Health) checkHandler(id serviceName, f Family) http.Handler {
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
			id.namespace, id.name, local, healthy)
	})
}
