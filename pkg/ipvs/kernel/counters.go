package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What the guard refuses and drops is counted by named counters, one a reason and family, which outlive the rules that
// refer to them. Only a packet that is refused or dropped meets one: they stand after all that a rule matches.

// Verdict is why the guard lets a packet go no further.
type Verdict uint8

// The verdicts. The first two are refused, the others dropped.
const (
	NoPort        Verdict = iota // a virtual IP, and no Service has this port of it
	NoEndpoint                   // a frontend that nothing serves
	NoLocal                      // a policy Local leaves no endpoint for this client
	OutsideRanges                // the frontend does not take this source
	verdicts
)

// counterNames have the family's suffix behind them.
var counterNames = [verdicts]string{"no-port", "no-endpoint", "no-local", "outside-ranges"}

// String gives the name of the verdict's counters, without the family.
func (v Verdict) String() string { return counterNames[v] }

// Refused reports whether the sender is told; else the packet is dropped in silence.
func (v Verdict) Refused() bool { return v <= NoEndpoint }

// Count is how many packets met a verdict since the table was made, of an IP family.
type Count struct {
	Verdict Verdict
	IPv6    bool
	Packets uint64
}

// ErrUncounted: this kernel cannot count what is refused and dropped, and all else works.
var ErrUncounted = errors.New("the kernel has no named counters (module nft_objref, or nft_counter), or the table is not there")

// counter refers to the counter of a verdict; nothing, where the kernel has no counters.
func (rb *ruleBuilder) counter(f fam, v Verdict) []any {
	if rb.uncounted {
		return nil
	}
	return []any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: v.String() + f.suffix}}
}

// eachCounter calls f for each of our counters' names.
func eachCounter(f func(name string, v Verdict, ipv6 bool)) {
	for v := range verdicts {
		for i, fam := range families {
			f(v.String()+fam.suffix, v, i == 1)
		}
	}
}

// putCounter appends the request to make a counter.
func putCounter(b *batch, table, name string) {
	b.begin(nftType(unix.NFT_MSG_NEWOBJ), unix.NLM_F_CREATE, nfgen(unix.NFPROTO_INET, 0))
	b.attrString(unix.NFTA_OBJ_TABLE, table)
	b.attrString(unix.NFTA_OBJ_NAME, name)
	b.attr(unix.NFTA_OBJ_TYPE, binary.BigEndian.AppendUint32(nil, unix.NFT_OBJECT_COUNTER))
	b.nest(unix.NFTA_OBJ_DATA, func() {
		b.attr(unix.NFTA_COUNTER_BYTES, make([]byte, 8))
		b.attr(unix.NFTA_COUNTER_PACKETS, make([]byte, 8))
	})
}

// readCounters reads the packets of the table's counters, by name.
func readCounters(ctx context.Context, s *socket, b *batch) (packets map[string]uint64, err error) {
	// Any commit, also of another's table, interrupts a dump.
	err = again(func() error {
		packets = map[string]uint64{}
		b.reset()
		b.begin(nftType(unix.NFT_MSG_GETOBJ), unix.NLM_F_DUMP, nfgen(unix.NFPROTO_INET, 0))
		b.attrString(unix.NFTA_OBJ_TABLE, tableName)
		b.attr(unix.NFTA_OBJ_TYPE, binary.BigEndian.AppendUint32(nil, unix.NFT_OBJECT_COUNTER))
		return s.dump(ctx, b, func(msg []byte) error {
			table, name, n, err := parseCounter(msg)
			if table == tableName {
				packets[name] = n
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list counters of nftables table %s: %w", tableName, err)
	}
	return packets, nil
}

// parseCounter reads where a counter is and what it has counted.
func parseCounter(msg []byte) (table, name string, packets uint64, err error) {
	err = eachAttr(skip(msg, nfgenLen), func(typ uint16, v []byte) error {
		switch typ {
		case unix.NFTA_OBJ_TABLE:
			table = cString(v)
		case unix.NFTA_OBJ_NAME:
			name = cString(v)
		case unix.NFTA_OBJ_DATA:
			return eachAttr(v, func(typ uint16, v []byte) error {
				if typ != unix.NFTA_COUNTER_PACKETS {
					return nil
				}
				if len(v) < 8 {
					return fmt.Errorf("short counter %s: %w", name, unix.EBADMSG)
				}
				packets = binary.BigEndian.Uint64(v)
				return nil
			})
		}
		return nil
	})
	return table, name, packets, err
}

// missingCounters names the counters that are not there. An older agent's table has none.
func (n *nftDoor) missingCounters(ctx context.Context) (names []string, err error) {
	if n.uncounted {
		return nil, nil
	}
	have, err := readCounters(ctx, n.sock, &n.b)
	if err != nil {
		return nil, err
	}
	eachCounter(func(name string, _ Verdict, _ bool) {
		if _, there := have[name]; !there {
			names = append(names, name)
		}
	})
	return names, nil
}

// ensureCounters makes the counters that are missing, before the rules that refer to them, and says so. created: so is the
// table.
func (n *nftDoor) ensureCounters(ctx context.Context, created bool) (wrote []string, err error) {
	if created && n.cfg.ReadOnly {
		return nil, nil
	}
	names, err := n.missingCounters(ctx)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	if !n.cfg.ReadOnly {
		if err := n.addCounters(ctx, names); err != nil {
			return nil, err
		}
	}
	return []string{"nft add counter inet " + tableName + " " + names[0]}, nil
}

// addCounters makes those that are not there; what the others have counted stays.
func (n *nftDoor) addCounters(ctx context.Context, names []string) error {
	_, err := n.transaction(ctx, func(b *batch) {
		for _, name := range names {
			putCounter(b, tableName, name)
		}
	})
	if err != nil {
		return fmt.Errorf("make the counters of nftables table inet %s: %w", tableName, err)
	}
	return nil
}

// count asks whether the kernel has what counting needs, before the table is looked at: where it has not, rules do
// without. As with [Need.Try] the kernel loads a module that is missing, and nothing else changes.
func (n *nftDoor) count(ctx context.Context) (err error) {
	const name, module = "try", "nft_objref"
	err = tryNFTBy(ctx, n.sock, module, nftTrial{kind: nftables.ChainTypeFilter, hook: unix.NF_INET_LOCAL_IN, counter: name,
		exprs: []any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}})
	if missing := (*MissingModuleError)(nil); !errors.As(err, &missing) || missing.Module != module {
		return nil // it can, or the table itself will say what is wrong
	}
	n.uncounted = true
	n.rules, err = rules(n.cfg, true)
	return err
}

// Counters reads what the guard has refused and dropped, by a socket of its own. It is for one goroutine at a time.
type Counters struct {
	sock *socket
	b    batch
}

// OpenCounters opens the door to the counters. The socket opens with the first use.
func OpenCounters() *Counters { return &Counters{sock: newSocket(unix.NETLINK_NETFILTER)} }

// Close closes the socket.
func (c *Counters) Close() { c.sock.close() }

// Read gives the counts of all verdicts and families, by one request. The error is ErrUncounted where there are none.
func (c *Counters) Read(ctx context.Context) (counts []Count, err error) {
	have, err := readCounters(ctx, c.sock, &c.b)
	if err != nil {
		return nil, err
	}
	eachCounter(func(name string, v Verdict, ipv6 bool) {
		if packets, there := have[name]; there {
			counts = append(counts, Count{Verdict: v, IPv6: ipv6, Packets: packets})
		}
	})
	if len(counts) == 0 {
		return nil, ErrUncounted
	}
	return counts, nil
}
