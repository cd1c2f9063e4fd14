package page

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// asked is a request as one from this node looks.
func asked(method, target string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.Host, r.RemoteAddr = "localhost:10249", "127.0.0.1:54321"
	return arrived(r, "127.0.0.1:10249")
}

// arrived is a request that arrives at an address of this machine.
func arrived(r *http.Request, local string) *http.Request {
	a, err := net.ResolveTCPAddr("tcp", local)
	if err != nil {
		panic(err)
	}
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(a)))
}

// below is what the port serves besides.
var below = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusTeapot)
	_, _ = io.WriteString(w, "below "+r.URL.Path)
})

func over(w *world, change ...func(*Options)) http.Handler {
	o := Options{Answers: w, Counter: w, Health: func() Health { return w.health }, Node: "node1", Log: zap.NewNop(), Now: func() time.Time { return now }, Links: []Link{{"/metrics", "Metrics"}}}
	for _, c := range change {
		c(&o)
	}
	return Over(below, o)
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Who asks from elsewhere gets what the port serves without a page, whatever it says that it is.
func TestB73PageForWhom(t *testing.T) {
	h := over(newWorld(3))
	for _, c := range []struct {
		what, local, remote, host string
		want                      int
	}{
		{"from the node", "127.0.0.1:10249", "127.0.0.1:1", "localhost:10249", 200},
		{"by another port, as port-forward does", "127.0.0.1:10249", "127.0.0.1:1", "localhost:18080", 200},
		{"by address", "127.0.0.1:10249", "127.0.0.1:1", "127.0.0.1:10249", 200},
		{"by another loopback address", "127.0.0.2:10249", "127.0.0.1:1", "127.0.0.2", 200},
		{"by IPv6", "[::1]:10249", "[::1]:1", "[::1]:10249", 200},
		{"IPv4 on a socket of both families", "[::ffff:127.0.0.1]:10249", "[::ffff:127.0.0.1]:1", "127.0.0.1", 200},
		{"at the node's address", "172.28.128.11:10249", "172.28.128.11:1", "localhost", 418},
		{"from a neighbour through route_localnet", "127.0.0.1:10249", "172.28.128.12:1", "localhost", 418},
		{"from a neighbour at the node's address", "172.28.128.11:10249", "172.28.128.12:1", "172.28.128.11:10249", 418},
		{"a name that was made to resolve to loopback", "127.0.0.1:10249", "127.0.0.1:1", "attacker.example:10249", 421},
		{"a name that begins like ours", "127.0.0.1:10249", "127.0.0.1:1", "localhost.attacker.example", 421},
		{"a name that ends like ours", "127.0.0.1:10249", "127.0.0.1:1", "notlocalhost", 421},
		{"the node's address, forwarded", "127.0.0.1:10249", "127.0.0.1:1", "172.28.128.11", 421},
		{"no name", "127.0.0.1:10249", "127.0.0.1:1", "", 421},
	} {
		for _, path := range []string{"/", "/services/team-00/service-00000", "/changes", "/packet?client=node&to=10.96.0.1:80", "/reasons"} {
			r := arrived(httptest.NewRequest(http.MethodGet, path, nil), c.local)
			r.RemoteAddr, r.Host = c.remote, c.host
			w := serve(h, r)
			if w.Code != c.want {
				t.Errorf("%s, %s: %d, want %d", c.what, path, w.Code, c.want)
			}
			if c.want != 200 && strings.Contains(w.Body.String(), "10.96.0.") {
				t.Errorf("%s, %s: it says what is served", c.what, path)
			}
			everyone := over(newWorld(3), func(o *Options) { o.Everyone = true })
			if w := serve(everyone, r); w.Code != 200 {
				t.Errorf("%s, %s: %d where everyone may look", c.what, path, w.Code)
			}
		}
	}
	// A request of which nobody knows where it came in is not from here.
	r := asked(http.MethodGet, "/")
	if w := serve(h, r.WithContext(context.Background())); w.Code != 418 {
		t.Errorf("without an address: %d", w.Code)
	}
}

// What is no page of ours stays what it was, for everybody.
func TestB73PageAndTheRest(t *testing.T) {
	h := over(newWorld(3))
	for _, path := range []string{"/metrics", "/healthz", "/no-such-page", "/services", "/services/a", "/services/a/b/c", "/index.html"} {
		if w := serve(h, asked(http.MethodGet, path)); w.Code != 418 || w.Body.String() != "below "+path {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// It is read, and that is all.
func TestB73PageReadOnly(t *testing.T) {
	h := over(newWorld(3))
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} {
		w := serve(h, asked(method, "/"))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d, Allow %q", method, w.Code, w.Header().Get("Allow"))
		}
	}
	server := httptest.NewServer(h)
	defer server.Close()
	head, err := http.Head(server.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer head.Body.Close()
	whole, err := http.Get(server.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Body.Close()
	body, err := io.ReadAll(whole.Body)
	if err != nil || head.StatusCode != 200 || whole.StatusCode != 200 || head.ContentLength != int64(len(body)) || len(body) == 0 {
		t.Errorf("HEAD %d with length %d, GET %d with %d bytes, %v", head.StatusCode, head.ContentLength, whole.StatusCode, len(body), err)
	}
}

// Nothing is loaded, no script runs, nobody frames it, nobody keeps it.
func TestB73PageHeaders(t *testing.T) {
	h := over(newWorld(3))
	for _, path := range []string{"/", "/services/team-00/service-00000", "/services/no/such", "/changes", "/reasons", "/?state=nonsense"} {
		w := serve(h, asked(http.MethodGet, path))
		for name, want := range map[string]string{"Content-Type": "text/html; charset=utf-8", "X-Content-Type-Options": "nosniff",
			"Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		csp := w.Header().Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'", "style-src 'sha256-"} {
			if !strings.Contains(csp, part) {
				t.Errorf("%s: the policy %q lacks %q", path, csp, part)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
			t.Errorf("%s: the policy %q lets more in", path, csp)
		}
	}
}

// What cannot be answered has a status, says what is wanted, and keeps the page's frame.
func TestB73PageErrors(t *testing.T) {
	for _, c := range []struct {
		path string
		err  error
		code int
		want string
	}{
		{"/services/team-00/service-0000", nil, 404, "team-00/service-0000 is no Service that this proxy serves."},
		{"/services/team-00/service-0000", nil, 404, `href="/services/team-00/service-00000"`},
		{"/?state=opne", nil, 400, "state &#34;opne&#34;: want one of open, no-endpoints"},
		{"/?after=shop", nil, 400, "after &#34;shop&#34;: want a Service&#39;s name as NAMESPACE/NAME."},
		{"/?q=" + strings.Repeat("ä", 201), nil, 400, "q has more than 200 characters"},
		{"/?q=" + strings.Repeat("%C3%A4", 200), nil, 200, "No Service fits."},
		{"/changes?service=shop", nil, 400, "service &#34;shop&#34;: want a Service&#39;s name as NAMESPACE/NAME."},
		{"/packet?client=x&to=10.96.0.1:80", nil, 400, "the client &#34;x&#34; is neither an IP address nor the word node."},
		{"/packet?client=10.0.0.1&to=" + strings.Repeat("9", 5000), nil, 400, "Not understood"},
		{"/packet?to=10.96.0.1:80", nil, 200, `value="10.96.0.1:80"`},
		{"/packet?client=node&to=10.96.0.1:80", errors.New("the loop has ended"), 503, "the loop has ended"},
		{"/?after=zzz/zzz", nil, 200, "The list ends before."},
		{"/?after=zzz/zzz&q=a", nil, 200, "No Service fits behind that place."},
		{"/", errors.New("the loop has ended"), 503, "the loop has ended"},
		{"/", fmt.Errorf("the loop did not come to the question: %w", context.DeadlineExceeded), 503, "did not answer within 5s"},
	} {
		w := newWorld(3)
		w.err = c.err
		got := serve(over(w), asked(http.MethodGet, c.path))
		if got.Code != c.code || !strings.Contains(got.Body.String(), c.want) || !strings.Contains(got.Body.String(), "<main") {
			t.Errorf("%s: %d, want %d with %q:\n%s", c.path, got.Code, c.code, c.want, got.Body)
		}
	}
}

// Who asks while others do waits for its turn, and not for ever; only a few pages are made at a time.
func TestB73PageTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(3)
		w.wait = make(chan struct{})
		h := over(w)
		codes := make(chan int, 200)
		ask := func(n int) {
			for range n {
				go func() { codes <- serve(h, asked(http.MethodGet, "/")).Code }()
			}
		}
		ask(100)
		synctest.Wait()
		if n := w.heads.Load(); n != together {
			t.Errorf("%d pages are made at a time, want %d", n, together)
		}
		began := time.Now()
		for range 100 {
			if code := <-codes; code != http.StatusServiceUnavailable {
				t.Errorf("who got no answer: %d", code)
			}
		}
		if took := time.Since(began); took != answerTime {
			t.Errorf("they waited for %v, want %v", took, answerTime)
		}
		close(w.wait)
		ask(100)
		for range 100 {
			if code := <-codes; code != http.StatusOK {
				t.Errorf("once there are answers: %d", code)
			}
		}
	})
}
