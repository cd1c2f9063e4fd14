package preview

import "testing"

func TestPlural(t *testing.T) {
	for want, got := range map[string]string{
		"1 entry":                 Plural(1, "entry"),
		"2 entries":               Plural(2, "entry"),
		"0 Services":              Plural(0, "Service"),
		"2 ways":                  Plural(2, "way"),
		"12,000 endpoints":        Plural(12000, "endpoint"),
		"1 virtual server":        Plural(1, "virtual server"),
		"10 virtual server" + "s": Plural(10, "virtual server"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
