package kernel

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// listing answers who lists the set open: 40 datagrams of 150 elements, and the end. That of IPv6 has none.
func listing(sent []byte, interrupted bool, send func([]byte)) {
	seq, datagrams := seqsOf(sent)[0], 40
	if bytes.Contains(sent, []byte("open6")) {
		datagrams = 0
	}
	n := 0
	for range datagrams {
		var b batch
		for range 150 {
			n++
			putElement(&b, unix.NFT_MSG_NEWSETELEM, 0, ipvs.Element{Set: ipvs.SetOpen, Key: key("10.96.0.1", uint16(n))})
		}
		b.finish()
		for at := 0; at < len(b.data); at += int(binary.NativeEndian.Uint32(b.data[at:])) {
			binary.NativeEndian.PutUint32(b.data[at+8:], seq)
		}
		send(b.data)
	}
	var b batch
	flags := uint16(0)
	if interrupted {
		flags = unix.NLM_F_DUMP_INTR
	}
	b.begin(unix.NLMSG_DONE, flags, make([]byte, 4))
	b.finish()
	binary.NativeEndian.PutUint32(b.data[8:], seq)
	send(b.data)
}

// TestB90SetInParts: a set is read a part at a time, and delivered as it is at one moment: read again when somebody
// changed something meanwhile, and as a whole when that goes on.
func TestB90SetInParts(t *testing.T) {
	for _, c := range []struct {
		name        string
		interrupted int32 // how many listings are
		own         int   // how many commits of ours come between parts
		parts       int   // at least
	}{
		{"undisturbed", 0, 0, 10},
		{"interrupted once", 1, 0, 20},
		{"a commit of ours", 0, 1, 11},
		{"interrupted again and again", 1 << 20, 0, 4},
		{"commits of ours all the time", 0, 1 << 20, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			var listed, whole atomic.Int32
			k := &Kernel{detector: newDetector(), nft: &nftDoor{sock: faultyRaw(t, func(_ int, sent []byte, send func([]byte)) {
				whole.Add(1)
				listing(sent, false, send)
			})}}
			k.detector.walk.sock = faultyRaw(t, func(_ int, sent []byte, send func([]byte)) {
				listing(sent, listed.Add(1) <= c.interrupted, send)
			})
			parts, found, own := 0, 0, c.own
			for done := false; !done; {
				before := found
				var err error
				if done, err = k.detectSet(t.Context(), ipvs.SetOpen, func(ipvs.Key, *ipvs.Frontend, uint32) { found++ }); err != nil {
					t.Fatal(err)
				}
				if !done && found > before {
					t.Error("a part was delivered before the set was read")
				}
				if parts++; own > 0 {
					own--
					k.nft.commits++
				}
			}
			t.Logf("%d parts, %d elements, %d listings of a family, %d at once", parts, found, listed.Load(), whole.Load())
			if parts < c.parts || found != 6000 || (whole.Load() > 0) != (c.interrupted > 10 || c.own > 10) {
				t.Errorf("%d parts, %d elements, %d listings at once; want %d parts at least, and 6,000", parts, found, whole.Load(), c.parts)
			}
		})
	}
}
