package kernel

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// procFile is the kernel's list of virtual servers: one pass costs a third of netlink dumps. A goroutine has
// no thread of its own, so the file is opened once: it stays with the namespace of who opened it.
const procFile = "/proc/thread-self/net/ip_vs"

// detectBytes is how much text a part of Detect reads.
const detectBytes = 64 << 10

// detected takes a piece of what there is, and the connections of a virtual server.
type detected = func(k ipvs.Key, piece *ipvs.Frontend, conns uint32)

// detector remembers where a pass of Detect is.
type detector struct {
	fd     int // -1 when closed
	parser procParser
	buf    []byte
	part   int // 0: virtual servers; then each set; then the addresses
	walk   *setWalk
}

func newDetector() *detector { return &detector{fd: -1, walk: newSetWalk()} }

// reset makes the next part the first of a new pass, and lets go of a file that may be in any state.
func (d *detector) reset() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
	d.part = 0
	d.parser.reset()
	d.walk.close()
}

// servers reads a part of the list and says whether it was the last one.
func (d *detector) servers(f detected, seen func(ipvs.Key)) (done bool, err error) {
	if d.fd < 0 {
		if d.fd, err = unix.Open(procFile, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			d.fd = -1
			return false, fmt.Errorf("open %s: %w", procFile, err)
		}
	}
	if d.buf == nil {
		d.buf = make([]byte, 16<<10)
	}
	d.parser.emit = func(k ipvs.Key, piece *ipvs.Frontend, conns uint32) {
		seen(k)
		f(k, piece, conns)
	}
	for read := 0; read < detectBytes; {
		n, err := unix.Read(d.fd, d.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, fmt.Errorf("read %s: %w", procFile, err)
		case n == 0:
			return true, d.rewind()
		}
		read += n
		if err := d.parser.feed(d.buf[:n]); err != nil {
			return false, fmt.Errorf("read %s: %w", procFile, err)
		}
	}
	return false, nil
}

// rewind delivers the last virtual server and goes back to the beginning of the file.
func (d *detector) rewind() error {
	if err := d.parser.end(); err != nil {
		return fmt.Errorf("read %s: %w", procFile, err)
	}
	d.parser.reset()
	if _, err := unix.Seek(d.fd, 0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind %s: %w", procFile, err)
	}
	return nil
}

// Detect delivers the next part: about 64 KB of the list of virtual servers, 1,000 to 2,000 elements of one of
// our sets, or the addresses of the interface. After an error the next call begins anew.
func (k *Kernel) Detect(ctx context.Context, f func(ipvs.Key, *ipvs.Frontend, uint32)) (done bool, err error) {
	d := k.detector
	if err := ctx.Err(); err != nil {
		d.reset()
		return false, err
	}
	end := true // of this kind of part
	switch {
	case d.part == 0:
		end, err = d.servers(f, k.canary.saw)
	case d.part <= len(ipvs.Sets):
		end, err = k.detectSet(ctx, ipvs.Sets[d.part-1], f)
	default:
		done, err = true, k.detectAddresses(ctx, f)
	}
	switch {
	case err != nil:
		d.reset()
		return false, err
	case done:
		d.part = 0
	case end:
		d.part++
	}
	return done, nil
}

// detectSet reads on in a set. What is in it is delivered at once, with the last part: what we write ourselves in the
// middle of it interrupts it, and is not taken for another's work.
func (k *Kernel) detectSet(ctx context.Context, s ipvs.Set, f detected) (done bool, err error) {
	found, done, err := k.detector.walk.part(ctx, k.nft, s)
	if !done {
		return false, err
	}
	if s == ipvs.SetRanges {
		clear(k.ranged) // what still has some is found now
	}
	for _, e := range found {
		if s == ipvs.SetRanges {
			k.mayHaveRanges(e.Key)
		}
		piece := &ipvs.Frontend{}
		piece.Guard.Put(e)
		f(e.Key, piece, 0)
	}
	return true, nil
}

func (k *Kernel) detectAddresses(ctx context.Context, f detected) error {
	as := newAssembly()
	if err := k.addBindings(ctx, as); err != nil {
		return err
	}
	for key, piece := range as.parts {
		f(key, piece, 0)
	}
	return nil
}
