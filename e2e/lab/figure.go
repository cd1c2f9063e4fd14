package lab

import (
	"fmt"
	"strings"
	"testing"
)

const figureWord = "figure: "

// Figure has the results of a run keep a number that a test measured, for the documents and pictures that are made of
// them. The name says what was counted; it is kept if the test passes.
func Figure(t testing.TB, name string, value int) {
	t.Helper()
	t.Logf("%s%s = %d", figureWord, name, value)
}

// ParseFigure reads a line of a test's output.
func ParseFigure(line string) (name string, value int, ok bool) {
	_, text, ok := strings.Cut(line, figureWord)
	name, number, equals := strings.Cut(text, " = ")
	if !ok || !equals {
		return "", 0, false
	}
	if _, err := fmt.Sscanf(number, "%d", &value); err != nil {
		return "", 0, false
	}
	return name, value, true
}
