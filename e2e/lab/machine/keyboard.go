package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// keyboard is the way to the guest: what its commands read goes there, one command at a time.
type keyboard struct {
	mu  sync.Mutex
	out *json.Encoder

	release func() // from the command that has it
}

// connect gives the keyboard a guest; a second boot is another one.
func (k *keyboard) connect(w io.Writer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.out = json.NewEncoder(w)
}

// send writes whole lines only.
func (k *keyboard) send(m wire.Input) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.Encode(m)
}

// give hands the input to a command, which is waiting for it.
func (k *keyboard) give(index int, in io.Reader) error {
	if in == nil {
		return nil
	}
	var undo []func()
	if t := terminal(in); t != nil {
		state, err := term.MakeRaw(int(t.Fd()))
		if err != nil {
			return fmt.Errorf("put the terminal into raw mode: %w", err)
		}
		undo = append(undo, func() { _ = term.Restore(int(t.Fd()), state) }, k.followSize(index, t))
	}
	// A reader that is still at work when its command has ended sends in vain: the guest knows the index.
	go k.pump(index, in)
	k.release = func() {
		for _, f := range undo {
			f()
		}
	}
	return nil
}

// take ends what give began.
func (k *keyboard) take() {
	if k.release != nil {
		k.release()
		k.release = nil
	}
}

func (k *keyboard) pump(index int, in io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		if n > 0 && k.send(wire.Input{Index: index, Data: buf[:n]}) != nil {
			return
		}
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			_ = k.send(wire.Input{Index: index, End: true})
			return
		}
	}
}

// followSize tells the guest the size of a terminal whenever it changes.
func (k *keyboard) followSize(index int, t *os.File) (stop func()) {
	changed, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		for {
			select {
			case <-changed:
				_ = k.send(wire.Input{Index: index, Size: sizeOf(t)})
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(changed); close(done) }
}

// terminal says whether somebody sits before an input.
func terminal(in io.Reader) *os.File {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return f
}

// sizeOf is the size of a terminal; one that does not know its own has 24 lines of 80 characters.
func sizeOf(t *os.File) *wire.Size {
	cols, rows, err := term.GetSize(int(t.Fd()))
	if err != nil || rows <= 0 || cols <= 0 {
		return &wire.Size{Rows: 24, Cols: 80}
	}
	return &wire.Size{Rows: uint16(rows), Cols: uint16(cols)}
}
