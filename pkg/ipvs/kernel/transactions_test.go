package kernel

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// manyRanges are as many source ranges of a Key as are wanted, none beside another.
func manyRanges(k ipvs.Key, n int) (steps []ipvs.Step) {
	for i := range n {
		a := make([]byte, k.Addr.BitLen()/8)
		a[0], a[1], a[2] = 0x20, byte(i>>7), byte(i<<1)
		first, _ := netip.AddrFromSlice(a)
		steps = append(steps, ipvs.Step{Key: k, Op: ipvs.Element{Set: ipvs.SetRanges, Key: k, From: ipvs.RangeOf(netip.PrefixFrom(first, 24))}})
	}
	return steps
}

// manyHairpins are as many pods of a Key.
func manyHairpins(k ipvs.Key, n int) (steps []ipvs.Step) {
	for i := range n {
		a := make([]byte, k.Addr.BitLen()/8)
		a[0], a[1], a[2] = 0xfd, byte(i>>8), byte(i)
		pod, _ := netip.AddrFromSlice(a)
		steps = append(steps, ipvs.Step{Key: k, Op: ipvs.Element{Set: ipvs.SetHairpin, Key: ipvs.AddrKey(pod)}})
	}
	return steps
}

// What is cut is all that was given, in order; no part takes more than there is room for; and no Key is in two parts
// that could be in one.
func TestB91Cut(t *testing.T) {
	lb4, lb6 := key("203.0.113.10", 80), key("2001:db8::10", 80)
	small := func(k ipvs.Key) []ipvs.Step {
		return []ipvs.Step{{Key: k, Op: ipvs.Element{Set: ipvs.SetOwned, Key: k}}, {Key: k, Op: ipvs.Element{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(k.Addr)}}}
	}
	const room = 10_000
	for _, c := range []struct {
		name  string
		steps [][]ipvs.Step
		parts int
	}{
		{"nothing", nil, 0},
		{"little", [][]ipvs.Step{small(lb4), small(lb6)}, 1},
		{"two that do not fit together", [][]ipvs.Step{manyRanges(lb4, 60), manyRanges(lb6, 60)}, 2},
		{"one that is cut", [][]ipvs.Step{manyRanges(lb4, 200)}, 3},
		{"small ones beside one that is cut", [][]ipvs.Step{small(lb6), manyRanges(lb4, 200), small(lb6)}, 4},
		{"IPv6", [][]ipvs.Step{manyRanges(lb6, 200)}, 4},
		{"hairpins", [][]ipvs.Step{manyHairpins(lb4, 200), manyHairpins(lb6, 200)}, 4},
	} {
		steps := slices.Concat(c.steps...)
		parts := cut(steps, room)
		if len(parts) != c.parts {
			t.Errorf("%s: %d parts, want %d", c.name, len(parts), c.parts)
		}
		if got := slices.Concat(parts...); !slices.Equal(got, steps) {
			t.Errorf("%s: the parts are not what was given", c.name)
		}
		for i, p := range parts {
			if n := bytesOf(p); n > room {
				t.Errorf("%s: part %d takes %d bytes, more than %d", c.name, i, n, room)
			}
		}
	}
}

func bytesOf(steps []ipvs.Step) (n int) {
	var b batch
	for _, s := range steps {
		n += elementBytes(&b, s.Op.(ipvs.Element))
	}
	return n
}

// A redirection and the one whose place it takes change at once, wherever else a Key is cut.
func TestB91CutKeepsRedirection(t *testing.T) {
	lb := key("203.0.113.10", 80)
	to := netip.MustParseAddrPort("10.96.0.10:80")
	for n := range 40 {
		steps := append(manyRanges(lb, n),
			ipvs.Step{Key: lb, Op: ipvs.Element{Set: ipvs.SetRedirect, Key: lb, Remove: true}}, ipvs.Step{Key: lb, Op: ipvs.Element{Set: ipvs.SetRedirect, Key: lb, To: to}})
		steps = append(steps, manyRanges(lb, 40)...)
		parts := cut(steps, 2000)
		if len(parts) < 2 {
			t.Fatalf("%d steps in %d part", len(steps), len(parts))
		}
		for _, p := range parts {
			if redirects(p[0]) && !p[0].Op.(ipvs.Element).Remove {
				t.Errorf("%d ranges before: the redirection is parted from the one whose place it takes", n)
			}
		}
	}
}

