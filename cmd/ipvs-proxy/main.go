// Command ipvs-proxy is a Kubernetes service proxy on Linux IPVS.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := newCommand()
	cmd.SetArgs(arguments(os.Args))
	if err := cmd.ExecuteContext(ctx); err != nil {
		status := exitStatus{status: 1, err: err}
		errors.As(err, &status)
		if status.err != nil {
			complain(os.Stderr, fmt.Sprintf("ipvs-proxy: %v", status.err))
		}
		os.Exit(status.status)
	}
}

// exitStatus ends the process with a status of its own.
type exitStatus struct {
	status int
	err    error // nil: there is nothing to complain of
}

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d: %v", e.status, e.err) }
