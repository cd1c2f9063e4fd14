package page

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

//go:embed templates
var files embed.FS

// style is the one style sheet. It stands in each page, so that a page is one request and can be kept as a file; the policy
// allows it by its hash, and no other.
var style = sync.OnceValue(func() string {
	text, err := files.ReadFile("templates/style.css")
	if err != nil {
		panic(err) // it is embedded
	}
	return strings.TrimSpace(string(text))
})

// policy is the Content-Security-Policy: nothing is loaded but the style, no script runs, nobody frames the page, and a form
// leads to this server alone. The icon is a data URL.
var policy = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(style()))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
})

// templates are parsed when the first page is asked for: where nobody asks they cost nothing.
var templates = sync.OnceValues(func() (*template.Template, error) {
	t := template.New("").Funcs(template.FuncMap{
		"number": func(n any) string {
			switch n := n.(type) {
			case int:
				return preview.Number(max(n, 0))
			case uint32:
				return preview.Number(uint64(n))
			case uint16:
				return preview.Number(uint64(n))
			case uint64:
				return preview.Number(n)
			}
			return "?"
		},
		"size": inspect.Bytes, "span": inspect.Span, "percent": inspect.Percent, "plural": preview.Plural, "kind": kind, "todo": todo,
		"path": path, "packetTo": packetTo, "namespace": namespace,
		"name":  func(id string) string { return strings.TrimPrefix(id, namespace(id)) },
		"inc":   func(i int) int { return i + 1 },
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") },
		"args":  func(list ...any) []any { return list },
	})
	return t.ParseFS(files, "templates/*.html")
})

// frame is what the templates get.
type frame struct {
	view
	Style template.CSS
	Links []Link
	// Self is this page without its refresh, Live with the other one of on and off; "": it has none.
	Self, Live string
	Node       string
	Now        time.Time
}

// render writes a page.
func (p *pages) render(w io.Writer, r *http.Request, v view) error {
	t, err := templates()
	if err != nil {
		return err
	}
	f := frame{view: v, Style: template.CSS(style()), Links: p.Links, Node: p.Node, Now: p.Now()} // our own text, and no other's
	if v.live {
		values := r.URL.Query()
		if values.Has("live") {
			f.Refresh = refreshPeriod
			values.Del("live")
		} else {
			values.Set("live", "1")
		}
		f.Live = "?" + values.Encode()
	}
	return t.ExecuteTemplate(w, v.name+".html", f)
}

// Ago is how long a time is past; nil: there is none.
func (f frame) Ago(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return inspect.Span(f.Now.Sub(*t)) + " ago"
}

// For is how long something waits that began then.
func (f frame) For(t *time.Time) string { return inspect.Span(f.Now.Sub(*t)) }

// At is when something was.
func (f frame) At(t time.Time) string { return inspect.Span(f.Now.Sub(t)) + " ago" }

// Backend is how a backend stands, in words.
func (f frame) Backend(b inspect.Backend) string {
	if b.State == inspect.Draining && b.Since != nil && b.Until != nil {
		return fmt.Sprintf("draining %s of %s", inspect.Span(f.Now.Sub(*b.Since)), inspect.Span(b.Until.Sub(*b.Since)))
	}
	return string(b.State)
}

// Verdict is what becomes of a packet, in words; the code stands behind the reason.
func (f frame) Verdict(a *preview.Answer) string {
	return strings.TrimSuffix(a.Conclusion(), " ("+a.Code+")")
}

// path is where the page of a Service is.
func path(id string) string {
	namespace, name, _ := strings.Cut(id, "/")
	return "/services/" + url.PathEscape(namespace) + "/" + url.PathEscape(name)
}

// packetTo is where one asks about a packet to a frontend.
func packetTo(r inspect.Row) string {
	return "/packet?" + url.Values{"to": {r.Frontend + "/" + strings.ToLower(r.Protocol)}}.Encode()
}

// namespace is that of a Service's name, with the slash, behind which a line may end.
func namespace(id string) string { return id[:strings.IndexByte(id, '/')+1] }
