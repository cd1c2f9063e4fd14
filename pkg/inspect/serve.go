package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// The paths of what is asked over HTTP. Fields come, and none changes its meaning or goes.
const (
	pathHead    = "/v1/head"
	pathList    = "/v1/frontends"
	pathService = "/v1/service"
	pathNames   = "/v1/names"
	pathLog     = "/v1/log"
	pathExplain = "/v1/explain"
	pathPacket  = "/v1/packet"
)

// answerTime is how long an answer may take: the loop has its own work to do first.
const answerTime = 20 * time.Second

// Handler answers over HTTP, with JSON, what [Client] asks. Whoever serves it says who may ask.
func (n *Node) Handler() *http.ServeMux {
	mux := http.NewServeMux()
	answer := func(path string, f func(ctx context.Context, q url.Values) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			ctx, done := context.WithTimeout(r.Context(), answerTime)
			defer done()
			is, err := f(ctx, r.URL.Query())
			Reply(w, is, err)
		})
	}
	answer(pathHead, func(ctx context.Context, _ url.Values) (any, error) { return n.Head(ctx) })
	answer(pathList, func(ctx context.Context, v url.Values) (any, error) {
		q, err := queryOf(v)
		if err != nil {
			return nil, err
		}
		return n.List(ctx, q)
	})
	answer(pathService, func(ctx context.Context, v url.Values) (any, error) {
		id, err := cluster.ParseID(v.Get("name"))
		if err != nil {
			return nil, badQuestion{err}
		}
		return n.Service(ctx, id)
	})
	answer(pathExplain, func(ctx context.Context, v url.Values) (any, error) {
		id, err := cluster.ParseID(v.Get("service"))
		if err != nil {
			return nil, badQuestion{err}
		}
		return n.Explain(ctx, id)
	})
	answer(pathPacket, func(ctx context.Context, v url.Values) (any, error) {
		if v.Get("q") == "" {
			return nil, badQuestion{errNoQuestion}
		}
		q, err := preview.ParseQuestion([]string{v.Get("q")})
		if err != nil {
			return nil, badQuestion{err}
		}
		return n.Packet(ctx, q)
	})
	answer(pathNames, func(ctx context.Context, v url.Values) (any, error) { return n.namesOf(ctx, v["frontend"]) })
	answer(pathLog, func(ctx context.Context, v url.Values) (any, error) {
		sel, err := selectionOf(v)
		if err != nil {
			return nil, err
		}
		return n.Log(ctx, sel)
	})
	return mux
}

// badQuestion is one that cannot be understood.
type badQuestion struct{ error }

// fault is how a question that is not answered is answered.
type fault struct {
	Error string `json:"error"`
	// Near are the Services that may have been meant, where there is none of that name.
	Near    []string `json:"near,omitempty"`
	Service string   `json:"service,omitempty"`
}

