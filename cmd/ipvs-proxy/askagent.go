package main

import (
	"errors"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/node"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// byAgent has the agent of this node say what becomes of a Service, or of a packet: it knows at once. Where none answers, or
// flags say by which objects and which configuration it is to be explained, that is not asked: the answer is nil.
func (s sources) byAgent(cmd *cobra.Command, args []string, output string) (explained, error) {
	plain := slices.Contains([]string{"table", "json", "yaml"}, output)
	cmd.Flags().Visit(func(f *pflag.Flag) { plain = plain && f.Name == "output" })
	if !plain {
		return nil, nil
	}
	agent, _, err := s.ask(cmd.Context())
	switch {
	case errors.Is(err, node.ErrNoAgent) || errors.Is(err, node.ErrNotAnswered):
		return nil, nil
	case err != nil:
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
