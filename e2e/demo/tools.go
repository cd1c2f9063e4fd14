package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// errUnanswered is the end of a question that had no answer; it has been told already.
var errUnanswered = errors.New("not answered")

// ask is the client of the shell: it asks from the namespace in which it was started.
func ask(args []string, out io.Writer) error {
	f := flag.NewFlagSet("ask", flag.ContinueOnError)
	n := f.Int("n", 1, "how many times")
	udp := f.Bool("udp", false, "ask over UDP")
	sctp := f.Bool("sctp", false, "ask over SCTP")
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "usage: ask [flags] HOST:PORT; the exit status is 1 where an answer is missing")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 || *n < 1 {
		f.Usage()
		return errUnanswered
	}
	to, err := netip.ParseAddrPort(f.Arg(0))
	if err != nil {
		return fmt.Errorf("%s: want an address and a port: %w", f.Arg(0), err)
	}
	here, err := lab.Here()
	if err != nil {
		return err
	}
	question := func() lab.Reply { return here.Ask(to) }
	switch {
	case *udp:
		question = func() lab.Reply { return here.AskUDP(to) }
	case *sctp:
		question = func() lab.Reply { return here.AskSCTP(to) }
	}
	if *n == 1 {
		return tell(out, question())
	}
	return count(out, *n, question)
}

// tell prints one answer.
func tell(out io.Writer, r lab.Reply) error {
	took := r.Took.Round(100 * time.Microsecond)
	switch {
	case r.Verdict == lab.Failed:
		fmt.Fprintf(out, "failed after %s: %v\n", took, r.Err)
		return errUnanswered
	case r.Verdict != lab.Answered:
		fmt.Fprintf(out, "%s after %s\n", r.Verdict, took)
		return errUnanswered
	case r.Source.IsValid():
		fmt.Fprintf(out, "%s answered after %s, it saw %s\n", r.Pod, took, r.Source)
	default:
		fmt.Fprintf(out, "%s answered after %s\n", r.Pod, took)
	}
	return nil
}

// count asks n times and prints who answered how often.
func count(out io.Writer, n int, question func() lab.Reply) error {
	got, missing := map[string]int{}, 0
	for range n {
		r := question()
		if r.Verdict != lab.Answered {
			missing++
			got[r.Verdict.String()]++
			continue
		}
		got[r.Pod]++
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(got)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, got[name]))
	}
	fmt.Fprintln(out, strings.Join(parts, ", "))
	if missing > 0 {
		return errUnanswered
	}
	return nil
}

// as becomes another program in the namespace of a host; without one, a shell.
func as(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: as HOST [COMMAND ARGS...]")
	}
	runtime.LockOSThread()
	ns, err := netns.GetFromName(args[0])
	if err != nil {
		return fmt.Errorf("no host %s: %w", args[0], err)
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter %s: %w", args[0], err)
	}
	command := args[1:]
	if len(command) == 0 {
		command = interactive()
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("start %s: %w", path, syscall.Exec(path, command, append(os.Environ(), prompt(args[0]))))
}
