package main

import (
	"fmt"
	"strings"
)

// stacks is a title with rows below it, each of parts side by side.
type stacks struct {
	title string
	rows  []stack
}

// stack is one row: its parts in the order of endpoints, the last of them the one that the picture is about.
type stack struct {
	label string
	parts []int
}

// drawStacks draws rows of one length, whatever they add up to.
func drawStacks(groups []stacks, note string) string {
	var body, aloud strings.Builder
	y := margin
	for _, g := range groups {
		y += titleHigh
		fmt.Fprintf(&body, "<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n", margin, y-8, escape(g.title))
		fmt.Fprintf(&aloud, "%s. ", g.title)
		for _, r := range g.rows {
			x, all := margin+labelWide, max(sum(r.parts), 1)
			fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\">%s</text>\n", margin, y+16, escape(r.label))
			var texts []string
			for i, v := range r.parts {
				class := "good"
				switch {
				case i == len(r.parts)-1:
					class = "bad"
				case i%2 == 1:
					class = "other"
				}
				length := v * barWide / all
				fmt.Fprintf(&body, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", class, x, y+4, length, barHigh-8)
				x += length
				texts = append(texts, fmt.Sprint(v))
			}
			text := strings.Join(texts, ", ")
			fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\">%s</text>\n", margin+labelWide+barWide+8, y+16, text)
			fmt.Fprintf(&aloud, "%s: %s. ", r.label, text)
			y += barHigh
		}
		y += margin / 2
	}
	return frame(&body, y, strings.TrimSpace(aloud.String()), note)
}

// point is one of a line.
type point struct{ x, y int }

// line is drawn from point to point.
type line struct {
	label  string
	points []point
	good   bool
}

const plotHigh = 240

// drawLines draws lines over a ground from 0.
func drawLines(title string, lines []line, note string) string {
	var body, aloud strings.Builder
	mostX, mostY := 1, 1
	for _, l := range lines {
		for _, p := range l.points {
			mostX, mostY = max(mostX, p.x), max(mostY, p.y)
		}
	}
	mostY += mostY/10 + 1
	left, top, broad := margin+40, margin+titleHigh, wide-3*margin-160
	at := func(p point) (x, y int) { return left + p.x*broad/mostX, top + plotHigh - p.y*plotHigh/mostY }
	fmt.Fprintf(&body, "<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n", margin, margin+titleHigh-12, escape(title))
	fmt.Fprintf(&aloud, "%s. ", title)
	for i := range 5 {
		for _, axis := range []struct {
			of point
			x  bool
		}{{point{mostX * i / 4, 0}, true}, {point{0, mostY * i / 4}, false}} {
			x, y := at(axis.of)
			if axis.x {
				fmt.Fprintf(&body, "<text class=\"note\" text-anchor=\"middle\" x=\"%d\" y=\"%d\">%d</text>\n", x, y+18, axis.of.x)
			} else {
				fmt.Fprintf(&body, "<text class=\"note\" text-anchor=\"end\" x=\"%d\" y=\"%d\">%d</text>\n", x-8, y+4, axis.of.y)
				fmt.Fprintf(&body, "<line class=\"ground\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" opacity=\"0.3\"/>\n", x, y, x+broad, y)
			}
		}
	}
	for _, l := range lines {
		class := "badline"
		if l.good {
			class = "goodline"
		}
		var path, said []string
		for _, p := range l.points {
			x, y := at(p)
			path = append(path, fmt.Sprintf("%d,%d", x, y))
			said = append(said, fmt.Sprintf("%d s %d", p.x, p.y))
		}
		fmt.Fprintf(&body, "<polyline class=\"%s\" points=\"%s\"/>\n", class, strings.Join(path, " "))
		if n := len(l.points); n > 0 {
			x, y := at(l.points[n-1])
			if !l.good {
				y += 14 // the lines end beside each other
			} else {
				y -= 6
			}
			fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\">%s</text>\n", x+8, y, escape(l.label))
		}
		fmt.Fprintf(&aloud, "%s: %s. ", l.label, strings.Join(said, ", "))
	}
	return frame(&body, top+plotHigh+margin+8, strings.TrimSpace(aloud.String()), note)
}

// frame is the picture around a body that ends at y.
func frame(body *strings.Builder, y int, aloud, note string) string {
	y += margin
	fmt.Fprintf(body, "<text class=\"note\" x=\"%d\" y=\"%d\">%s</text>\n", margin, y, escape(note))
	y += margin
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n",
		wide, y, wide, y, escape(aloud)) + style + chartStyle + body.String() + "</svg>\n"
}

// chartStyle has what these pictures have beside bars.
const chartStyle = `<style>
.other { fill: #0969da }
.goodline, .badline { fill: none; stroke-width: 2.5 }
.goodline { stroke: #1a7f37 }
.badline { stroke: #bc4c00 }
@media (prefers-color-scheme: dark) {
.other { fill: #4493f8 }
.goodline { stroke: #3fb950 }
.badline { stroke: #f0883e }
}
</style>
`
