package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// asker asks an agent as commands, a browser and Prometheus do. It may be used by several goroutines.
type asker struct {
	dial   func(context.Context) (net.Conn, error)
	counts inspect.Counter
	url    string
	web    *http.Client
}

func newAsker(dial func(context.Context) (net.Conn, error), counts inspect.Counter, url string) *asker {
	return &asker{dial: dial, counts: counts, url: url, web: &http.Client{Timeout: time.Minute}}
}

// question is something that people ask of an agent, about one of its Services.
type question struct {
	name string
	// args are those of the command that asks it; nil: it is a page.
	args func(i int) []string
	// ask asks, and gives what says whether the answer is one.
	ask  func(ctx context.Context, i int) (check func() error, err error)
	most float64 // million instructions
	// before is asked right before it, and does not count.
	before func(ctx context.Context) error
}

// What an answer may cost, and a command that asks for it, in million instructions: a processor that does one in a nanosecond needs as
// many ms. A scrape of 500 Services with ten endpoints each is to cost 20, and does not: 144 were counted with 1,000 Services, 85 of
// them for the text. So much is no aim, but what would be worse than it was.
const (
	mostAnswer = 50
	mostScrape = 160
)

// restOfScrapes is for how long an agent makes no page of metrics after another, at most.
const restOfScrapes = 250 * time.Millisecond

// Names of questions that others refer to.
const (
	askShow, askExplain, askPage, askMetrics = "show default/NAME", "explain default/NAME", "status page", "a scrape of the metrics"
)

// questions are all, in the order of the table.
func (a *asker) questions() []question {
	return []question{
		{askShow, func(i int) []string { return []string{"show", idOf(i).String()} }, a.show, mostAnswer, nil},
		{askExplain, func(i int) []string { return []string{"explain", idOf(i).String()} }, a.explain, mostAnswer, nil},
		{"explain CLIENT to ADDRESS:PORT", func(i int) []string { return []string{"explain", client, "to", vipPort(i)} }, a.packet, mostAnswer, nil},
		{askPage, nil, func(ctx context.Context, _ int) (func() error, error) { return a.page(ctx, "/", vipPort(0), 1) }, mostAnswer, nil},
		{"status page of a Service", nil, func(ctx context.Context, i int) (func() error, error) {
			return a.page(ctx, "/services/"+idOf(i).String(), vipPort(i), 1)
		}, mostAnswer, nil},
		{"status page of last changes", nil, func(ctx context.Context, _ int) (func() error, error) {
			return a.page(ctx, "/changes", "ipvsadm", 1)
		}, mostAnswer, nil},
		{askMetrics, nil, func(ctx context.Context, _ int) (func() error, error) { return a.metrics(ctx) }, mostScrape, nil},
		{"a scrape within a second of another", nil, func(ctx context.Context, _ int) (func() error, error) { return a.metrics(ctx) }, mostScrape,
			func(ctx context.Context) error {
				_, err := a.metrics(ctx)
				time.Sleep(restOfScrapes) // which is no cost, and ends within the second
				return err
			}},
	}
}

// client is a pod that asks for something.
const client = "10.129.0.7"

func vipPort(i int) string { return netip.AddrPortFrom(vip(i), 80).String() }

// ask has a client ask, over a connection of its own, and holds what it would print against the Service's address.
func (a *asker) ask(ctx context.Context, i int, f func(c *inspect.Client, head inspect.Head) (string, error)) (check func() error, err error) {
	c := inspect.NewClient(a.dial)
	defer c.Close()
	head, err := c.Head(ctx)
	if err != nil {
		return nil, err
	}
	text, err := f(c, head)
	return func() error { return has(text, vip(i).String()) }, err
}

func (a *asker) show(ctx context.Context, i int) (check func() error, err error) {
	return a.ask(ctx, i, func(c *inspect.Client, head inspect.Head) (string, error) {
		s, err := c.Service(ctx, idOf(i))
		if err != nil {
			return "", err
		}
		counts, err := inspect.CountsOf(ctx, a.counts, s.Keys())
		s.Count(counts)
		return s.Text(head, inspect.Style{Now: head.Now}), err
	})
}

func (a *asker) explain(ctx context.Context, i int) (check func() error, err error) {
	return a.ask(ctx, i, func(c *inspect.Client, _ inspect.Head) (string, error) {
		x, err := c.Explain(ctx, idOf(i))
		if err != nil {
			return "", err
		}
		return x.Text(), nil
	})
}

func (a *asker) packet(ctx context.Context, i int) (check func() error, err error) {
	return a.ask(ctx, i, func(c *inspect.Client, _ inspect.Head) (string, error) {
		is, err := c.Packet(ctx, preview.Question{Client: netip.MustParseAddr(client), To: ipvs.Key{Addr: vip(i), Port: 80, Proto: ipvs.TCP}})
		if err != nil {
			return "", err
		}
		return is.Text(), nil
	})
}

// metrics reads those of all, for each Service a line of each metric.
func (a *asker) metrics(ctx context.Context) (check func() error, err error) {
	return a.page(ctx, "/metrics", "\nipvsproxy_service_connections_total{", measured)
}

// page reads one as it comes, compressed where the agent likes that, which has something so many times at least.
func (a *asker) page(ctx context.Context, path, want string, times int) (check func() error, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept-Encoding", "gzip")
	resp, err := a.web.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return func() error { return contains(body, resp.Header.Get("Content-Encoding"), want, times) }, err
}

// contains is an error unless a page has something so many times at least.
func contains(body []byte, encoding, want string, times int) error {
	if encoding == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return err
		}
		if body, err = io.ReadAll(z); err != nil {
			return err
		}
	}
	if n := strings.Count(string(body), want); n < times {
		return errors.Join(fmt.Errorf("%d times %q, want %d", n, want, times), has(string(body), want))
	}
	return nil
}
