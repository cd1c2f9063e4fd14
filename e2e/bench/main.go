// Command bench counts what the agent's work costs, in instructions: it is meant for a machine whose clock
// counts them (lab bench), where a figure repeats to a few per cent whatever else the host does. It exits
// with 1 when a figure is worse than what was once reached.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
)

type options struct {
	servers, reals      int // of the bare IPVS table
	services, endpoints int // of the cluster
	changes             int
	binding             string
	settings            int    // Services of a start that ask for something
	asks                string // what they ask for
	onlyScheduling      bool
}

func main() {
	var o options
	var child string
	flag.IntVar(&o.servers, "servers", 1000, "virtual servers of the bare IPVS table")
	flag.IntVar(&o.reals, "reals", 10, "real servers of each")
	flag.IntVar(&o.services, "services", 5000, "Services of the largest cluster")
	flag.IntVar(&o.endpoints, "endpoints", 10, "endpoints of each")
	flag.IntVar(&o.changes, "changes", 20, "endpoints added one by one")
	flag.StringVar(&o.binding, "binding", "address", "how virtual IPs stand on the interface: address or route")
	flag.IntVar(&o.settings, "settings", 1000, "Services of the starts that are compared by what they ask for")
	flag.StringVar(&o.asks, "asks", "", "what they ask for (for the bench itself)")
	flag.BoolVar(&o.onlyScheduling, "scheduling", false, "measure nothing but what Services that ask for something cost")
	flag.StringVar(&child, "child", "", "do one measurement, in this process and namespace (for the bench itself)")
	flag.Parse()
	if err := mainErr(child, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func mainErr(child string, o options) error {
	if child != "" {
		return runChild(child, o)
	}
	return o.all(os.Stdout)
}

// counts reports whether the clock counts instructions; otherwise the figures mean little.
func counts() bool { return os.Getenv("LAB_ICOUNT") == "1" }

// all measures everything and then says which limits are broken.
func (o options) all(w io.Writer) error {
	if counts() {
		fmt.Fprintln(w, "Figures are million instructions executed by the machine's one processor, kernel and agent together.")
	} else {
		fmt.Fprintln(w, "Figures are milliseconds of a clock that does not count instructions: they show little, and no limit is applied.")
	}
	if o.onlyScheduling {
		return o.scheduling(w)
	}
	ratio, err := o.table(w)
	if err != nil {
		return err
	}
	urgent, err := o.clusters(w)
	if err != nil {
		return err
	}
	if err := o.scheduling(w); err != nil {
		return err
	}
	return limits(w, ratio, urgent)
}

// The limits: what is worse is a regression.
const (
	minRatio  = 3   // moby/ipvs one at a time against our writer
	maxUrgent = 100 // million instructions until an urgent change is in the kernel, in the middle of a start
)

func limits(w io.Writer, ratio, urgent float64) error {
	if !counts() {
		return nil
	}
	ok := func(good bool) string {
		if good {
			return "ok"
		}
		return "BROKEN"
	}
	fmt.Fprintln(w, "\nLimits")
	fmt.Fprintf(w, "  %-58s %10.1f   at least %d: %s\n", "moby/ipvs against our writer", ratio, minRatio, ok(ratio >= minRatio))
	fmt.Fprintf(w, "  %-58s %10.1f   at most %d: %s\n", "an urgent change in the middle of a start", urgent, maxUrgent, ok(urgent <= maxUrgent))
	if ratio < minRatio || urgent > maxUrgent {
		return fmt.Errorf("a limit is broken")
	}
	return nil
}