// No element takes more than is reckoned with, and the frame of a transaction does not either.
func TestB91ElementBytes(t *testing.T) {
	for _, k := range []ipvs.Key{key("203.0.113.10", 80), key("2001:db8::10", 80)} {
		for _, s := range ipvs.Sets {
			e := ipvs.Element{Set: s, Key: k, From: ipvs.Range{First: k.Addr, Last: k.Addr}}
			if s == ipvs.SetRedirect {
				e.To = netip.AddrPortFrom(k.Addr, 80)
			}
			var b batch
			if n := elementBytes(&b, e); n > largestElement {
				t.Errorf("%s takes %d bytes, more than %d", e, n, largestElement)
			}
		}
	}
}

// The transactions that a Plan makes fit into the socket's buffer, however small an administrator made that: what the
// kernel is sent is looked at here, in its place.
func TestB91TransactionsFit(t *testing.T) {
	for _, buffer := range []int{0, 8 << 10} {
		var mu sync.Mutex
		largest, elements, transactions := 0, 0, 0
		s := faultyBuffer(t, buffer, func(data []byte, seqs []uint32, send func([]byte)) {
			mu.Lock()
			defer mu.Unlock()
			largest, elements, transactions = max(largest, len(data)), elements+len(seqs)-2, transactions+1
			send(answer(seqs[len(seqs)-2], 0))
		})
		k := &Kernel{nft: &nftDoor{sock: s}}
		steps := append(manyRanges(key("203.0.113.10", 80), 3000), manyHairpins(key("2001:db8::10", 80), 3000)...)
		for i, o := range k.writeElements(t.Context(), steps) {
			if o.Err != nil {
				t.Fatalf("%s: %v", steps[i].Op, o.Err)
			}
		}
		allowed := transactionBytes
		if buffer > 0 {
			got, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
			if err != nil {
				t.Fatal(err)
			}
			allowed = got - 32
		}
		mu.Lock()
		defer mu.Unlock()
		if largest > allowed || elements != len(steps) {
			t.Errorf("send buffer %d: %d of %d elements in %d transactions of %d bytes at most, want no more than %d bytes",
				buffer, elements, len(steps), transactions, largest, allowed)
		}
	}
}

// faultyBuffer is a faulty socket with a send buffer of that size, 0 for the usual one; play sees what is sent.
func faultyBuffer(t *testing.T, size int, play func(sent []byte, seqs []uint32, send func([]byte))) *socket {
	s := faultyRaw(t, func(_ int, sent []byte, send func([]byte)) { play(sent, seqsOf(sent), send) })
	open := s.dial
	s.dial = func(protocol int) (int, error) {
		fd, err := open(protocol)
		if err == nil && size > 0 {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		}
		return fd, err
	}
	return s
}

// What the kernel refuses of one part of a frontend ends that frontend alone: what comes after is not tried, and
// neither another Key on the same address fails nor the address that they share.
func TestB91RefusedPart(t *testing.T) {
	bad, good := key("203.0.113.10", 80), key("203.0.113.10", 443)
	vip := ipvs.Step{Key: bad, Op: ipvs.Element{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(bad.Addr)}} // for both
	steps := append(manyRanges(bad, 3000), ipvs.Step{Key: bad, Op: ipvs.Element{Set: ipvs.SetOpen, Key: bad}}, ipvs.Step{Key: good, Op: ipvs.Element{Set: ipvs.SetOwned, Key: good}})
	refused := steps[1500].Op.(ipvs.Element).From.First.As4()
	steps = slices.Insert(steps, 1500, vip)
	s := faultyBuffer(t, 0, func(data []byte, seqs []uint32, send func([]byte)) {
		at := -1
		i := 0
		_ = eachMessage(data, func(_, _ uint16, _ uint32, body []byte) {
			if len(body) > 80 && [4]byte(body[len(body)-28:]) == refused {
				at = i
			}
			i++
		})
		if at < 0 {
			send(answer(seqs[len(seqs)-2], 0))
			return
		}
		send(answer(seqs[at], unix.EBUSY))
		send(answer(seqs[len(seqs)-2], 0))
	})
	k := &Kernel{nft: &nftDoor{sock: s}}
	out := k.writeElements(t.Context(), steps)
	done, errno, later := 0, 0, 0
	for i, o := range out {
		switch {
		case steps[i].Key == good || steps[i] == vip:
			if o.Err != nil {
				t.Errorf("%s: %v", steps[i].Op, o.Err)
			}
		case o.Err == nil:
			done++
		case errors.Is(o.Err, ipvs.ErrNotTried):
			later++
		case errors.Is(o.Err, unix.EBUSY):
			errno++
		default:
			t.Fatalf("%s: %v", steps[i].Op, o.Err)
		}
	}
	if done == 0 || errno == 0 || later == 0 || !errors.Is(out[3001].Err, ipvs.ErrNotTried) {
		t.Errorf("%d done, %d refused, %d not tried, opened: %v; want some of each, and not opened", done, errno, later, out[3001].Err)
	}
}

