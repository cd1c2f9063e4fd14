package preview

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Width is how many columns a table has.
const Width = 100

// most is how many writes, and how many Services, a table names: enough to see what it is about.
const most = 20

// Text prints a Report as a table for a person, in Width columns as far as commands allow. With all, nothing is cut.
func (r *Report) Text(all bool) string {
	t := &table{all: all}
	t.head(r)
	t.counts(r)
	t.setUp(r)
	t.writes(r.Writes)
	t.services(r)
	t.leftovers(r)
	for _, warning := range r.Warnings {
		t.wrap("warning: ", "         ", warning)
	}
	return t.b.String()
}

type table struct {
	b   strings.Builder
	all bool
}

func (t *table) line(format string, args ...any) { fmt.Fprintf(&t.b, format+"\n", args...) }

// wrap prints words in lines of Width columns.
func (t *table) wrap(first, next, text string) {
	line, empty := first, true
	for word := range strings.FieldsSeq(text) {
		switch {
		case empty:
			line += word
		case len([]rune(line))+1+len([]rune(word)) > Width:
			t.line("%s", line)
			line = next + word
		default:
			line += " " + word
		}
		empty = false
	}
	t.line("%s", line)
}

// command prints a command; one that is too long goes on in the next line, as a shell takes it.
func (t *table) command(first, text string) {
	line, next := first, strings.Repeat(" ", len(first)+4)
	for i, word := range strings.Split(text, " ") {
		switch {
		case i == 0:
			line += word
		case len(line)+1+len(word) > Width-2:
			t.line("%s \\", line)
			line = next + word
		default:
			line += " " + word
		}
	}
	t.line("%s", line)
}

func (t *table) head(r *Report) {
	state := map[State]string{
		StateAgent:     "the kernel is as an agent makes it",
		StateEmpty:     "the kernel has nothing of a Service proxy",
		StateKubeProxy: "the kernel is as kube-proxy makes it",
	}[r.Kernel]
	if r.Kernel == StateKubeProxy && r.Leftovers != nil && r.Leftovers.Mode != "" {
		state += " in mode " + r.Leftovers.Mode
	}
	agent := "no agent is at work"
	if r.Agent {
		agent = "an agent is at work"
	}
	t.line("%s: %s; %s; Services: %s", r.Node, state, agent, Number(r.Of))
	if !r.Differs() {
		t.line("nothing to do")
	}
	t.line("")
}

func (t *table) counts(r *Report) {
	t.line("%-24s %9s %9s %9s %9s", "", "stay", "come", "change", "go")
	for _, c := range r.Counts {
		t.line("%-24s %9s %9s %9s %9s", c.Kind, Number(c.Stay), Number(c.Come), Number(c.Change), Number(c.Go))
	}
	if f := r.Foreign; f.Virtual > 0 {
		t.line("of other programs        %s: they stay as they are", servers(f))
	}
	if r.Leaving > 0 {
		t.line("on their way out         %s at weight 0: they go once their connections have ended", Plural(r.Leaving, "real server"))
	}
}

func (t *table) setUp(r *Report) {
	if len(r.SetUp) == 0 {
		return
	}
	t.line("\nset up first")
	for _, line := range r.SetUp {
		mark := "+"
		if strings.HasPrefix(line, "sysctl ") || strings.HasPrefix(line, "ipvsadm --set") {
			mark = "~"
		}
		t.command("  "+mark+" ", line)
	}
}

// marks are the signs of verbs.
var marks = map[Verb]string{Come: "+", Change: "~", Go: "-"}

// writes names those that need a look first. Elements of sets are counted where they are many: each goes with a frontend
// that is named anyway.
func (t *table) writes(all []Write) {
	named, elements := all, []Write(nil)
	if !t.all {
		is := func(w Write) bool { return w.Kind == kindElement }
		if of := slices.DeleteFunc(slices.Clone(all), func(w Write) bool { return !is(w) }); len(of) > most {
			named, elements = slices.DeleteFunc(slices.Clone(all), is), of
		}
	}
	named = slices.SortedStableFunc(slices.Values(named), byVerb)
	more := named
	if t.all || len(named) <= most {
		more = nil
	} else {
		named, more = named[:most], named[most:]
	}
	before := "?"
	for i, w := range named {
		if w.Service != before {
			t.line("\n%s", orNone(w.Service))
		}
		before = w.Service
		t.command("  "+marks[w.Verb]+" ", w.Line)
		if next := i + 1; w.Reason != (Reason{}) && (next == len(named) || named[next].Reason != w.Reason || named[next].Service != w.Service) {
			t.reason("      ", w.Reason)
		}
	}
	if len(more) > 0 {
		t.line("\n... and %s: --all names them, and -o json", tally(more, "write"))
	}
	t.elements(elements)
}

// elements counts those of each set.
func (t *table) elements(all []Write) {
	if len(all) == 0 {
		return
	}
	bySet := map[string][]Write{}
	for _, w := range all {
		bySet[w.Set] = append(bySet[w.Set], w)
	}
	var parts []string
	for _, set := range slices.Sorted(maps.Keys(bySet)) {
		parts = append(parts, set+" "+signs(bySet[set]))
	}
	t.line("")
	t.wrap("elements of nftables sets: ", "  ", strings.Join(parts, ", "))
}

func (t *table) reason(indent string, r Reason) {
	text := r.Why
	if r.Code != "" {
		text = r.Code + ": " + text
	}
	if r.Do != "" {
		text += " " + r.Do
	}
	if text != "" {
		t.wrap(indent, indent, text)
	}
}

// services names those that behave differently. Beside an agent, or after one, that was so before.
func (t *table) services(r *Report) {
	if len(r.Services) == 0 || r.Kernel == StateAgent && !t.all {
		return
	}
	t.line("\nServices that behave otherwise than with kube-proxy's mode ipvs: %s of %s", Number(len(r.Services)), Number(r.Of))
	list := r.Services
	if !t.all {
		list = list[:min(len(list), most)]
	}
	for _, s := range list {
		t.line("  %s", s.Service)
		for i, p := range s.Points {
			if i == most && !t.all {
				t.line("    ... and %s more", Number(len(s.Points)-i))
				break
			}
			t.wrap("    ", "    ", p.What)
			t.reason("      ", p.Reason)
		}
	}
	if more := len(r.Services) - len(list); more > 0 {
		t.line("  ... and %s: --all names them, and -o json", Plural(more, "other Service"))
	}
}

func (t *table) leftovers(r *Report) {
	l := r.Leftovers
	if l == nil {
		return
	}
	if len(l.Writes) > 0 {
		head, mark := "of kube-proxy, taken out once all Services are programmed", "-"
		if l.Kept {
			head, mark = "of kube-proxy, and kept by takeover.leftovers", "="
		}
		t.line("\n%s", head)
		list := l.Writes
		if !t.all {
			list = list[:min(len(list), most)]
		}
		for _, w := range list {
			t.command("  "+mark+" ", w)
		}
		if more := len(l.Writes) - len(list); more > 0 {
			t.line("  ... and %s: --all names them, and -o json", Number(more))
		}
	}
	for _, stays := range l.Stays {
		t.wrap("  stays: ", "         ", stays)
	}
}

func orNone(service string) string {
	if service == "" {
		return "no Service's"
	}
	return service
}
