package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestDroppedWatch: a watch that ends goes on where it ended, without a list.
func TestDroppedWatch(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	o := follow(t, f.connection(), ownNode)
	o.synced()
	for _, kind := range []string{"Service", "EndpointSlice", "Node"} { // a watch that ends without a word is another matter
		o.bookmarked(f, kind)
	}
	f.drop()
	f.set(apiSlice("a-1", "a", "10.1.0.2"))
	o.expect("a=[10.96.0.1][10.1.0.2] zone=")
	for _, a := range f.asked("endpointslices")[1:] {
		if a.query.Get("watch") == "" || a.query.Get("sendInitialEvents") != "" {
			t.Errorf("a list: %v", a.query)
		}
	}
}

// TestF2Unreachable: an API server that is not there, at the start and later,
// is told of once each time, with the reason, and takes nothing away.
func TestF2Unreachable(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	conn := f.connection()
	f.stop()
	o := follow(t, conn, ownNode)
	eventually(t, "three kinds that cannot be had", func() bool {
		o.source.contact.mu.Lock()
		defer o.source.contact.mu.Unlock()
		return len(o.source.contact.faults) == 3
	})
	if o.source.Reachable() || o.source.Age() <= 0 {
		t.Error("reachable, or as new as can be")
	}
	if dirty, _, synced := o.m.Take(); synced || o.m.Complete() || len(dirty) > 1 { // default/kubernetes, for its address
		t.Errorf("synced %t, complete %t, dirty %v without a word from the API server", synced, o.m.Complete(), dirty)
	}
	f.restart()
	o.synced()
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	eventually(t, "reachable", o.source.Reachable)

	f.stop()
	eventually(t, "unreachable", func() bool { return !o.source.Reachable() })
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	f.restart()
	eventually(t, "reachable", o.source.Reachable)
	// How the connection died may be told first, and comes along then.
	var lines []string
	for _, line := range o.reports() {
		if strings.Contains(line, "dial tcp "+f.addr+": connect: connection refused") {
			lines = append(lines, strings.SplitAfter(line, "https://"+f.addr)[0])
		}
	}
	server := "API server https://" + f.addr
	if diff := cmp.Diff([]string{server, "mended: " + server, server, "mended: " + server}, lines); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// TestContactTellsOnce: an outage is told of when it begins, for a new reason,
// and when it is over, not for each attempt.
func TestContactTellsOnce(t *testing.T) {
	var told []string
	c := newContact("https://api:6443", []string{"Service", "Node"}, func(err error) { told = append(told, err.Error()) })
	get := func(err error) error {
		return fmt.Errorf("wrapped: %w", &url.Error{Op: "Get", URL: fmt.Sprintf("https://api:6443/?timeoutSeconds=%d", len(told)), Err: err})
	}
	for port := range 100 {
		c.failed("Service", get(fmt.Errorf("read tcp 192.0.2.7:%d->192.0.2.1:6443: connection reset", 32000+port)))
		c.failed("Node", get(fmt.Errorf("read tcp [2001:db8::7]:%d->[2001:db8::1]:6443: connection reset", 32000+port)))
		if port > 50 {
			c.failed("Node", get(errors.New("no route to host")))
		}
	}
	c.answered("Service")
	if c.reachable() {
		t.Error("reachable with one kind that fails")
	}
	c.hear("Node")
	if !c.reachable() {
		t.Error("not reachable with both")
	}
	for range 1000 {
		c.failed("Node", fmt.Errorf("another reason each time: %d", len(told)))
	}
	const head, four, six = "API server https://api:6443: ", "read tcp 192.0.2.1:6443: connection reset", "read tcp [2001:db8::1]:6443: connection reset"
	const stays = "; the last state stays"
	want := []string{head + four + stays, head + four + "; " + six + stays, head + four + "; " + six + "; no route to host" + stays,
		"mended: " + head + four + "; " + six + "; no route to host" + stays}
	if diff := cmp.Diff(want, told[:min(len(told), len(want))]); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if n := len(told) - len(want); n != mostReasons {
		t.Errorf("%d reasons of one outage told, want %d", n, mostReasons)
	}
}

// relay forwards TCP connections, and can make those that there are hang, as a
// network does that drops all packets.
type relay struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	hangs chan struct{} // closed: the connections made so far hang
	conns []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, to: to, hangs: make(chan struct{})}
	go r.accept()
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range r.conns {
			c.Close()
		}
	})
	return r
}

