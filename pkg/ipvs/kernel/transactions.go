package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// transactionBytes is how much goes to the kernel in one nftables transaction: about 1,250 ranges of IPv4 sources, or
// 1,700 hairpin elements. The kernel refuses what is larger than the socket's send buffer, 208 KB by default
// (netlink_sendmsg in net/netlink/af_netlink.c, EMSGSIZE); it copies a set of intervals with every transaction, so few are
// better than many; and this much is done well within requestTimeout on a slow machine, too.
const transactionBytes = 128 << 10

// largestElement is no less than what an element takes in a transaction: an IPv6 range takes 152 bytes.
const largestElement = 160

// frameBytes is no less than what the begin and the end of a transaction take.
const frameBytes = 64

// room is how many bytes of elements one transaction of ours may have.
func (n *nftDoor) room() int {
	room := transactionBytes
	if n.sock.open() == nil && n.sock.most != 0 { // else nothing can be sent at all, and says so
		room = min(room, n.sock.most)
	}
	return max(room-frameBytes, largestElement)
}

// writeElements writes elements in order, in as few transactions as there is room for.
func (k *Kernel) writeElements(ctx context.Context, steps []ipvs.Step) []ipvs.Outcome {
	out := make([]ipvs.Outcome, 0, len(steps))
	failed, silent := map[bearer]bool{}, false
	for _, part := range cut(steps, k.nft.room()) {
		outcomes := make([]ipvs.Outcome, len(part))
		var rest []int
		for i, s := range part {
			switch {
			case silent:
				outcomes[i].Err = fmt.Errorf("%s: %w", s.Op, errSilent)
			case failed[bearerOf(s)]:
				outcomes[i].Err = ipvs.ErrNotTried
			default:
				rest = append(rest, i)
			}
		}
		if len(rest) > 0 {
			assign(outcomes, rest, k.writeTransaction(ctx, at(part, rest)))
		}
		for i, o := range outcomes {
			if o.Err != nil {
				failed[bearerOf(part[i])] = true
				silent = silent || o.Unknown
			}
		}
		out = append(out, outcomes...)
	}
	return out
}

// bearer is who suffers when an element cannot be written: the Key for whose sake it is done, but of an element that
// several Keys may want, its address.
type bearer struct {
	key    ipvs.Key
	shared bool
}

func bearerOf(s ipvs.Step) bearer {
	if e := s.Op.(ipvs.Element); e.Set.OfAddr() {
		return bearer{e.Key, true}
	}
	return bearer{s.Key, false}
}

// errSilent: the kernel did not answer what was asked just before, and is not asked for more: each would wait as long.
var errSilent = errors.New("not tried: the kernel gave no answer to what was before")

// writeTransaction writes all in one transaction; one that is refused is tried again bearer by bearer, so that what the
// kernel refuses of one frontend costs no other, not even on the same address. One that it does not answer is not.
func (k *Kernel) writeTransaction(ctx context.Context, steps []ipvs.Step) []ipvs.Outcome {
	out := k.nft.write(ctx, elementsOf(steps))
	if !slices.ContainsFunc(out, func(o ipvs.Outcome) bool { return o.Err != nil }) || slices.ContainsFunc(out, unknown) {
		return out
	}
	byBearer := map[bearer][]int{}
	var order []bearer
	for i, s := range steps {
		b := bearerOf(s)
		if byBearer[b] == nil {
			order = append(order, b)
		}
		byBearer[b] = append(byBearer[b], i)
	}
	if len(order) == 1 {
		return out
	}
	silent := false
	for _, b := range order {
		mine := byBearer[b]
		if silent {
			for _, i := range mine {
				out[i] = ipvs.Outcome{Err: fmt.Errorf("%s: %w", steps[i].Op, errSilent)}
			}
			continue
		}
		outcomes := k.nft.write(ctx, elementsOf(at(steps, mine)))
		silent = slices.ContainsFunc(outcomes, unknown)
		assign(out, mine, outcomes)
	}
	return out
}

func unknown(o ipvs.Outcome) bool { return o.Unknown }

// cut parts steps into what goes into one transaction each, of so many bytes at most.
func cut(steps []ipvs.Step, room int) (parts [][]ipvs.Step) {
	for len(steps) > 0 {
		n := fitting(steps, room)
		parts, steps = append(parts, steps[:n]), steps[n:]
	}
	return parts
}

// fitting is how many of the steps go into the next transaction. The steps of one Key stay together where there is
// room for them: what a frontend takes and refuses then changes at once.
func fitting(steps []ipvs.Step, room int) int {
	if len(steps)*largestElement <= room { // nearly always
		return len(steps)
	}
	var b batch
	used, whole := 0, 0 // whole Keys so far
	for n, s := range steps {
		if n > 0 && s.Key != steps[n-1].Key {
			whole = n
		}
		used += elementBytes(&b, s.Op.(ipvs.Element))
		switch {
		case used <= room:
		case whole > 0:
			return whole
		case n > 1 && redirects(s) && redirects(steps[n-1]):
			return n - 1 // one redirection takes the place of the other
		default:
			return max(n, 1)
		}
	}
	return len(steps)
}

func redirects(s ipvs.Step) bool { return s.Op.(ipvs.Element).Set == ipvs.SetRedirect }

// elementBytes is what an element takes in a transaction.
func elementBytes(b *batch, e ipvs.Element) int {
	b.reset()
	putElement(b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, e)
	b.finish()
	return len(b.data)
}
