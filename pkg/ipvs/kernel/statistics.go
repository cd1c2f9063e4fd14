package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// What include/uapi/linux/ip_vs.h has for statistics.
const (
	svcStats64     = 12
	destPersistent = 9
	destStats64    = 12

	statsConns      = 1
	statsInPackets  = 2
	statsOutPackets = 3
	statsInBytes    = 4
	statsOutBytes   = 5
	statsConnRate   = 6
	statsInPPS      = 7
	statsOutPPS     = 8
	statsInBPS      = 9
	statsOutBPS     = 10
)

// Statistics is a door for whoever wants to know what the kernel counts. It has sockets of its own, only reads, and needs
// no agent. It may be used by several goroutines: each waits until the one before is done.
type Statistics struct {
	turn    chan struct{} // has a token while somebody reads
	servers *socket
	reals   *socket // while the list of virtual servers is under way
	dests   getDests
	family  uint16
	b       batch
}

// OpenStatistics opens it. The error is ErrNotRoot where the process may not read, and a MissingModuleError where the
// kernel has no IPVS.
func OpenStatistics(ctx context.Context) (*Statistics, error) {
	if err := MayAdminister(); err != nil {
		return nil, err
	}
	return openStatistics(ctx, familyName)
}

func openStatistics(ctx context.Context, familyName string) (*Statistics, error) {
	s := &Statistics{turn: make(chan struct{}, 1), servers: newSocket(unix.NETLINK_GENERIC), reals: newSocket(unix.NETLINK_GENERIC), dests: getDests{optSocket: closedOptSocket}}
	// Both are bound to the network namespace of whoever opens the door, wherever the goroutines run that use it.
	err := s.dests.open("list real servers")
	if err == nil {
		err = s.reals.open()
	}
	if err == nil {
		s.family, err = resolveFamily(ctx, s.servers, familyName)
	}
	if err != nil {
		s.Close()
		if errors.Is(err, unix.ENOENT) {
			err = missingModule("ip_vs", err)
		}
		return nil, err
	}
	return s, nil
}

// Close closes the sockets.
func (s *Statistics) Close() {
	s.servers.close()
	s.reals.close()
	s.dests.close()
}

// take waits for its turn.
func (s *Statistics) take(ctx context.Context) (done func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to read the kernel's counters: %w", ctx.Err())
	}
}

// Servers gives every virtual server that a Key can name, without its real servers. What is made or removed meanwhile may
// be missing; one may come twice, and then the last word counts. An error of visit ends it.
func (s *Statistics) Servers(ctx context.Context, visit func(ipvs.Counted) error) error {
	return s.all(ctx, func(c *ipvs.Counted) error { return visit(*c) })
}

// All gives every virtual server with its real servers, else as Servers does.
func (s *Statistics) All(ctx context.Context, visit func(ipvs.Counted) error) error {
	return s.all(ctx, func(c *ipvs.Counted) error {
		if err := s.readReals(ctx, s.reals, c); err != nil {
			return err
		}
		return visit(*c)
	})
}

func (s *Statistics) all(ctx context.Context, visit func(*ipvs.Counted) error) error {
	done, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	err = s.renewing(ctx, func() error {
		return again(func() error {
			s.b.reset()
			s.begin(&s.b, cmdGetService)
			return s.servers.dump(ctx, &s.b, func(m []byte) error {
				c, err := parseCounted(m)
				if errors.Is(err, errForeign) {
					return nil
				}
				if err == nil {
					err = visit(&c)
				}
				return err
			})
		})
	})
	if err != nil {
		return fmt.Errorf("read what the kernel counts of virtual servers: %w", err)
	}
	return nil
}

// Of gives some virtual servers with their real servers, in the order of the Keys. One that is not there is left out.
func (s *Statistics) Of(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	return s.of(ctx, keys, visit, func(c *ipvs.Counted) error { return s.readReals(ctx, s.servers, c) })
}

// Brief is Of without what is counted of real servers, their connections apart: of IPv4 it costs much less.
func (s *Statistics) Brief(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	return s.of(ctx, keys, visit, func(c *ipvs.Counted) error { return s.readBrief(ctx, c) })
}

func (s *Statistics) of(ctx context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error, reals func(*ipvs.Counted) error) error {
	done, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	for len(keys) > 0 {
		some := keys[:min(len(keys), 64)]
		keys = keys[len(some):]
		var found []ipvs.Counted
		err := s.renewing(ctx, func() (err error) {
			found, err = s.some(ctx, some)
			return err
		})
		for i := range found {
			if err == nil {
				err = reals(&found[i])
			}
			if err == nil {
				err = visit(found[i])
			}
		}
		if err != nil {
			return fmt.Errorf("read what the kernel counts of virtual servers: %w", err)
		}
	}
	return nil
}

