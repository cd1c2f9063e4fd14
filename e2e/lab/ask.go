package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Verdict is how a question ended.
type Verdict int

const (
	Answered    Verdict = iota
	Refused             // ECONNREFUSED, ENOPROTOOPT: a reset or an ICMP error in place of a connection
	TimedOut            // no answer in time
	Reset               // the connection stood and was reset
	Unreachable         // EHOSTUNREACH, ENETUNREACH
	Failed              // anything else, see Err
)

func (v Verdict) String() string {
	names := []string{"answered", "refused", "timed out", "reset", "unreachable", "failed"}
	if v < 0 || int(v) >= len(names) {
		return fmt.Sprintf("Verdict(%d)", int(v))
	}
	return names[v]
}

// Reply is the answer to one question.
type Reply struct {
	Verdict   Verdict
	Pod       string     // who answered
	Source    netip.Addr // as whom the asker was seen
	Took      time.Duration
	Err       error  // unless answered
	LocalPort uint16 // from which was asked
	// Again: the connection stood, and its SYN had been sent more than once.
	Again bool
}

func (r Reply) String() string {
	took := r.Took.Round(100 * time.Microsecond)
	switch {
	case r.Verdict == Answered && r.Pod != "":
		return fmt.Sprintf("%s answered %s in %s", r.Pod, r.Source, took)
	case r.Err != nil && r.Verdict != TimedOut:
		return fmt.Sprintf("%s after %s (%v)", r.Verdict, took, r.Err)
	default:
		return fmt.Sprintf("%s after %s", r.Verdict, took)
	}
}

// verdict names an error of a connection.
func verdict(err error) Verdict {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return Answered
	case is(unix.ECONNREFUSED, unix.ENOPROTOOPT):
		return Refused
	case is(os.ErrDeadlineExceeded, unix.ETIMEDOUT):
		return TimedOut
	case is(unix.ECONNRESET, unix.EPIPE):
		return Reset
	case is(unix.EHOSTUNREACH, unix.ENETUNREACH):
		return Unreachable
	default:
		return Failed
	}
}

// DefaultTimeout suits a machine 15 times slower than metal. One that is busy beyond that gets more, see Patience.
const DefaultTimeout = 3 * time.Second

type question struct {
	timeout time.Duration // 0 is what DefaultTimeout comes to here and now
	wait    time.Duration
	from    netip.Addr
	port    uint16
	path    string
	proto   int // of the socket; 0 is TCP
}

// AskOption changes one question.
type AskOption func(*question)

// Timeout is the longest that the question may take, in place of 3 s, or more where the machine is busy.
func Timeout(d time.Duration) AskOption { return func(q *question) { q.timeout = d } }

// Wait has the server hold its answer back. The time-out is not prolonged.
func Wait(d time.Duration) AskOption { return func(q *question) { q.wait = d } }

// From binds the socket to an address of the asker.
func From(a netip.Addr) AskOption { return func(q *question) { q.from = a } }

// FromPort binds the socket to a port, also one that is in TIME_WAIT.
func FromPort(p uint16) AskOption { return func(q *question) { q.port = p } }

// Path is what is asked for, in place of "/".
func Path(p string) AskOption { return func(q *question) { q.path = p } }

// OverSCTP asks over SCTP in place of TCP, see Host.AskSCTP.
func OverSCTP() AskOption { return func(q *question) { q.proto = unix.IPPROTO_SCTP } }

func newQuestion(opts []AskOption) *question {
	q := &question{path: "/"}
	for _, o := range opts {
		o(q)
	}
	if q.timeout == 0 {
		q.timeout = Patience(DefaultTimeout)
	}
	return q
}

// source is the local end to bind to; its zero value leaves it to the kernel.
func (q *question) source(to netip.Addr) netip.AddrPort {
	switch {
	case q.from.IsValid() || q.port == 0:
		return netip.AddrPortFrom(q.from, q.port)
	case to.Is4():
		return netip.AddrPortFrom(netip.IPv4Unspecified(), q.port)
	default:
		return netip.AddrPortFrom(netip.IPv6Unspecified(), q.port)
	}
}

