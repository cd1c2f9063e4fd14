package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

func newTop() *cobra.Command { return newTopOf(theseSources) }

// topChanges is how many of the last changes stand below.
const topChanges = 5

func newTopOf(from sources) *cobra.Command {
	var p printFlags
	var once bool
	limit := 20
	cmd := &cobra.Command{
		Use:     "top",
		Short:   "Show the busiest frontends of this node, live",
		GroupID: groupLook,
		Long: `Show the busiest frontends of this node, live: by new connections a second, then by bytes, with the last writes below.

The rates are the kernel's own estimates, averages of some 8 s which it renews every 2 s; with net.ipv4.vs.run_estimation=0
it makes none. Without an agent lines carry addresses alone. It costs one reading of all virtual servers each time. The exit
status is 0, or 2 where nothing can be read.`,
		Example: `  ipvs-proxy top
  ipvs-proxy top --once -o json`,
		Args: troubled(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > mostLines {
				return trouble(fmt.Errorf("--limit=%d: want 1 to %d", limit, mostLines))
			}
			p.watch = !once
			return p.run(cmd, from, func(ctx context.Context, i *inquiry) (any, func(inspect.Style) string, bool, error) {
				t, err := i.top(ctx, limit)
				return t, t.Text, true, err
			})
		},
	}
	p.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&once, "once", false, "print it once, and end")
	f.IntVar(&limit, "limit", limit, "how many frontends to show")
	f.Lookup("watch").Hidden = true
	f.Lookup("interval").Usage = "how often it is renewed"
	return cmd
}

// mostLines is how many frontends top shows at most.
const mostLines = 1000

// top finds the busiest frontends.
func (i *inquiry) top(ctx context.Context, limit int) (t inspect.Top, err error) {
	busiest := inspect.NewBusiest(limit)
	if err := i.kernel.Servers(ctx, busiest.Add); err != nil {
		return t, err
	}
	keys := busiest.Keys()
	counts, err := inspect.CountsOf(ctx, i.kernel, keys)
	if err != nil {
		return t, err
	}
	t = inspect.Top{Head: i.head, All: busiest.All, Last: []inspect.Change{}}
	var names []inspect.Name
	if i.agent == nil {
		t.Head.Frontends = busiest.Of
	} else {
		if names, err = i.agent.Names(ctx, keys); err != nil {
			return t, err
		}
		log, err := i.agent.Log(ctx, sync.Selection{Last: topChanges})
		if err != nil {
			return t, err
		}
		t.Last = log.Changes
	}
	t.Rows = busiest.Rows(names, counts)
	t.Quiet = busiest.Of - len(t.Rows)
	return t, nil
}
