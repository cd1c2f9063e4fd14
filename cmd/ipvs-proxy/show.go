package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// show is what is asked for.
type show struct {
	printFlags
	query   inspect.Query
	state   string
	port    uint16 // of the address; 0: all
	service string
	// foreign shows what of the kernel is no Service's, all the frontends of Services as well.
	foreign, all bool
	limit        int
	// cut: there are more than were asked for.
	cut bool
}

func newShow() *cobra.Command { return newShowOf(theseSources) }

func newShowOf(from sources) *cobra.Command {
	var s show
	cmd := &cobra.Command{
		Use:     "show [NAMESPACE/NAME | ADDRESS[:PORT]]",
		Short:   "Say what this node serves, by which backends, and how busy they are",
		GroupID: groupLook,
		Long: `Say what this node serves, by which backends, and how busy they are: a line a frontend, or all of one Service.

The counts are read from the kernel, whoever programmed it. An agent on this node adds names, states and reasons; without
one, as beside kube-proxy, a line is a virtual server. Counts are as old as the kernel's own, 2 s at most. It needs
CAP_NET_ADMIN, without which IPVS cannot be read, and the agent answers user 0 alone.

STATE is open; no-endpoints: new connections are refused; no-local: a Local policy leaves some clients no endpoint here;
taken: another Service has it; forbidden: no Service may have it; failing: the kernel refuses it; waiting: the kernel does
not have it yet; foreign: no Service has it. Of one Service it also says what is still to be written, and for how long that
waits.

The exit status is 0 where all that is shown is as its Service wants it, 1 where something is taken, forbidden, failing
or waiting, 2 where that cannot be said: there is no such Service, for one.`,
		Example: `  ipvs-proxy show                          # all Services
  ipvs-proxy show default/web              # one, with its backends
  ipvs-proxy show 10.96.0.10               # whoever has an address
  ipvs-proxy show --state '!open'          # what does not serve everybody
  kubectl -n kube-system exec ds/ipvs-proxy -- ipvs-proxy show`,
		Args: troubled(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.parse(args); err != nil {
				return trouble(err)
			}
			return s.run(cmd, from, s.look)
		},
	}
	s.add(cmd)
	f := cmd.Flags()
	f.StringVarP(&s.query.Namespace, "namespace", "n", "", "only the Services of one namespace")
	f.StringVar(&s.state, "state", "", "only frontends in a state, or with a ! before it in any other")
	f.BoolVar(&s.foreign, "foreign", false, "only virtual servers that no Service has")
	f.BoolVar(&s.all, "all", false, "virtual servers that no Service has as well")
	f.IntVar(&s.limit, "limit", 500, "how many lines a table has at most; 0: all")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = from.completeServices
	return cmd
}

func stateNames() (names []string) {
	for _, s := range inspect.States {
		names = append(names, string(s), "!"+string(s))
	}
	return names
}

// parse takes what is asked for.
func (s *show) parse(args []string) (err error) {
	if s.state != "" {
		if s.query.State, s.query.Not, err = inspect.ParseState(s.state); err != nil {
			return fmt.Errorf("--state: %w", err)
		}
	}
	if s.foreign && s.all {
		return errors.New("--foreign and --all: want one of them")
	}
	if s.limit < 0 {
		return fmt.Errorf("--limit=%d: want 0 or more", s.limit)
	}
	if len(args) == 0 {
		return nil
	}
	if at, err := netip.ParseAddrPort(args[0]); err == nil {
		s.query.Address, s.port = at.Addr(), at.Port()
		return nil
	}
	if a, err := netip.ParseAddr(args[0]); err == nil {
		s.query.Address = a
		return nil
	}
	if _, err := cluster.ParseID(args[0]); err != nil {
		return fmt.Errorf("%q is neither a Service nor an address: want NAMESPACE/NAME, such as default/kubernetes, or ADDRESS or ADDRESS:PORT", args[0])
	}
	if s.service = args[0]; s.query.Namespace != "" || s.state != "" || s.foreign || s.all {
		return fmt.Errorf("%s: one Service is shown as a whole: want no --namespace, --state, --foreign and --all beside it", s.service)
	}
	return nil
}

// look finds it.
func (s *show) look(ctx context.Context, i *inquiry) (found any, table func(inspect.Style) string, inOrder bool, err error) {
	if s.service != "" {
		return s.one(ctx, i)
	}
	l := inspect.List{Head: i.head, Rows: []inspect.Row{}}
	if i.agent == nil {
		l.Rows, err = s.unnamed(ctx, i, &l.Head)
	} else {
		l.Rows, err = s.named(ctx, i)
	}
	if err != nil {
		return nil, nil, false, err
	}
	inOrder = !slices.ContainsFunc(l.Rows, func(r inspect.Row) bool { return r.State.Amiss() })
	return l, func(style inspect.Style) string { return s.table(l, style) }, inOrder, nil
}

