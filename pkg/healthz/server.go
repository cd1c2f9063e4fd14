package healthz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"go.uber.org/zap"
)

// Server is a listener of ours: what it is for, where it listens, and what it serves.
type Server struct {
	// Name is what the log calls it.
	Name string
	// Address is "address:port"; empty: the server is off.
	Address string
	// Listener is where it listens in place of Address; nil: it makes its own.
	Listener net.Listener
	Handler  http.Handler
	// HardFail makes Run fail where it cannot listen, instead of trying again (kube-proxy's bindAddressHardFail).
	HardFail bool
	Log      *zap.Logger
}

// The time that a client gets. These are short: whoever asks here is a probe or a scraper, and every connection that
// dawdles costs the agent memory.
const (
	headerTime = 5 * time.Second
	readTime   = 10 * time.Second
	writeTime  = 30 * time.Second // net/http/pprof adds the time of a profile to it
	idleTime   = 10 * time.Second // a scraper that comes every half minute can open another connection
)

// retryTime is kube-proxy's time between two tries to listen.
const retryTime = 5 * time.Second

// Run listens and serves until ctx ends. Where it cannot listen it tries again and says so once for each reason, or
// fails with HardFail.
func (s Server) Run(ctx context.Context) error {
	if s.Listener != nil {
		err := s.serveOn(ctx, s.Listener)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return fmt.Errorf("%s server on %s: %w", s.Name, s.Listener.Addr(), err)
	}
	if s.Address == "" {
		s.Log.Info("server is switched off", zap.String("server", s.Name))
		<-ctx.Done()
		return nil
	}
	said := ""
	for {
		err := s.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if s.HardFail {
			return fmt.Errorf("%s server on %s: %w", s.Name, s.Address, err)
		}
		if err.Error() != said {
			said = err.Error()
			s.Log.Error("server cannot listen, trying again", zap.String("server", s.Name), zap.String("address", s.Address), zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryTime):
		}
	}
}

// serve listens once, and serves until ctx ends or the listener fails. The error is never nil.
func (s Server) serve(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Address)
	if err != nil {
		return err
	}
	s.Log.Info("serving", zap.String("server", s.Name), zap.Stringer("address", listener.Addr()))
	return s.serveOn(ctx, listener)
}

// serveOn serves until ctx ends or the listener fails. The error is never nil.
func (s Server) serveOn(ctx context.Context, listener net.Listener) error {
	server := newServer(s.Handler, newCrowd(), s.Log.Named(s.Name))
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	err := server.Serve(listener)
	return errors.Join(err, server.Close())
}

// newServer is how all of our listeners serve: to who only reads, to so many at a time, and to nobody who dawdles.
func newServer(h http.Handler, c *crowd, log *zap.Logger) *http.Server {
	return &http.Server{Handler: readers(h), ConnState: c.hear, DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: writeTime, IdleTimeout: idleTime,
		MaxHeaderBytes: 16 << 10, ErrorLog: zap.NewStdLog(log)}
}

// Address makes an address to listen on from what the configuration says: "address:port", an address without a port
// where the usual one is meant, or nothing, which switches the server off. Names of hosts are none, as with
// kube-proxy.
func Address(text string, port uint16) (string, error) {
	if text == "" {
		return "", nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, port).String(), nil
	}
	host, number, err := net.SplitHostPort(text)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return "", err
	}
	if n, err := strconv.ParseUint(number, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q is not a port", number)
	}
	return text, nil
}
