package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// panel is a title with bars below it.
type panel struct {
	title string
	bars  []bar
}

// bar is a number, its length in proportion to the others of its panel.
type bar struct {
	label, text string
	value       int
	good        bool
}

const (
	wide, labelWide, barWide   = 820, 220, 380
	titleHigh, barHigh, margin = 26, 24, 16
)

// The colours follow the reader's, light or dark, also where the picture is in a page of another's.
const style = `<style>
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 }
.note { font-size: 12px; fill: #59636e }
.good { fill: #1a7f37 }
.bad { fill: #bc4c00 }
.ground { stroke: #59636e; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.note { fill: #9198a1 }
.good { fill: #3fb950 }
.bad { fill: #f0883e }
.ground { stroke: #9198a1 }
}
</style>
`

func draw(panels []panel, note string) string {
	var body strings.Builder
	y := margin
	for _, p := range panels {
		most := 1
		for _, b := range p.bars {
			most = max(most, b.value)
		}
		y += titleHigh
		fmt.Fprintf(&body, "<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n", margin, y-8, escape(p.title))
		for _, b := range p.bars {
			length, class := b.value*barWide/most, "bad"
			if b.good {
				class = "good"
			}
			left := margin + labelWide
			fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\">%s</text>\n", margin, y+16, escape(b.label))
			fmt.Fprintf(&body, "<line class=\"ground\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>\n", left, y+2, left, y+barHigh-2)
			fmt.Fprintf(&body, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/>\n", class, left, y+4, length, barHigh-8)
			fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\">%s</text>\n", left+length+8, y+16, escape(b.text))
			y += barHigh
		}
		y += margin / 2
	}
	y += margin
	fmt.Fprintf(&body, "<text class=\"note\" x=\"%d\" y=\"%d\">%s</text>\n", margin, y, escape(note))
	y += margin
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">\n",
		wide, y, wide, y, escape(aloud(panels))) + style + body.String() + "</svg>\n"
}

// aloud is the picture for who cannot see it.
func aloud(panels []panel) string {
	var all []string
	for _, p := range panels {
		for _, b := range p.bars {
			all = append(all, fmt.Sprintf("%s, %s: %s", p.title, b.label, b.text))
		}
	}
	return strings.Join(all, ". ")
}

func escape(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return "" // a builder takes everything
	}
	return b.String()
}
