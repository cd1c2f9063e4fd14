package wire

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDemux(t *testing.T) {
	const nonce = "0123456789abcdef"
	one := 1
	var stream bytes.Buffer
	stream.Write(Encode(nonce, Message{Kernel: "6.1"}))
	stream.Write(Encode(nonce, Message{Start: &one}))
	stream.WriteString("hello\x00wor\x00012345ld without newline")
	stream.Write(Encode(nonce, Message{Result: &Result{Index: 1, Exit: 3, Err: "x\ny"}}))
	stream.WriteString("tail \x000123")
	want := "hello\x00wor\x00012345ld without newlinetail \x000123"

	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole":       func(r io.Reader) io.Reader { return r },
		"byte a time": iotest.OneByteReader,
		"half":        iotest.HalfReader,
		"data + EOF":  iotest.DataErrReader,
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			var got []Message
			d := Demux{
				Nonce:   nonce,
				Output:  func(b []byte) error { out.Write(b); return nil },
				Message: func(m Message) error { got = append(got, m); return nil },
			}
			if err := d.Copy(wrap(bytes.NewReader(stream.Bytes()))); err != nil {
				t.Fatal(err)
			}
			if out.String() != want {
				t.Errorf("output %q, want %q", out.String(), want)
			}
			msgs := []Message{{Kernel: "6.1"}, {Start: &one}, {Result: &Result{Index: 1, Exit: 3, Err: "x\ny"}}}
			if !reflect.DeepEqual(got, msgs) {
				t.Errorf("messages %+v, want %+v", got, msgs)
			}
		})
	}
}

func TestDemuxCutOff(t *testing.T) {
	d := Demux{Nonce: "n", Output: func([]byte) error { return nil }, Message: func(Message) error { return nil }}
	if err := d.Copy(strings.NewReader("\x00n{\"bye\":")); err == nil {
		t.Error("a message that breaks off was accepted")
	}
	if err := d.Copy(strings.NewReader("\x00n{\"bye\":tru}\n")); err == nil {
		t.Error("a message that is not JSON was accepted")
	}
}
