// Command guest runs the commands of a lab job as root, one after another,
// and tells the host how each ended. It is the init of the lab's virtual
// machine; natively it is the init of a container of fresh network, mount,
// process and host name namespaces, so that both look the same to a test and
// neither leaves anything behind.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab guest:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	mode := ""
	if len(args) > 0 {
		mode = args[0]
	}
	// The kernel hands its init words of the command line that it does not
	// know; none of them is one of ours.
	switch {
	case mode == "probe" || mode == "native":
		return enterContainer(args)
	case mode == "inside-probe":
		return insideProbe(os.Stdout)
	case mode == "inside-native" && len(args) == 2:
		return insideNative(args[1])
	case os.Getpid() == 1:
		return bootMachine()
	}
	return fmt.Errorf("this is the init of the lab; use e2e/lab/cmd/lab (got %q)", args)
}