func (r *relay) accept() {
	for {
		near, err := r.l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", r.to)
		if err != nil {
			near.Close()
			continue
		}
		r.mu.Lock()
		hangs := r.hangs
		r.conns = append(r.conns, near, far)
		r.mu.Unlock()
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				buffer := make([]byte, 64<<10)
				for {
					n, err := way[0].Read(buffer)
					select {
					case <-hangs:
						return // nothing is closed
					default:
					}
					if err != nil {
						way[1].Close()
						return
					}
					_, _ = way[1].Write(buffer[:n])
				}
			}()
		}
	}
}

func (r *relay) hang() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.hangs)
	r.hangs = make(chan struct{})
}

// TestF3HalfOpen: a connection over which nothing comes any more, and which
// nobody closes, is found by HTTP/2's pings and replaced. Their times are
// shortened by the environment here, which also shows that our transport has
// them at all.
func TestF3HalfOpen(t *testing.T) {
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "1")
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a", "10.1.0.1"))
	network := newRelay(t, f.addr)
	conn := f.connection()
	conn.Kubeconfig = f.kubeconfig("https://"+network.l.Addr().String(), "")
	o := follow(t, conn, ownNode)
	o.expect("a=[10.96.0.1][10.1.0.1] zone=")
	network.hang()
	f.set(apiSlice("a-1", "a", "10.1.0.2"))
	o.expect("a=[10.96.0.1][10.1.0.2] zone=")
}

// TestForbidden: an API server that answers and does not give what is asked is
// trouble, too, and names what it does not give.
func TestForbidden(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"))
	f.refuse = func(r *http.Request) *metav1.Status {
		if !strings.HasSuffix(r.URL.Path, "/endpointslices") {
			return nil
		}
		return &metav1.Status{Status: "Failure", Code: 403, Reason: metav1.StatusReasonForbidden, Message: "endpointslices is forbidden: no"}
	}
	o := follow(t, f.connection(), ownNode)
	o.expect("a=[10.96.0.1][] zone=")
	eventually(t, "told", func() bool { return len(o.reports()) == 1 })
	if got := o.reports()[0]; !strings.Contains(got, "endpointslices is forbidden: no") {
		t.Error(got)
	}
	if o.m.Complete() || o.source.Reachable() {
		t.Error("complete or well without EndpointSlices")
	}
}

// TestTokenIsReadAgain: a token that was replaced in its file is used after the
// API server refused the old one.
func TestTokenIsReadAgain(t *testing.T) {
	f := newFakeAPI(t)
	f.set(apiService("a", "10.96.0.1"))
	token := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(token, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	valid := "one"
	f.refuse = func(r *http.Request) *metav1.Status {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") == "Bearer "+valid {
			return nil
		}
		return &metav1.Status{Status: "Failure", Code: 401, Reason: metav1.StatusReasonUnauthorized, Message: "Unauthorized"}
	}
	write("one")
	conn := f.connection()
	conn.Kubeconfig = f.kubeconfig("https://"+f.addr, fmt.Sprintf("tokenFile: %q", token))
	o := follow(t, conn, ownNode)
	o.synced()
	write("two")
	mu.Lock()
	valid = "two"
	mu.Unlock()
	f.drop()
	f.set(apiService("a", "10.96.0.2"))
	o.expect("a=[10.96.0.2][] zone=")
}

// TestAge: it starts anew with all that the API server says, a bookmark at the
// least, and grows with the kind that it is silent about.
func TestAge(t *testing.T) {
	f := newFakeAPI(t)
	o := follow(t, f.connection(), ownNode)
	o.synced()
	c := o.source.contact
	var mu sync.Mutex
	ahead := time.Hour
	c.mu.Lock()
	c.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}
	c.mu.Unlock()
	if age := o.source.Age(); age < time.Hour {
		t.Errorf("age %s an hour after the last word", age)
	}
	f.set(apiService("a", "10.96.0.1"), apiSlice("a-1", "a"))
	o.expect("a=[10.96.0.1][] zone=")
	if age := o.source.Age(); age < time.Hour {
		t.Errorf("age %s with no word about the Node", age)
	}
	f.bookmark()
	eventually(t, "young again", func() bool { return o.source.Age() < time.Minute })
}
