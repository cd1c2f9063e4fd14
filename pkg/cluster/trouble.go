package cluster

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Trouble is something that a [Directory] cannot do or use. It is reported
// once when it appears and, with Mended set, once when it is over. What is
// wrong inside an object that could be decoded is a [Problem] of the Model
// instead.
type Trouble struct {
	File     string // base name; "" for the directory itself
	Document int    // 1-based, empty ones not counted; 0: the whole file
	Line     int    // 1-based line on which the document starts; 0: no document
	Object   string // "Service default/web", "items[3]"; "" when unknown
	Reason   string // one of the Trouble constants
	Message  string // one line of bounded length
	Mended   bool
}

// The reasons of Troubles: a bounded set.
const (
	// TroubleDirectory: the directory is gone or cannot be listed; the last
	// state stays.
	TroubleDirectory = "Directory"
	// TroubleNoContent: no file with a usable document; the last state stays.
	TroubleNoContent = "NoContent"
	// TroubleWatch: changes are looked for every few seconds instead of being
	// notified.
	TroubleWatch = "Watch"
	// TroubleUnreadable: a file cannot be read; its objects stay.
	TroubleUnreadable = "Unreadable"
	// TroubleTooLarge: a file is over the size limit; its objects stay.
	TroubleTooLarge = "TooLarge"
	// TroubleEmptied: a file that held objects has become empty, as it is
	// while being written; its objects stay.
	TroubleEmptied = "Emptied"
	// TroubleDocument: a document or an item of a List cannot be decoded;
	// objects that it may have held stay.
	TroubleDocument = "Document"
	// TroubleDuplicate: an object is defined twice; the other one counts.
	TroubleDuplicate = "Duplicate"
	// TroubleIgnoredKind is a note: objects of this kind have no use here.
	TroubleIgnoredKind = "IgnoredKind"
	// TroubleMore stands for those beyond the first few of a file.
	TroubleMore = "More"
)

// Note reports whether nothing is wrong: the file just holds more than is
// used.
func (t Trouble) Note() bool { return t.Reason == TroubleIgnoredKind }

// Error gives the Trouble as one line.
func (t Trouble) Error() string {
	var b strings.Builder
	if t.Mended {
		b.WriteString("mended: ")
	}
	if t.File != "" {
		b.WriteString(t.File + ": ")
	}
	if t.Document != 0 {
		fmt.Fprintf(&b, "document %d (line %d): ", t.Document, t.Line)
	}
	if t.Object != "" {
		b.WriteString(t.Object + ": ")
	}
	b.WriteString(t.Message)
	return b.String()
}

// identity is what stays the same while a Trouble lasts: text before it in the
// file may come and go.
func (t Trouble) identity() Trouble {
	t.Line, t.Message = 0, ""
	return t
}

func (t Trouble) compare(o Trouble) int {
	return cmp.Or(cmp.Compare(t.File, o.File), cmp.Compare(t.Document, o.Document),
		cmp.Compare(t.Object, o.Object), cmp.Compare(t.Reason, o.Reason))
}

// listedPerFile is how many Troubles of one sort a file may have before the
// rest are counted.
const listedPerFile = 20

// troubles collects Troubles of one sort.
type troubles struct {
	list []Trouble
	more int
}

func (ts *troubles) add(t Trouble) {
	if len(ts.list) == listedPerFile {
		ts.more++
		return
	}
	t.Message = oneLine(t.Message)
	ts.list = append(ts.list, t)
}

// all is the list, closed by one that counts the rest.
func (ts *troubles) all() []Trouble {
	if ts.more == 0 {
		return ts.list
	}
	last := ts.list[len(ts.list)-1]
	return append(ts.list[:len(ts.list):len(ts.list)], Trouble{
		File: last.File, Object: last.Reason, Reason: TroubleMore,
		Message: fmt.Sprintf("%d more like these", ts.more),
	})
}

// reporter tells each Trouble once.
type reporter struct {
	tell  func(error)
	known map[Trouble]Trouble // by identity
}

// set makes now the Troubles there are.
func (r *reporter) set(now []Trouble) {
	if len(now) == 0 && len(r.known) == 0 {
		return
	}
	before := r.known
	r.known = make(map[Trouble]Trouble, len(now))
	for _, t := range now {
		id := t.identity()
		if _, twice := r.known[id]; twice {
			continue
		}
		if old, ok := before[id]; !ok || old.Message != t.Message {
			r.tell(t)
		}
		r.known[id] = t
		delete(before, id)
	}
	for _, t := range slices.SortedFunc(maps.Values(before), Trouble.compare) {
		if !t.Note() {
			t.Mended = true
			r.tell(t)
		}
	}
}

// oneLine makes a message of another package fit for one line of a log.
func oneLine(s string) string {
	const limit = 300
	s = strings.ToValidUTF8(s, "?")
	if utf8.RuneCountInString(s) > limit {
		s = string([]rune(s)[:limit]) + "…"
	}
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' }), " ")
}