// table prints the first lines of a list, and says whether there are more.
func (s *show) table(l inspect.List, style inspect.Style) string {
	if s.limit > 0 && len(l.Rows) > s.limit {
		s.cut, l.Rows = true, l.Rows[:s.limit]
	}
	text := l.Text(style)
	if s.cut && !style.NoHeaders {
		text += "and more: --limit 0 lists all; --namespace, --state and an ADDRESS have fewer\n"
	}
	return text
}

// named are the frontends that the agent knows, and the virtual servers that it does not.
func (s *show) named(ctx context.Context, i *inquiry) (rows []inspect.Row, err error) {
	// Whose a virtual server is, is known once all Services are; and the kernel says in which state they are.
	q := s.query
	q.State, q.Not, s.cut = "", false, false
	if s.foreign || s.all {
		q.Namespace, q.Address = "", netip.Addr{}
	}
	known := map[ipvs.Key]bool{}
	rows = []inspect.Row{}
	for more := true; more; more = q.After != "" {
		page, err := i.agent.List(ctx, q)
		if err != nil {
			return nil, err
		}
		q.After = page.Next
		for _, r := range page.Rows {
			if k, is := r.Key(); is {
				known[k] = true
			}
		}
		if s.foreign {
			continue
		}
		page.Rows = slices.DeleteFunc(page.Rows, func(r inspect.Row) bool { return !s.place(r) })
		if err := i.count(ctx, page.Rows); err != nil {
			return nil, err
		}
		for _, r := range page.Rows {
			if s.query.Has(r) {
				rows = append(rows, r)
			}
		}
		if s.limit > 0 && len(rows) >= s.limit && q.After != "" && !s.all && (s.output == "table" || s.output == "wide") {
			s.cut = true
			break
		}
	}
	if !s.foreign && !s.all {
		return rows, nil
	}
	strangers, err := s.unknown(ctx, i, func(c ipvs.Counted) (inspect.Row, bool) { return inspect.ForeignRow(c), !known[c.Key] })
	return append(rows, strangers...), err
}

// place reports whether a row is of the namespace and the port that are asked for.
func (s *show) place(r inspect.Row) bool {
	if namespace, _, _ := strings.Cut(r.Service, "/"); s.query.Namespace != "" && namespace != s.query.Namespace {
		return false
	}
	k, is := r.Key()
	return s.port == 0 || is && k.Port == s.port
}

// unnamed are the virtual servers of a kernel of which no agent says whose they are.
func (s *show) unnamed(ctx context.Context, i *inquiry, head *inspect.Head) ([]inspect.Row, error) {
	if s.query.Namespace != "" {
		return nil, fmt.Errorf("--namespace=%s: %s", s.query.Namespace, head.Note)
	}
	head.Frontends = 0
	return s.unknown(ctx, i, func(c ipvs.Counted) (inspect.Row, bool) {
		head.Frontends++
		return inspect.UnnamedRow(c), true
	})
}

// unknown are those virtual servers of the kernel that are to be shown, in the order of their Keys.
func (s *show) unknown(ctx context.Context, i *inquiry, row func(ipvs.Counted) (inspect.Row, bool)) (rows []inspect.Row, err error) {
	found := map[ipvs.Key]inspect.Row{}
	err = i.kernel.All(ctx, func(c ipvs.Counted) error {
		if r, is := row(c); is && s.query.Has(r) && (s.port == 0 || c.Key.Port == s.port) {
			found[c.Key] = r
		}
		return nil
	})
	rows = []inspect.Row{}
	for _, k := range sortedKeys(found) {
		rows = append(rows, found[k])
	}
	return rows, err
}

func sortedKeys[V any](m map[ipvs.Key]V) (keys []ipvs.Key) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, ipvs.Key.Compare)
	return keys
}

// one is one Service with its backends.
func (s *show) one(ctx context.Context, i *inquiry) (found any, table func(inspect.Style) string, inOrder bool, err error) {
	if i.agent == nil {
		return nil, nil, false, fmt.Errorf("show %s: %s; show alone lists virtual servers by their addresses", s.service, i.head.Note)
	}
	id, err := cluster.ParseID(s.service)
	if err != nil {
		return nil, nil, false, err
	}
	svc, err := i.agent.Service(ctx, id)
	if err != nil {
		return nil, nil, false, err
	}
	counts, err := inspect.CountsOf(ctx, i.kernel, svc.Keys())
	if err != nil {
		return nil, nil, false, err
	}
	svc.Count(counts)
	inOrder = !slices.ContainsFunc(svc.Rows(), func(r inspect.Row) bool { return r.State.Amiss() })
	return svc, func(style inspect.Style) string { return svc.Text(i.head, style) }, inOrder, nil
}

// completeServices completes the names of Services, as far as an agent knows them.
func (s sources) completeServices(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	agent := inspect.NewClient(s.agent)
	defer agent.Close()
	namespace, _, whole := strings.Cut(begun, "/")
	q := inspect.Query{Text: begun}
	if whole {
		q.Namespace = namespace
	}
	l, err := agent.List(cmd.Context(), q)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, r := range l.Rows {
		if strings.HasPrefix(r.Service, begun) {
			names = append(names, r.Service)
		}
	}
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}
