package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Schedulers are those of the kernel's source.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"}

// strangeScheduler warns of a scheduler that no kernel has under this name: that is a misspelling, or a module from
// elsewhere. One that is known, and whose module this node lacks, is for whoever asks the kernel.
func (c *Config) strangeScheduler() []string {
	name := c.Proxy.IPVS.Scheduler
	if slices.Contains(Schedulers, name) {
		return nil
	}
	text := fmt.Sprintf("%s: %q is no scheduler of the kernel's source, which has %s", c.origin("ipvs.scheduler"), name, strings.Join(Schedulers, ", "))
	if near := nearest(name, Schedulers); near != "" {
		text += fmt.Sprintf(": did you mean %s?", near)
	}
	return []string{text}
}

// withMeant adds to the decoder's error about an unknown key which known one it may stand for. Those are looked for
// among the keys beside it first; a name that is right in another place is found there.
func withMeant(err error, t reflect.Type) error {
	path, ok := strings.CutPrefix(err.Error(), `unknown field "`)
	path, closed := strings.CutSuffix(path, `"`)
	if !ok || !closed {
		return err
	}
	parent, name := "", path
	if i := strings.LastIndex(path, "."); i >= 0 {
		parent, name = path[:i+1], path[i+1:]
	}
	all := known(t, "")
	var beside, elsewhere []string
	for _, key := range all {
		rest, ok := strings.CutPrefix(key, parent)
		if ok && !strings.Contains(rest, ".") {
			beside = append(beside, rest)
		}
		if key[strings.LastIndex(key, ".")+1:] == name && whyNone(key) == "" { // one without effect is no advice
			elsewhere = append(elsewhere, key)
		}
	}
	near := nearest(name, beside)
	switch {
	case near != "":
		near = parent + near
	case len(elsewhere) > 0:
		near = strings.Join(elsewhere, " or ")
	default:
		return err
	}
	return errors.New(err.Error() + ", did you mean " + near + "?")
}

// known lists the keys of a document's type, groups as well.
func known(t reflect.Type, front string) (keys []string) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == durationType || t == flushType {
		return nil
	}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			keys = append(keys, front+name)
			keys = append(keys, known(f.Type, front+name+".")...)
		}
	}
	return keys
}

// nearest is the name that differs least from one that is not among them: in case alone, or in so few letters that it
// is no other word. Empty: none does, or several do alike.
func nearest(name string, among []string) string {
	most := max(1, len(name)/4)
	best, at, tie := "", most+1, false
	for _, other := range among {
		d := distance(strings.ToLower(name), strings.ToLower(other), most)
		switch {
		case d < at:
			best, at, tie = other, d, false
		case d == at:
			tie = true
		}
	}
	if tie || at > most {
		return ""
	}
	return best
}

// distance is the number of letters to insert, take out, replace, or swap with the next one, to make one word of the
// other; above most it is just more than that.
func distance(a, b string, most int) int {
	if len(a)-len(b) > most || len(b)-len(a) > most {
		return most + 1
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			switch {
			case i == 0 || j == 0:
				rows[i][j] = i + j
				continue
			case a[i-1] == b[j-1]:
				rows[i][j] = rows[i-1][j-1]
			default:
				rows[i][j] = 1 + min(rows[i-1][j-1], rows[i-1][j], rows[i][j-1])
			}
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
