// Package page shows an operator in a browser what this node serves: HTML that is made here, without a script and without
// anything from elsewhere. What it shows it asks of whoever knows ([Answers]).
package page

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// Options of the page.
type Options struct {
	Answers Answers
	// Counter says what the kernel counts; nil: nobody does.
	Counter inspect.Counter
	// Health says how the agent fares.
	Health func() Health
	// Node is this node's name.
	Node string
	// Everyone serves whoever reaches the port, by whatever name; else who asks from this node by a loopback address.
	Everyone bool
	// Links are paths of the same server that are worth a look, in their order.
	Links []Link
	// Log takes what could not be rendered.
	Log *zap.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Link is another page of the same server.
type Link struct{ Path, Text string }

// Bounds of a page, in what it takes of the agent.
const (
	// answerTime is how long a page may wait for its answers.
	answerTime = 5 * time.Second
	// together is how many pages are made at the same time; others wait for their turn. Whoever asks, and how often, this is
	// what it costs at once.
	together = 2
)

// pages makes the pages.
type pages struct {
	Options
	turns chan struct{}
}

// Over serves the page on "/" and below, and what is none of its paths by the handler below it. Who may not see the page gets
// the handler's answer, too, as if there were no page.
func Over(below http.Handler, o Options) http.Handler {
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &pages{Options: o, turns: make(chan struct{}, together)}
	mux := http.NewServeMux()
	mux.Handle("/", below)
	for path, show := range map[string]func(*http.Request) (view, error){
		"/{$}": p.list, "/services/{namespace}/{name}": p.service, "/changes": p.changes, "/packet": p.packet, "/reasons": p.reasons,
	} {
		mux.Handle(path, p.guarded(below, show))
	}
	return mux
}

// guarded shows a page to who may see it.
func (p *pages) guarded(below http.Handler, show func(*http.Request) (view, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case p.Everyone:
		case !mayLook(r):
			below.ServeHTTP(w, r)
			return
		case !ownName(r.Host):
			http.Error(w, "the status page answers to localhost and loopback addresses alone, not to "+strconv.Quote(r.Host), http.StatusMisdirectedRequest)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		p.answer(w, r, show)
	})
}

// answer makes a page whole before any of it is sent, so that an error has a status.
func (p *pages) answer(w http.ResponseWriter, r *http.Request, show func(*http.Request) (view, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTime)
	defer cancel()
	v, err := p.inTurn(r.WithContext(ctx), show)
	code := http.StatusOK
	if err != nil {
		v, code = failed(err)
	}
	if v.wrong {
		code = http.StatusBadRequest
	}
	var body bytes.Buffer
	if err := p.render(&body, r, v); err != nil {
		p.Log.Error("the status page cannot be rendered", zap.String("path", r.URL.Path), zap.Error(err))
		http.Error(w, "the page cannot be rendered; the agent's log says why", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	h.Set("Content-Security-Policy", policy())
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(body.Bytes()) // who asked may be gone
}

// inTurn asks for what a page shows once it is its turn.
func (p *pages) inTurn(r *http.Request, show func(*http.Request) (view, error)) (view, error) {
	select {
	case p.turns <- struct{}{}:
		defer func() { <-p.turns }()
		return show(r)
	case <-r.Context().Done():
		return view{}, r.Context().Err()
	}
}

// wrongError is a question that cannot be answered as it stands.
type wrongError struct{ text string }

func (e wrongError) Error() string { return e.text }

// failed is the page in place of one that could not be had.
func failed(err error) (v view, code int) {
	var unknown *preview.UnknownServiceError
	var wrong wrongError
	switch {
	case errors.As(err, &unknown):
		return view{Title: "No such Service", name: "failed", Body: failure{Text: unknown.Service.String() + " is no Service that this proxy serves.", Near: names(unknown.Near)}}, http.StatusNotFound
	case errors.As(err, &wrong):
		return view{Title: "Not understood", name: "failed", Body: failure{Text: wrong.text}}, http.StatusBadRequest
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return view{Title: "No answer", name: "failed", Body: failure{Text: "The agent did not answer within " + answerTime.String() + ". It is busy or stuck: see /healthz of the health port, 10256 as a rule."}}, http.StatusServiceUnavailable
	}
	return view{Title: "No answer", name: "failed", Body: failure{Text: err.Error()}}, http.StatusServiceUnavailable
}

func names(ids []cluster.ID) (list []string) {
	for _, id := range ids {
		list = append(list, id.String())
	}
	return list
}

// health is how the agent fares, with as many problems as a page has.
func (p *pages) health() Health {
	h := p.Health()
	h.Problems = h.Problems[:min(len(h.Problems), pageProblems)]
	return h
}
