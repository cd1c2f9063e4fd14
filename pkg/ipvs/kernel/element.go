package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// elementKey encodes an element: every field padded to four bytes.
func elementKey(s ipvs.Set, k ipvs.Key) []byte {
	b := k.Addr.AsSlice()
	switch s {
	case ipvs.SetVIPs:
	case ipvs.SetHairpin:
		b = append(b, b...)
	default:
		b = append(b, byte(k.Proto), 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, k.Port)
		b = append(b, 0, 0)
	}
	return b
}

// parseElement is the inverse of elementKey.
func parseElement(s ipvs.Set, f fam, b []byte) (k ipvs.Key, err error) {
	if len(b) < int(f.size) {
		return k, fmt.Errorf("element of %d bytes in set %s: %w", len(b), f.set(s), unix.EBADMSG)
	}
	k.Addr, _ = netip.AddrFromSlice(b[:f.size])
	if s.OfAddr() {
		return k, nil
	}
	if b = b[f.size:]; len(b) < 6 {
		return k, fmt.Errorf("short element in set %s: %w", f.set(s), unix.EBADMSG)
	}
	k.Proto, k.Port = ipvs.Proto(b[0]), binary.BigEndian.Uint16(b[4:])
	return k, nil
}

func putElement(b *batch, msg int, flags uint16, s ipvs.Set, k ipvs.Key) {
	b.begin(nftType(msg), flags, nfgen(unix.NFPROTO_INET, 0))
	b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	b.attrString(unix.NFTA_SET_ELEM_LIST_SET, familyOf(k.Addr).set(s))
	b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		b.nest(unix.NFTA_LIST_ELEM, func() {
			b.nest(unix.NFTA_SET_ELEM_KEY, func() { b.attr(unix.NFTA_DATA_VALUE, elementKey(s, k)) })
		})
	})
}

// write changes elements in one transaction. All end alike, but for the error of the one at fault.
func (n *nftDoor) write(ctx context.Context, ops []ipvs.Element) []ipvs.Outcome {
	out := make([]ipvs.Outcome, len(ops))
	replies, err := n.transaction(ctx, func(b *batch) {
		for _, o := range ops {
			if o.Remove {
				putElement(b, unix.NFT_MSG_DELSETELEM, 0, o.Set, o.Key)
			} else {
				putElement(b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, o.Set, o.Key)
			}
		}
	})
	if err == nil {
		return out
	}
	for i, o := range ops {
		out[i] = ipvs.Outcome{Err: fmt.Errorf("%s: in one transaction with others: %w", o, err)}
		if replies != nil && replies[i].err != nil {
			out[i] = ipvs.Outcome{Err: fmt.Errorf("%s: %w", o, replies[i].err), Unknown: replies[i].unknown}
		}
	}
	return out
}

// has asks for single elements.
func (n *nftDoor) has(ctx context.Context, s ipvs.Set, keys []ipvs.Key) (map[ipvs.Key]bool, error) {
	found := make(map[ipvs.Key]bool, len(keys))
	for len(keys) > 0 {
		chunk := keys[:min(len(keys), 64)]
		n.b.reset()
		for _, k := range chunk {
			putElement(&n.b, unix.NFT_MSG_GETSETELEM, 0, s, k)
		}
		n.b.acknowledge()
		replies, err := n.sock.exchange(ctx, &n.b)
		if err != nil {
			return nil, fmt.Errorf("read elements of nftables set %s: %w", s, err)
		}
		for i, r := range replies {
			switch {
			case r.err == nil:
				found[chunk[i]] = true
			case !errors.Is(r.err, unix.ENOENT):
				return nil, fmt.Errorf("read element %s of nftables set %s: %w", chunk[i], s, r.err)
			}
		}
		keys = keys[len(chunk):]
	}
	return found, nil
}

// all lists the elements of a set, both families.
func (n *nftDoor) all(ctx context.Context, s ipvs.Set, f func(ipvs.Key)) error {
	for _, fm := range families {
		var keys []ipvs.Key
		// Any commit, also of another's table, interrupts a dump.
		err := again(func() (err error) {
			keys, err = n.list(ctx, s, fm, keys[:0])
			return err
		})
		if err != nil {
			return fmt.Errorf("list nftables set %s: %w", fm.set(s), err)
		}
		for _, k := range keys {
			f(k)
		}
	}
	return nil
}

// list appends the elements of one set to keys.
func (n *nftDoor) list(ctx context.Context, s ipvs.Set, fm fam, keys []ipvs.Key) ([]ipvs.Key, error) {
	n.b.reset()
	n.b.begin(nftType(unix.NFT_MSG_GETSETELEM), unix.NLM_F_DUMP, nfgen(unix.NFPROTO_INET, 0))
	n.b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	n.b.attrString(unix.NFTA_SET_ELEM_LIST_SET, fm.set(s))
	err := n.sock.dump(ctx, &n.b, func(msg []byte) error {
		return eachElement(msg, func(b []byte) error {
			k, err := parseElement(s, fm, b)
			keys = append(keys, k)
			return err
		})
	})
	return keys, err
}

// eachElement calls f with the key of each element of a message.
func eachElement(msg []byte, f func(key []byte) error) error {
	return eachAttr(skip(msg, nfgenLen), func(typ uint16, list []byte) error {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return eachAttr(list, func(_ uint16, element []byte) error {
			return eachAttr(element, func(typ uint16, key []byte) error {
				if typ != unix.NFTA_SET_ELEM_KEY {
					return nil
				}
				return eachAttr(key, func(typ uint16, v []byte) error {
					if typ != unix.NFTA_DATA_VALUE {
						return nil
					}
					return f(v)
				})
			})
		})
	})
}
