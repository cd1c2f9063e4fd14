package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

func newLog() *cobra.Command { return newLogOf(theseSources) }

// newLogOf is the command that says what the agent wrote. It asks the agent alone: the kernel does not remember.
func newLogOf(from sources) *cobra.Command {
	var p printFlags
	var since time.Duration
	last := 0
	cmd := &cobra.Command{
		Use:     "log [NAMESPACE/NAME]",
		Short:   "Say what the agent wrote to the kernel lately, and because of what",
		GroupID: groupLook,
		Long: `Say what the agent wrote to the kernel lately, and because of what: each write as a person would type it, for which
Service, and how long after its cause was heard of. The agent keeps its last 10,000 writes.

The cause is start; object: a Service or one of its slices changed; other Service: another one did, which it follows from;
node: the node's addresses or its Node object did; health check: a port for checks was taken or became free; no scheduler:
the kernel lacks one; tampered: another program had changed what is ours; drained: a real server's connections have
ended, or its time has; conntrack: entries went past a frontend; takeover: another proxy had left it; slow start: a new endpoint
has more of its weight; again: what was begun or had failed went on.

The exit status is 0 where no write failed, 1 where one did, 2 where that cannot be said, as without an agent.`,
		Example: `  ipvs-proxy log --since 10m
  ipvs-proxy log default/web --last 5
  ipvs-proxy log --watch`,
		Args: troubled(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			which := sync.Selection{Last: last}
			if err := errors.Join(p.check(), selected(&which, args, since, last)); err != nil {
				return trouble(err)
			}
			agent, _, err := from.ask(cmd.Context())
			if err != nil {
				return trouble(err)
			}
			defer agent.Close()
			return p.follow(cmd, agent, which)
		},
	}
	p.add(cmd)
	cmd.Flags().DurationVar(&since, "since", 0, "only what is no older than this, such as 10m; 0: all that is kept")
	cmd.Flags().IntVar(&last, "last", 0, "only so many, the last ones; 0: all")
	cmd.Flags().Lookup("watch").Usage = "go on with what is written, until it is interrupted"
	cmd.Flags().Lookup("interval").Usage = "how often --watch asks"
	cmd.ValidArgsFunction = from.completeServices
	return cmd
}

func selected(which *sync.Selection, args []string, since time.Duration, last int) (err error) {
	if len(args) > 0 {
		if which.Service, err = cluster.ParseID(args[0]); err != nil {
			return err
		}
	}
	if since < 0 || last < 0 {
		return fmt.Errorf("--since=%s --last=%d: want 0 or more", since, last)
	}
	if since > 0 {
		which.Since = time.Now().Add(-since)
	}
	return nil
}

// follow prints what is there, and with --watch what comes.
func (p *printFlags) follow(cmd *cobra.Command, agent *inspect.Client, which sync.Selection) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	colour, failed := coloured(out), false
	whole := inspect.Log{Changes: []inspect.Change{}}
	for {
		log, err := agent.Log(ctx, which)
		if err != nil {
			if p.watch && ctx.Err() != nil {
				return nil
			}
			return trouble(err)
		}
		for _, c := range log.Changes {
			which.Behind, which.Last = c.Number, 0
			failed = failed || c.Error != ""
		}
		// As a table, and while it is watched, each page is printed as it comes; else all of it is one document.
		if whole.Changes = append(whole.Changes, log.Changes...); p.watch || !log.More || p.output == "table" || p.output == "wide" {
			if err := p.changes(out, colour, &whole, log.More); err != nil {
				return trouble(err)
			}
		}
		switch {
		case log.More:
			continue
		case p.watch:
			if !wait(ctx, p.every) {
				return nil
			}
		case failed:
			return exitStatus{status: foundSomething}
		default:
			return nil
		}
	}
}

// wait waits, and reports whether it was not interrupted.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// changes prints what has come, and forgets it.
func (p *printFlags) changes(out interface{ Write([]byte) (int, error) }, colour bool, log *inspect.Log, more bool) error {
	if p.watch && len(log.Changes) == 0 {
		return nil
	}
	text, err := p.text(colour, time.Now(), log, func(s inspect.Style) string {
		if len(log.Changes) == 0 && !more && !s.NoHeaders {
			return "no write of that kind is kept\n"
		}
		return log.Text(s)
	})
	if err == nil {
		_, err = out.Write(text)
	}
	log.Changes = log.Changes[:0]
	return err
}
