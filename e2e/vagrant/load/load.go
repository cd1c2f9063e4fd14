// Package load talks to a Service without a pause, and counts what is lost: requests on connections of their own,
// requests on one connection that is kept, and datagrams from one socket.
package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Kinds of load.
const (
	New  = "new connections"
	Kept = "kept connection"
	UDP  = "datagrams"
)

// How long a connection and an answer may take. The kernel alone makes connections, without a wait for anybody. An application
// on an emulated machine that is busy answers late, and nothing is lost by that: 34 s were seen where the proxy did nothing.
const (
	connectTime = 15 * time.Second
	patience    = time.Minute
)

// Count is what became of one kind of load.
type Count struct {
	Asked   int            `json:"asked"`
	Lost    int            `json:"lost"`              // no answer, or a connection that was reset or refused
	Longest float64        `json:"longest"`           // seconds until an answer
	Errors  map[string]int `json:"errors,omitempty"`  // what was lost, by reason; a few kinds of reason at most
	Answers map[string]int `json:"answers,omitempty"` // by who answered
}

// Load is running talk to one address.
type Load struct {
	mu     sync.Mutex
	counts map[string]*Count
	wg     sync.WaitGroup
	end    context.CancelFunc
}

// Start talks to an address, host:port, each kind once an interval as long as answers come within it. Stop ends it.
func Start(addr string, interval time.Duration) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{counts: map[string]*Count{}, end: cancel}
	for kind, ask := range map[string]func() (string, error){
		New:  func() (string, error) { return once(addr) },
		Kept: (&kept{addr: addr, network: "tcp"}).http,
		UDP:  (&kept{addr: addr, network: "udp"}).datagram,
	} {
		c := &Count{Errors: map[string]int{}, Answers: map[string]int{}}
		l.counts[kind] = c
		l.wg.Go(func() { l.run(ctx, c, interval, ask) })
	}
	return l
}

func (l *Load) run(ctx context.Context, c *Count, interval time.Duration, ask func() (string, error)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ctx.Err() == nil {
		start := time.Now()
		answer, err := ask()
		l.mu.Lock()
		c.Asked++
		c.Longest = max(c.Longest, time.Since(start).Seconds())
		if err != nil {
			c.Lost++
			bounded(c.Errors, reason(err))
		} else {
			bounded(c.Answers, answer)
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// bounded counts a key, of fifty at most.
func bounded(counts map[string]int, key string) {
	if _, ok := counts[key]; !ok && len(counts) >= 50 {
		key = "others"
	}
	counts[key]++
}

// reason leaves out of an error what differs from one connection to the next.
func reason(err error) string {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if _, ok := e.(*os.SyscallError); ok {
			return e.Error()
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "no answer"
	}
	return err.Error()
}

// Counts is a copy of what was counted so far.
func (l *Load) Counts() map[string]Count {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]Count{}
	for kind, c := range l.counts {
		copied := *c
		copied.Errors, copied.Answers = maps.Clone(c.Errors), maps.Clone(c.Answers)
		out[kind] = copied
	}
	return out
}

// Stop ends the load, the last answers included, and returns what was counted.
func (l *Load) Stop() map[string]Count {
	l.end()
	l.wg.Wait()
	return l.Counts()
}

// once is a request on a connection of its own.
func once(addr string) (string, error) {
	k := kept{addr: addr, network: "tcp"}
	answer, err := k.http()
	k.drop()
	return answer, err
}

// kept is one socket for many requests; one that failed gets a successor.
type kept struct {
	addr, network string
	conn          net.Conn
	reader        *bufio.Reader
}

func (k *kept) dial() error {
	if k.conn != nil {
		return nil
	}
	conn, err := net.DialTimeout(k.network, k.addr, connectTime)
	if err != nil {
		return err
	}
	k.conn, k.reader = conn, bufio.NewReader(conn)
	return nil
}

func (k *kept) drop() {
	if k.conn != nil {
		k.conn.Close()
		k.conn = nil
	}
}

func (k *kept) http() (answer string, err error) {
	if err := k.dial(); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			k.drop()
		}
	}()
	if err := k.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(k.conn, "GET / HTTP/1.1\r\nHost: load\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(k.reader, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("answer %s", resp.Status)
	}
	if resp.Close { // the other side goes, and said so: nothing is lost
		k.drop()
	}
	return string(body), nil
}

// datagram asks and waits. A socket whose datagram was lost is used on: what a flow meets after a change is the question.
func (k *kept) datagram() (string, error) {
	if err := k.dial(); err != nil {
		return "", err
	}
	if err := k.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := k.conn.Write([]byte("who")); err != nil {
		return "", err
	}
	var b [512]byte
	n, err := k.conn.Read(b[:])
	return string(b[:n]), err
}
