// Command vagrant makes a cluster of three machines that Vagrant starts, with Kubernetes by kubeadm, and tries the stories
// and the guides in it. Its results become docs/clusters.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vagrant:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	c := &cluster{out: os.Stdout}
	cmd := &cobra.Command{
		Use:               "vagrant",
		Short:             "A cluster of three machines that Vagrant starts",
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return c.open() },
	}
	f := cmd.PersistentFlags()
	f.StringVar(&c.root, "root", "../..", "root of the repository")
	f.StringVar(&c.dir, "dir", "", "directory of what is kept between runs (default in the user's cache directory)")
	add := func(use, short string, do func(context.Context) error) *cobra.Command {
		sub := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return do(cmd.Context()) }}
		cmd.AddCommand(sub)
		return sub
	}
	add("ready", "Build all that the machines need, and start none", c.ready)
	add("box", "Make the box of Debian 12 for Vagrant's provider libvirt", c.box)
	add("up", "Bring the machines and the cluster up, with kube-proxy in mode ipvs", func(ctx context.Context) error {
		if err := c.ready(ctx); err != nil {
			return err
		}
		return c.up(ctx)
	})
	var only []string
	var again bool
	test := add("test", "Try the stories and guides in the cluster; what passed with the same sources is not tried again", func(ctx context.Context) error {
		return c.test(ctx, only, again)
	})
	test.Flags().StringSliceVar(&only, "only", nil, "these stories alone, by name")
	test.Flags().BoolVar(&again, "again", false, "also those that passed")
	add("page", "Print docs/clusters.md from the last results", func(context.Context) error { return c.record.page(os.Stdout) })
	add("down", "Remove the machines, and end what runs beside them", c.down)
	return cmd
}

// open finds the directories and the last results.
func (c *cluster) open() (err error) {
	if c.root, err = filepath.Abs(c.root); err != nil {
		return err
	}
	if c.dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("find a directory for what is kept: %w", err)
		}
		c.dir = filepath.Join(cache, "ipvs-proxy-vagrant")
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	c.record, err = readRecord(filepath.Join(c.root, here, "results.json"))
	return err
}
