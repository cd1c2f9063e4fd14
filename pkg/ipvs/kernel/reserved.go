package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

const (
	// reservedPorts are those that the kernel gives to no process that did not ask for them, in IPv4 and IPv6, TCP and UDP.
	reservedPorts = "net/ipv4/ip_local_reserved_ports"
	// ephemeralPorts are those that it gives otherwise.
	ephemeralPorts = "net/ipv4/ip_local_port_range"
)

// setReserved is the set of our table that records which of the reserved ports are there by us.
const setReserved = "reserved"

func (n *nftDoor) reservedSet() *nftables.Set {
	return &nftables.Set{Table: n.table, Name: setReserved, KeyType: nftables.TypeInetService}
}

// reservation is what is known of the ports that we have reserved.
type reservation struct {
	ours     *portSet // that we put there
	recorded *portSet // of these, and of others before, what the record holds; nil: it must be read
}

// Reserve keeps ports from processes that ask for any port, beside those that others have reserved; what we reserved before
// and is not among them is given back, unless keep says otherwise. The record is written first when a port comes and last
// when it goes: whenever this process dies, what is ours can be told from what is not.
func (k *Kernel) Reserve(ctx context.Context, ports []uint16, keep bool) (wrote []string, err error) {
	if k.readOnly {
		return nil, nil
	}
	return k.reserve(ctx, sysctlRoot, portsOf(ports), keep)
}

func (k *Kernel) reserve(ctx context.Context, root string, want *portSet, keep bool) (_ []string, err error) {
	about := func(err error) error { return ipvs.About{Name: reservedPorts, Err: err} }
	r := &k.reserved
	if r.recorded == nil {
		if r.recorded, err = k.nft.recordedPorts(ctx); err != nil {
			return nil, about(err)
		}
		if r.ours == nil {
			r.ours = r.recorded
		}
	}
	have, err := readPorts(root + reservedPorts)
	if err != nil {
		return nil, about(fmt.Errorf("sysctl %s: %w", reservedPorts, err))
	}
	mine := r.ours.with(r.recorded)
	others := have.without(mine)
	if keep {
		want = want.with(mine)
	}
	ours := want.without(others)
	wrote, done, err := k.replacePorts(ctx, root, have, others.with(ours), ours)
	if err != nil {
		return nil, about(err)
	}
	if !done {
		return nil, nil
	}
	gone := r.recorded.without(ours) // and out of the sysctl
	if err := k.nft.recordPorts(ctx, gone, true); err != nil {
		return wrote, about(err)
	}
	r.recorded = r.recorded.without(gone)
	return wrote, nil
}

// replacePorts writes the record of what comes, and then the sysctl. Nothing is written where that is right. Not done: it may
// not be written, which hurts nobody.
func (k *Kernel) replacePorts(ctx context.Context, root string, have, next, ours *portSet) (wrote []string, done bool, err error) {
	r := &k.reserved
	var f *os.File
	if *have != *next {
		if f, err = os.OpenFile(root+reservedPorts, os.O_WRONLY, 0); err != nil {
			return nil, false, missesPorts(root, next.without(have), err)
		}
		defer f.Close()
	}
	comes := ours.without(r.recorded)
	if err := k.nft.recordPorts(ctx, comes, false); err != nil {
		return nil, false, err
	}
	r.recorded, r.ours = r.recorded.with(comes), ours
	if f == nil {
		return nil, true, nil
	}
	// Of a long list the kernel takes a page at a time: the first part replaces what was there, the others are added.
	if _, err := f.WriteString(next.String() + "\n"); err != nil {
		return nil, false, missesPorts(root, next.without(have), err)
	}
	return changedPorts(have, next), true, nil
}

// changedPorts says what was written, as few words as that takes: the list itself may have thousands of ranges.
func changedPorts(have, next *portSet) []string {
	text := "sysctl " + reservedPorts + ":"
	if comes := next.without(have); !comes.empty() {
		text += " +" + comes.few()
	}
	if goes := have.without(next); !goes.empty() {
		text += " -" + goes.few()
	}
	return []string{text}
}

// missesPorts says what follows when ports cannot be reserved; nil where nothing does: the kernel gives away none of them.
func missesPorts(root string, missing *portSet, err error) error {
	given, rangeErr := ephemeral(root)
	if rangeErr != nil {
		return rangeErr
	}
	at := missing.without(missing.without(given))
	if at.empty() {
		return nil
	}
	return fmt.Errorf("sysctl %s has not the node ports %s and cannot be written: %w; until it has, a process of this node that connects out may be given one of them and gets no answer; "+
		"on the node: sysctl -w %s with the API server's --service-node-port-range in it, as 30000-32767, and a line in /etc/sysctl.d for good", reservedPorts, at.few(), err, reservedPorts)
}

