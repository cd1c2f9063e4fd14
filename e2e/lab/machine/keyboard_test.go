package machine

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// plugged is a keyboard, and what arrives at the guest.
func plugged(t *testing.T) (*keyboard, *json.Decoder) {
	guest, host := io.Pipe()
	t.Cleanup(func() { guest.Close() })
	k := &keyboard{}
	k.connect(host)
	return k, json.NewDecoder(guest)
}

// typed collects what arrives until there is an end or as much as wanted.
func typed(t *testing.T, guest *json.Decoder, index int, want string) (end bool) {
	t.Helper()
	got := ""
	for got != want || want == "" {
		var m wire.Input
		if err := guest.Decode(&m); err != nil {
			t.Fatal(err)
		}
		if m.Index != index {
			t.Errorf("for command %d: %+v", m.Index, m)
		}
		if got += string(m.Data); !strings.HasPrefix(want, got) {
			t.Fatalf("got %q, want %q", got, want)
		}
		if m.End {
			return true
		}
	}
	return false
}

func TestKeyboardReadsToTheEnd(t *testing.T) {
	k, guest := plugged(t)
	if err := k.give(4, strings.NewReader("exit 3\n")); err != nil {
		t.Fatal(err)
	}
	defer k.take()
	typed(t, guest, 4, "exit 3\n")
	if !typed(t, guest, 4, "") {
		t.Error("no end")
	}
}

// The terminal passes on every key while a command has it, and is as before when that has ended.
func TestKeyboardTerminal(t *testing.T) {
	hand, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	defer hand.Close()
	if got := sizeOf(tty); *got != (wire.Size{Rows: 24, Cols: 80}) {
		t.Errorf("size of a terminal that has none: %v", *got)
	}
	before := termios(t, tty)
	k, guest := plugged(t)
	if err := k.give(1, tty); err != nil {
		t.Fatal(err)
	}
	if now := termios(t, tty); now.Lflag&(unix.ISIG|unix.ICANON|unix.ECHO) != 0 {
		t.Errorf("Ctrl-C, lines or echo are the terminal's business: %#x", now.Lflag)
	}
	if _, err := hand.WriteString("ls\r\x03\x04"); err != nil {
		t.Fatal(err)
	}
	typed(t, guest, 1, "ls\r\x03\x04")
	if err := pty.Setsize(hand, &pty.Winsize{Rows: 33, Cols: 101}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil { // we are not of its session
		t.Fatal(err)
	}
	var m wire.Input
	if err := guest.Decode(&m); err != nil || m.Size == nil || *m.Size != (wire.Size{Rows: 33, Cols: 101}) {
		t.Errorf("a new size: %+v, %v", m, err)
	}
	k.take()
	if after := termios(t, tty); *after != *before {
		t.Errorf("the terminal was %+v and is %+v", before, after)
	}
	k.take() // at the end of the machine, after that of the command
}

func termios(t *testing.T, tty *os.File) *unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, in := range []io.Reader{nil, null, strings.NewReader("")} {
		if terminal(in) != nil {
			t.Errorf("%T is a terminal", in)
		}
	}
}
