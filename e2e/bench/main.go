// Command bench counts what the agent's work costs, in instructions: it is meant for a machine whose clock
// counts them (lab bench), where a figure repeats to a few per cent whatever else the host does. It exits
// with 1 when a figure is worse than what was once reached.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

type options struct {
	servers, reals      int // of the bare IPVS table
	services, endpoints int // of the cluster
	changes             int
	binding             string
	settings            int    // Services of a start that ask for something
	asks                string // what they ask for
	sizes               []int  // numbers of Services with which packets are counted
	only                string
	asked               int // Services of the agent that is asked
	peerAt              int // the number of Services with which kube-proxy's modes are counted; 0: they are not
}

func main() {
	var o options
	var child, keep, write string
	flag.IntVar(&o.servers, "servers", 1000, "virtual servers of the bare IPVS table")
	flag.IntVar(&o.reals, "reals", 10, "real servers of each")
	flag.IntVar(&o.services, "services", 5000, "Services of the largest cluster")
	flag.IntVar(&o.endpoints, "endpoints", 10, "endpoints of each")
	flag.IntVar(&o.changes, "changes", 20, "endpoints added one by one")
	flag.IntVar(&o.settings, "settings", 1000, "Services of the starts that are compared by what they ask for")
	flag.StringVar(&o.asks, "asks", "", "what they ask for; of a crowd, where the pages are (for the bench itself)")
	flag.IntVar(&o.asked, "asked", 10000, "Services of the agent that is asked")
	flag.StringVar(&o.binding, "binding", "address", "how virtual IPs stand on the interface: address or route (of the packets' way both are counted)")
	sizes := flag.String("sizes", "1,1000,5000", "numbers of Services with which the packets' way is counted")
	flag.IntVar(&o.peerAt, "peer-services", 0, "count the packets' way with kube-proxy as well, in three of its modes with so many Services, where it has been compiled (lab e2e --build); 0: it is not")
	flag.StringVar(&o.only, "only", "", "measure this alone: agent, packets, scheduling, asking, keeping or crowd")
	flag.StringVar(&child, "child", "", "do one measurement, in this process and namespace (for the bench itself)")
	flag.StringVar(&keep, "keep", "", "put the result that a run printed, on standard input, into this file, and measure nothing")
	flag.StringVar(&write, "page", "", "write the page of this result's file, and measure nothing")
	flag.Parse()
	for n := range strings.SplitSeq(*sizes, ",") {
		i, err := strconv.Atoi(n)
		if err != nil || i < 1 {
			fmt.Fprintf(os.Stderr, "bench: --sizes %s: %q is no number of Services\n", *sizes, n)
			os.Exit(2)
		}
		o.sizes = append(o.sizes, i)
	}
	err := error(nil)
	switch {
	case keep != "":
		err = writeResult(os.Stdin, keep)
	case write != "":
		err = page(os.Stdout, write)
	case child != "":
		err = runChild(child, o)
	default:
		err = o.all(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
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
	if o.only == "scheduling" {
		return o.scheduling(w)
	}
	var broken error
	if o.only == "" || o.only == "packets" {
		r, err := o.packets(w)
		if err == nil {
			err = r.print(w)
		}
		if err != nil {
			return err
		}
		if broken = r.limits(w); o.only == "packets" {
			return broken
		}
	}
	if o.only == "asking" {
		return o.recordAsking(w)
	}
	if o.only == "keeping" {
		return o.keeping(w)
	}
	if o.only == "crowd" {
		return o.recordCrowd(w)
	}
	ratio, err := o.table(w)
	if err != nil {
		return err
	}
	urgent, err := o.clusters(w)
	if err != nil {
		return err
	}
	if o.only == "" {
		if err := o.scheduling(w); err != nil {
			return err
		}
		broken = errors.Join(broken, o.recordAsking(w))
	}
	return errors.Join(broken, limits(w, ratio, urgent))
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
