package agent

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestIdentify(t *testing.T) {
	apache, err := os.ReadFile("../../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	const isc = `Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted,
provided that the above copyright notice and this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED
WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT, OR
CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT,
NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.`
	for _, c := range []struct {
		files map[string]string
		want  []string
		err   string
	}{
		{map[string]string{"LICENSE": string(apache)}, []string{"Apache-2.0"}, ""},
		{map[string]string{"LICENSE": string(apache), "internal/x/LICENSE.txt": isc, "NOTICE": "By somebody."}, []string{"Apache-2.0", "ISC"}, ""},
		{map[string]string{"NOTICE": string(apache)}, nil, "no licence: there is no such file"},
		{map[string]string{"COPYING": "All rights reserved."}, nil, "COPYING: no known licence"},
	} {
		got, err := identify(c.files)
		if !slices.Equal(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%d files: %q, %v; want %q, %q", len(c.files), got, err, c.want, c.err)
		}
	}
}

// A text that several modules have stands there once, below the names of all.
func TestNotices(t *testing.T) {
	got := Notices(map[string]Licences{
		"example.com/a": {IDs: []string{"MIT"}, Texts: map[string]string{"LICENSE": "Do as you like.\n"}},
		"example.com/b": {IDs: []string{"MIT"}, Texts: map[string]string{"LICENSE": "Do as you like.\n"}},
	})
	if want := "example.com/a/LICENSE\nexample.com/b/LICENSE\n\nDo as you like.\n"; !strings.HasSuffix(got, want) || strings.Count(got, "like") != 1 || !strings.Contains(got, "\nexample.com/b: MIT\n") {
		t.Errorf("%s", got)
	}
}
