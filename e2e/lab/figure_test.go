package lab

import "testing"

// What a test logs is what is read.
func TestFigureIsRead(t *testing.T) {
	for line, want := range map[string]struct {
		name  string
		value int
		ok    bool
	}{
		"    x_test.go:7: figure: requests lost, by nobody = 12\n": {"requests lost, by nobody", 12, true},
		"    x_test.go:7: figure: requests lost = many\n":          {},
		"    x_test.go:7: figure: requests lost\n":                 {},
		"    x_test.go:7: requests lost = 12\n":                    {},
	} {
		if name, value, ok := ParseFigure(line); name != want.name || value != want.value || ok != want.ok {
			t.Errorf("%q: %q %d %t", line, name, value, ok)
		}
	}
}
