package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// input hands on what the host sends: to the command that it is for, as long as that runs.
type input struct {
	bye  chan struct{} // closed when the host has read everything
	gone chan struct{} // closed when the host sends no more

	mu    sync.Mutex
	index int
	std   *stdio // of the command that runs
}

func newInput() *input { return &input{bye: make(chan struct{}), gone: make(chan struct{})} }

// follow reads Inputs to the end of the stream.
func (in *input) follow(r io.Reader) {
	defer close(in.gone)
	for dec := json.NewDecoder(r); ; {
		var m wire.Input
		if err := dec.Decode(&m); err != nil {
			return
		}
		if m.Bye {
			close(in.bye)
			return
		}
		// The lock is not held while a command does not read: its end must not wait for this.
		if std := in.of(m.Index); std != nil {
			std.take(m)
		}
	}
}

func (in *input) of(index int) *stdio {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.index != index {
		return nil
	}
	return in.std
}

func (in *input) attach(index int, std *stdio) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.index, in.std = index, std
}

func (in *input) detach() { in.attach(-1, nil) }

// stdio is what a command reads and writes: /dev/null, a pipe or a terminal, and the stream.
type stdio struct {
	child        [3]uintptr
	terminal     bool
	ours, theirs *os.File      // the two ends of its standard input; ours is nil where nothing comes
	shown        chan struct{} // of a terminal: closed when all that it showed is on the stream
}

func openStdio(out int, c wire.Command) (s *stdio, err error) {
	s = &stdio{}
	switch {
	case c.Terminal != nil:
		if err := s.openTerminal(out, *c.Terminal); err != nil {
			return nil, err
		}
		return s, nil
	case c.Input:
		s.theirs, s.ours, err = os.Pipe()
	default:
		s.theirs, err = os.Open(os.DevNull)
	}
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	s.child = [3]uintptr{s.theirs.Fd(), uintptr(out), uintptr(out)}
	return s, nil
}

// openTerminal makes a terminal and passes on what it shows.
func (s *stdio) openTerminal(out int, size wire.Size) (err error) {
	if s.ours, s.theirs, err = pty.Open(); err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	fd := s.theirs.Fd()
	// Programs expect a terminal to block, and the flag belongs to the terminal, not to the descriptor.
	if err := unix.SetNonblock(int(fd), false); err != nil {
		return fmt.Errorf("make the terminal block: %w", err)
	}
	s.terminal, s.child, s.shown = true, [3]uintptr{fd, fd, fd}, make(chan struct{})
	s.resize(size)
	go func() {
		defer close(s.shown)
		// Its end is an error: nobody has the terminal open any more.
		_, _ = io.Copy(portWriter(out), s.ours)
	}()
	return nil
}

func (s *stdio) resize(size wire.Size) {
	// A terminal without a size works, too.
	_ = pty.Setsize(s.ours, &pty.Winsize{Rows: size.Rows, Cols: size.Cols})
}

// take hands on what came for the command. What it does not want is lost, as on any pipe.
func (s *stdio) take(m wire.Input) {
	if s.ours == nil {
		return
	}
	if m.Size != nil && s.terminal {
		s.resize(*m.Size)
	}
	if len(m.Data) > 0 {
		_, _ = s.ours.Write(m.Data)
	}
	if m.End {
		s.ours.Close() // for a terminal: nobody sits before it any more
	}
}

// started lets go of what the command has now.
func (s *stdio) started() { s.theirs.Close() }

// close waits for the last words of the command, which has ended with all that it started.
func (s *stdio) close() {
	s.theirs.Close()
	if s.shown != nil {
		<-s.shown
	}
	if s.ours != nil {
		s.ours.Close()
	}
}

// portWriter writes to the stream, which Go's poller does not know.
type portWriter int

func (w portWriter) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := unix.Write(int(w), b[n:])
		if err != nil && err != unix.EINTR {
			return n, err
		}
		n += max(m, 0)
	}
	return n, nil
}
