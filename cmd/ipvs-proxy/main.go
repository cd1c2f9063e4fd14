// Command ipvs-proxy is a Kubernetes service proxy on Linux IPVS.
package main

import (
	"context"
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
		complain(os.Stderr, fmt.Sprintf("ipvs-proxy: %v", err))
		os.Exit(1)
	}
}
