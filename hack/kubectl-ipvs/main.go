// Command kubectl-ipvs asks the agents of a cluster what their nodes serve: as kubectl ipvs show, explain and top. It runs
// the command of that name in the agents' pods and puts the answers together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand(nil).ExecuteContext(ctx); err != nil {
		status := exitStatus{status: couldNotLook, err: err}
		errors.As(err, &status)
		if status.err != nil {
			fmt.Fprintln(os.Stderr, "kubectl ipvs:", status.err)
		}
		os.Exit(status.status)
	}
}

// The exit statuses are those of the agent's own commands; of several nodes, the worst.
const couldNotLook = 2

type exitStatus struct {
	status int
	err    error // nil: there is nothing to complain of
}

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d: %v", e.status, e.err) }

// options say which agents are asked, and how.
type options struct {
	kubeconfig, context string
	namespace, selector string
	node                string
	allNodes            bool
	timeout             time.Duration
	at                  int // nodes at a time
	agents              agents
	out, err            io.Writer
}

// newCommand puts the command line together. Tests have agents of their own.
func newCommand(of agents) *cobra.Command {
	o := &options{agents: of}
	root := &cobra.Command{Use: "kubectl-ipvs", Short: "Ask the agents of ipvs-proxy what their nodes serve", SilenceUsage: true, SilenceErrors: true}
	f := root.PersistentFlags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "file with the cluster's address and credentials; as kubectl's")
	f.StringVar(&o.context, "context", "", "which of its contexts")
	f.StringVar(&o.namespace, "agent-namespace", "kube-system", "namespace of the agents' pods")
	f.StringVar(&o.selector, "agent-selector", "", "labels of the agents' pods; by default those of the manifests")
	f.StringVar(&o.node, "node", "", "ask the agent of this node")
	f.BoolVar(&o.allNodes, "all-nodes", false, "ask the agents of all nodes")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long an agent may take")
	f.IntVar(&o.at, "parallel", 16, "how many agents are asked at a time")
	for _, c := range []struct{ name, args, short string }{
		{"show", "[NAMESPACE/NAME | ADDRESS[:PORT]]", "Say what nodes serve, by which backends, and how busy they are"},
		{"explain", "NAMESPACE/NAME | CLIENT [to] ADDRESS:PORT[/PROTO]", "Say what becomes of a Service or of a packet on nodes, and why"},
		{"top", "", "Show the busiest frontends of nodes, once"},
	} {
		root.AddCommand(o.command(c.name, c.args, c.short))
	}
	return root
}

func (o *options) command(name, args, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " " + args + " [-- FLAGS OF THE AGENT'S COMMAND]",
		Short: short,
		Long: short + `.

It runs ipvs-proxy ` + name + ` in the agent's pod of a node, or of all nodes, which needs the right to
create pods/exec there. What stands behind -- goes to that command as it is.`,
		Example: fmt.Sprintf("  kubectl ipvs %s --node node1\n  kubectl ipvs %s --all-nodes", name, name),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.out, o.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if (o.node == "") != o.allNodes {
				return errors.New("want --node NODE or --all-nodes")
			}
			if o.at < 1 {
				return fmt.Errorf("--parallel=%d: want 1 or more", o.at)
			}
			if o.agents == nil {
				rules := clientcmd.NewDefaultClientConfigLoadingRules()
				rules.ExplicitPath = o.kubeconfig
				config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.context}).ClientConfig()
				if err != nil {
					return fmt.Errorf("find the cluster: %w", err)
				}
				if o.agents, err = newPods(config, o.namespace, o.selector); err != nil {
					return err
				}
			}
			return o.run(cmd.Context(), name, args)
		},
	}
	return cmd
}
