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
	spreadTest, canaryTest   = "TestB70SpreadPicture", "TestB71CanaryPicture"
	curveTest, clientsTest   = "TestB71SlowStartPicture", "TestB70ClientsPicture"
	slowCurve, controlCurve  = "slow start", "without"
	moves, throughAnother    = ", clients with another endpoint when ", ", clients with another endpoint through another node"
	schedulingNote, notEmpty = "Measured in the project's lab on Linux %s, in an emulated machine", "no kernel's measurements have all figures of the pictures of scheduling"
)

// schedulingPictures are the pictures of docs/scheduling.md, by file, of the newest kernel that has all figures.
func schedulingPictures(dir string) (map[string]string, error) {
	kernels, err := results.Read(dir)
	if err != nil {
		return nil, fmt.Errorf("what was measured of scheduling: %w", err)
	}
	lacks := []error{errors.New(notEmpty)}
	for _, k := range slices.Backward(kernels) {
		m := measured{figures: k.Figures}
		note := fmt.Sprintf(schedulingNote, k.Series())
		all := map[string]string{
			"docs/scheduling-spread.svg":     m.spread(note),
			"docs/scheduling-slow-start.svg": m.slowStart(note),
			"docs/scheduling-clients.svg":    draw(m.clients(), note),
		}
		if len(m.missing) == 0 {
			return all, nil
		}
		lacks = append(lacks, fmt.Errorf("%s lacks %s", k.Series(), strings.Join(m.missing, ", ")))
	}
	return nil, errors.Join(lacks...)
}

// spread is how each scheduler spreads requests over endpoints of which one is slow, and what a canary gets.
func (m *measured) spread(note string) string {
	pods := []string{"pod-a", "pod-b", "pod-c"}
	of := m.figures["e2e/traffic "+spreadTest]
	title := "one of three endpoints, the orange one, takes 100 ms for an answer"
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
	canary := stack{label: "weights 100, 100, 10"}
	for _, pod := range pods {
		canary.parts = append(canary.parts, m.of(canaryTest, pod))
	}
	return drawStacks([]stacks{{fmt.Sprintf("%d requests, by scheduler: %s", sum(rows[0].parts), title), rows},
		{fmt.Sprintf("%d requests to a Service with a canary of weight 10", sum(canary.parts)), []stack{canary}}}, note)
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
		{"another endpoint when one of four leaves", moves + "one of four leaves"},
		{"another endpoint when a fourth comes", moves + "a fourth comes"},
		{"another endpoint through another node", throughAnother},
	} {
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
	all, err := schedulingPictures(filepath.Join(root, measurements))
	if err != nil {
		return err
	}
	for file, text := range all {
		if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
