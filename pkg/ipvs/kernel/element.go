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

// elementKey encodes an element's key: every field padded to four bytes. end gives the upper end of an interval.
func elementKey(e ipvs.Element, end bool) []byte {
	b := e.Key.Addr.AsSlice()
	switch e.Set {
	case ipvs.SetVIPs:
		return b
	case ipvs.SetHairpin:
		return append(b, b...)
	}
	b = append(b, byte(e.Key.Proto), 0, 0, 0)
	b = appendPort(b, e.Key.Port)
	switch {
	case e.Set != ipvs.SetRanges:
	case end:
		b = append(b, e.From.Last.AsSlice()...)
	default:
		b = append(b, e.From.First.AsSlice()...)
	}
	return b
}

func appendPort(b []byte, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
}

// elemKeyEnd is NFTA_SET_ELEM_KEY_END of include/uapi/linux/netfilter/nf_tables.h.
const elemKeyEnd = 10

// rawElement is an element as the kernel gives it.
type rawElement struct{ key, end, value []byte }

// parse is the inverse of putElement.
func (r rawElement) parse(s ipvs.Set, f fam) (e ipvs.Element, err error) {
	short := fmt.Errorf("short element in set %s: %w", f.set(s), unix.EBADMSG)
	size := int(f.size)
	e.Set = s
	if len(r.key) < size {
		return e, short
	}
	e.Key.Addr, _ = netip.AddrFromSlice(r.key[:size])
	if s.OfAddr() {
		return e, nil
	}
	rest := r.key[size:]
	if len(rest) < 6 {
		return e, short
	}
	e.Key.Proto, e.Key.Port = ipvs.Proto(rest[0]), binary.BigEndian.Uint16(rest[4:])
	switch s {
	case ipvs.SetRanges:
		if len(r.key) < 2*size+8 || len(r.end) < 2*size+8 {
			return e, short
		}
		e.From.First, _ = netip.AddrFromSlice(r.key[size+8 : 2*size+8])
		e.From.Last, _ = netip.AddrFromSlice(r.end[size+8 : 2*size+8])
	case ipvs.SetRedirect:
		if len(r.value) < size+2 {
			return e, short
		}
		a, _ := netip.AddrFromSlice(r.value[:size])
		e.To = netip.AddrPortFrom(a, binary.BigEndian.Uint16(r.value[size:]))
	}
	return e, nil
}

func putElement(b *batch, msg int, flags uint16, e ipvs.Element) {
	b.begin(nftType(msg), flags, nfgen(unix.NFPROTO_INET, 0))
	b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	b.attrString(unix.NFTA_SET_ELEM_LIST_SET, familyOf(e.Key.Addr).set(e.Set))
	value := func(typ uint16, v []byte) { b.nest(typ, func() { b.attr(unix.NFTA_DATA_VALUE, v) }) }
	b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		b.nest(unix.NFTA_LIST_ELEM, func() {
			value(unix.NFTA_SET_ELEM_KEY, elementKey(e, false))
			if e.Set == ipvs.SetRanges {
				value(elemKeyEnd, elementKey(e, true))
			}
			if e.To.IsValid() {
				value(unix.NFTA_SET_ELEM_DATA, appendPort(e.To.Addr().AsSlice(), e.To.Port()))
			}
		})
	})
}

