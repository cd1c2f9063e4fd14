package main

import (
	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

func newDiff() *cobra.Command { return newDiffOf(theseSources) }

func newDiffOf(from sources) *cobra.Command {
	var l lookFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Say what run would change on this node, and change nothing",
		Long: `Say what run would change on this node, and change nothing.

It takes the flags and the configuration of run, reads the cluster and the kernel, and goes through a start of the agent
with the writes left out: what it prints is what run would write. Beside a kube-proxy that is at work, that is what would
stay, come, change and go, and which Services would behave otherwise, each with its reason (docs/reasons.md).

Beside an agent, and without flags that say otherwise, it goes by the configuration and the objects that the agent has, and
looks at all of the kernel at once: it prints what the agent has still to do, and what others have changed that the agent has
not noticed yet. It needs CAP_NET_ADMIN, without which IPVS cannot be read. Asking for a part
of the kernel makes the kernel load the module that has it. Entries of connection tracking, which run deletes where they
bypass a UDP Service, are not listed: they come and go with the traffic.

The exit status is 0 where nothing is to do, 1 where something is, 2 where that cannot be said.`,
		Args: troubled(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := from.difference(cmd, &l)
			if err != nil {
				return trouble(err)
			}
			report := preview.Make(in)
			if err := l.print(cmd.OutOrStdout(), report, func() string { return report.Text(all) }); err != nil {
				return trouble(err)
			}
			if report.Differs() {
				return exitStatus{status: foundSomething}
			}
			return nil
		},
	}
	l.add(cmd, "how to print it: table, json or yaml; a table names the first 20 writes and Services and counts the others")
	cmd.Flags().BoolVar(&all, "all", false, "name every write and every Service in the table")
	return cmd
}

// difference looks by what the agent of this node goes by, or by flags and configuration.
func (s sources) difference(cmd *cobra.Command, l *lookFlags) (preview.Input, error) {
	if err := l.check(); err != nil {
		return preview.Input{}, err
	}
	if in, err := s.byAgentsCopy(cmd, l); in != nil || err != nil {
		if err != nil {
			return preview.Input{}, err
		}
		return *in, nil
	}
	return l.look(cmd)
}
