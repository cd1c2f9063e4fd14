package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// printFlags are how commands that ask print what they have found.
type printFlags struct {
	output    string
	noHeaders bool
	// watch has it printed again and again, every so often.
	watch bool
	every time.Duration
}

// add adds them to a command. A flag that is wrong means that it cannot look.
func (p *printFlags) add(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return trouble(err) })
	f := cmd.Flags()
	f.StringVarP(&p.output, "output", "o", "table", "how to print it: table (100 columns), wide, json or yaml")
	f.BoolVarP(&p.watch, "watch", "w", false, "print it again and again, until it is interrupted")
	f.DurationVar(&p.every, "interval", 2*time.Second, "how often --watch prints")
	f.BoolVar(&p.noHeaders, "no-headers", false, "leave out the head and the names of the columns, for scripts")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

// check says whether the output is one there is.
func (p *printFlags) check() error {
	switch p.output {
	case "table", "wide", "json", "yaml":
		if p.every < 100*time.Millisecond {
			return fmt.Errorf("--interval=%s: want 100ms or more", p.every)
		}
		return nil
	}
	return fmt.Errorf("--output=%s: want table, wide, json or yaml", p.output)
}

// coloured reports whether somebody sees colours: on a terminal, unless he does not want any (no-color.org).
func coloured(out io.Writer) bool {
	f, is := out.(*os.File)
	if !is || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// text is what was found, as it is to be printed. Ages are counted to now.
func (p *printFlags) text(colour bool, now time.Time, found any, table func(inspect.Style) string) ([]byte, error) {
	switch p.output {
	case "json", "yaml":
		b, err := json.MarshalIndent(found, "", "  ")
		if err == nil && p.output == "yaml" {
			b, err = yaml.JSONToYAML(b)
		} else {
			b = append(b, '\n')
		}
		if err != nil {
			return nil, fmt.Errorf("print as %s: %w", p.output, err)
		}
		return b, nil
	}
	return []byte(table(inspect.Style{Wide: p.output == "wide", NoHeaders: p.noHeaders, Colour: colour, Now: now})), nil
}

// counter says what the kernel counts.
type counter interface {
	inspect.Counter
	Servers(ctx context.Context, visit func(ipvs.Counted) error) error
	All(ctx context.Context, visit func(ipvs.Counted) error) error
	Close()
}

// sources are what commands ask: the kernel, which is the truth, and the agent, which has the names and the reasons.
// Tests put others in their place.
type sources struct {
	kernel func(context.Context) (counter, error)
	agent  func(context.Context) (net.Conn, error)
	// lookOnly opens the kernel for a look at all of it.
	lookOnly func(context.Context, *config.Config) (rehearsed, error)
}

var theseSources = sources{
	kernel: func(ctx context.Context) (counter, error) { return kernel.OpenStatistics(ctx) },
	agent:  node.Dial, lookOnly: lookOnly,
}

// inquiry is one look at the node.
type inquiry struct {
	kernel counter
	agent  *inspect.Client // nil: there is none
	head   inspect.Head
}

// inquire opens both. Without an agent, what is known is the kernel's alone, and the head says so.
func (s sources) inquire(ctx context.Context) (i *inquiry, err error) {
	i = &inquiry{}
	if i.kernel, err = s.kernel(ctx); err != nil {
		return nil, err
	}
	i.agent, i.head, err = s.ask(ctx)
	if errors.Is(err, node.ErrNoAgent) || errors.Is(err, node.ErrNotAnswered) {
		i.agent, i.head, err = nil, inspect.Head{Now: time.Now(), Note: err.Error() + ": there are no names of Services and no reasons"}, nil
		i.head.Kernel, err = node.KernelRelease()
	}
	if err != nil {
		i.close()
		return nil, err
	}
	return i, nil
}

// ask finds the agent. One that only says for which Services it is, may have been asked late on a machine that is busy.
func (s sources) ask(ctx context.Context) (agent *inspect.Client, head inspect.Head, err error) {
	for range 3 {
		agent = inspect.NewClient(s.agent)
		if head, err = agent.Head(ctx); err == nil {
			return agent, head, nil
		}
		if agent.Close(); !errors.Is(err, node.ErrNotAnswered) {
			break
		}
	}
	return nil, head, err
}

func (i *inquiry) close() {
	i.kernel.Close()
	if i.agent != nil {
		i.agent.Close()
	}
}

// count adds what the kernel counts to rows.
func (i *inquiry) count(ctx context.Context, rows []inspect.Row) error {
	var keys []ipvs.Key
	for r := range rows {
		if k, is := rows[r].Key(); is {
			keys = append(keys, k)
		}
	}
	counts, err := inspect.CountsOf(ctx, i.kernel, keys)
	if err != nil {
		return err
	}
	for r := range rows {
		rows[r].Count(counts)
	}
	return nil
}

// look finds something and says how to print it, and whether all is in order.
type look func(context.Context, *inquiry) (found any, table func(inspect.Style) string, inOrder bool, err error)

// run looks and prints, once or again and again.
func (p *printFlags) run(cmd *cobra.Command, from sources, see look) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if err := p.check(); err != nil {
		return trouble(err)
	}
	i, err := from.inquire(ctx)
	if err != nil {
		return trouble(err)
	}
	defer i.close()
	colour := coloured(out)
	for {
		found, table, inOrder, err := see(ctx, i)
		if err == nil {
			var text []byte
			if text, err = p.text(colour, i.head.Now, found, table); err == nil {
				_, err = out.Write(text)
			}
		}
		switch {
		case ctx.Err() != nil && p.watch:
			return nil
		case err != nil:
			return trouble(err)
		case !p.watch && !inOrder:
			return exitStatus{status: foundSomething}
		case !p.watch:
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.every):
		}
		if err := i.again(ctx); err != nil {
			return trouble(err)
		}
		if colour {
			fmt.Fprint(out, "\x1b[H\x1b[2J\x1b[3J")
		} else {
			fmt.Fprintln(out)
		}
	}
}

// again takes the head anew.
func (i *inquiry) again(ctx context.Context) (err error) {
	if i.head.Now = time.Now(); i.agent != nil {
		i.head, err = i.agent.Head(ctx)
	}
	return err
}
