package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab/machine"
)

func kernelsCommand() *cobra.Command {
	o := testOptions{skipHost: true, failOnSkip: true}
	cmd := &cobra.Command{
		Use:   "kernels [SUITE...]",
		Short: "Run the tests that need a kernel on every kernel that the lab knows, and keep what they come to",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, suites []string) error {
			if len(suites) == 0 {
				for _, k := range machine.Kernels() {
					suites = append(suites, k.Suite)
				}
			}
			var failed []string
			for _, suite := range suites {
				o := o
				o.kernel = suite
				fmt.Fprintf(os.Stdout, "\n==== the kernel of Debian %s\n", suite)
				if err := runTests(cmd.Context(), o, os.Stdout); err != nil {
					failed = append(failed, suite)
				}
				if err := cmd.Context().Err(); err != nil {
					return err
				}
			}
			return sayFailed(os.Stdout, suites, failed)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.run, "run", "", "only tests that match, as go test -run")
	f.DurationVar(&o.timeout, "timeout", 30*time.Minute, "for the tests of one package")
	f.StringVar(&o.results, "results", "e2e/results", "keep the verdicts in this directory; with --run, those of the others stay")
	return cmd
}

func sayFailed(w io.Writer, suites, failed []string) error {
	fmt.Fprintf(w, "\nkernels: %d passed, %d failed\n", len(suites)-len(failed), len(failed))
	if len(failed) > 0 {
		fmt.Fprintf(w, "kernels that failed or cannot be had: %s\n", strings.Join(failed, ", "))
		return exitError(1)
	}
	return nil
}
