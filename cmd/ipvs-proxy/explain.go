package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

func newExplain() *cobra.Command {
	var l lookFlags
	cmd := &cobra.Command{
		Use:   "explain NAMESPACE/NAME",
		Short: "Say what becomes of a Service on this node, and why",
		Long: `Say what becomes of a Service on this node, and why: where each of its addresses leads, which endpoints are left out,
which addresses it may not have, each with the code of docs/reasons.md, and whether the kernel agrees.

It looks as diff does, with the flags and the configuration of run, and writes nothing. The exit status is 0 where all of
it serves and the kernel agrees, 1 where not, 2 where that cannot be said: there is no such Service, for one.`,
		Args: troubled(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, name, both := strings.Cut(args[0], "/")
			if !both || namespace == "" || name == "" || strings.Contains(name, "/") {
				return trouble(fmt.Errorf("%q names no Service: want NAMESPACE/NAME, such as default/kubernetes", args[0]))
			}
			in, err := l.look(cmd)
			if err != nil {
				return trouble(err)
			}
			found, err := preview.Explain(in, cluster.ID{Namespace: namespace, Name: name})
			if err != nil {
				return trouble(err)
			}
			if err := l.print(cmd.OutOrStdout(), found, found.Text); err != nil {
				return trouble(err)
			}
			if !found.InOrder() {
				return exitStatus{status: foundSomething}
			}
			return nil
		},
	}
	l.add(cmd, "how to print it: table, json or yaml")
	return cmd
}
