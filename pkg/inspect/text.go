package inspect

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/preview"
)

// Text prints the head, in two lines at most and one for the note.
func (h Head) Text(s Style) string {
	var parts []string
	if h.Version != "" {
		agent := "ipvs-proxy " + h.Version
		if h.Since != nil {
			agent += ", up " + Span(h.Now.Sub(*h.Since))
		}
		parts = append(parts, agent+", Linux "+h.Kernel)
	} else {
		parts = append(parts, "Linux "+h.Kernel)
	}
	if h.Node != "" {
		parts[0] = h.Node + "  " + parts[0]
	}
	if h.Version != "" {
		parts = append(parts, preview.Plural(h.Services, "Service")+", "+preview.Plural(h.Frontends, "frontend"), h.standing())
	} else {
		parts = append(parts, preview.Plural(h.Frontends, "virtual server"))
	}
	text := wrap("", "", strings.Join(parts, "  "), "  ")
	if h.Note != "" {
		note := wrap("", "", h.Note, " ")
		if s.Colour {
			note = yellow + strings.TrimSuffix(note, "\n") + plain + "\n"
		}
		text += note
	}
	return text
}

// standing says how far the agent is.
func (h Head) standing() string {
	state := "all programmed"
	switch {
	case h.Failing > 0:
		state = preview.Plural(h.Failing, "frontend") + " failing"
	case h.Waiting > 0:
		state = preview.Number(h.Waiting) + " waiting"
	case !h.Programmed:
		state = "not all programmed yet"
	}
	if h.Draining > 0 {
		state += ", " + preview.Number(h.Draining) + " draining"
	}
	if h.LastWrite != nil {
		state += ", last write " + Span(h.Now.Sub(*h.LastWrite)) + " ago"
	}
	return state
}

// wrap prints pieces of a text in lines of Width columns.
func wrap(first, next, text, between string) string {
	var b strings.Builder
	line, empty := first, true
	for _, piece := range strings.Split(text, between) {
		switch {
		case empty:
			line += piece
		case utf8.RuneCountInString(line)+len(between)+utf8.RuneCountInString(piece) > Width:
			b.WriteString(line + "\n")
			line = next + piece
		default:
			line += between + piece
		}
		empty = false
	}
	return b.String() + line + "\n"
}

// colourOf is that of a state.
func colourOf(s State) string {
	switch s {
	case Failing, Forbidden, Taken:
		return red
	case Waiting, NoEndpoints, NoLocal:
		return yellow
	case Foreign:
		return dim
	}
	return ""
}

// Text prints a list as a table. Of frontends in a row, a Service is named once.
func (l List) Text(s Style) string {
	var b strings.Builder
	if !s.NoHeaders {
		b.WriteString(l.Head.Text(s) + "\n")
	}
	if len(l.Rows) == 0 {
		if !s.NoHeaders {
			b.WriteString("no frontend is shown\n")
		}
		return b.String()
	}
	g := grid{columns: []column{{name: "SERVICE", least: 16}, {name: "PORT", least: 9}, {name: "FRONTEND", breaks: 21}, {name: "BY", wide: true}, {name: "SCHED", drop: 1},
		{name: "BACKENDS"}, {name: "ACTIVE", right: true}, {name: "INACTIVE", right: true, wide: true}, {name: "CONNS", right: true}, {name: "IN", right: true, wide: true},
		{name: "OUT", right: true, wide: true}, {name: "STATE"}, {name: "REASON", wide: true}}}
	before := ""
	for _, r := range l.Rows {
		service, port := r.Service, r.port()
		if service == "" {
			service = "-"
		}
		if key := service + " " + port; key == before && !s.NoHeaders {
			service, port = "", ""
		} else {
			if prior, _, _ := strings.Cut(before, " "); prior == service && !s.NoHeaders {
				service = ""
			}
			before = key
		}
		g.add(colourOf(r.State), append([]string{service, port, r.Frontend, r.By, r.Scheduler, r.backends()}, r.numbers()...)...)
	}
	g.write(&b, s)
	return b.String()
}

// port is the name of the port with its protocol.
func (r *Row) port() string {
	switch {
	case r.Protocol == "":
		return "-"
	case r.Port == "":
		return r.Protocol
	}
	return r.Port + "/" + r.Protocol
}

// backends counts them.
func (r *Row) backends() string {
	switch {
	case r.State == Taken || r.State == Forbidden:
		return "-"
	case r.By == "":
		return fmt.Sprint(r.Backends)
	}
	return fmt.Sprintf("%d (%d here)", r.Backends, r.Here)
}

// numbers are the cells from ACTIVE on.
func (r *Row) numbers() []string {
	cells := []string{count(r.Active), count(r.Inactive), count(r.Conns), Bytes(r.In), Bytes(r.Out)}
	if r.State == Taken || r.State == Forbidden {
		cells = []string{"-", "-", "-", "-", "-"}
	}
	return append(cells, string(r.State), r.Code)
}

// Text prints one Service with its backends.
func (s *Service) Text(head Head, style Style) string {
	var b strings.Builder
	if !style.NoHeaders {
		line := fmt.Sprintf("%s  %s, internal policy %s", s.Service, s.Type, s.InternalPolicy)
		if s.ExternalPolicy != "" {
			line += ", external policy " + s.ExternalPolicy
		}
		if head.Node != "" {
			line += "  on " + head.Node
		}
		b.WriteString(wrap("", "  ", line, " "))
	}
	for i := range s.Frontends {
		b.WriteString("\n" + s.Frontends[i].Text(style))
	}
	for _, p := range s.Problems {
		b.WriteString("\n" + paint("refused: "+p.What, red, style) + "\n" + p.Reason.text("    "))
	}
	b.WriteString(s.pending(style))
	return b.String()
}