// some asks for some virtual servers in one buffer.
func (s *Statistics) some(ctx context.Context, keys []ipvs.Key) (found []ipvs.Counted, err error) {
	s.b.reset()
	for _, k := range keys {
		s.b.begin(s.family, 0, []byte{cmdGetService, 1, 0, 0})
		s.b.nest(attrService, func() { putKey(&s.b, k) })
	}
	s.b.acknowledge()
	replies, err := s.servers.exchange(ctx, &s.b)
	if err != nil {
		return nil, err
	}
	for i, r := range replies {
		if r.err == unix.ESRCH && !r.unknown {
			continue
		}
		if r.err != nil {
			return nil, fmt.Errorf("virtual server %s: %w", keys[i], r.err)
		}
		for _, m := range r.messages {
			c, err := parseCounted(m)
			if err != nil {
				return nil, fmt.Errorf("virtual server %s: %w", keys[i], err)
			}
			found = append(found, c)
		}
	}
	return found, nil
}

// readReals reads the real servers of a virtual server. Of one that has gone there are none.
func (s *Statistics) readReals(ctx context.Context, sock *socket, c *ipvs.Counted) error {
	var b batch
	err := again(func() error {
		c.Reals = c.Reals[:0]
		b.reset()
		s.begin(&b, cmdGetDest)
		b.nest(attrService, func() { putKey(&b, c.Key) })
		return sock.dump(ctx, &b, func(m []byte) error {
			r, err := parseCountedReal(m, af(c.Key.Addr))
			if err == nil {
				c.Reals = append(c.Reals, r)
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("real servers of %s: %w", c.Key, err)
	}
	return nil
}

// readBrief is readReals without counters.
func (s *Statistics) readBrief(ctx context.Context, c *ipvs.Counted) (err error) {
	if c.Key.Addr.Is6() {
		return s.readReals(ctx, s.servers, c)
	}
	c.Reals, err = s.dests.read(c.Key, c.Reals[:0])
	if err != nil {
		return fmt.Errorf("real servers of %s: %w", c.Key, err)
	}
	return nil
}

// begin starts a request for a list.
func (s *Statistics) begin(b *batch, cmd uint8) {
	b.begin(s.family, unix.NLM_F_DUMP, []byte{cmd, 1, 0, 0})
}

// renewing reads again where IPVS has got another number in generic netlink: its module was loaded anew.
func (s *Statistics) renewing(ctx context.Context, read func() error) error {
	err := read()
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	family, again := resolveFamily(ctx, s.servers, familyName)
	if again != nil || family == s.family {
		return err
	}
	s.family = family
	return read()
}

// parseCounted reads a virtual server and its counters from a GET_SERVICE answer.
func parseCounted(msg []byte) (c ipvs.Counted, err error) {
	if c.Key, c.Server, err = parseService(msg); err != nil {
		return c, err
	}
	return c, nested(msg, attrService, func(typ uint16, v []byte) error {
		if typ != svcStats64 {
			return nil
		}
		return parseCounters(v, &c.Counters)
	})
}

// parseCountedReal reads a real server and its counters from a GET_DEST answer.
func parseCountedReal(msg []byte, family uint16) (r ipvs.CountedReal, err error) {
	if r.Real, r.Conns, err = parseDest(msg, family); err != nil {
		return r, err
	}
	return r, nested(msg, attrDest, func(typ uint16, v []byte) error {
		switch {
		case typ == destPersistent && len(v) >= 4:
			r.Persistent = binary.NativeEndian.Uint32(v)
		case typ == destStats64:
			return parseCounters(v, &r.Counters)
		}
		return nil
	})
}

// parseCounters reads what one of the attributes STATS64 holds.
func parseCounters(stats []byte, c *ipvs.Counters) error {
	return eachAttr(stats, func(typ uint16, v []byte) error {
		if len(v) < 8 {
			return nil // padding
		}
		if to := counter(typ, c); to != nil {
			*to = binary.NativeEndian.Uint64(v)
		}
		return nil
	})
}

// counter is where an attribute belongs; nil: nowhere.
func counter(typ uint16, c *ipvs.Counters) *uint64 {
	switch typ {
	case statsConns:
		return &c.Conns
	case statsInPackets:
		return &c.In.Packets
	case statsOutPackets:
		return &c.Out.Packets
	case statsInBytes:
		return &c.In.Bytes
	case statsOutBytes:
		return &c.Out.Bytes
	case statsConnRate:
		return &c.Rates.Conns
	case statsInPPS:
		return &c.Rates.In.Packets
	case statsOutPPS:
		return &c.Rates.Out.Packets
	case statsInBPS:
		return &c.Rates.In.Bytes
	case statsOutBPS:
		return &c.Rates.Out.Bytes
	}
	return nil
}
