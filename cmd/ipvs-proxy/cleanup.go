package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

func newCleanup() *cobra.Command {
	var flags *config.Flags
	var keepIPVS bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove from this node's kernel what an agent left there",
		Long: `Remove from this node's kernel what an agent left there: a line a write.

That is what the kernel records as the agent's: virtual servers, their addresses on kube-ipvs0, kube-ipvs0 itself
when nothing is left on it, the node ports that it put into net.ipv4.ip_local_reserved_ports, and the nftables table
inet ipvs-proxy, last. Virtual servers, addresses and tables of others stay, and so do other sysctls and kernel modules:
others may rely on them by now. It needs neither the API server
nor a configuration nor IPVS, and can be run again: where nothing is left it says so. While an agent is at work it refuses:
the agent would put everything back.

The connections of Services end with it. Where kube-proxy in mode ipvs follows, none need end: start it first, and when
it serves run cleanup --keep-ipvs, which leaves virtual servers and addresses to it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, warnings, err := flags.Load(cmd.Flags())
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			return cleanup(cmd.Context(), c, keepIPVS, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags = config.CleanupFlags(cmd.Flags())
	cmd.Flags().BoolVar(&keepIPVS, "keep-ipvs", false, "remove only the nftables table inet ipvs-proxy and the reserved node ports that it records: virtual servers and addresses go on serving, and are nobody's until a proxy takes them over")
	return cmd
}

// nobodyFollows: kube-proxy has written nothing here. What cannot be looked at is not complained of.
func nobodyFollows(ctx context.Context) bool {
	k, err := kernel.OpenRemains(ctx)
	if err != nil {
		return false
	}
	defer k.Close()
	left, stays, err := k.Left(ctx)
	return err == nil && len(left)+len(stays) == 0
}

// cleanup removes what is ours of the kernel. It holds the agent's place meanwhile.
func cleanup(ctx context.Context, c *config.Config, keepIPVS bool, out, warn io.Writer) error {
	say := func(line string) { fmt.Fprintln(out, line) }
	if err := kernel.MayAdminister(); err != nil {
		return err
	}
	release, err := node.Claim()
	if errors.Is(err, node.ErrPresent) {
		return fmt.Errorf("%w: stop it first, it would put everything back", err)
	}
	if err != nil {
		return err
	}
	defer release()
	if keepIPVS {
		if nobodyFollows(ctx) {
			fmt.Fprintln(warn, "warning: no other proxy has written its rules on this node: until one does, connections that the node masquerades break. Start it first, and run this once more when it serves")
		}
		done, err := kernel.RemoveTable(ctx)
		if err == nil && len(done) == 0 {
			done = []string{"nothing to remove: there is no nftables table inet ipvs-proxy"}
		}
		for _, line := range done {
			say(line)
		}
		return err
	}
	spared, err := config.ParseRanges(c.Proxy.IPVS.ExcludeCIDRs)
	if err != nil {
		return err
	}
	k, err := kernel.OpenRemains(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return sync.Cleanup(ctx, k, spared, say)
}
