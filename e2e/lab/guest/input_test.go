package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

const nonce = "0123456789abcdef"

// peer is the host's end of a guest that runs one command.
type peer struct {
	t      *testing.T
	keys   *json.Encoder
	mu     sync.Mutex
	shown  bytes.Buffer
	result chan wire.Result
}

// perform runs a command as the init does.
func perform(t *testing.T, c wire.Command) *peer {
	t.Helper()
	fromGuest, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	keys, toGuest := io.Pipe()
	p := &peer{t: t, keys: json.NewEncoder(toGuest), result: make(chan wire.Result, 1)}
	in, read := newInput(), make(chan error, 1)
	go in.follow(keys)
	go func() {
		read <- wire.Demux{Nonce: nonce, Message: func(wire.Message) error { return nil }, Output: p.show}.Copy(fromGuest)
	}()
	go func() {
		p.result <- runNext(stream{fd: int(out.Fd()), nonce: nonce}, in, 0, t.TempDir(), "none", c)
		out.Close()
	}()
	t.Cleanup(func() {
		toGuest.Close()
		if err := <-read; err != nil {
			t.Errorf("the guest's stream: %v", err)
		}
		fromGuest.Close()
	})
	return p
}

func (p *peer) show(b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.Write(b)
	return nil
}

func (p *peer) send(m wire.Input) {
	p.t.Helper()
	if err := p.keys.Encode(m); err != nil {
		p.t.Fatal(err)
	}
}

// sees waits until the command has printed something.
func (p *peer) sees(text string) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		shown := p.shown.String()
		p.mu.Unlock()
		if strings.Contains(shown, text) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("did not print %q but %q", text, shown)
		}
	}
}

func (p *peer) ends(exit int) {
	p.t.Helper()
	if r := <-p.result; r.Exit != exit {
		p.t.Errorf("ended with %d (%s), want %d", r.Exit, r.Err, exit)
	}
}

// A command reads what is sent to it, to the end, and not what is for another one.
func TestInputFromPipe(t *testing.T) {
	p := perform(t, wire.Command{Args: []string{"sh", "-c", "echo up; cat; exit 5"}, Input: true})
	p.sees("up\n")
	p.send(wire.Input{Index: 1, Data: []byte("of another\n")})
	p.send(wire.Input{Data: []byte("one\n")})
	p.send(wire.Input{Data: []byte("two\n"), End: true})
	p.ends(5)
	p.sees("up\none\ntwo\n")
}

// A command that does not read what is sent to it does not hold up what comes after it.
func TestInputUnread(t *testing.T) {
	p := perform(t, wire.Command{Args: []string{"sh", "-c", "echo up; sleep 1"}, Input: true})
	p.sees("up\n")
	p.send(wire.Input{Data: bytes.Repeat([]byte("x"), 1<<20)}) // far more than a pipe holds
	p.send(wire.Input{Index: 1})
	p.ends(0)
}

// A command at a terminal has a size, lines with their ends, and Ctrl-C.
func TestInputFromTerminal(t *testing.T) {
	p := perform(t, wire.Command{Input: true, Terminal: &wire.Size{Rows: 33, Cols: 101},
		Args: []string{"sh", "-c", "stty size; read line; echo got $line; read line; stty size; exec sleep 1000"}})
	p.sees("33 101\r\n")
	p.send(wire.Input{Data: []byte("wrong\x7f\x7f\x7f\x7f\x7fright\r")}) // DEL is the key that deletes
	p.sees("got right\r\n")
	p.send(wire.Input{Size: &wire.Size{Rows: 44, Cols: 55}})
	p.send(wire.Input{Data: []byte("\r")})
	p.sees("44 55\r\n")
	p.send(wire.Input{Data: []byte{3}})
	p.ends(130)
}

// Without input a command finds the end of a file at once, and without a terminal it has none.
func TestNoInput(t *testing.T) {
	p := perform(t, wire.Command{Args: []string{"sh", "-c", "cat; test -t 0 || echo no terminal; echo end"}})
	p.ends(0)
	p.sees("no terminal\nend\n")
}
