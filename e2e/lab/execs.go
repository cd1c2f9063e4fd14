package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Execs counts the attempts to start a program, execve(2) and execveat(2), that succeeded or not, of this process
// and of all that it starts from now on. The kernel's tracing does it.
type Execs struct{ dir string }

// CountExecs counts until the end of the test.
func CountExecs(t testing.TB) *Execs {
	t.Helper()
	e := trace(t)
	if err := e.start("execve", "execveat"); err != nil {
		t.Fatalf("set up tracing: %v", err)
	}
	return e
}

// Sockets counts the attempts to open sockets of one protocol.
type Sockets struct{ e *Execs }

// CountSockets counts those of this process and of all that it starts from now on, until the end of the test.
func CountSockets(t testing.TB, protocol int) *Sockets {
	t.Helper()
	e := trace(t)
	err := e.write("events/syscalls/sys_enter_socket/filter", fmt.Sprintf("protocol == %d", protocol))
	if err = errors.Join(err, e.start("socket")); err != nil {
		t.Fatalf("set up tracing: %v", err)
	}
	return &Sockets{e}
}

// ByProgram tells which programs tried, by the name that the kernel has for them, and how often.
func (s *Sockets) ByProgram(t testing.TB) map[string]int {
	t.Helper()
	found := map[string]int{}
	for _, line := range s.e.lines(t) {
		front, _, _ := strings.Cut(line, " [")
		if dash := strings.LastIndexByte(front, '-'); dash >= 0 && strings.Contains(line, ": sys_socket(") {
			found[strings.TrimSpace(front[:dash])]++
		} else {
			t.Fatalf("not a traced socket: %q", line)
		}
	}
	return found
}

// trace makes an instance of tracing that has no events yet.
func trace(t testing.TB) *Execs {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("tracefs", root, "tracefs", 0, ""); err != nil {
		t.Fatalf("mount tracefs: %v", err)
	}
	e := &Execs{dir: filepath.Join(root, "instances", fmt.Sprintf("lab-%d", os.Getpid()))}
	t.Cleanup(func() {
		if err := errors.Join(os.Remove(e.dir), unix.Unmount(root, 0)); err != nil {
			t.Errorf("end of tracing: %v", err)
		}
	})
	if err := os.Mkdir(e.dir, 0o755); err != nil {
		t.Fatalf("new instance of tracing: %v", err)
	}
	return e
}

// start traces system calls.
func (e *Execs) start(calls ...string) error {
	// First the option: a thread that begins between the two is then followed.
	if err := e.write("options/event-fork", "1"); err != nil {
		return err
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		// One that has ended meanwhile starts nothing.
		if err := e.write("set_event_pid", thread.Name()); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	for _, c := range calls {
		if err := e.write("events/syscalls/sys_enter_"+c+"/enable", "1"); err != nil {
			return err
		}
	}
	return nil
}

func (e *Execs) write(file, text string) error {
	f, err := os.OpenFile(filepath.Join(e.dir, file), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// ByThread tells which threads tried to start a program, and how often. A process that was just forked is the
// thread with its own id.
func (e *Execs) ByThread(t testing.TB) map[int]int {
	t.Helper()
	found := map[int]int{}
	for _, line := range e.lines(t) {
		tid, err := threadOf(line)
		if err != nil {
			t.Fatal(err)
		}
		found[tid]++
	}
	return found
}

// lines are the events so far, all of them.
func (e *Execs) lines(t testing.TB) (list []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(e.dir, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if counts, ok := strings.CutPrefix(line, "# entries-in-buffer/entries-written: "); ok {
			if in, written, _ := strings.Cut(strings.Fields(counts)[0], "/"); in != written {
				t.Fatalf("tracing lost events: %s", line)
			}
		}
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			continue
		}
		list = append(list, line)
	}
	return list
}

// threadOf reads a line like "  kube-proxy-812  [000] .....  52.604000: sys_execve(filename: ...". The name in
// front may have spaces and dashes in it.
func threadOf(line string) (int, error) {
	front, _, ok := strings.Cut(line, " [")
	if dash := strings.LastIndexByte(front, '-'); ok && dash >= 0 && strings.Contains(line, ": sys_execve") {
		if tid, err := strconv.Atoi(strings.TrimSpace(front[dash+1:])); err == nil {
			return tid, nil
		}
	}
	return 0, fmt.Errorf("not a traced execve: %q", line)
}
