package main

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// onlyGiven reports whether a command was given no other flags than some.
func onlyGiven(cmd *cobra.Command, names ...string) bool {
	only := true
	cmd.Flags().Visit(func(f *pflag.Flag) { only = only && slices.Contains(names, f.Name) })
	return only
}

// agentHere is the agent of this node, to be asked; nil: there is none that answers.
func (s sources) agentHere(ctx context.Context) (*inspect.Client, error) {
	agent, _, err := s.ask(ctx)
	if errors.Is(err, node.ErrNoAgent) || errors.Is(err, node.ErrNotAnswered) {
		return nil, nil
	}
	return agent, err
}

// byAgent has the agent of this node say what becomes of a Service, or of a packet: it knows at once. Where none answers, or
// flags say by which objects and which configuration it is to be explained, that is not asked: the answer is nil.
func (s sources) byAgent(cmd *cobra.Command, args []string, output string) (explained, error) {
	if !slices.Contains([]string{"table", "json", "yaml"}, output) || !onlyGiven(cmd, "output") {
		return nil, nil
	}
	agent, err := s.agentHere(cmd.Context())
	if agent == nil || err != nil {
		return nil, err
	}
	defer agent.Close()
	id, err := cluster.ParseID(args[0])
	if len(args) > 1 || err != nil {
		q, err := preview.ParseQuestion(args)
		if err != nil {
			return nil, err
		}
		a, err := agent.Packet(cmd.Context(), q)
		if err != nil {
			return nil, err
		}
		return a, nil
	}
	x, err := agent.Explain(cmd.Context(), id)
	if err != nil {
		return nil, err
	}
	return x, nil
}