// Reply writes an answer, or why there is none.
func Reply(w http.ResponseWriter, is any, err error) {
	code := http.StatusOK
	var unknown *preview.UnknownServiceError
	var bad badQuestion
	switch {
	case err == nil:
	case errors.As(err, &unknown):
		code = http.StatusNotFound
		f := fault{Error: err.Error(), Service: unknown.Service.String()}
		for _, id := range unknown.Near {
			f.Near = append(f.Near, id.String())
		}
		is = f
	case errors.As(err, &bad):
		code, is = http.StatusBadRequest, fault{Error: err.Error()}
	default:
		code, is = http.StatusServiceUnavailable, fault{Error: err.Error()}
	}
	body, err := json.Marshal(is)
	if err != nil { // a year of five digits, at most
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // who asked may be gone
}

// values are a Query as it is asked for; queryOf reads them.
func (q Query) values() url.Values {
	v := url.Values{}
	for key, value := range map[string]string{"namespace": q.Namespace, "text": q.Text, "state": string(q.State), "after": q.After} {
		if value != "" {
			v.Set(key, value)
		}
	}
	if q.Address.IsValid() {
		v.Set("address", q.Address.String())
	}
	if q.Not {
		v.Set("state", "!"+string(q.State))
	}
	if q.Most > 0 {
		v.Set("most", strconv.Itoa(q.Most))
	}
	return v
}

func queryOf(v url.Values) (q Query, err error) {
	q = Query{Namespace: v.Get("namespace"), Text: v.Get("text"), After: v.Get("after")}
	if text := v.Get("state"); text != "" {
		if q.State, q.Not, err = ParseState(text); err != nil {
			return q, badQuestion{err}
		}
	}
	if text := v.Get("address"); text != "" {
		if q.Address, err = netip.ParseAddr(text); err != nil {
			return q, badQuestion{fmt.Errorf("address: %w", err)}
		}
	}
	if text := v.Get("most"); text != "" {
		if q.Most, err = strconv.Atoi(text); err != nil {
			return q, badQuestion{fmt.Errorf("most: %w", err)}
		}
	}
	return q, nil
}

// ParseState reads a state, or one with a "!" before it: any other.
func ParseState(text string) (s State, not bool, err error) {
	name, not := strings.CutPrefix(text, "!")
	var names []string
	for _, s := range States {
		if name == string(s) {
			return s, not, nil
		}
		names = append(names, string(s))
	}
	return "", false, fmt.Errorf("%q is no state: want %s, or one of them with a ! before it", text, strings.Join(names, ", "))
}

func selectionOf(v url.Values) (sel sync.Selection, err error) {
	if text := v.Get("service"); text != "" {
		if sel.Service, err = cluster.ParseID(text); err != nil {
			return sel, badQuestion{err}
		}
	}
	if text := v.Get("since"); text != "" {
		if sel.Since, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return sel, badQuestion{fmt.Errorf("since: %w", err)}
		}
	}
	if text := v.Get("behind"); text != "" {
		if sel.Behind, err = strconv.ParseUint(text, 10, 64); err != nil {
			return sel, badQuestion{fmt.Errorf("behind: %w", err)}
		}
	}
	if text := v.Get("last"); text != "" {
		if sel.Last, err = strconv.Atoi(text); err != nil {
			return sel, badQuestion{fmt.Errorf("last: %w", err)}
		}
	}
	return sel, nil
}

// Name is whose a frontend is.
type Name struct {
	// Service is "namespace/name"; "": nobody's.
	Service string `json:"service,omitempty"`
	Port    string `json:"port,omitempty"`
	By      string `json:"by,omitempty"`
}

// namesOf says whose frontends are, "address:port/protocol" each, one by one.
func (n *Node) namesOf(ctx context.Context, frontends []string) (names []Name, err error) {
	if len(frontends) > sync.PageNames {
		return nil, badQuestion{fmt.Errorf("%d frontends are asked for: want %d at most", len(frontends), sync.PageNames)}
	}
	keys := make([]ipvs.Key, len(frontends))
	for i, text := range frontends {
		if keys[i], err = ParseKey(text); err != nil {
			return nil, badQuestion{err}
		}
	}
	names = make([]Name, len(keys))
	var owned []sync.Owned
	if err := n.loop.Ask(ctx, func(v *sync.View) { owned = v.Owners(keys) }); err != nil {
		return nil, err
	}
	for i, o := range owned {
		if o.Service != (cluster.ID{}) {
			names[i] = Name{Service: o.Service.String(), Port: o.Port, By: o.Rank.String()}
		}
	}
	return names, nil
}

// ParseKey reads "address:port/protocol", the protocol in any case.
func ParseKey(text string) (ipvs.Key, error) {
	at, protocol, _ := strings.Cut(text, "/")
	r := Row{Frontend: at, Protocol: strings.ToUpper(protocol)}
	if k, is := r.Key(); is {
		return k, nil
	}
	return ipvs.Key{}, fmt.Errorf("%q is no frontend: want ADDRESS:PORT/PROTOCOL, such as 10.96.0.1:443/TCP", text)
}