// The kernel itself takes more elements than fit into one message, of both families, and a neighbour on the same address
// beside them.
func TestB91ManyElements(t *testing.T) {
	k := &Kernel{nft: testNFT(t)}
	for _, vip := range []string{"203.0.113.10", "2001:db8::10"} {
		big, neighbour := key(vip, 80), key(vip, 443)
		steps := slices.Concat(manyRanges(big, 3000), manyHairpins(big, 3000), []ipvs.Step{
			{Key: big, Op: ipvs.Element{Set: ipvs.SetVIPs, Key: ipvs.AddrKey(big.Addr)}},
			{Key: neighbour, Op: ipvs.Element{Set: ipvs.SetOwned, Key: neighbour}}})
		for i, o := range k.writeElements(t.Context(), steps) {
			if o.Err != nil {
				t.Fatalf("%s: %v", steps[i].Op, o.Err)
			}
		}
		for set, want := range map[ipvs.Set]int{ipvs.SetRanges: 3000, ipvs.SetHairpin: 3000, ipvs.SetVIPs: 1, ipvs.SetOwned: 1} {
			n := 0
			if err := k.nft.all(t.Context(), set, func(e ipvs.Element) {
				if e.Key.Addr.Is4() == big.Addr.Is4() {
					n++
				}
			}); err != nil || n != want {
				t.Errorf("%s: %d elements of set %s, want %d; %v", vip, n, set, want, err)
			}
		}
	}
}

// TestB90SilentKernel: where the kernel gives no answer, it is not asked again and again in one go: each question would
// wait for as long.
func TestB90SilentKernel(t *testing.T) {
	var sent atomic.Int32
	door := func() *socket {
		return faultyRaw(t, func(_ int, _ []byte, send func([]byte)) {
			sent.Add(1)
			send(bytes.Repeat([]byte{1}, 20)) // as good as no answer, and at once
		})
	}
	var elements []ipvs.Step
	var servers []ipvs.Op
	for port := range uint16(2000) {
		k := key("203.0.113.10", port+1)
		elements = append(elements, ipvs.Step{Key: k, Op: ipvs.Element{Set: ipvs.SetOwned, Key: k}})
		servers = append(servers, ipvs.AddServer{Key: k, Scheduler: "rr"})
	}
	k := &Kernel{nft: &nftDoor{sock: door()}}
	out := k.writeElements(t.Context(), elements)
	v := &ipvsDoor{sock: door()}
	outcomes := v.write(t.Context(), servers)
	t.Logf("%d requests sent for %d elements and %d virtual servers", sent.Load(), len(elements), len(servers))
	if n := sent.Load(); n > 2 {
		t.Errorf("%d requests sent, want one of each kind", n)
	}
	for i, o := range append(out, outcomes...) {
		if o.Err == nil {
			t.Fatalf("operation %d of %d: no error", i, len(out)+len(outcomes))
		}
	}
	if len(out) != len(elements) || len(outcomes) != len(servers) || !out[0].Unknown || !outcomes[0].Unknown || out[1999].Unknown || outcomes[1999].Unknown {
		t.Errorf("%d and %d outcomes, of which the first must be unknown and the last not tried", len(out), len(outcomes))
	}
}
