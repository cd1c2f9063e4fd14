package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

func newInit() *cobra.Command {
	var flags *config.Flags
	var modulesRoot string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Load the kernel modules and set the sysctls that the agent needs, and end",
		Long: `Load the kernel modules and set the sysctls that the agent needs, and end.

It is for a container that starts before the agent's, with the rights that the agent should not have:
CAP_NET_ADMIN, CAP_SYS_MODULE, the node's /lib/modules, and a /proc/sys that can be written. What is there
already stays as it is. The exit status is 0 when the agent can run, with warnings or without.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, warnings, err := flags.Load(cmd.Flags())
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintln(cmd.OutOrStdout(), "warning:", w)
			}
			return node.Init(cmd.Context(), nodeOptions(c), modulesRoot, func(did string) { fmt.Fprintln(cmd.OutOrStdout(), did) })
		},
	}
	flags = config.SetupFlags(cmd.Flags())
	cmd.Flags().StringVar(&modulesRoot, "modules-root", "/", "directory in which lib/modules is, with the files of the kernel's modules")
	return cmd
}
