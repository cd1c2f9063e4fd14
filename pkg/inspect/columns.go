package inspect

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Width is how many columns a table has.
const Width = 100

// Style is how something is printed.
type Style struct {
	// Wide shows all columns, in as much room as they need.
	Wide bool
	// NoHeaders leaves out the head and the names of the columns.
	NoHeaders bool
	// Colour marks what is not in order.
	Colour bool
	// Now is the time from which ages are counted.
	Now time.Time
}

// column of a table.
type column struct {
	name  string
	right bool // numbers stand at the right
	wide  bool // only where there is room for all
	// least is to how many columns it may be cut where there is no room; 0: it is not cut.
	least int
	// breaks is to how many columns it may be made narrower before anything is cut: after a cell that is longer the line
	// goes on in the next one. 0: it is not.
	breaks int
	// drop is in which order it is left out where even that is not enough; 0: never.
	drop int
}

// grid is a table: its cells, and a colour for each line.
type grid struct {
	columns []column
	rows    [][]string
	colours []string
}

func (g *grid) add(colour string, cells ...string) {
	g.rows, g.colours = append(g.rows, cells), append(g.colours, colour)
}

// The colours of terminals, by what they say.
const (
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	dim    = "\x1b[2m"
	plain  = "\x1b[0m"
)

// write writes the table. Without Wide it has Width columns: what may be cut is cut, and then columns are left out.
func (g *grid) write(b *strings.Builder, s Style) {
	widths := make([]int, len(g.columns))
	shown := make([]bool, len(g.columns))
	for i, c := range g.columns {
		shown[i] = s.Wide || !c.wide
		widths[i] = utf8.RuneCountInString(c.name)
		for _, row := range g.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	if !s.Wide {
		g.fit(widths, shown)
	}
	if !s.NoHeaders {
		names := make([]string, len(g.columns))
		for i, c := range g.columns {
			names[i] = c.name
		}
		g.line(b, names, widths, shown, "")
	}
	for i, row := range g.rows {
		colour := ""
		if s.Colour {
			colour = g.colours[i]
		}
		g.line(b, row, widths, shown, colour)
	}
}

// fit makes the table as narrow as it has to be: long cells first, then names, then columns, then names again.
func (g *grid) fit(widths []int, shown []bool) {
	total := func() (n int) {
		for i, w := range widths {
			if shown[i] {
				n += w + 2
			}
		}
		return n - 2
	}
	narrow := func(least func(column) int) {
		for i, c := range g.columns {
			if over := total() - Width; over > 0 && shown[i] && least(c) > 0 {
				widths[i] = max(widths[i]-over, min(widths[i], least(c)))
			}
		}
	}
	narrow(func(c column) int { return c.breaks })
	narrow(func(c column) int { return min(c.least, 1) * max(c.least, readable) })
	for n := 1; n <= len(g.columns) && total() > Width; n++ {
		for i, c := range g.columns {
			if c.drop == n {
				shown[i] = false
			}
		}
	}
	narrow(func(c column) int { return c.least })
}

// readable is how much of a name is left before columns are left out for it.
const readable = 30

func (g *grid) line(b *strings.Builder, cells []string, widths []int, shown []bool, colour string) {
	var line strings.Builder
	at := 0 // where the next column begins
	for i, cell := range cells {
		if !shown[i] {
			continue
		}
		if line.Len() > 0 {
			line.WriteString("  ")
		}
		if at += widths[i] + 2; g.columns[i].breaks > 0 && utf8.RuneCountInString(cell) > widths[i] {
			line.WriteString(cell + "\n" + strings.Repeat(" ", at-2))
			continue
		}
		cell = cut(cell, widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if g.columns[i].right {
			line.WriteString(pad + cell)
		} else {
			line.WriteString(cell + pad)
		}
	}
	text := strings.TrimRight(line.String(), " ")
	if colour != "" {
		text = colour + text + plain
	}
	b.WriteString(text + "\n")
}

// cut leaves out the middle of a text that is too long: both ends tell names apart.
func cut(text string, most int) string {
	runes := []rune(text)
	if len(runes) <= most || most < 3 {
		return text
	}
	head := most / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(most-head-1):])
}

// count prints a number in 6 columns at most.
func count(n uint64) string {
	const units = "kMGTPE"
	if n < 100_000 {
		return fmt.Sprint(n)
	}
	v := float64(n)
	for _, u := range units {
		if v /= 1000; v < 999.5 {
			if v < 99.95 {
				return fmt.Sprintf("%.1f%c", v, u)
			}
			return fmt.Sprintf("%.0f%c", v, u)
		}
	}
	return fmt.Sprint(n)
}
