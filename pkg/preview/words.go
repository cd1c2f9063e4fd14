package preview

import (
	"fmt"
	"strings"
)

// Number prints a number with commas between thousands.
func Number[N int | uint64](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Plural prints a number of things, whose name gets an s, or ies for a y behind a consonant.
func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if stem, is := strings.CutSuffix(what, "y"); is && !strings.HasSuffix(stem, "a") && !strings.HasSuffix(stem, "e") && !strings.HasSuffix(stem, "o") {
		return Number(n) + " " + stem + "ies"
	}
	return Number(n) + " " + what + "s"
}

func servers(s Servers) string {
	return Plural(s.Virtual, "virtual server") + " with " + Plural(s.Real, "real server")
}

// tally is how many there are, and of which verbs.
func tally(ws []Write, what string) string {
	return Plural(len(ws), "other "+what) + " (" + signs(ws) + ")"
}

// signs counts writes by verb.
func signs(ws []Write) (text string) {
	n := map[Verb]int{}
	for _, w := range ws {
		n[w.Verb]++
	}
	for _, v := range []Verb{Come, Change, Go} {
		if n[v] == 0 {
			continue
		}
		if text != "" {
			text += " "
		}
		text += marks[v] + Number(n[v])
	}
	return text
}
