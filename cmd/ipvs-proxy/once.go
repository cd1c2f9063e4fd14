package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
)

// once are the flags of kube-proxy's with which run does one thing and ends.
type once struct {
	version       string
	writeTo       string
	cleanup, init bool
}

func (o *once) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.version, "version", "false", "print the version, and end; raw: the version alone")
	f.Lookup("version").NoOptDefVal = "true"
	f.StringVar(&o.writeTo, "write-config-to", "", "write the configuration that flags and --config give, with all defaults, to this file, and end")
	f.BoolVar(&o.cleanup, "cleanup", false, "remove from the kernel what an agent left there, and end: the same as the command cleanup")
	f.BoolVar(&o.init, "init-only", false, "load kernel modules and set sysctls, and end: the same as the command init; run then needs only CAP_NET_ADMIN")
}

// printVersion does what --version asks for, before anything else is looked at, and reports whether it did.
func (o *once) printVersion(cmd *cobra.Command) (done bool, err error) {
	switch o.version {
	case "false":
		return false, nil
	case "true":
		fmt.Fprintln(cmd.OutOrStdout(), versionLine())
	case "raw":
		fmt.Fprintln(cmd.OutOrStdout(), version)
	default:
		return true, fmt.Errorf("--version=%s: want nothing, true, false or raw", o.version)
	}
	return true, nil
}

// do does what the other flags ask for, in kube-proxy's order where there are several, and reports whether it did.
// There is no log yet: it tells the warnings itself.
func (o *once) do(cmd *cobra.Command, c *config.Config, warnings []string) (done bool, err error) {
	if o.writeTo == "" && !o.cleanup && !o.init {
		return false, nil
	}
	for _, w := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	switch {
	case o.writeTo != "":
		return true, c.Write(o.writeTo)
	case o.cleanup:
		return true, cleanup(cmd.Context(), c, false, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return true, node.Init(cmd.Context(), nodeOptions(c), "/", func(did string) { fmt.Fprintln(cmd.OutOrStdout(), did) })
}
