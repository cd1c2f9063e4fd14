// Command demo shows the agent at work, for a person to read: Services and their endpoints in YAML files, three
// nodes whose kernels the agent programs, and packets that arrive. It ends with an error when anything it
// shows is not as it should be.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// patience is how long a step may take in an emulated machine.
const patience = 20 * time.Second

// eventually waits for a condition.
func eventually(what string, cond func() error) error {
	began := time.Now()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		if time.Since(began) > patience {
			return fmt.Errorf("%s: not within %s: %w", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
