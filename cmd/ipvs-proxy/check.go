package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

func newCheck() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether this node is able, and what is in the way",
		Long: `Say whether this node is able, and what is in the way: a line a finding, each with what to do.

It writes nothing; asking for a part of the kernel makes the kernel load the module that has it. The exit
status is 1 where something is a problem, 0 where there are warnings at most.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, warnings, err := flags.Load(cmd.Flags())
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintln(cmd.OutOrStdout(), node.Finding{Level: node.Warning, Text: w})
			}
			problems := 0
			for _, f := range node.Check(cmd.Context(), nodeOptions(c)) {
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
	flags = config.SetupFlags(cmd.Flags())
	return cmd
}
