package page

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// view is what a template gets: what all pages have, and the page's own part.
type view struct {
	Title string
	// Refresh is after how many seconds the browser asks again; 0: never. Nobody gets it unasked: whoever reads slowly, or has
	// the page read to them, keeps what is there.
	Refresh int
	Body    any
	name    string // of the template
	// live can be shown again and again; wrong says what of the question is wrong.
	live, wrong bool
}

// Bounds of a page, in what it shows. A screenful stays below 20 kB with them.
const (
	pageRows      = 28  // of the list, and what the last Service has more
	pageServices  = 30  // of the list
	someFrontends = 4   // of each of them
	pageChanges   = 100 // of the page of changes
	someChanges   = 8   // of them on other pages
	pageBackends  = 100 // of a frontend
	pageFrontends = 20  // of a Service
	pageProblems  = 10  // of the node
	pagePending   = 20  // writes still to be done for a Service
	questionLimit = 200 // characters of a question
	refreshPeriod = 5   // seconds
)

type listView struct {
	Head   inspect.Head
	Health Health
	// Text and State are what is asked for.
	Text, State string
	States      []inspect.State
	Services    []serviceRow
	// Begin and Next lead to the beginning and to the part behind this; "": this is the beginning, the end.
	Begin, Next string
	Changes     []inspect.Change
	// NoCounts says why the kernel's numbers are missing; "": they are there.
	NoCounts string
}

// serviceRow is a Service in the list.
type serviceRow struct {
	Service string
	Rows    []inspect.Row
	Left    int // how many rows are left out
}

type serviceView struct {
	Service   *inspect.Service
	Frontends []frontendView
	// Left counts the frontends that are left out, LeftPending the writes still to be done.
	Left, LeftPending int

	Changes    []inspect.Change
	AllChanges string
	NoCounts   string
}

// frontendView is a frontend with its backends, apart those to which it does not lead.
type frontendView struct {
	inspect.Frontend
	In, Out []inspect.Backend
	Left    int
}

type changesView struct {
	Service string
	Changes []inspect.Change
}

type failure struct {
	Text string
	Near []string
}

// trouble is the word for all states but open.
const trouble = "!open"

// states are those that may be asked for: no Service has a foreign one.
var states = slices.DeleteFunc(slices.Clone(inspect.States), func(s inspect.State) bool { return s == inspect.Foreign })

// list is the first page: the node, its Services, what changed last.
func (p *pages) list(r *http.Request) (v view, err error) {
	values := r.URL.Query()
	q, err := question(values)
	if err != nil {
		return v, err
	}
	l, err := p.Answers.List(r.Context(), q)
	if err != nil {
		return v, err
	}
	is := listView{Head: l.Head, Health: p.health(), Text: strings.TrimSpace(values.Get("q")), State: values.Get("state"), States: states, Services: rowsOf(l.Rows)}
	is.NoCounts = p.countRows(r, is.Services)
	if is.Changes, err = p.lastChanges(r, sync.Selection{Last: someChanges}); err != nil {
		return v, err
	}
	if q.After != "" {
		is.Begin = at(values, "")
	}
	if l.Next != "" {
		is.Next = at(values, l.Next)
	}
	return view{Title: "Services", name: "list", Body: is, live: true}, nil
}

// at is the list behind a place, with what is asked for.
func at(values url.Values, after string) string {
	to := url.Values{}
	for _, name := range []string{"q", "state"} {
		if value := values.Get(name); value != "" {
			to.Set(name, value)
		}
	}
	if after != "" {
		to.Set("after", after)
	}
	return "/?" + to.Encode()
}

// question reads what is asked for. What is none is named, with what is wanted.
func question(values url.Values) (q inspect.Query, err error) {
	q = inspect.Query{Text: strings.TrimSpace(values.Get("q")), After: values.Get("after"), Most: pageRows}
	if utf8.RuneCountInString(q.Text) > questionLimit {
		return q, wrongError{"q has more than " + strconv.Itoa(questionLimit) + " characters: want a part of a Service's name, or an address."}
	}
	if a, is := address(q.Text); is {
		q.Text, q.Address = "", a
	}
	if _, err := cluster.ParseID(q.After); q.After != "" && err != nil {
		return q, wrongError{"after " + strconv.Quote(shortened(q.After)) + ": want a Service's name as NAMESPACE/NAME."}
	}
	switch state := inspect.State(values.Get("state")); {
	case state == "":
	case state == trouble:
		q.State, q.Not = inspect.Open, true
	case slices.Contains(states, state):
		q.State = state
	default:
		return q, wrongError{"state " + strconv.Quote(shortened(string(state))) + ": want one of " + words(states) + ", or " + trouble + "."}
	}
	return q, nil
}

