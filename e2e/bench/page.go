package main

import (
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/programs"
)

//go:embed page.md
var pageText string

// page writes docs/performance.md from a result's file.
func page(w io.Writer, file string) error {
	r, err := readResult(file)
	if err != nil {
		return err
	}
	t, err := template.New("page").Funcs(template.FuncMap{"table": r.table, "more": r.more, "count": func() int { return count }, "asks": func() int { return askRounds },
		"million": func(n int64) string { return fmt.Sprintf("%.1f", perMillion(n)) }}).Parse(pageText)
	if err != nil {
		return err
	}
	return t.Execute(w, r)
}

// table is one of Markdown: cases by contenders, in thousand instructions; family is 0 for IPv4, 1 for IPv6.
func (r result) table(family int) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, c := range r.Packets {
		head := c.Contender
		switch {
		case c.Binding != "":
			head = fmt.Sprintf("%d Services, %s", c.Services, c.Binding)
		case c.Services > 0:
			head = fmt.Sprintf("%s, %d Services", c.Contender, c.Services)
		}
		fmt.Fprintf(&b, " %s |", head)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(r.Packets)))
	for _, one := range cases {
		fmt.Fprintf(&b, "\n| %s |", one.name)
		for _, c := range r.Packets {
			if n, there := c.Counts[one.name]; there {
				fmt.Fprintf(&b, " %.1f |", float64(n[family])/1000)
			} else {
				b.WriteString(" |")
			}
		}
	}
	return b.String()
}

// more is what a case costs more, over IPv4 and at the largest size of the binding by address, than another one without a
// proxy.
func (r result) more(name, bare string) (string, error) {
	best := -1
	for i, c := range r.Packets {
		if c.Binding == "address" && (best < 0 || c.Services > r.Packets[best].Services) {
			best = i
		}
	}
	if best < 0 {
		return "", fmt.Errorf("the result has no run of the agent")
	}
	return fmt.Sprintf("%.1f", float64(r.Packets[best].Counts[name][0]-r.Packets[0].Counts[bare][0])/1000), nil
}

// Peers reports whether kube-proxy was counted.
func (r result) Peers() bool {
	return slices.ContainsFunc(r.Packets, func(c way) bool { return strings.HasPrefix(c.Contender, "kube-proxy") })
}

// Kubernetes is the release of kube-proxy.
func (result) Kubernetes() string { return programs.Default }
