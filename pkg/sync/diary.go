package sync

import (
	"errors"
	"strings"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// Why says what made the loop write.
type Why uint8

// What made the loop write.
const (
	// WhyAgain: what was begun or failed before goes on.
	WhyAgain Why = iota
	// WhyStart: a start, or all of the kernel was read anew.
	WhyStart
	// WhyObject: a Service or a slice of it changed.
	WhyObject
	// WhyOther: another Service changed, which it follows from.
	WhyOther
	// WhySite: the node's addresses, its Node object or the API server's addresses did.
	WhySite
	// WhyScheduler: the kernel does not have the scheduler that was asked for.
	WhyScheduler
	// WhyCheck: a port for a load balancer's checks became free, or was taken.
	WhyCheck
	// WhyTampered: another program had changed what is ours.
	WhyTampered
	// WhyDrained: a real server has no connections left, or its time is over.
	WhyDrained
	// WhyForgets: conntrack entries went past a frontend.
	WhyForgets
	// WhyTakeover: another proxy had left it.
	WhyTakeover
	// WhySlowStart: a new endpoint's time had come to have more of its weight.
	WhySlowStart
)

// whys are how they print, in -o json too.
var whys = [...]string{
	WhyAgain: "again", WhyStart: "start", WhyObject: "object", WhyOther: "other Service", WhySite: "node", WhyScheduler: "no scheduler",
	WhyCheck: "health check", WhyTampered: "tampered", WhyDrained: "drained", WhyForgets: "conntrack", WhyTakeover: "takeover", WhySlowStart: "slow start",
}

// String gives a word or two, the same for ever.
func (w Why) String() string { return whys[w] }

// cause is why a Key has its turn, and when that was heard.
type cause struct {
	why   Why
	heard time.Time // zero: nothing was heard
}

// Write is one write to the kernel, as a person would type it.
type Write struct {
	// Number counts the writes of this process from 1: whoever has one can ask for those behind it.
	Number uint64
	At     time.Time
	// Service is for whom it was done; zero: for nobody in particular.
	Service cluster.ID
	Line    string
	Why     Why
	// Heard is when the cause was heard of; zero: there was nothing to hear.
	Heard time.Time
	// Err is how it failed; "": it did not.
	Err string
	// Deleted counts the conntrack entries that went.
	Deleted int
}

// diary keeps the last writes of this process, and why Keys have their turn. The lines are made when somebody asks.
type diary struct {
	causes map[ipvs.Key]cause
	ring   []written // diaryMost places; the next one is that of the total
	kept   int       // how many
	total  uint64    // written since the start of the process
	bytes  int       // that those kept take, at most
}

// written is one of them.
type written struct {
	at, heard int64 // Unix nanoseconds; 0: never
	service   cluster.ID
	op        ipvs.Op // nil: text has it
	text      string
	err       string
	deleted   int32
	bytes     int32 // that it takes, at most; an empty place takes none
	why       Why
}

const (
	// diaryMost is how many writes are kept.
	diaryMost = 10_000
	// diaryBytes is what they may take: 10,000 of the longest that succeed fit in.
	diaryBytes = 4_000_000
	// writtenBytes is what one takes beside its texts: itself, and the largest operation, in what the allocator has for it.
	writtenBytes = 128 + 144
	// failedLength is how much of an error is kept.
	failedLength = 160
)

func newDiary() *diary {
	return &diary{causes: map[ipvs.Key]cause{}, ring: make([]written, diaryMost)}
}

// because notes why a Key will have its turn. The first reason counts: with it the waiting began.
func (h *diary) because(k ipvs.Key, c cause) {
	if _, known := h.causes[k]; !known {
		h.causes[k] = c
	}
}

// notTried reports whether a write was left out because an earlier one of its Key failed.
func notTried(o ipvs.Outcome) bool { return errors.Is(o.Err, ipvs.ErrNotTried) }

// wrote notes a write. One that was not tried is none.
func (h *diary) wrote(now time.Time, op ipvs.Op, id cluster.ID, c cause, o ipvs.Outcome) {
	if notTried(o) {
		return
	}
	w := written{at: now.UnixNano(), service: id, op: op, why: c.why, err: failedText(op, o.Err)}
	if !c.heard.IsZero() {
		w.heard = c.heard.UnixNano()
	}
	h.add(w)
}

// forgot notes that conntrack entries were deleted. What is wanted of the frontend is not kept with it.
func (h *diary) forgot(now time.Time, op ipvs.Forget, id cluster.ID, o ipvs.Outcome) {
	if notTried(o) {
		return
	}
	h.add(written{at: now.UnixNano(), service: id, op: ipvs.Forget{Key: op.Key, Undirected: op.Undirected, Directed: op.Directed},
		why: WhyForgets, err: failedText(op, o.Err), deleted: int32(min(o.Deleted, 1<<30))})
}

// took notes that something of another proxy's was taken out.
func (h *diary) took(now time.Time, text string) {
	h.add(written{at: now.UnixNano(), text: clip(text, failedLength), why: WhyTakeover})
}

// failedText is an error without the operation, which stands beside it.
func failedText(op ipvs.Op, err error) string {
	if err == nil {
		return ""
	}
	return clip(strings.TrimPrefix(oneLine(err), op.String()+": "), failedLength)
}

// size is what one takes, at most. A name is shared with the model while there is such a Service.
func (w *written) size() int {
	return writtenBytes + len(w.service.Namespace) + len(w.service.Name) + len(w.text) + len(w.err) + len(w.err)/3
}

// add puts one into the place of the oldest. Where those that are left take too much room, more of these go.
func (h *diary) add(w written) {
	place := &h.ring[h.total%diaryMost]
	w.bytes = int32(w.size())
	h.bytes += int(w.bytes - place.bytes)
	*place = w
	h.total++
	h.kept = min(h.kept+1, diaryMost)
	for h.bytes > diaryBytes {
		oldest := h.at(0)
		h.bytes -= int(oldest.bytes)
		*oldest = written{}
		h.kept--
	}
}

// at is one of those kept, counted from the oldest.
func (h *diary) at(i int) *written { return &h.ring[(h.total-uint64(h.kept)+uint64(i))%diaryMost] }

// number is that of one of those kept.
func (h *diary) number(i int) uint64 { return h.total - uint64(h.kept) + uint64(i) + 1 }

// Selection is which writes are asked for. Its zero value has all of them.
type Selection struct {
	// Behind leaves out those up to a Number.
	Behind uint64
	// Since leaves out what is older; zero: nothing is.
	Since time.Time
	// Service has only those done for it; zero: all.
	Service cluster.ID
	// Last has only so many of them, the last ones; 0: all.
	Last int
}

// diaryPage is how many writes an answer has at most: their lines cost some 0.3 ms.
const diaryPage = 500

// last gives those that are asked for, the oldest first, as many as an answer has, and whether there are more.
func (h *diary) last(sel Selection) (list []Write, more bool) {
	begin := 0
	if sel.Last > 0 {
		begin = h.lastOf(sel)
	}
	for i := begin; i < h.kept; i++ {
		w, number := h.at(i), h.number(i)
		if !sel.has(number, w) {
			continue
		}
		if len(list) == diaryPage {
			return list, true
		}
		list = append(list, w.told(number))
	}
	return list, false
}

// lastOf is where the last so many begin.
func (h *diary) lastOf(sel Selection) (begin int) {
	found := 0
	for i := h.kept - 1; i >= 0; i-- {
		if sel.has(h.number(i), h.at(i)) {
			if found++; found == sel.Last {
				return i
			}
		}
	}
	return 0
}

func (s Selection) has(number uint64, w *written) bool {
	return number > s.Behind && (s.Since.IsZero() || w.at >= s.Since.UnixNano()) && (s.Service == cluster.ID{} || s.Service == w.service)
}

// told is one for whoever asked.
func (w *written) told(number uint64) Write {
	line := w.text
	if w.op != nil {
		line = w.op.String()
	}
	is := Write{Number: number, At: time.Unix(0, w.at), Service: w.service, Line: line, Why: w.why, Err: w.err, Deleted: int(w.deleted)}
	if w.heard != 0 {
		is.Heard = time.Unix(0, w.heard)
	}
	return is
}