func words(states []inspect.State) string {
	var list []string
	for _, s := range states {
		list = append(list, string(s))
	}
	return strings.Join(list, ", ")
}

// address is the one that somebody asks for, with or without a port.
func address(text string) (a netip.Addr, is bool) {
	if at, err := netip.ParseAddrPort(text); err == nil {
		return at.Addr(), true
	}
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return a, err == nil
}

func shortened(text string) string {
	if len(text) > questionLimit {
		return strings.ToValidUTF8(text[:questionLimit], "") + "…"
	}
	return text
}

// rowsOf puts the rows of each Service together.
func rowsOf(rows []inspect.Row) (list []serviceRow) {
	for _, row := range rows {
		last := len(list) - 1
		switch {
		case last < 0 || list[last].Service != row.Service:
			if len(list) == pageServices {
				return list
			}
			list = append(list, serviceRow{Service: row.Service, Rows: []inspect.Row{row}})
		case len(list[last].Rows) < someFrontends:
			list[last].Rows = append(list[last].Rows, row)
		default:
			list[last].Left++
		}
	}
	return list
}

// countRows adds what the kernel counts. Where it cannot be had, the page is shown without it, and says why.
func (p *pages) countRows(r *http.Request, list []serviceRow) (why string) {
	var keys []ipvs.Key
	for _, s := range list {
		for i := range s.Rows {
			if k, is := s.Rows[i].Key(); is {
				keys = append(keys, k)
			}
		}
	}
	counts, err := p.counts(r, keys)
	if err != nil {
		return err.Error()
	}
	for _, s := range list {
		for i := range s.Rows {
			s.Rows[i].Count(counts)
		}
	}
	return ""
}

// counts reads what the kernel counts of some Keys.
func (p *pages) counts(r *http.Request, keys []ipvs.Key) (inspect.Counts, error) {
	if p.Counter == nil {
		return nil, errors.New("nobody reads the kernel's counters")
	}
	slices.SortFunc(keys, ipvs.Key.Compare)
	return inspect.CountsOf(r.Context(), p.Counter, slices.Compact(keys))
}

// lastChanges are writes to the kernel, the newest first.
func (p *pages) lastChanges(r *http.Request, which sync.Selection) ([]inspect.Change, error) {
	log, err := p.Answers.Log(r.Context(), which)
	slices.Reverse(log.Changes)
	return log.Changes, err
}

// service is the page of one Service.
func (p *pages) service(r *http.Request) (v view, err error) {
	id := cluster.ID{Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
	if _, err := cluster.ParseID(id.String()); err != nil {
		return v, wrongError{strconv.Quote(shortened(id.String())) + ": want a Service's name as NAMESPACE/NAME."}
	}
	s, err := p.Answers.Service(r.Context(), id)
	if err != nil {
		return v, err
	}
	is := serviceView{Service: s, AllChanges: "/changes?" + url.Values{"service": {id.String()}}.Encode()}
	s.Pending, is.LeftPending = firstOf(s.Pending, pagePending)
	s.Frontends, is.Left = firstOf(s.Frontends, pageFrontends)
	if counts, err := p.counts(r, s.Keys()); err != nil {
		is.NoCounts = err.Error()
	} else {
		s.Count(counts)
	}
	for _, f := range s.Frontends {
		is.Frontends = append(is.Frontends, splitBackends(f))
	}
	if is.Changes, err = p.lastChanges(r, sync.Selection{Service: id, Last: someChanges}); err != nil {
		return v, err
	}
	return view{Title: id.String(), name: "service", Body: is, live: true}, nil
}

func splitBackends(f inspect.Frontend) frontendView {
	is := frontendView{Frontend: f}
	for _, b := range f.Of {
		switch {
		case len(is.In)+len(is.Out) == pageBackends:
			is.Left++
		case b.State == inspect.LeftOut:
			is.Out = append(is.Out, b)
		default:
			is.In = append(is.In, b)
		}
	}
	return is
}

// changes is the page of the last writes to the kernel.
func (p *pages) changes(r *http.Request) (v view, err error) {
	is := changesView{Service: strings.TrimSpace(r.URL.Query().Get("service"))}
	which := sync.Selection{Last: pageChanges}
	if is.Service != "" {
		id, err := cluster.ParseID(is.Service)
		if which.Service = id; err != nil {
			return v, wrongError{"service " + strconv.Quote(shortened(is.Service)) + ": want a Service's name as NAMESPACE/NAME."}
		}
	}
	if is.Changes, err = p.lastChanges(r, which); err != nil {
		return v, err
	}
	return view{Title: "Last changes", name: "changes", Body: is, live: true}, nil
}

// reasons is the page of all reasons.
func (p *pages) reasons(*http.Request) (v view, err error) {
	return view{Title: "Reasons", name: "reasons", Body: desk.Reasons()}, nil
}