// ephemeral are the ports that the kernel may give away, but for those that are reserved.
func ephemeral(root string) (*portSet, error) {
	b, err := os.ReadFile(root + ephemeralPorts)
	if err != nil {
		return nil, fmt.Errorf("sysctl %s: %w", ephemeralPorts, err)
	}
	s, err := parsePorts(strings.Join(strings.Fields(string(b)), "-"))
	if err != nil {
		return nil, fmt.Errorf("sysctl %s is %q: %w", ephemeralPorts, strings.TrimSpace(string(b)), err)
	}
	return s, nil
}

// ExposedPorts are those of a range that the kernel of this network namespace may give to a process that connects out, as
// text; empty: none. Writable is nil where the agent could change that.
func ExposedPorts(first, last uint16) (exposed string, writable error, err error) {
	return exposedPorts(sysctlRoot, first, last)
}

func exposedPorts(root string, first, last uint16) (exposed string, writable error, err error) {
	of, err := parsePorts(fmt.Sprintf("%d-%d", first, last))
	if err != nil {
		return "", nil, err
	}
	given, err := ephemeral(root)
	if err != nil {
		return "", nil, err
	}
	reserved, err := readPorts(root + reservedPorts)
	if err != nil {
		return "", nil, fmt.Errorf("sysctl %s: %w", reservedPorts, err)
	}
	at := of.without(of.without(given)).without(reserved)
	return at.few(), unix.Faccessat(unix.AT_FDCWD, root+reservedPorts, unix.W_OK, unix.AT_EACCESS), nil
}

// unreserve gives back the ports that the record says are ours, and says how a person would.
func (n *nftDoor) unreserve(ctx context.Context, root string) (done []string, err error) {
	ours, err := n.recordedPorts(ctx)
	if err != nil || ours.empty() {
		return nil, err
	}
	have, err := readPorts(root + reservedPorts)
	if err != nil {
		return nil, fmt.Errorf("sysctl %s: %w", reservedPorts, err)
	}
	next := have.without(ours)
	if *next == *have {
		return nil, nil
	}
	f, err := os.OpenFile(root+reservedPorts, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(next.String() + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("take the node ports that the agent reserved out of sysctl %s: %w", reservedPorts, err)
	}
	return changedPorts(have, next), nil
}

// recordedPorts reads the record. A table that is older, or is not there, has none.
func (n *nftDoor) recordedPorts(ctx context.Context) (*portSet, error) {
	var s *portSet
	err := again(func() error {
		s = new(portSet)
		n.b.reset()
		n.b.begin(nftType(unix.NFT_MSG_GETSETELEM), unix.NLM_F_DUMP, nfgen(unix.NFPROTO_INET, 0))
		n.b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
		n.b.attrString(unix.NFTA_SET_ELEM_LIST_SET, setReserved)
		return n.sock.dump(ctx, &n.b, func(msg []byte) error {
			return eachElement(msg, func(r rawElement) error {
				if len(r.key) < 2 {
					return fmt.Errorf("short element in set %s: %w", setReserved, unix.EBADMSG)
				}
				s.add(binary.BigEndian.Uint16(r.key))
				return nil
			})
		})
	})
	if errors.Is(err, unix.ENOENT) {
		return new(portSet), nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables set %s: %w", setReserved, err)
	}
	return s, nil
}

// portsPerMessage elements take some 10 KB.
const portsPerMessage = 512

// recordPorts puts ports into the record, or takes them out.
func (n *nftDoor) recordPorts(ctx context.Context, ports *portSet, remove bool) error {
	for part := range slices.Chunk(slices.Collect(ports.all()), portsPerMessage) {
		msg, flags := unix.NFT_MSG_NEWSETELEM, uint16(unix.NLM_F_CREATE)
		if remove {
			msg, flags = unix.NFT_MSG_DELSETELEM, 0
		}
		if _, err := n.transaction(ctx, func(b *batch) {
			b.begin(nftType(msg), flags, nfgen(unix.NFPROTO_INET, 0))
			b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
			b.attrString(unix.NFTA_SET_ELEM_LIST_SET, setReserved)
			b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
				for _, p := range part {
					b.nest(unix.NFTA_LIST_ELEM, func() {
						b.nest(unix.NFTA_SET_ELEM_KEY, func() { b.attr(unix.NFTA_DATA_VALUE, binary.BigEndian.AppendUint16(nil, p)) })
					})
				}
			})
		}); err != nil {
			return fmt.Errorf("nftables set %s: record which reserved ports are ours: %w", setReserved, err)
		}
	}
	return nil
}
