package browser

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// services is how many there are.
const services = 10000

// base is where the page is.
var base string

func TestMain(m *testing.M) { os.Exit(main(m)) }

func main(m *testing.M) int {
	b, done, err := Serve(services)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer done()
	base = b
	return m.Run()
}

var (
	desktop = Look{Width: 1280, Height: 860}
	night   = Look{Width: 1280, Height: 860, Dark: true}
	phone   = Look{Width: 400, Height: 800}
	small5  = Look{Width: 320, Height: 640, Dark: true}
)

// open opens a tab, which must have nothing to complain of when the test is over.
func open(t *testing.T, l Look) *Tab {
	t.Helper()
	tab, done, err := Open(t.Context(), base, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fault := range tab.Faults() {
			t.Errorf("the browser says: %s", fault)
		}
		done()
	})
	return tab
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eval[T any](t *testing.T, tab *Tab, expression string) T {
	t.Helper()
	v, err := Eval[T](tab, expression)
	must(t, err)
	return v
}

// says wants texts on the page, in this order.
func says(t *testing.T, tab *Tab, wants ...string) {
	t.Helper()
	text := strings.Join(strings.Fields(eval[string](t, tab, told)), " ")
	rest := text
	for _, want := range wants {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("the page does not say %q (or not at its place):\n%s", want, text)
		}
		rest = after
	}
}

type focus struct {
	What string `json:"what"`
	Seen bool   `json:"seen"`
}

// tabTo goes by the Tab key until what has the focus begins so, and wants to see the focus at each step.
func tabTo(t *testing.T, tab *Tab, what string) {
	t.Helper()
	var passed []string
	for range 60 {
		must(t, tab.Press(kb.Tab))
		f := eval[focus](t, tab, focused)
		if !f.Seen {
			t.Errorf("the focus on %q is not to be seen", f.What)
		}
		if strings.HasPrefix(f.What, what) {
			return
		}
		passed = append(passed, f.What)
	}
	t.Fatalf("no way to %q by the Tab key: %q", what, passed)
}

// An administrator finds one Service among 10,000, opens it, and reads why an endpoint is left out and what to do: without a
// mouse, and without scripts.
func TestFindAndReadWhy(t *testing.T) {
	tab := open(t, desktop)
	must(t, tab.Go("/"))
	says(t, tab, "all programmed", "10,000 Services", "22 of 10,000 Services, by name")
	must(t, tab.Press(kb.Tab))
	if f := eval[focus](t, tab, focused); f.What != "a Skip to the content" || !f.Seen {
		t.Errorf("first the Tab key leads to %+v, want the way past the head", f)
	}
	must(t, tab.Press(kb.Enter))
	tabTo(t, tab, "input q")
	must(t, tab.Press("service-07770"))
	must(t, tab.PressAndGo(kb.Enter))
	says(t, tab, "1 Service that fit, by name", "team-10/service-07770")
	tabTo(t, tab, "a team-10/service-07770")
	must(t, tab.PressAndGo(kb.Enter))
	says(t, tab, "team-10/service-07770", "Backend", "ready", "Left out", "The endpoint is not ready.", "IPX0101")
	tabTo(t, tab, "a IPX0101")
	must(t, tab.PressAndGo(kb.Enter))
	says(t, tab, "IPX0101", "The endpoint is not ready.", "See why its pod is not")
	row := eval[struct{ Code, Color, Page string }](t, tab, `(() => { const e = document.querySelector(':target');
		return {Code: e.id, Color: getComputedStyle(e).backgroundColor, Page: getComputedStyle(document.querySelector('.t')).backgroundColor}; })()`)
	if row.Code != "IPX0101" || row.Color == row.Page {
		t.Errorf("the reason is not shown: %+v", row)
	}
}

