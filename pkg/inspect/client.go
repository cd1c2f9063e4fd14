package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// Client asks an agent what [Node] answers, through [Node.Handler].
type Client struct{ http *http.Client }

// NewClient makes one that reaches the agent in one way.
func NewClient(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{&http.Client{Timeout: answerTime + 5*time.Second, Transport: &http.Transport{MaxIdleConns: 1, IdleConnTimeout: 5 * time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}}
}

// Close lets go of the connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// mostAnswer is how many bytes an answer may have: 2,000 rows are half a megabyte.
const mostAnswer = 64 << 20

// Get asks for a path and reads the answer. A question that the agent does not answer gives its own words.
func (c *Client) Get(ctx context.Context, path string, v url.Values, into any) error {
	return c.Read(ctx, path, v, mostAnswer, func(r io.Reader) error { return json.NewDecoder(r).Decode(into) })
}

// Read is Get for an answer that is read as it comes, and that has so many bytes at most.
func (c *Client) Read(ctx context.Context, path string, v url.Values, most int64, read func(io.Reader) error) error {
	target := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: v.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return fmt.Errorf("ask the agent for %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err // the address that it names is none
		}
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
		if err != nil {
			return fmt.Errorf("read the agent's answer to %s: %w", path, err)
		}
		return faultOf(resp, body, path)
	}
	if err := read(io.LimitReader(resp.Body, most)); err != nil {
		return fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	return nil
}

// faultOf is the error that the agent has answered with.
func faultOf(resp *http.Response, body []byte, path string) error {
	var f fault
	if err := json.Unmarshal(body, &f); err != nil || f.Error == "" {
		return fmt.Errorf("the agent answers %s to %s: it may be another version", resp.Status, path)
	}
	if id, err := cluster.ParseID(f.Service); err == nil {
		unknown := &preview.UnknownServiceError{Service: id}
		for _, text := range f.Near {
			if near, err := cluster.ParseID(text); err == nil {
				unknown.Near = append(unknown.Near, near)
			}
		}
		return unknown
	}
	return fmt.Errorf("the agent: %s", f.Error)
}

// Head says how the node stands.
func (c *Client) Head(ctx context.Context) (h Head, err error) {
	err = c.Get(ctx, pathHead, nil, &h)
	return h, err
}

// List gives a page of rows without what the kernel counts.
func (c *Client) List(ctx context.Context, q Query) (l List, err error) {
	err = c.Get(ctx, pathList, q.values(), &l)
	return l, err
}

// Service says what the agent knows of one. The error is a preview.UnknownServiceError where there is none.
func (c *Client) Service(ctx context.Context, id cluster.ID) (s *Service, err error) {
	err = c.Get(ctx, pathService, url.Values{"name": {id.String()}}, &s)
	return s, err
}

// Explain says what becomes of a Service, and why. The error is a preview.UnknownServiceError where there is none.
func (c *Client) Explain(ctx context.Context, id cluster.ID) (x *preview.Explained, err error) {
	err = c.Get(ctx, pathExplain, url.Values{"service": {id.String()}}, &x)
	return x, err
}

// Packet says what becomes of a packet.
func (c *Client) Packet(ctx context.Context, q preview.Question) (a *preview.Answer, err error) {
	err = c.Get(ctx, pathPacket, url.Values{"q": {q.String()}}, &a)
	return a, err
}

// Names says whose frontends are, one by one.
func (c *Client) Names(ctx context.Context, keys []ipvs.Key) (names []Name, err error) {
	const page = 100 // a request line has a bound
	for len(keys) > 0 {
		some := keys[:min(page, len(keys))]
		keys = keys[len(some):]
		v := url.Values{}
		for _, k := range some {
			v.Add("frontend", k.String())
		}
		var got []Name
		if err := c.Get(ctx, pathNames, v, &got); err != nil {
			return nil, err
		}
		if len(got) != len(some) {
			return nil, fmt.Errorf("the agent names %d frontends of %d", len(got), len(some))
		}
		names = append(names, got...)
	}
	return names, nil
}

// Log gives the last writes, a page of them.
func (c *Client) Log(ctx context.Context, which sync.Selection) (log Log, err error) {
	v := url.Values{}
	if which.Service != (cluster.ID{}) {
		v.Set("service", which.Service.String())
	}
	if !which.Since.IsZero() {
		v.Set("since", which.Since.Format(time.RFC3339Nano))
	}
	if which.Behind > 0 {
		v.Set("behind", strconv.FormatUint(which.Behind, 10))
	}
	if which.Last > 0 {
		v.Set("last", strconv.Itoa(which.Last))
	}
	err = c.Get(ctx, pathLog, v, &log)
	return log, err
}