// write changes elements in one transaction. All end alike, but for the error of the one at fault.
func (n *nftDoor) write(ctx context.Context, ops []ipvs.Element) []ipvs.Outcome {
	out := make([]ipvs.Outcome, len(ops))
	replies, err := n.transaction(ctx, func(b *batch) {
		for _, o := range ops {
			if o.Remove {
				putElement(b, unix.NFT_MSG_DELSETELEM, 0, o)
			} else {
				putElement(b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, o)
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

// has asks for single elements. It cannot be asked of ranges.
func (n *nftDoor) has(ctx context.Context, s ipvs.Set, keys []ipvs.Key) (found []ipvs.Element, err error) {
	for len(keys) > 0 {
		chunk := keys[:min(len(keys), 64)]
		n.b.reset()
		for _, k := range chunk {
			putElement(&n.b, unix.NFT_MSG_GETSETELEM, 0, ipvs.Element{Set: s, Key: k})
		}
		n.b.acknowledge()
		replies, err := n.sock.exchange(ctx, &n.b)
		if err != nil {
			return nil, fmt.Errorf("read elements of nftables set %s: %w", s, err)
		}
		for i, r := range replies {
			switch {
			case r.err != nil && !errors.Is(r.err, unix.ENOENT):
				return nil, fmt.Errorf("read element %s of nftables set %s: %w", chunk[i], s, r.err)
			case r.err != nil:
			case s != ipvs.SetRedirect:
				found = append(found, ipvs.Element{Set: s, Key: chunk[i]})
			default:
				if found, err = appendElements(found, s, familyOf(chunk[i].Addr), r.messages); err != nil {
					return nil, fmt.Errorf("read element %s of nftables map %s: %w", chunk[i], s, err)
				}
			}
		}
		keys = keys[len(chunk):]
	}
	return found, nil
}

func appendElements(to []ipvs.Element, s ipvs.Set, f fam, messages [][]byte) ([]ipvs.Element, error) {
	for _, m := range messages {
		if err := eachElement(m, func(r rawElement) error {
			e, err := r.parse(s, f)
			to = append(to, e)
			return err
		}); err != nil {
			return nil, err
		}
	}
	return to, nil
}

// all lists the elements of a set, both families.
func (n *nftDoor) all(ctx context.Context, s ipvs.Set, f func(ipvs.Element)) error {
	for _, fm := range families {
		var found []ipvs.Element
		// Any commit, also of another's table, interrupts a dump.
		err := again(func() (err error) {
			found, err = n.list(ctx, s, fm, found[:0])
			return err
		})
		if n.cfg.ReadOnly && errors.Is(err, unix.ENOENT) {
			err = nil // nobody has made the set yet
		}
		if err != nil {
			return fmt.Errorf("list nftables set %s: %w", fm.set(s), err)
		}
		for _, e := range found {
			f(e)
		}
	}
	return nil
}

// list appends the elements of one set.
func (n *nftDoor) list(ctx context.Context, s ipvs.Set, fm fam, to []ipvs.Element) ([]ipvs.Element, error) {
	n.b.reset()
	putListing(&n.b, s, fm)
	err := n.sock.dump(ctx, &n.b, collect(s, fm, &to))
	return to, err
}

// putListing appends the request to list a set.
func putListing(b *batch, s ipvs.Set, fm fam) {
	b.begin(nftType(unix.NFT_MSG_GETSETELEM), unix.NLM_F_DUMP, nfgen(unix.NFPROTO_INET, 0))
	b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
	b.attrString(unix.NFTA_SET_ELEM_LIST_SET, fm.set(s))
}

// collect appends the elements of the messages that it is given.
func collect(s ipvs.Set, fm fam, to *[]ipvs.Element) func(msg []byte) error {
	return func(msg []byte) error {
		return eachElement(msg, func(r rawElement) error {
			e, err := r.parse(s, fm)
			*to = append(*to, e)
			return err
		})
	}
}

// eachElement calls f with each element of a message.
func eachElement(msg []byte, f func(rawElement) error) error {
	return eachAttr(skip(msg, nfgenLen), func(typ uint16, list []byte) error {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return eachAttr(list, func(_ uint16, element []byte) error {
			var r rawElement
			if err := eachAttr(element, func(typ uint16, data []byte) error {
				at := map[uint16]*[]byte{unix.NFTA_SET_ELEM_KEY: &r.key, elemKeyEnd: &r.end, unix.NFTA_SET_ELEM_DATA: &r.value}[typ]
				if at == nil {
					return nil
				}
				return eachAttr(data, func(typ uint16, v []byte) error {
					if typ == unix.NFTA_DATA_VALUE {
						*at = v
					}
					return nil
				})
			}); err != nil || r.key == nil {
				return err
			}
			return f(r)
		})
	})
}