// By state, and by part of the list.
func TestListIsPaged(t *testing.T) {
	tab := open(t, desktop)
	must(t, tab.Go("/"))
	tabTo(t, tab, "a Next Services")
	must(t, tab.PressAndGo(kb.Enter))
	says(t, tab, "of 10,000 Services, by name", "team-00/service-", "From the beginning")
	tabTo(t, tab, "select state")
	must(t, tab.Press("no-e"))
	tabTo(t, tab, "button Find")
	must(t, tab.PressAndGo(kb.Enter))
	says(t, tab, "that fit", "no-endpoints")
	if n := eval[int](t, tab, `[...document.querySelectorAll('tbody th[scope=rowgroup]')].filter(e => !e.closest('tbody').innerText.includes('no-endpoints')).length`); n > 0 {
		t.Errorf("%d Services are shown that have another state", n)
	}
}

// From a Service's page to what becomes of a packet to it.
func TestAskAboutPacket(t *testing.T) {
	tab := open(t, desktop)
	must(t, tab.Go("/services/shop/cart"))
	tabTo(t, tab, "a What becomes of a packet to it?")
	must(t, tab.PressAndGo(kb.Enter))
	tabTo(t, tab, "input client")
	must(t, tab.Press("10.244.1.9"))
	must(t, tab.PressAndGo(kb.Enter))
	says(t, tab, "10.244.1.9 to 10.96.0.81:80/tcp", "served by", "shop/cart", "The kernel agrees.", "What decides it", "client", "pod", "It may go to", "10.244.1.81:8080", "33 %", "Left out", "The endpoint is not ready.", "IPX0101")
	must(t, tab.Go("/packet?client=198.51.100.7&to=203.0.113.80:443"))
	says(t, tab, "refused: TCP reset. The address is a virtual IP, and no Service has this port of it", "IPX0301 shop/edge", "no port of it: it has 80/TCP")
}

// The page is there again by itself when the reader wants that, shows what is new, and stops when told to.
func TestRefresh(t *testing.T) {
	tab := open(t, desktop)
	must(t, tab.Go("/?q=service-00001"))
	tabTo(t, tab, "a Refresh every 5 s")
	must(t, tab.PressAndGo(kb.Enter))
	before := eval[string](t, tab, `document.querySelector('footer time').dateTime`)
	must(t, tab.Next())
	if after := eval[string](t, tab, `document.querySelector('footer time').dateTime`); after <= before {
		t.Errorf("read at %s, and then at %s", before, after)
	}
	says(t, tab, "1 Service that fit, by name")
	tabTo(t, tab, "a Stop refreshing")
	must(t, tab.PressAndGo(kb.Enter))
	if n := eval[int](t, tab, `document.querySelectorAll('meta[http-equiv]').length`); n != 0 {
		t.Error("it goes on")
	}
}

// pages are one of each kind.
var pages = []string{"/", "/?state=%21open", "/?q=no-such-service", "/services/team-10/service-07770", "/services/shop/cart", "/services/shop/edge", "/services/billing/partner-api", "/services/billing/reports", "/changes", "/changes?service=shop%2Fcart", "/packet", "/packet?client=198.51.100.7&to=10.96.0.81:80", "/packet?client=198.51.100.7&to=203.0.113.80:443", "/reasons"}

// In light and in dark, on a wide screen and on a phone: text stands out from what is behind it, nothing sticks out.
func TestLooks(t *testing.T) {
	for name, look := range map[string]Look{"desktop": desktop, "night": night, "phone": phone, "small": small5} {
		t.Run(name, func(t *testing.T) {
			tab := open(t, look)
			for _, path := range pages {
				must(t, tab.Go(path))
				for _, line := range eval[[]string](t, tab, faint) {
					t.Errorf("%s: hard to read: %s", path, line)
				}
				for _, line := range eval[[]string](t, tab, wide) {
					t.Errorf("%s: sticks out: %s", path, line)
				}
				for _, line := range eval[[]string](t, tab, small) {
					t.Errorf("%s: hard to hit: %s", path, line)
				}
				var sum int
				for _, c := range strings.FieldsFunc(eval[string](t, tab, background), func(r rune) bool { return r < '0' || r > '9' }) {
					var v int
					fmt.Sscan(c, &v)
					sum += v
				}
				if dark := sum < 3*60; dark != look.Dark {
					t.Errorf("%s: the background comes to %d of %d, and the reader likes it dark: %v", path, sum, 3*255, look.Dark)
				}
			}
		})
	}
}

