package node

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	l, err := net.Listen("unix", presenceName)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, ErrPresent
	case err != nil:
		return nil, fmt.Errorf("see whether an agent is at work: %w", err)
	}
	return func() { _ = l.Close() }, nil
}

// claimAgain is how often an agent asks for its place while another one has it.
const claimAgain = time.Second

// Hold claims the place and keeps it until ctx ends. While somebody else has it, taken is told once, and the
// place is asked for again and again: the agent before may be on its way out.
func Hold(ctx context.Context, taken func(error)) error {
	release, err := Claim()
	for told := false; err != nil; release, err = Claim() {
		if !told {
			taken(err)
			told = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(claimAgain):
		}
	}
	defer release()
	<-ctx.Done()
	return ctx.Err()
}
