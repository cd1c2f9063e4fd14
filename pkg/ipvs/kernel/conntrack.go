package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// conntrackDoor deletes entries of the connection table.
type conntrackDoor struct {
	sock *socket
	b    batch
}

func newConntrack() *conntrackDoor {
	return &conntrackDoor{sock: newSocket(unix.NETLINK_NETFILTER)}
}

func (c *conntrackDoor) close() { c.sock.close() }

// forget deletes the entries that bypass the virtual servers of some frontends: one dump a family, however
// many frontends, then one request an entry.
func (c *conntrackDoor) forget(ctx context.Context, ops []ipvs.Forget) []ipvs.Outcome {
	out := make([]ipvs.Outcome, len(ops))
	empty, err := tableIsEmpty()
	if empty {
		return out
	}
	places := make(map[ipvs.Key]int, len(ops))
	for i, o := range ops {
		places[o.Key] = i
	}
	for _, is6 := range []bool{false, true} {
		var mine []ipvs.Forget
		for _, o := range ops {
			if o.Key.Addr.Is6() == is6 {
				mine = append(mine, o)
			}
		}
		if len(mine) == 0 {
			continue
		}
		var found []ctEntry
		if err == nil {
			found, err = c.find(ctx, mine)
		}
		if err != nil { // nothing is written yet
			for _, o := range mine {
				out[places[o.Key]].Err = fmt.Errorf("%s: %w", o, err)
			}
			err = nil
			continue
		}
		for _, e := range found {
			out[places[e.key]].Deleted++
		}
		c.remove(ctx, found, func(k ipvs.Key, r reply) {
			out[places[k]] = ipvs.Outcome{Err: fmt.Errorf("%s: %w", ops[places[k]], r.err), Unknown: r.unknown}
		})
	}
	return out
}

// tableIsEmpty: the kernel has no connection tracking, or has tracked nothing in this namespace.
func tableIsEmpty() (bool, error) {
	count, err := os.ReadFile(sysctlRoot + "net/netfilter/nf_conntrack_count")
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return err == nil && string(bytes.TrimSpace(count)) == "0", err
}

// find lists the entries that are to go, of Keys which are all of one family.
func (c *conntrackDoor) find(ctx context.Context, ops []ipvs.Forget) (found []ctEntry, err error) {
	want, keys, anyReply := make(map[ipvs.Key]ipvs.Forget, len(ops)), make([]ipvs.Key, len(ops)), false
	for i, o := range ops {
		want[o.Key], keys[i], anyReply = o, o.Key, anyReply || o.Undirected || o.Directed
	}
	match, late := commonOf(keys), lateOf(ops)
	if anyReply {
		match.reply = 0
	}
	if len(late) > 0 { // they go to clients
		match.orig, match.reply = match.orig&ctFilterProto, 0
	}
	err = again(func() error {
		found = found[:0]
		c.b.reset()
		c.b.begin(ctType(ctMsgGet), unix.NLM_F_DUMP, nfgen(byte(af(keys[0].Addr)), 0))
		match.put(&c.b)
		return c.sock.dump(ctx, &c.b, func(msg []byte) error {
			e, err := parseCT(msg)
			if err != nil {
				return err
			}
			if o, asked := want[e.key]; !asked || !e.useless(o) {
				k, is, err := e.lateFor(late)
				if err != nil || !is {
					return err
				}
				e.key = k
			}
			e.tuple, e.id = bytes.Clone(e.tuple), bytes.Clone(e.id)
			found = append(found, e)
			return nil
		})
	})
	if errors.Is(err, unix.EINVAL) {
		err = missingModule("nf_conntrack_netlink", err)
	}
	if err != nil {
		return nil, fmt.Errorf("list the connection table: %w", err)
	}
	return found, nil
}

// remove deletes entries one by one, many in a buffer; failed is told of those that are still there.
// (The kernel can delete by pattern since about 6.12; 6.1 answers EINVAL.)
func (c *conntrackDoor) remove(ctx context.Context, entries []ctEntry, failed func(ipvs.Key, reply)) {
	for len(entries) > 0 {
		c.b.reset()
		n := 0
		for n < len(entries) && len(c.b.data) < batchBytes {
			e := entries[n]
			c.b.begin(ctType(ctMsgDelete), 0, nfgen(byte(af(e.key.Addr)), 0))
			c.b.attr(ctTupleOrig|unix.NLA_F_NESTED, e.tuple)
			c.b.attr(ctID, e.id)
			n++
		}
		c.b.acknowledge()
		replies, err := c.sock.exchange(ctx, &c.b)
		for i, e := range entries[:n] {
			r := reply{err: err}
			if err == nil {
				r = replies[i]
			}
			// ENOENT: it timed out, or another one has its tuple now.
			if r.err != nil && (r.unknown || !errors.Is(r.err, unix.ENOENT)) {
				failed(e.key, r)
			}
		}
		entries = entries[n:]
	}
}
