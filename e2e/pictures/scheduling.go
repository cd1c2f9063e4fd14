package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/conformance/results"
)

// measurements has what was measured for the pictures of scheduling: a file a kernel, as of the other results.
const measurements = "e2e/pictures/measured"

// The tests of which these pictures are made.
const (
	spreadTest, canaryTest  = "TestB70SpreadPicture", "TestB71CanaryPicture"
	curveTest, clientsTest  = "TestB71SlowStartPicture", "TestB70ClientsPicture"
	slowCurve, controlCurve = "slow start", "without"
	moves, throughAnother   = ", clients with another endpoint when ", ", clients with another endpoint through another node"
)

// schedulingPictures are the pictures of docs/scheduling.md by file, each of the newest kernel that has all of its figures, and what is
// missing of the others.
func schedulingPictures(dir string) (pictures map[string]string, missing error, err error) {
	kernels, err := results.Read(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("what was measured of scheduling: %w", err)
	}
	pictures = map[string]string{}
	var lacks []error
	for file, drawn := range map[string]func(*measured, string) string{
		"docs/scheduling-spread.svg":     (*measured).spread,
		"docs/scheduling-canary.svg":     (*measured).canary,
		"docs/scheduling-slow-start.svg": (*measured).slowStart,
		"docs/scheduling-clients.svg":    func(m *measured, note string) string { return draw(m.clients(), note) },
	} {
		for _, k := range slices.Backward(kernels) {
			m := measured{figures: k.Figures}
			text := drawn(&m, fmt.Sprintf("Measured in the project's lab on Linux %s, in an emulated machine", k.Series()))
			if len(m.missing) == 0 {
				pictures[file] = text
				break
			}
			lacks = append(lacks, fmt.Errorf("%s: Linux %s lacks %d figures, such as %s", file, k.Series(), len(m.missing), m.missing[0]))
		}
	}
	return pictures, errors.Join(lacks...), nil
}

// pods are the endpoints, the one last that a picture is about.
var pods = []string{"pod-a", "pod-b", "pod-c"}

// spread is how each scheduler spreads requests over endpoints of which one is slow.
func (m *measured) spread(note string) string {
	of := m.figures["e2e/traffic "+spreadTest]
	var rows []stack
	for _, scheduler := range []string{"rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "sh", "mh", "dh", "lblc", "lblcr", "twos"} {
		if _, ran := of[scheduler+", pod-a"]; !ran && scheduler == "twos" {
			continue // not in every kernel
		}
		row := stack{label: scheduler}
		for _, pod := range pods {
			row.parts = append(row.parts, m.of(spreadTest, scheduler+", "+pod))
		}
		rows = append(rows, row)
	}
	return drawStacks([]stacks{{fmt.Sprintf("%d requests, by scheduler: one of three endpoints, the orange one, takes 100 ms", sum(rows[0].parts)), rows}}, note)
}

// canary is what a canary gets.
func (m *measured) canary(note string) string {
	row := stack{label: "weights 100, 100, 10"}
	for _, pod := range pods {
		row.parts = append(row.parts, m.of(canaryTest, pod))
	}
	return drawStacks([]stacks{{fmt.Sprintf("%d requests to a Service with a canary of weight 10, the orange one", sum(row.parts)), []stack{row}}}, note)
}

func sum(of []int) (n int) {
	for _, v := range of {
		n += v
	}
	return n
}

// slowStart is the curve of what a new endpoint gets.
func (m *measured) slowStart(note string) string {
	var lines []line
	for i, name := range []string{slowCurve, controlCurve} {
		l := line{label: name, good: i == 0}
		for figure, share := range m.figures["e2e/traffic "+curveTest] {
			var seconds int
			if rest, is := strings.CutPrefix(figure, name+", per cent after "); is {
				if _, err := fmt.Sscanf(rest, "%d s", &seconds); err == nil {
					l.points = append(l.points, point{seconds, share})
				}
			}
		}
		if slices.SortFunc(l.points, func(a, b point) int { return cmp.Compare(a.x, b.x) }); len(l.points) < 2 {
			m.missing = append(m.missing, curveTest+": "+name)
		}
		lines = append(lines, l)
	}
	return drawLines("What a third endpoint gets of the requests, in per cent, by seconds since it is there", lines, note)
}

// clients is how many clients get another endpoint.
func (m *measured) clients() (panels []panel) {
	all := m.of(clientsTest, "clients")
	for _, p := range []struct{ title, figure string }{
		{"another endpoint while one of four drains", moves + "one of four leaves"},
		{"another endpoint when it is back", moves + "a fourth comes"},
		{"another endpoint when one is gone at once, and its connections", moves + "one of four is gone"},
		{"another endpoint through another node", throughAnother},
	} {
		if _, measured := m.figures["e2e/traffic "+clientsTest]["mh"+p.figure]; !measured && strings.HasSuffix(p.figure, "gone") {
			continue // measurements from before it was looked at
		}
		is := panel{title: fmt.Sprintf("Of %d clients so many get %s", all, p.title)}
		for _, scheduler := range []string{"rr", "sh", "mh"} {
			v := m.of(clientsTest, scheduler+p.figure)
			is.bars = append(is.bars, bar{label: scheduler, value: v, text: strconv.Itoa(v), good: scheduler == "mh"})
		}
		panels = append(panels, is)
	}
	return panels
}

// writeScheduling draws them.
func writeScheduling(root string) error {
	all, missing, err := schedulingPictures(filepath.Join(root, measurements))
	if err != nil {
		return err
	}
	for file, text := range all {
		if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return missing
}
