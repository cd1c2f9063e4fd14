package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

func newCheck() *cobra.Command {
	var setup setupFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether this node is able, and what is in the way",
		Long: `Say whether this node is able, and what is in the way: a line a finding, each with what to do.

It writes nothing; asking for a part of the kernel makes the kernel load the module that has it. The exit
status is 1 where something is a problem, 0 where there are warnings at most.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := setup.options()
			if err != nil {
				return err
			}
			problems := 0
			for _, f := range node.Check(cmd.Context(), o) {
				fmt.Fprintln(cmd.OutOrStdout(), f)
				if f.Level == node.Problem {
					problems++
				}
			}
			if problems > 0 {
				return fmt.Errorf("this node is not able to run the agent: problems: %d", problems)
			}
			return nil
		},
	}
	setup.add(cmd)
	return cmd
}
