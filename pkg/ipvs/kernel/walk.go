package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// setWalk reads a set a part at a time. The kernel fills the next datagram of a dump when the one before is taken
// (netlink_recvmsg in net/netlink/af_netlink.c), so a dump that is left alone for a while costs nobody anything. It has a
// socket of its own, which a dump keeps busy.
//
// Any commit interrupts it, of ours that between two parts as well. After some tries the set is read as a whole.
type setWalk struct {
	sock    *socket
	b       batch
	family  int    // of families, whose set is read
	first   uint32 // the number of the dump under way
	open    bool   // there is one
	commits uint64 // of ours, when the first part was read
	tries   int    // that were interrupted
	found   []ipvs.Element
}

const (
	// walkBytes is how much a part reads, or more by what a datagram has, 32 KB at most: 1,000 to 2,000 elements, about
	// 2 ms, where 20,000 at once take 20 ms, and 50,000 take 110 ms.
	walkBytes = 16 << 10
	// walkTries is how many dumps may be interrupted.
	walkTries = 3
)

func newSetWalk() *setWalk { return &setWalk{sock: newSocket(unix.NETLINK_NETFILTER)} }

// reset begins anew, with whichever set is read next.
func (w *setWalk) reset() {
	w.again()
	w.found, w.tries = nil, 0
}

// again begins anew with the same set.
func (w *setWalk) again() {
	if w.open {
		w.sock.close() // the rest of the dump would meet the next one
	}
	w.family, w.open, w.found = 0, false, w.found[:0]
}

func (w *setWalk) close() {
	w.reset()
	w.sock.close()
}

// part reads on in a set, and gives all of it with its last part: as it is then.
func (w *setWalk) part(ctx context.Context, n *nftDoor, s ipvs.Set) (all []ipvs.Element, done bool, err error) {
	if w.family == 0 && !w.open {
		w.commits = n.commits
	}
	for read := 0; read < walkBytes; {
		size, end, err := w.read(ctx, s)
		if err == nil && n.commits != w.commits {
			err = unix.EINTR // what was read may have waited since before
		}
		if err != nil {
			return w.interrupted(ctx, n, s, err)
		}
		if read += size; !end {
			continue
		}
		w.open = false
		if w.family++; w.family == len(families) {
			all = w.found
			w.reset()
			return all, true, nil
		}
	}
	return nil, false, nil
}

// interrupted begins anew, or reads all at once.
func (w *setWalk) interrupted(ctx context.Context, n *nftDoor, s ipvs.Set, err error) (all []ipvs.Element, done bool, _ error) {
	switch {
	case !errors.Is(err, unix.EINTR):
		w.reset()
		return nil, false, fmt.Errorf("list nftables set %s: %w", s, err)
	case w.tries < walkTries:
		w.again()
		w.tries++
		return nil, false, nil
	}
	w.reset()
	err = n.all(ctx, s, func(e ipvs.Element) { all = append(all, e) })
	return all, err == nil, err
}

// read takes the next datagram of a dump, which it begins if need be.
func (w *setWalk) read(ctx context.Context, s ipvs.Set) (size int, end bool, err error) {
	fm := families[w.family]
	if !w.open {
		w.b.reset()
		putListing(&w.b, s, fm)
		if w.first, err = w.sock.ask(ctx, &w.b); err != nil {
			return 0, false, err
		}
		w.open = true
	}
	return w.sock.dumped(ctx, deadlineOf(ctx), w.first, collect(s, fm, &w.found))
}
