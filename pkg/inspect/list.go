package inspect

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// Query is which rows are asked for. Its zero value has all.
type Query struct {
	// Namespace has only the Services of one; "": of all.
	Namespace string
	// Text has only those in whose name it is; "": all.
	Text string
	// Address has only the frontends of one; not valid: of all.
	Address netip.Addr
	// State has only frontends in that state; Not: only those in another. "": all.
	State State
	Not   bool
	// After is the Next of the page before.
	After string
	// Most is how many rows a page has, or some more: a Service is not cut in two. 0: 500.
	Most int
}

const (
	usualRows = 500
	mostRows  = 2000
	// mostLooks is how many Services one answer looks at: a state that few have is looked for in several.
	mostLooks = 5000
)

// List gives a page of rows without what the kernel counts. A page that finds few rows among many Services ends early, and
// has a Next all the same.
func (n *Node) List(ctx context.Context, q Query) (l List, err error) {
	if l.Head, err = n.Head(ctx); err != nil {
		return l, err
	}
	l.Rows = []Row{}
	most := min(max(q.Most, 0), mostRows)
	if most == 0 {
		most = usualRows
	}
	w := walk{node: n, query: q, after: q.begin()}
	for looks := 0; ; {
		w.want = most - len(l.Rows)
		s, some, err := w.next(ctx)
		if err != nil {
			return l, err
		}
		if !some {
			return l, nil
		}
		looks++
		l.Rows = append(l.Rows, q.of(s)...)
		if len(l.Rows) >= most || looks >= mostLooks {
			if w.ended() {
				return l, nil
			}
			l.Next = s.Service
			return l, nil
		}
	}
}

// of are the rows of a Service that are asked for.
func (q Query) of(s *Service) []Row {
	return slices.DeleteFunc(s.Rows(), func(r Row) bool { return !q.Has(r) })
}

// Has reports whether a row is asked for, by its address and its state.
func (q Query) Has(r Row) bool {
	if q.State != "" && (r.State == q.State) == q.Not {
		return false
	}
	if !q.Address.IsValid() {
		return true
	}
	if k, is := r.Key(); is {
		return k.Addr == q.Address
	}
	return r.Frontend == q.Address.String()
}

// named reports whether a Service may be asked for, by its name.
func (q Query) named(id cluster.ID) bool {
	return (q.Namespace == "" || id.Namespace == q.Namespace) && (q.Text == "" || strings.Contains(id.String(), q.Text))
}

// begin is the Service behind which the answer begins.
func (q Query) begin() cluster.ID {
	namespace, name, _ := strings.Cut(q.After, "/")
	if q.After == "" {
		namespace = q.Namespace
	}
	return cluster.ID{Namespace: namespace, Name: name}
}

// walk goes through the Services that may be asked for, in their order. It takes names first, which are cheap, and of the
// loop's time no more than a slice at once.
type walk struct {
	node  *Node
	query Query
	after cluster.ID // the last name that was taken
	names []cluster.ID
	last  bool // there are no more names
	page  []sync.Served
	want  int // how many rows are still wanted
}

// together are the names of which is taken together what the loop knows: no more than may be wanted, for it costs the loop.
func (w *walk) together() []cluster.ID {
	if w.query.State != "" {
		return w.names // few of them may be so
	}
	return w.names[:min(len(w.names), max(w.want, 1))]
}

func (w *walk) ended() bool { return w.last && len(w.names) == 0 && len(w.page) == 0 }

// next gives the next one; false: there is none.
func (w *walk) next(ctx context.Context) (s *Service, some bool, err error) {
	for {
		if len(w.page) > 0 {
			served := w.page[0]
			w.page = w.page[1:]
			if s := ServiceOf(served); s != nil { // else it has gone since
				return s, true, nil
			}
			continue
		}
		switch {
		case len(w.names) > 0:
			err = w.node.loop.Ask(ctx, func(v *sync.View) { w.page = v.Some(w.together()) })
			w.names = w.names[len(w.page):]
		case w.last:
			return nil, false, nil
		default:
			err = w.takeNames(ctx)
		}
		if err != nil {
			return nil, false, err
		}
	}
}

// takeNames takes the next names.
func (w *walk) takeNames(ctx context.Context) error {
	var ids []cluster.ID
	more := false
	err := w.node.loop.Ask(ctx, func(v *sync.View) {
		if w.query.Address.IsValid() {
			ids = v.At(w.query.Address)
		} else {
			ids, more = v.Names(w.after)
		}
	})
	if err != nil {
		return err
	}
	if w.last = !more; more {
		w.after = ids[len(ids)-1]
		w.last = w.query.Namespace != "" && w.after.Namespace > w.query.Namespace
	}
	begin := w.query.begin()
	for _, id := range ids {
		if w.query.named(id) && begin.Less(id) {
			w.names = append(w.names, id)
		}
	}
	return nil
}
