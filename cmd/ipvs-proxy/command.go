package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/config"
)

// newCommand puts the command line together.
func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "ipvs-proxy",
		Short:         "A Kubernetes service proxy on Linux IPVS",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetGlobalNormalizationFunc(config.FlagName)
	readable(root)
	root.AddGroup(&cobra.Group{ID: groupLook, Title: "To look, which changes nothing:"}, &cobra.Group{ID: groupDo, Title: "To run it:"})
	check, diff, explain := newCheck(), newDiff(), newExplain()
	for _, c := range []*cobra.Command{check, diff, explain} {
		c.GroupID = groupLook
	}
	run, ready, cleanup := newRun(), newInit(), newCleanup()
	for _, c := range []*cobra.Command{run, ready, cleanup} {
		c.GroupID = groupDo
	}
	root.AddCommand(newShow(), newTop(), explain, newLog(), diff, check, run, ready, cleanup, newVersion())
	return root
}

// The groups in which help lists the commands.
const (
	groupLook = "look"
	groupDo   = "do"
)

// Set when a release is built: its version, and the commit that it was built from.
var (
	version = "development"
	commit  string
)

func versionLine() string {
	return fmt.Sprintf("ipvs-proxy %s (revision %s, %s)", version, revision(), runtime.Version())
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), versionLine())
		},
	}
}

// revision is the commit that was built: as the release says, or else as Go found it in version control.
func revision() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}
