package page

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
)

// document is a page as a browser takes it apart.
func document(t *testing.T, h http.Handler, path string) *html.Node {
	t.Helper()
	w := serve(h, asked(http.MethodGet, path))
	if w.Code != 200 {
		t.Fatalf("%s: %d\n%s", path, w.Code, w.Body)
	}
	root, err := html.Parse(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// elements are those of a kind.
func elements(root *html.Node, kinds ...atom.Atom) (list []*html.Node) {
	for n := range root.Descendants() {
		for _, kind := range kinds {
			if n.Type == html.ElementNode && n.DataAtom == kind {
				list = append(list, n)
			}
		}
	}
	return list
}

func text(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// allPaths are all kinds of pages.
var allPaths = []string{"/", "/?state=%21open", "/?q=service-00004", "/?after=team-10/a&live=1", "/services/team-04/service-00004", "/changes", "/packet", "/packet?client=198.51.100.7&to=10.96.0.1:80", "/reasons"}

// Whoever has the page read to them, or uses no mouse, finds their way: landmarks, one heading of the first rank, labels,
// headers of tables with their scope, a way past the head, no trap.
func TestB73PageForEveryReader(t *testing.T) {
	h := over(newWorld(200))
	for _, path := range allPaths {
		root := document(t, h, path)
		for _, kind := range []atom.Atom{atom.H1, atom.Main, atom.Header, atom.Footer, atom.Title} {
			if n := elements(root, kind); len(n) != 1 || kind != atom.Main && text(n[0]) == "" {
				t.Errorf("%s: %d of %s, want one with content", path, len(n), kind)
			}
		}
		if attr(elements(root, atom.Html)[0], "lang") != "en" {
			t.Errorf("%s: no language", path)
		}
		first := elements(elements(root, atom.Body)[0], atom.A)[0]
		if attr(first, "href") != "#"+attr(elements(root, atom.Main)[0], "id") {
			t.Errorf("%s: the first link is no way past the head", path)
		}
		checkHeadings(t, path, root)
		checkTables(t, path, root)
		for _, n := range elements(root, atom.Input, atom.Select) {
			if n.Parent.DataAtom != atom.Label || text(n.Parent) == "" {
				t.Errorf("%s: the field %q has no label", path, attr(n, "name"))
			}
		}
		ids := map[string]bool{}
		for n := range root.Descendants() {
			id := attr(n, "id")
			if id != "" && ids[id] {
				t.Errorf("%s: two of id %s", path, id)
			}
			ids[id] = true
			if n, err := strconv.Atoi(attr(n, "tabindex")); err == nil && n > 0 {
				t.Errorf("%s: an order of tabs of its own", path)
			}
		}
		for _, n := range elements(root, atom.Nav) {
			if attr(n, "aria-label") == "" {
				t.Errorf("%s: one of several navigations without a name", path)
			}
		}
	}
}

func checkHeadings(t *testing.T, path string, root *html.Node) {
	t.Helper()
	rank := 0
	for _, n := range elements(root, atom.H1, atom.H2, atom.H3, atom.H4) {
		is := int(n.Data[1] - '0')
		if is > rank+1 {
			t.Errorf("%s: from h%d to h%d at %q", path, rank, is, text(n))
		}
		rank = is
	}
}

func checkTables(t *testing.T, path string, root *html.Node) {
	t.Helper()
	for _, table := range elements(root, atom.Table) {
		columns := 0
		for _, n := range elements(table, atom.Th) {
			if attr(n, "scope") == "" || text(n) == "" {
				t.Errorf("%s: a header without a scope or text: %q", path, text(n))
			}
			if attr(n, "scope") == "col" {
				columns++
			}
		}
		if columns < 3 {
			t.Errorf("%s: a table with %d headers of columns", path, columns)
		}
		if p := table.Parent; attr(p, "role") != "region" || attr(p, "tabindex") != "0" || attr(p, "aria-label")+attr(p, "aria-labelledby") == "" {
			t.Errorf("%s: a table that scrolls, and not by the keyboard", path)
		}
	}
}

// Nothing comes from elsewhere, nothing runs, and all that a page leads to is on this server.
func TestB73PageStandsAlone(t *testing.T) {
	h := over(newWorld(200))
	for _, path := range allPaths {
		for n := range document(t, h, path).Descendants() {
			switch n.DataAtom {
			case atom.Script, atom.Img, atom.Iframe, atom.Object, atom.Embed:
				t.Errorf("%s: <%s>", path, n.Data)
			}
			for _, a := range n.Attr {
				outside := strings.Contains(a.Val, "//") || a.Key == "href" && strings.HasPrefix(a.Val, "data:") && a.Val != "data:,"
				if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "src" || (a.Key == "href" || a.Key == "action") && outside {
					t.Errorf("%s: %s=%q", path, a.Key, a.Val)
				}
			}
		}
	}
}

// Names come from objects that users write: they are text, whatever they look like.
func TestB73PageHostileNames(t *testing.T) {
	const evil = `"><script>alert(1)</script><a href="javascript:alert(1)" onclick=alert(1)>'`
	const name = `"><script>alert(1)<a href="javascript:alert(1)" onclick=alert(1)>'`
	w := newWorld(1)
	s, reason := &w.services[0], inspect.Reason{Code: evil, Why: evil, Do: evil}
	s.Service, s.Type, s.InternalPolicy, s.ExternalPolicy = name+"/"+name, evil, evil, evil
	f := &s.Frontends[0]
	f.Service, f.Frontend, f.Port, f.Protocol, f.By, f.Scheduler, f.State, f.Reason, f.Inside = s.Service, evil, evil, evil, evil, evil, evil, reason, evil
	f.Of = []inspect.Backend{{Address: evil, Node: evil, State: evil, Reason: reason}, {Address: evil, Node: evil, State: inspect.LeftOut, Reason: reason}}
	s.Problems, s.Pending = []inspect.Problem{{What: evil, Reason: reason}}, []string{evil}
	w.changes = []inspect.Change{{At: now, Service: s.Service, Line: evil, Cause: evil, Error: evil}}
	w.health.Problems, w.head.Note, w.head.Version, w.head.Kernel, w.mute = []string{evil}, evil, evil, evil, errors.New(evil)
	h := over(w, func(o *Options) { o.Node, o.Links = evil, []Link{{evil, evil}} })
	for _, path := range []string{"/", "/?q=" + url.QueryEscape(evil), path(name + "/" + name), "/changes", "/changes?service=" + url.QueryEscape(name+"/"+name), "/packet?to=" + url.QueryEscape(evil)} {
		shown := 0
		for n := range document(t, h, path).Descendants() {
			shown += strings.Count(n.Data, "<script>alert(1)")
			if n.DataAtom == atom.Script || n.DataAtom == atom.Base {
				t.Errorf("%s: <%s>", path, n.Data)
			}
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || strings.HasPrefix(a.Val, "javascript:") {
					t.Errorf("%s: %s=%q", path, a.Key, a.Val)
				}
			}
		}
		if shown == 0 {
			t.Errorf("%s: the name is not shown", path)
		}
	}
	// A Service that there is not has a name, too.
	w2 := serve(over(newWorld(1)), asked(http.MethodGet, "/services/x/"+url.PathEscape(name)))
	if w2.Code != 404 || strings.Contains(w2.Body.String(), "<script") {
		t.Errorf("%d %s", w2.Code, w2.Body)
	}
}

// A page has a bound, however much there is to show.
func TestB73PageBounds(t *testing.T) {
	h := over(newWorld(10000))
	for _, path := range []string{"/", "/?after=team-39/service-00039", "/services/team-04/service-00004"} {
		if n := serve(h, asked(http.MethodGet, path)).Body.Len(); n >= 20000 {
			t.Errorf("%s: %d bytes, want less than 20,000", path, n)
		}
	}
	w := newWorld(1)
	s := &w.services[0]
	for i := range 299 {
		f := inspect.Frontend{Row: inspect.Row{Service: s.Service, Frontend: fmt.Sprintf("10.97.0.1:%d", i+1), Protocol: "TCP", State: inspect.Open}}
		for j := range 300 {
			f.Of = append(f.Of, inspect.Backend{Address: fmt.Sprintf("10.245.0.1:%d", j+1), State: []inspect.BackendState{inspect.Ready, inspect.LeftOut}[j%2]})
		}
		s.Frontends = append(s.Frontends, f)
	}
	for i := range 512 {
		s.Pending = append(s.Pending, fmt.Sprintf("ipvsadm -a -t 10.97.0.1:80 -r 10.245.0.1:%d -m -w 1", i+1))
	}
	page := serve(over(w), asked(http.MethodGet, "/services/team-00/service-00000"))
	if n := page.Body.Len(); n > 600_000 {
		t.Errorf("a Service of 300 frontends with 300 endpoints each: %d bytes", n)
	}
	for _, want := range []string{"and 200 endpoints more", "and 280 frontends more", "and 492 changes more"} {
		if !strings.Contains(page.Body.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if list := serve(over(w), asked(http.MethodGet, "/")).Body.String(); !strings.Contains(list, "and 296 more") {
		t.Errorf("the list does not say that there are more frontends:\n%s", list)
	}
}

// The list leads to its other parts, with what was asked for, and to every Service once.
func TestB73PageList(t *testing.T) {
	w := newWorld(60)
	h := over(w)
	seen := map[string]int{}
	path := "/?q=service"
	for steps := 0; path != ""; steps++ {
		root := document(t, h, path)
		for _, a := range elements(elements(root, atom.Table)[0], atom.A) {
			seen[attr(a, "href")]++
		}
		path = ""
		for _, a := range elements(root, atom.A) {
			if attr(a, "rel") == "next" {
				path = attr(a, "href")
			}
		}
		if steps > 3 {
			t.Fatal("it has no end")
		}
	}
	if len(seen) != 60 {
		t.Errorf("%d Services, want 60", len(seen))
	}
	for href, times := range seen {
		if times != 1 {
			t.Errorf("%s stands there %d times", href, times)
		}
	}
	for _, q := range w.asked {
		if q.Text != "service" || q.Most != pageRows {
			t.Errorf("asked for %+v", q)
		}
	}
	begin := ""
	for _, a := range elements(document(t, h, "/?q=service&after=team-10/service-00010&state=open"), atom.A) {
		if attr(a, "rel") == "first" {
			begin = attr(a, "href")
		}
	}
	if begin != "/?q=service&state=open" {
		t.Errorf("the way back to the beginning is %q", begin)
	}
}

// It asks again by itself only where the reader wants that, and then shows the same.
func TestB73PageRefresh(t *testing.T) {
	h := over(newWorld(60))
	refresh := func(root *html.Node) string {
		for _, m := range elements(root, atom.Meta) {
			if attr(m, "http-equiv") == "refresh" {
				return attr(m, "content")
			}
		}
		return ""
	}
	still := document(t, h, "/?q=a&after=a/b")
	if got := refresh(still); got != "" {
		t.Errorf("unasked: %s", got)
	}
	link := ""
	for _, a := range elements(still, atom.A) {
		if strings.Contains(attr(a, "href"), "live") {
			link = attr(a, "href")
		}
	}
	if link != "?after=a%2Fb&live=1&q=a" {
		t.Errorf("the link to refresh is %q", link)
	}
	if got := refresh(document(t, h, "/"+link)); got != "5" {
		t.Errorf("asked: %q", got)
	}
}

// What a page says.
func TestB73PageSays(t *testing.T) {
	w := newWorld(5)
	w.head.Draining, w.head.Failing, w.head.Waiting, w.head.Programmed = 3, 2, 1, false
	w.health = Health{OK: false, APIAge: 90 * time.Second, Problems: []string{"net.ipv4.vs.conntrack is 0: write 1 to it"}}
	w.services[4].Pending, w.services[4].Since = []string{"ipvsadm -a -t 10.96.0.5:80 -r 10.244.1.6:8080 -m -w 1"}, before(90*time.Second)
	w.services[3].Pending = []string{"ipvsadm -D -t 10.96.0.9:80"} // nobody knows since when
	h := over(w)
	for path, wants := range map[string][]string{
		"/": {"What node1 serves", "Unhealthy.", "1 problem of this node", "net.ipv4.vs.conntrack is 0: write 1 to it", "5 Services, 6 frontends",
			"2 frontends failing, 1 waiting", "3 backends", "12 s ago", "heard 1m30s ago", "ipvs-proxy v0.2.0, started 3d4h ago, Linux 6.1.0", "5 of 5 Services, by name",
			"team-04/service-00004 http/TCP 10.96.0.5:80 rr 2 4 100 open", "172.28.128.11:30004 rr 0 0 1,100 no-local"},
		"/services/team-04/service-00004": {"Type NodePort", "External policy Local", "2 backends; scheduler rr; 1 endpoint left out", "10.96.0.5:80 http/TCP, ClusterIP open",
			"10.244.1.5:8080 node1", "60 60 % 60 kB 6.0 MB ready", "10.244.3.5:8080 on node3: The endpoint is not ready. See why its pod is not. IPX0101",
			"A Local policy leaves no endpoint for the client. IPX0303", "It leads to no endpoint.",
			"Still to be written, for 1m30s ipvsadm -a -t 10.96.0.5:80 -r 10.244.1.6:8080 -m -w 1"},
		"/services/team-03/service-00003": {"Still to be written ipvsadm -D -t 10.96.0.9:80"},
		"/changes":                        {"Because of 12 s ago", "ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.1:8080 -m -w 1", "object", "13 s ago"},
		"/packet?client=198.51.100.7&to=10.96.0.1:80/udp": {"198.51.100.7 to 10.96.0.1:80/udp", "served by", "The kernel differs: by what it holds now, the packet is refused. It lacks ipvsadm -A -u 10.96.0.1", "1 address 10.96.0.1 is a ClusterIP of team-00/service-00000",
			"10.244.1.0:8080 node1 <1 % 198.51.100.7", "and 50 backends more", "10.244.3.1:8080 on node3: The endpoint is not ready. IPX0101"},
		"/reasons": {"IPX0101 The endpoint is not ready. See why its pod is not: kubectl describe pod."},
	} {
		got := text(document(t, h, path))
		for _, want := range wants {
			if !strings.Contains(strings.ReplaceAll(got, " ", ""), strings.ReplaceAll(want, " ", "")) {
				t.Errorf("%s does not say %q:\n%s", path, want, got)
			}
		}
	}
}
