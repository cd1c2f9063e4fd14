// Command demo shows the agent at work, for a person to read: Services and their endpoints in YAML files, three
// nodes whose kernels the agent programs, and packets that arrive. It ends with an error when anything it
// shows is not as it should be. As "demo shell" it leaves the person in that world instead, at a shell of a node.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

func main() { os.Exit(status(dispatch(os.Args))) }

// dispatch looks at the name under which we were called, as the shell's tools are this program, too.
func dispatch(args []string) error {
	switch name := filepath.Base(args[0]); {
	case name == "ask":
		return ask(args[1:], os.Stdout)
	case name == "as":
		return as(args[1:])
	case len(args) == 2 && args[1] == "shell":
		return shell()
	case len(args) == 1:
		return run(os.Stdout)
	}
	return fmt.Errorf("usage: %s [shell]", args[0])
}

// status is the exit status for an error: that of the shell's last command is ours.
func status(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUnanswered):
		return 1
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
	return 1
}

// patience is how long a step may take on a machine that is not busy.
const patience = 20 * time.Second

// eventually waits for a condition.
func eventually(what string, cond func() error) error {
	if err := lab.Until(patience, cond); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
