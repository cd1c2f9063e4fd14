package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
)

// run asks the agents and prints what they say.
func (o *options) run(ctx context.Context, name string, args []string) error {
	nodes, err := o.agents.On(ctx, o.node)
	if err != nil {
		return err
	}
	call := append([]string{name}, args...)
	if name == "top" {
		call = append(call, "--once")
	}
	if !o.allNodes {
		a, err := o.ask(ctx, nodes[0], call)
		if err != nil {
			return err
		}
		_, _ = o.out.Write(a.stdout)
		_, _ = o.err.Write(a.stderr)
		return statusOf(a.exit)
	}
	if merges(name, args) {
		call = append(call, "-o", "json")
	}
	answers := o.askAll(ctx, nodes, call)
	if merges(name, args) {
		return o.merge(name, nodes, answers)
	}
	return o.group(nodes, answers)
}

func statusOf(exit int) error {
	if exit == 0 {
		return nil
	}
	return exitStatus{status: exit}
}

// merges reports whether what nodes say is put together in one table: lists of frontends, as a table.
func merges(name string, args []string) bool {
	for i, a := range args {
		if a == "-o" || strings.HasPrefix(a, "--output") || strings.HasPrefix(a, "-o") || a == "-w" || a == "--watch" {
			return false
		}
		if _, err := cluster.ParseID(a); err == nil && i == 0 {
			return false
		}
	}
	return name == "show" || name == "top"
}

// ask asks one agent.
func (o *options) ask(ctx context.Context, node string, call []string) (answer, error) {
	ctx, done := context.WithTimeout(ctx, o.timeout)
	defer done()
	return o.agents.Run(ctx, node, call)
}

// said is what became of asking a node.
type said struct {
	answer
	err error
}

// askAll asks all of them, so many at a time.
func (o *options) askAll(ctx context.Context, nodes []string, call []string) []said {
	all := make([]said, len(nodes))
	room := make(chan struct{}, o.at)
	var group sync.WaitGroup
	for i, node := range nodes {
		room <- struct{}{}
		group.Go(func() {
			defer func() { <-room }()
			all[i].answer, all[i].err = o.ask(ctx, node, call)
		})
	}
	group.Wait()
	return all
}

// group prints what nodes say, once for all that say the same.
func (o *options) group(nodes []string, answers []said) error {
	var order []string
	by := map[string][]string{}
	worst := 0
	for i, a := range answers {
		text := string(a.stdout) + string(a.stderr)
		if a.err != nil {
			text = "not asked: " + a.err.Error() + "\n"
			a.exit = couldNotLook
		}
		worst = max(worst, a.exit)
		// What a text says of its own node is no difference.
		text = strings.ReplaceAll(text, "on "+nodes[i], "on this node")
		if by[text] == nil {
			order = append(order, text)
		}
		by[text] = append(by[text], nodes[i])
	}
	for _, text := range order {
		fmt.Fprintf(o.out, "== %s\n%s\n", named(by[text]), text)
	}
	return statusOf(worst)
}

// named names some nodes and counts the others.
func named(nodes []string) string {
	const most = 5
	if len(nodes) <= most {
		return strings.Join(nodes, ", ")
	}
	return fmt.Sprintf("%s and %d others", strings.Join(nodes[:most], ", "), len(nodes)-most)
}

// merge puts the lists of nodes together.
func (o *options) merge(name string, nodes []string, answers []said) error {
	worst, failed := 0, []error{}
	lists, tops := map[string]inspect.List{}, map[string]inspect.Top{}
	for i, a := range answers {
		err := a.err
		if err == nil && a.exit >= couldNotLook {
			err = errors.New(strings.TrimSpace(string(bytes.TrimPrefix(a.stderr, []byte("ipvs-proxy: ")))))
		}
		var l inspect.List
		var t inspect.Top
		if err == nil && name == "show" {
			err = json.Unmarshal(a.stdout, &l)
			lists[nodes[i]] = l
		} else if err == nil {
			err = json.Unmarshal(a.stdout, &t)
			tops[nodes[i]] = t
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("node %s: %w", nodes[i], err))
			delete(lists, nodes[i])
			delete(tops, nodes[i])
			a.exit = couldNotLook
		}
		worst = max(worst, a.exit)
	}
	text := ""
	if name == "show" {
		text = inspect.MergeLists(lists).Text(inspect.Style{})
	} else {
		text = inspect.MergeTops(tops, topLines).Text(inspect.Style{})
	}
	if _, err := io.WriteString(o.out, text); err != nil {
		return err
	}
	slices.SortFunc(failed, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	for _, err := range failed {
		fmt.Fprintln(o.err, "kubectl ipvs:", err)
	}
	return statusOf(worst)
}

// topLines is how many frontends top shows of all nodes together.
const topLines = 30