func (q *question) request(to netip.AddrPort) []byte {
	path := q.path
	if q.wait > 0 {
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		path += sep + "wait=" + url.QueryEscape(q.wait.String())
	}
	// The server closes first and keeps the TIME_WAIT: a client that closed
	// first would be out of ports after 28,000 questions in a minute.
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, to)
}

// Ask opens a connection, asks once over HTTP and closes it.
func (h *Host) Ask(to netip.AddrPort, opts ...AskOption) Reply {
	start := time.Now()
	r := h.ask(to, newQuestion(opts), start)
	r.Took = time.Since(start)
	r.Verdict = verdict(r.Err)
	return r
}

func (h *Host) ask(to netip.AddrPort, q *question, start time.Time) (r Reply) {
	conn, port, err := h.dial(q.proto, q.source(to.Addr()), to, start.Add(q.timeout))
	r.LocalPort = port
	if conn != nil {
		defer conn.Close()
	}
	if err == nil || errors.Is(err, unix.ECONNRESET) { // which is after it stood; in a handshake it is ECONNREFUSED
		r.Again = q.proto == 0 && sentAgain(conn)
	}
	if err != nil {
		r.Err = fmt.Errorf("%s to %s: %w", h.Name, to, err)
		return r
	}
	if r.Pod, r.Source, err = exchange(conn, q.request(to)); err != nil {
		r.Err = fmt.Errorf("%s to %s, connected: %w", h.Name, to, err)
	}
	return r
}

func exchange(conn io.ReadWriter, request []byte) (pod string, source netip.Addr, err error) {
	if _, err := conn.Write(request); err != nil {
		return "", source, fmt.Errorf("sending the request: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 1024), nil)
	if err != nil {
		return "", source, fmt.Errorf("reading the answer: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", source, fmt.Errorf("reading the answer: %w", err)
	}
	return parseAnswer(resp.StatusCode, body)
}

func parseAnswer(status int, body []byte) (pod string, source netip.Addr, err error) {
	p, s, ok := strings.Cut(string(bytes.TrimSpace(body)), " source=")
	pod, isPod := strings.CutPrefix(p, "pod=")
	if status != http.StatusOK || !ok || !isPod {
		return "", source, fmt.Errorf("answer is not from a server of the lab: status %d, %.100q", status, body)
	}
	source, err = netip.ParseAddr(s)
	if err != nil {
		return "", source, fmt.Errorf("source in the answer of %s: %w", pod, err)
	}
	return pod, source, nil
}

// Connect opens a connection and closes it, asking nothing: Answered means that
// it stood. For refusals this is the cheap way.
func (h *Host) Connect(to netip.AddrPort, opts ...AskOption) Reply {
	q := newQuestion(opts)
	start := time.Now()
	conn, port, err := h.dial(q.proto, q.source(to.Addr()), to, start.Add(q.timeout))
	r := Reply{Verdict: verdict(err), LocalPort: port, Took: time.Since(start)}
	if conn != nil {
		conn.Close()
	}
	if err != nil {
		r.Err = fmt.Errorf("%s to %s: %w", h.Name, to, err)
	}
	return r
}

// Spread asks n times, one after the other, and counts who answered; what was
// not answered comes back as it is.
func (h *Host) Spread(to netip.AddrPort, n int, opts ...AskOption) (byPod map[string]int, lost []Reply) {
	replies := make([]Reply, 0, n)
	for range n {
		replies = append(replies, h.Ask(to, opts...))
	}
	return count(replies)
}

func count(replies []Reply) (byPod map[string]int, lost []Reply) {
	byPod = map[string]int{}
	for _, r := range replies {
		if r.Verdict == Answered {
			byPod[r.Pod]++
		} else {
			lost = append(lost, r)
		}
	}
	return byPod, lost
}
