package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine/wire"
)

// session is one run of a job, from the host's side.
type session struct {
	job    Job
	nonce  string
	report Report
	out    io.Writer

	up      chan struct{} // closed when the guest is up
	isUp    bool
	bye     bool
	fatal   string
	started time.Time
	goodbye func() // tells the guest that all was read

	keyboard keyboard
}

func newSession(job Job) *session {
	return &session{job: job, nonce: newNonce(), out: job.Output, up: make(chan struct{})}
}

// again prepares for another try at a boot that came to nothing.
func (s *session) again() {
	s.up, s.fatal, s.bye = make(chan struct{}), "", false
}

func (s *session) message(m wire.Message) error {
	switch {
	case m.Kernel != "":
		s.report.Kernel = m.Kernel
		s.report.Boot = time.Since(s.started)
		if !s.isUp {
			s.isUp = true
			close(s.up)
		}
	case m.Start != nil:
		if *m.Start < 0 || *m.Start >= len(s.job.Commands) {
			return fmt.Errorf("guest started command %d of %d", *m.Start, len(s.job.Commands))
		}
		s.out = s.job.Output
		if w := s.job.Commands[*m.Start].Output; w != nil {
			s.out = w
		}
		return s.keyboard.give(*m.Start, s.job.Commands[*m.Start].Input)
	case m.Result != nil:
		s.keyboard.take()
		if m.Result.Index != len(s.report.Results) {
			return fmt.Errorf("guest reported command %d where %d was due", m.Result.Index, len(s.report.Results))
		}
		s.result(Result{Exit: m.Result.Exit, Took: m.Result.Took, Err: m.Result.Err})
	case m.Fatal != "":
		s.fatal = m.Fatal
	case m.Bye:
		s.bye = true
		s.goodbye()
	}
	return nil
}

func (s *session) result(r Result) {
	r.Command = s.job.Commands[len(s.report.Results)].Name
	s.report.Results = append(s.report.Results, r)
	if s.job.OnResult != nil {
		s.job.OnResult(r)
	}
}

// fillUp gives every command a result: the one that was running when the
// machine ended did not end, those after it never ran.
func (s *session) fillUp(err error) {
	if err == nil {
		return
	}
	what := "the machine ended before it did"
	if !s.isUp {
		what = "did not run: there was no machine"
	}
	for len(s.report.Results) < len(s.job.Commands) {
		s.result(Result{Exit: -1, Err: what})
		what = "did not run: machine ended earlier"
	}
}

// Errors of a machine, as opposed to its commands.
var (
	errTime = errors.New("time-out")
	errBoot = errors.New("did not come up in time")
)

// endGrace is how long a machine may take to go once it has said good-bye or
// closed its stream.
const endGrace = 30 * time.Second

// drive runs the machine's process, reads its stream to the end, and keeps
// the time limits. The process never outlives us, whichever way we go.
func (s *session) drive(ctx context.Context, cmd *exec.Cmd, boot time.Duration) error {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	gone, read, cause := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	defer close(gone)
	if err := StartPinned(cmd, gone); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	kill := func() { _ = cmd.Process.Kill() }
	s.started = time.Now()
	s.keyboard.connect(stdin)
	defer s.keyboard.take()
	s.goodbye = func() {
		_ = s.keyboard.send(wire.Input{Bye: true}) // a guest that went by itself is fine, too
		time.AfterFunc(endGrace, kill)
	}
	go func(up <-chan struct{}) {
		err := s.guard(ctx, up, read, boot)
		if err != nil {
			kill()
			_ = stdin.Close() // what sudo started hears of it this way
		}
		cause <- err
	}(s.up)
	derr := s.demux(stdout)
	close(read)
	if derr != nil {
		kill()
	}
	cerr := <-cause
	_ = stdin.Close()
	defer time.AfterFunc(endGrace, kill).Stop()
	werr := cmd.Wait()
	return s.verdict(cerr, derr, werr)
}

func (s *session) demux(r io.Reader) error {
	return wire.Demux{Nonce: s.nonce, Message: s.message, Output: func(b []byte) error {
		if _, err := s.out.Write(b); err != nil {
			return fmt.Errorf("pass on the commands' output: %w", err)
		}
		return nil
	}}.Copy(r)
}

// guard waits until the stream was read to its end or there is a reason to
// end it, which it returns.
func (s *session) guard(ctx context.Context, up, read <-chan struct{}, boot time.Duration) error {
	late := time.NewTimer(boot)
	defer late.Stop()
	end := time.NewTimer(s.job.Timeout + endGrace) // the guest stops its commands itself
	defer end.Stop()
	for {
		select {
		case <-up:
			late.Stop()
			up = nil
		case <-late.C:
			return fmt.Errorf("%w (%v)", errBoot, boot)
		case <-end.C:
			return fmt.Errorf("%w: the job took more than %v", errTime, s.job.Timeout)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-read:
			return nil
		}
	}
}

// verdict says what was wrong with the machine, the most telling first.
func (s *session) verdict(cause, stream, exit error) error {
	switch {
	case cause != nil:
		return cause
	case stream != nil:
		return stream
	case s.fatal != "":
		return fmt.Errorf("guest: %s", s.fatal)
	case !s.bye && exit != nil:
		return fmt.Errorf("machine ended unexpectedly: %w", exit)
	case !s.bye:
		return errors.New("machine ended unexpectedly")
	}
	return nil
}

// StartPinned starts a process that the kernel kills when we go. The signal
// follows the thread that started the process, so that one stays with us.
func StartPinned(cmd *exec.Cmd, gone <-chan struct{}) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true // a Ctrl-C at the terminal is ours to handle
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-gone
	}()
	return <-started
}
