package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// explained is what explain prints.
type explained interface {
	// Text prints it for a person.
	Text() string
	// InOrder: there is nothing that somebody might want to be otherwise.
	InOrder() bool
}

func newExplain() *cobra.Command { return newExplainOf(theseSources) }

func newExplainOf(from sources) *cobra.Command {
	var l lookFlags
	cmd := &cobra.Command{
		Use:   "explain NAMESPACE/NAME | CLIENT [to] ADDRESS:PORT[/PROTO]",
		Short: "Say what becomes of a Service or of a packet on this node, and why",
		Long: `Say what becomes of a Service on this node, and why: where each of its addresses leads, which endpoints are left out,
which addresses it may not have, each with the code of docs/reasons.md, and whether the kernel agrees.

Or say what becomes of a packet that would open a new connection, on its way through this node: who the client is taken
for, whose the address is, what the guard and the policies make of it, to which endpoints it may go with which chance, as
whom these see the client; and whether it is served, refused, dropped or not ours. CLIENT is an IP address, or the word node
for this node itself, and PROTO is tcp, udp or sctp, tcp if not given. IPv6 is written [fd00:96::10]:53. Between the two may
stand the word to, or -> in quotes. It is one connection of its own: those that live already go on as they are.

An agent on this node is asked, which knows at once. Where there is none, or flags say by which objects and which
configuration, it looks as diff does, with the flags and the configuration of run. It writes nothing. The exit status is 0 where all of
it serves and the kernel agrees, 1 where not, 2 where that cannot be said: there is no such Service, for one. Of a packet
it is 0 where it is served, or for somebody else, and the kernel agrees.`,
		Args: troubled(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			ask, err := question(args)
			if err != nil {
				return trouble(err)
			}
			found, err := from.byAgent(cmd, args, l.output)
			if found == nil && err == nil {
				var in preview.Input
				if in, err = l.look(cmd); err == nil {
					found, err = ask(in)
				}
			}
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

// question reads what is asked: for a Service, or for a packet.
func question(args []string) (ask func(preview.Input) (explained, error), err error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("nothing is asked: want NAMESPACE/NAME, such as default/kubernetes; or for a packet %s", preview.QuestionForm)
	}
	if len(args) > 1 || strings.ContainsAny(args[0], " >") {
		q, err := preview.ParseQuestion(args)
		return func(in preview.Input) (explained, error) { return preview.AnswerPacket(in.Ground(), q), nil }, err
	}
	id, err := cluster.ParseID(args[0])
	if err == nil && strings.Contains(id.Namespace, ":") { // as in 10.96.0.10:53/udp
		err = fmt.Errorf("%q names no Service: want NAMESPACE/NAME, such as default/kubernetes", args[0])
	}
	if err != nil {
		return nil, fmt.Errorf("%w; or for a packet %s", err, preview.QuestionForm)
	}
	return func(in preview.Input) (explained, error) { return preview.Explain(in, id) }, nil
}