// printedWrites is how many of the writes that are still to be done are printed.
const printedWrites = 20

// pending says what is still to be written, and for how long that waits.
func (s *Service) pending(style Style) string {
	if len(s.Pending) == 0 {
		return ""
	}
	text := "still to be written: " + preview.Plural(len(s.Pending), "change")
	if s.Since != nil {
		text += ", for " + Span(style.Now.Sub(*s.Since))
	}
	text = "\n" + paint(text, yellow, style) + "\n"
	for _, line := range s.Pending[:min(len(s.Pending), printedWrites)] {
		text += wrapped(line) + "\n"
	}
	if left := len(s.Pending) - printedWrites; left > 0 {
		text += "  and " + preview.Number(left) + " more: -o json has all\n"
	}
	return text
}

func paint(text, colour string, s Style) string {
	if !s.Colour || colour == "" {
		return text
	}
	return colour + text + plain
}

// text prints a reason and what to do.
func (r Reason) text(indent string) (text string) {
	if r.Why != "" {
		why := r.Why
		if r.Code != "" {
			why += " (" + r.Code + ")"
		}
		text += wrap(indent, indent, why, " ")
	}
	if r.Do != "" && r.Do != "Nothing: it goes." {
		text += wrap(indent, indent, r.Do, " ")
	}
	return text
}

// Text prints a frontend with its backends.
func (f *Frontend) Text(s Style) string {
	var b strings.Builder
	parts := []string{f.Frontend + "/" + f.Protocol}
	if f.Port != "" {
		parts = append(parts, f.Port)
	}
	if f.By != "" {
		parts = append(parts, f.By)
	}
	if f.Scheduler != "" {
		parts = append(parts, f.Scheduler)
	}
	if f.Affinity > 0 {
		parts = append(parts, fmt.Sprintf("affinity %s", Span(time.Duration(f.Affinity)*time.Second)))
	}
	parts = append(parts, string(f.State))
	b.WriteString(paint(strings.TrimSuffix(wrap("", "  ", strings.Join(parts, "  "), "  "), "\n"), colourOf(f.State), s) + "\n")
	b.WriteString(f.Reason.text("    "))
	if shares := f.Scheduling.Text(); shares != "" {
		b.WriteString(wrap("    ", "    ", "scheduler "+shares, " "))
	}
	if f.Inside != "" {
		b.WriteString("    clients inside the cluster are sent to " + f.Inside + "\n")
	}
	if len(f.Of) == 0 {
		return b.String()
	}
	g := grid{columns: []column{{name: "  BACKEND", breaks: 23}, {name: "NODE", least: 12}, {name: "WEIGHT", right: true, drop: 2}, {name: "ACTIVE", right: true},
		{name: "INACTIVE", right: true, drop: 3}, {name: "CONNS", right: true}, {name: "SHARE", right: true}, {name: "IN", right: true, wide: true}, {name: "OUT", right: true, drop: 1},
		{name: "STATE"}}}
	for _, k := range f.Of {
		node := k.Node
		if node == "" {
			node = "-"
		}
		g.add(k.colour(), "  "+k.Address, node, fmt.Sprint(k.Weight), count(k.Active), count(k.Inactive), count(k.Conns),
			Percent(k.Share), Bytes(k.In), Bytes(k.Out), k.state(s.Now))
	}
	g.write(&b, s)
	return b.String()
}

func (b *Backend) colour() string {
	switch b.State {
	case Draining, Missing, Stray:
		return yellow
	case LeftOut:
		return dim
	}
	return ""
}

// state is a backend's state with what there is to say of it.
func (b *Backend) state(now time.Time) string {
	text := string(b.State)
	if b.State == Draining && b.Since != nil && b.Until != nil {
		text = fmt.Sprintf("draining %s of %s", Span(now.Sub(*b.Since)), Span(b.Until.Sub(*b.Since)))
	}
	if b.State == Ready && b.Grows != nil {
		text = preview.GrowingText(b.Weight, b.Full, *b.Grows)
	}
	if b.Code != "" {
		text += ": " + b.Code
	}
	return text
}

// Text prints changes, the oldest first: when, for whom, because of what, and the line.
func (l Log) Text(s Style) string {
	var b strings.Builder
	for _, c := range l.Changes {
		head := c.At.Local().Format("15:04:05.000")
		if s.Now.Sub(c.At) > 20*time.Hour {
			head = c.At.Local().Format("Jan 2 15:04:05")
		}
		service := c.Service
		if service == "" {
			service = "-"
		}
		cause := c.Cause
		if c.Heard != nil {
			cause += ", " + Span(c.At.Sub(*c.Heard)) + " after it was heard"
		}
		b.WriteString(paint(head+"  "+service+"  ("+cause+")", dim, s) + "\n")
		line := c.Line
		if c.Deleted > 0 {
			line += "  # " + preview.Plural(c.Deleted, "entry") + " gone"
		}
		if c.Error != "" {
			line = paint(wrapped(line)+"\n    failed: "+c.Error, red, s)
		} else {
			line = wrapped(line)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// wrapped is a command in lines of Width columns, as a shell takes it.
func wrapped(line string) string {
	text := wrapWith("  ", "      ", line)
	return strings.TrimSuffix(text, "\n")
}

func wrapWith(first, next, text string) string {
	var b strings.Builder
	line := first
	for i, word := range strings.Split(text, " ") {
		switch {
		case i == 0:
			line += word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > Width-2:
			b.WriteString(line + " \\\n")
			line = next + word
		default:
			line += " " + word
		}
	}
	return b.String() + line + "\n"
}
