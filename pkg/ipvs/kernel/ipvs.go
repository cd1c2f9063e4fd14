package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// batchBytes is how much goes to the kernel in one buffer: enough that the cost of a system call does not
// show, little enough for any socket buffer.
const batchBytes = 16 << 10

// ipvsDoor reads and writes the IPVS table. Writes are pipelined: many commands in a buffer, the last one
// acknowledged. It costs 3 to 7 times fewer instructions than one command at a time.
type ipvsDoor struct {
	sock   *socket
	family uint16
	b      batch
	canary canary
	absent bool // the kernel has no IPVS: it holds nothing
}

func openIPVS(ctx context.Context, familyName string) (*ipvsDoor, error) {
	v := &ipvsDoor{sock: newSocket(unix.NETLINK_GENERIC), canary: canary{optSocket: closedOptSocket}}
	var err error
	if v.family, err = resolveFamily(ctx, v.sock, familyName); err != nil {
		v.sock.close()
		if errors.Is(err, unix.ENOENT) {
			err = missingModule("ip_vs", err)
		}
		return nil, err
	}
	return v, nil
}

func (v *ipvsDoor) close() {
	v.sock.close()
	v.canary.close()
}

// write sends operations on virtual and real servers in order and returns how each ended. After a batch without an
// answer none is sent.
func (v *ipvsDoor) write(ctx context.Context, ops []ipvs.Op) []ipvs.Outcome {
	out := make([]ipvs.Outcome, 0, len(ops))
	for len(ops) > 0 {
		v.b.reset()
		n := 0
		for n < len(ops) && len(v.b.data) < batchBytes {
			v.put(ops[n])
			n++
		}
		v.b.acknowledge()
		replies, err := v.sock.exchange(ctx, &v.b)
		renewed := slices.ContainsFunc(replies, func(r reply) bool { return r.err == unix.ENOENT && !r.unknown }) && v.renewed(ctx)
		for i, op := range ops[:n] {
			var o ipvs.Outcome
			if err != nil {
				o.Err = fmt.Errorf("%s: %w", op, err)
			} else if r := replies[i]; r.err != nil {
				o = ipvs.Outcome{Err: fmt.Errorf("%s: %w", op, explain(op, r, renewed)), Unknown: r.unknown}
			}
			v.canary.wrote(op, o)
			out = append(out, o)
		}
		if ops = ops[n:]; slices.ContainsFunc(out, unknown) {
			break
		}
	}
	for _, op := range ops {
		out = append(out, ipvs.Outcome{Err: fmt.Errorf("%s: %w", op, errSilent)})
	}
	return out
}

// errLoadedAnew: the module ip_vs was unloaded and loaded again, and nothing of what it held is left.
var errLoadedAnew = errors.New("ip_vs was loaded anew")

// renewed asks for IPVS's number in generic netlink again and reports whether it is another one.
func (v *ipvsDoor) renewed(ctx context.Context) bool {
	family, err := resolveFamily(ctx, v.sock, familyName)
	if err != nil || family == v.family {
		return false
	}
	v.family = family
	return true
}

// explain names the kernel module where an error means that it is missing.
func explain(op ipvs.Op, r reply, renewed bool) error {
	switch {
	case r.unknown || r.err != unix.ENOENT:
		return r.err
	case renewed:
		return errLoadedAnew
	}
	if scheduler := op.Effect().Scheduler; scheduler != "" {
		return missingModule("ip_vs_"+scheduler, r.err)
	}
	return r.err
}

// put appends one operation to the batch.
func (v *ipvsDoor) put(op ipvs.Op) {
	switch o := op.(type) {
	case ipvs.AddServer:
		v.begin(&v.b, cmdNewService, 0)
		putService(&v.b, o)
	case ipvs.SetServer:
		v.begin(&v.b, cmdSetService, 0)
		putService(&v.b, ipvs.AddServer(o))
	case ipvs.DelServer:
		v.begin(&v.b, cmdDelService, 0)
		v.b.nest(attrService, func() { putKey(&v.b, o.Key) })
	case ipvs.AddReal:
		v.begin(&v.b, cmdNewDest, 0)
		putDest(&v.b, o.Key, o.Real.Addr, &o.Real)
	case ipvs.SetReal:
		v.begin(&v.b, cmdSetDest, 0)
		putDest(&v.b, o.Key, o.Real.Addr, &o.Real)
	case ipvs.DelReal:
		v.begin(&v.b, cmdDelDest, 0)
		putDest(&v.b, o.Key, o.Addr, nil)
	default:
		panic(fmt.Sprintf("no IPVS operation: %T", op))
	}
}

// services asks for some virtual servers by Key. What is not there is not in the answer.
func (v *ipvsDoor) services(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Server, error) {
	found := make(map[ipvs.Key]ipvs.Server, len(keys))
	for len(keys) > 0 {
		n := min(len(keys), 64)
		v.b.reset()
		for _, k := range keys[:n] {
			v.begin(&v.b, cmdGetService, 0)
			v.b.nest(attrService, func() { putKey(&v.b, k) })
		}
		v.b.acknowledge()
		replies, err := v.sock.exchange(ctx, &v.b)
		if err != nil {
			return nil, fmt.Errorf("read virtual servers: %w", err)
		}
		for i, r := range replies {
			switch {
			case r.err == unix.ESRCH && !r.unknown:
				continue
			case r.err == unix.ENOENT && v.renewed(ctx):
				return nil, fmt.Errorf("read virtual server %s: %w", keys[i], errLoadedAnew)
			case r.err != nil:
				return nil, fmt.Errorf("read virtual server %s: %w", keys[i], r.err)
			}
			for _, m := range r.messages {
				_, s, err := parseService(m)
				if err != nil {
					return nil, fmt.Errorf("read virtual server %s: %w", keys[i], err)
				}
				found[keys[i]] = s
			}
		}
		keys = keys[n:]
	}
	return found, nil
}

// allServices lists every virtual server that a Key can name.
func (v *ipvsDoor) allServices(ctx context.Context) (map[ipvs.Key]ipvs.Server, error) {
	found := map[ipvs.Key]ipvs.Server{}
	if v.absent {
		return found, nil
	}
	err := again(func() error {
		clear(found)
		v.b.reset()
		v.begin(&v.b, cmdGetService, unix.NLM_F_DUMP)
		return v.sock.dump(ctx, &v.b, func(m []byte) error {
			k, s, err := parseService(m)
			if errors.Is(err, errForeign) {
				return nil
			}
			if err == nil {
				found[k] = s
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	return found, nil
}

// reals lists the real servers of a virtual server. The kernel answers for one that is not there as for one
// without real servers, so the caller must know that it exists.
func (v *ipvsDoor) reals(ctx context.Context, k ipvs.Key) ([]ipvs.Real, map[netip.AddrPort]ipvs.Conns, error) {
	var rs []ipvs.Real
	var conns map[netip.AddrPort]ipvs.Conns
	err := again(func() error {
		rs, conns = rs[:0], nil
		v.b.reset()
		v.begin(&v.b, cmdGetDest, unix.NLM_F_DUMP)
		v.b.nest(attrService, func() { putKey(&v.b, k) })
		return v.sock.dump(ctx, &v.b, func(m []byte) error {
			r, c, err := parseDest(m, af(k.Addr))
			if err != nil {
				return err
			}
			rs = append(rs, r)
			if c != (ipvs.Conns{}) {
				if conns == nil {
					conns = map[netip.AddrPort]ipvs.Conns{}
				}
				conns[r.Addr] = c
			}
			return nil
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list real servers of %s: %w", k, err)
	}
	return ipvs.SortReals(rs), conns, nil
}