// A Service for which the kernel takes no more shows what is still to be written, and for how long, in light and in dark.
func TestStillToBeWritten(t *testing.T) {
	at, done, err := Serve(20, "--full")
	must(t, err)
	defer done()
	for name, look := range map[string]Look{"desktop": desktop, "night": night, "small": small5} {
		t.Run(name, func(t *testing.T) {
			tab, done, err := Open(t.Context(), at, look)
			must(t, err)
			defer done()
			must(t, tab.Go("/"))
			says(t, tab, "2 frontends failing")
			must(t, tab.Go("/services/shop/cart"))
			says(t, tab, "Still to be written, for ", "ipvsadm -a -t 10.96.0.81:80 -r 10.244.3.94:8080 -m -w 1", "failing")
			for _, kind := range []string{faint, wide} {
				for _, line := range eval[[]string](t, tab, kind) {
					t.Errorf("hard to read, or sticks out: %s", line)
				}
			}
		})
	}
}

// What a screen reader gets: names and roles as the browser computes them.
func TestAccessibilityTree(t *testing.T) {
	tab := open(t, desktop)
	must(t, tab.Go("/"))
	nodes, err := get(tab, chromedp.Action[accessibility.GetFullAXTreeResult](axTree))
	must(t, err)
	var got []string
	for _, n := range nodes.Nodes {
		if n.Role == nil || n.Ignored {
			continue
		}
		name := ""
		if n.Name != nil {
			must(t, json.Unmarshal(n.Name.Value, &name))
		}
		var role string
		must(t, json.Unmarshal(n.Role.Value, &role))
		got = append(got, role+" "+name)
	}
	for _, want := range []string{"RootWebArea Services – ", "banner ", "navigation Pages", "main ", "search ", "searchbox Name or address", "combobox State", "button Find",
		"region Services", "table 22 of 10,000 Services, by name", "columnheader Service", "columnheader Frontend", "columnheader State", "rowheader billing/invoices",
		"navigation Parts of the list", "region Last changes, a table", "contentinfo ", "navigation Other pages of this port"} {
		if !slices.ContainsFunc(got, func(is string) bool { return is == want || strings.HasSuffix(want, " ") && strings.HasPrefix(is, want) }) {
			role, _, _ := strings.Cut(want, " ")
			t.Errorf("a screen reader gets no %q: %q", want, slices.DeleteFunc(slices.Clone(got), func(is string) bool { return !strings.HasPrefix(is, role+" ") }))
		}
	}
}

// A page is one request, of less than 20 kB with its head.
func TestWeight(t *testing.T) {
	tab := open(t, desktop)
	for _, path := range []string{"/", "/?after=team-39/service-09900", "/services/team-10/service-07770"} {
		must(t, tab.Go(path))
	}
	weights := tab.Weights()
	if len(weights) != 3 {
		t.Errorf("three pages were more requests than three: %v", weights)
	}
	for path, w := range weights {
		t.Logf("%s: %.0f bytes", path, w)
		if w == 0 || w >= 20000 {
			t.Errorf("%s: %.0f bytes, want less than 20,000", path, w)
		}
	}
}

// What is no page says so, and leads back.
func TestNoSuchService(t *testing.T) {
	tab, done, err := Open(t.Context(), base, desktop) // that a page answers 404 the browser writes to its console
	must(t, err)
	defer done()
	must(t, tab.Go("/services/team-10/service-0777"))
	says(t, tab, "No such Service", "team-10/service-0777 is no Service that this proxy serves.", "There is", "team-10/service-07770")
	tabTo(t, tab, "a team-10/service-07770")
	must(t, tab.PressAndGo(kb.Enter))
	says(t, tab, "team-10/service-07770", "ClusterIP")
}
