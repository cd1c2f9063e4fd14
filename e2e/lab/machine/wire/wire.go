// Package wire is what the runner on the host and the init in the guest say
// to each other: one specification going in, one byte stream coming out, and
// a stream of Inputs going in, one line of JSON each.
//
// The stream carries the commands' output untouched, and between it messages:
// a zero byte, the nonce of this run, one line of JSON. Output and messages
// share a stream so that their order is certain: when the result of a command
// arrives, all of its output has arrived before.
package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// SpecFile is where the guest finds its Spec, as JSON.
const SpecFile = "/lab.json"

// ModuleOrder lists, in the guest, the modules to load, one path a line, in
// an order in which each finds what it depends on.
const ModuleOrder = "/lib/modules/order"

// Port is the name of the virtio port that carries the stream.
const Port = "lab"

// Spec says what the guest does.
type Spec struct {
	Nonce    string    `json:"nonce"`
	Dir      string    `json:"dir"` // LAB_DIR
	Commands []Command `json:"commands"`
	// Network: a virtual machine has a network card to whose other end the host listens.
	Network bool `json:"network,omitempty"`
}

// Command is one program to run.
type Command struct {
	Name    string        `json:"name"`
	Args    []string      `json:"args"`
	Env     []string      `json:"env,omitempty"`
	Dir     string        `json:"dir,omitempty"` // below LAB_DIR
	Timeout time.Duration `json:"timeout,omitempty"`

	Input    bool  `json:"input,omitempty"`    // Inputs follow once it has started
	Terminal *Size `json:"terminal,omitempty"` // and they are keys, typed at a terminal of this size
}

// Size of a terminal.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Input is what the host tells the guest while commands run.
type Input struct {
	Index int    `json:"index"`          // of the command that it is for; nobody else gets it
	Data  []byte `json:"data,omitempty"` // for its standard input
	End   bool   `json:"end,omitempty"`  // of its standard input
	Size  *Size  `json:"size,omitempty"` // of its terminal, from now on
	Bye   bool   `json:"bye,omitempty"`  // the host has read all that the guest sent
}

// Message is one of its fields.
type Message struct {
	Kernel string  `json:"kernel,omitempty"` // first message: the guest is up
	Start  *int    `json:"start,omitempty"`  // index of the command whose output follows
	Result *Result `json:"result,omitempty"`
	Fatal  string  `json:"fatal,omitempty"` // the guest cannot go on
	Bye    bool    `json:"bye,omitempty"`   // last message
}

// Probe is what the guest found of a kernel that it tried.
type Probe struct {
	Loaded []string `json:"loaded,omitempty"` // modules that were loaded for it
	Lacks  []string `json:"lacks,omitempty"`  // what the lab needs and it has not, and why, one line each
}

// Result is how a command ended.
type Result struct {
	Index int           `json:"index"`
	Exit  int           `json:"exit"`
	Took  time.Duration `json:"took"`
	Err   string        `json:"err,omitempty"`
}

// Encode returns the bytes of a message.
func Encode(nonce string, m Message) []byte {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // numbers and strings always marshal
	}
	return append(append(prefix(nonce), b...), '\n')
}

func prefix(nonce string) []byte { return []byte("\x00" + nonce) }

// Demux takes the stream apart again.
type Demux struct {
	Nonce   string
	Output  func([]byte) error
	Message func(Message) error
}

// maxMessage bounds a message, so that a stream that breaks off in one
// cannot make Copy collect for ever.
const maxMessage = 64 << 10

// Copy reads r to its end and hands out its parts as they come.
func (d Demux) Copy(r io.Reader) error {
	var held []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		held = append(held, buf[:n]...)
		rest, herr := d.hand(held, err != nil)
		if herr != nil {
			return herr
		}
		held = append(held[:0], rest...)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hand gives out all complete parts of b and returns what must wait for more.
func (d Demux) hand(b []byte, last bool) ([]byte, error) {
	pre := prefix(d.Nonce)
	for len(b) > 0 {
		i := bytes.Index(b, pre)
		if i < 0 {
			keep := 0
			if !last {
				keep = overlap(b, pre)
			}
			return b[len(b)-keep:], d.output(b[:len(b)-keep])
		}
		if err := d.output(b[:i]); err != nil {
			return nil, err
		}
		b = b[i:]
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			if last || len(b) > maxMessage {
				return nil, fmt.Errorf("guest's message is cut off: %q", b[len(pre):])
			}
			return b, nil
		}
		var m Message
		if err := json.Unmarshal(b[len(pre):end], &m); err != nil {
			return nil, fmt.Errorf("guest's message %q: %w", b[len(pre):end], err)
		}
		if err := d.Message(m); err != nil {
			return nil, err
		}
		b = b[end+1:]
	}
	return nil, nil
}

func (d Demux) output(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return d.Output(b)
}

// overlap is the length of the longest end of b that begins pre.
func overlap(b, pre []byte) int {
	for n := min(len(b), len(pre)-1); n > 0; n-- {
		if bytes.HasPrefix(pre, b[len(b)-n:]) {
			return n
		}
	}
	return 0
}
