package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// presenceName is an abstract unix socket: the kernel keeps such names apart for each network namespace, which
// is what an agent works on, needs no file for them, and forgets one when its process ends, however it ends.
const presenceName = "@ipvs-proxy.io/agent"

// ErrPresent: an agent is at work in this network namespace.
var ErrPresent = errors.New("an agent is at work in this network namespace (it has the unix socket " + presenceName + ")")

// Claim takes the place of this network namespace's one agent, until release is called or the process ends.
// The error is ErrPresent where somebody else has it.
func Claim() (release func(), err error) {
	l, err := claim()
	if err != nil {
		return nil, err
	}
	return func() { _ = l.Close() }, nil
}

func claim() (net.Listener, error) {
	l, err := net.Listen("unix", presenceName)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, ErrPresent
	case err != nil:
		return nil, fmt.Errorf("see whether an agent is at work: %w", err)
	}
	return l, nil
}

// Place is that of this network namespace's one agent, or the wish for it.
type Place struct {
	name string       // of the agent's Services
	l    net.Listener // nil: another agent has it
	// desk is where questions come in.
	desk *desk
}

// OtherAgentError: the agent that has the place serves other Services. What is recorded as the agent's is all one agent's:
// each would remove what the other one made.
type OtherAgentError struct {
	// Theirs and Ours are the values of the label service.kubernetes.io/service-proxy-name; "": Services without it.
	Theirs, Ours string
	// PID is its process, as seen from here; 0: it cannot be seen.
	PID int
}

func (e *OtherAgentError) Error() string {
	process := ""
	if e.PID > 0 {
		process = " (process " + strconv.Itoa(e.PID) + ")"
	}
	return fmt.Sprintf("another agent%s is at work in this network namespace, for Services %s; this one is for those %s, and each would remove what the other has made: one agent a node, stop one of the two",
		process, labelled(e.Theirs), labelled(e.Ours))
}

func labelled(name string) string {
	const label = "the label service.kubernetes.io/service-proxy-name"
	if name == "" {
		return "without " + label
	}
	return "with " + label + "=" + name
}

// Take takes the place for an agent that serves the Services of that name. While another one for the same Services has
// it, that is no error: it may be on its way out, and Hold waits for the place. One for other Services is an
// *OtherAgentError.
func Take(name string) (*Place, error) {
	p := &Place{name: name, desk: newDesk()}
	return p, p.try()
}

// try takes the place unless another agent for the same Services has it.
func (p *Place) try() (err error) {
	p.l, err = claim()
	if !errors.Is(err, ErrPresent) {
		if err == nil {
			go p.answer(p.l)
		}
		return err
	}
	theirs, pid, known := who()
	if known && theirs != p.name {
		return &OtherAgentError{Theirs: theirs, Ours: p.name, PID: pid}
	}
	return nil
}

// askTime is how long the one that has the place may take to say for which Services it is.
const askTime = time.Second

// who asks the one that has the place. An older agent does not answer, and neither does a clean-up.
func who() (name string, pid int, known bool) {
	c, err := net.DialTimeout("unix", presenceName, askTime)
	if err != nil {
		return "", 0, false
	}
	defer c.Close()
	if raw, err := c.(*net.UnixConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				pid = int(cred.Pid)
			}
		})
	}
	_ = c.SetDeadline(time.Now().Add(askTime))
	_ = c.(*net.UnixConn).CloseWrite() // there is no other question
	text, err := io.ReadAll(io.LimitReader(c, 512))
	name, is := strings.CutPrefix(string(text), greeting)
	name, whole := strings.CutSuffix(name, "\n")
	return name, pid, err == nil && is && whole
}

// claimAgain is how often an agent asks for its place while another one has it.
const claimAgain = time.Second

// Hold keeps the place until ctx ends. While somebody else has it, taken is told once, and the place is asked for
// again and again: the agent before may be on its way out. It fails when one for other Services has got it meanwhile.
func (p *Place) Hold(ctx context.Context, taken func(error)) error {
	defer func() {
		_ = p.desk.Close()
		if p.l != nil {
			_ = p.l.Close()
		}
	}()
	for told := false; p.l == nil; {
		if !told {
			taken(ErrPresent)
			told = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(claimAgain):
		}
		var other *OtherAgentError
		if err := p.try(); errors.As(err, &other) {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}
