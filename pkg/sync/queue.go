package sync

import (
	"container/heap"
	"maps"
	"slices"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// class is a Key's place in the queue.
type class uint8

const (
	classUrgent class = iota // the API server's and the cluster's DNS: everything else waits for them
	classChange              // something changed
	classBulk                // the rest of a start or of an audit, and what failed
	classDear                // what costs the kernel far more than others: by itself, behind them
	classes
)

// patience is how many slices of work a class lets others go first, however much those have: a Service that changes
// without end is in nobody's way for longer.
var patience = [classes]int{classUrgent: 4, classChange: 4, classBulk: 4, classDear: 64}

// queue holds the Keys that need work: those that are ready, by class and then in the order of their
// arrival, and those that wait for their time.
type queue struct {
	ready   [classes]line
	waiting waitingHeap
	// where says how each queued Key stands; a Key is queued once. An entry that has another number than its place
	// is passed over.
	where map[ipvs.Key]place
	last  uint64 // number given
	// passed counts the slices in a row in which Keys of a class were ready and none was taken.
	passed [classes]int
	// due counts the Keys that are ready, by family.
	due [2]int
}

type place struct {
	class  class
	number uint64
	due    time.Time // zero when ready
}

// entry is a Key in a line.
type entry struct {
	key    ipvs.Key
	number uint64
}

type waitingKey struct {
	entry
	due time.Time
}

type waitingHeap []waitingKey

func (h waitingHeap) Len() int           { return len(h) }
func (h waitingHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h waitingHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *waitingHeap) Push(x any)        { *h = append(*h, x.(waitingKey)) }
func (h *waitingHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func newQueue() *queue { return &queue{where: map[ipvs.Key]place{}} }

// turn is a Key whose time has come, and the class that it had.
type turn struct {
	key   ipvs.Key
	class class
}

// add makes a Key ready now, or moves it up to a more urgent class.
func (q *queue) add(k ipvs.Key, c class) {
	if p, queued := q.where[k]; queued && p.due.IsZero() && p.class <= c {
		return
	}
	q.stand(k, c)
	q.ready[c].push(entry{k, q.last}, q.good, len(q.where))
}

// stand gives a Key a place among those that are ready. An entry of it in a lower class or in the heap stays where it
// is.
func (q *queue) stand(k ipvs.Key, c class) {
	if p, queued := q.where[k]; !queued || !p.due.IsZero() {
		q.due[healthz.FamilyOf(k.Addr)]++
	}
	q.last++
	q.where[k] = place{class: c, number: q.last}
}

// back puts Keys back that were taken and not worked on, to where they were.
func (q *queue) back(turns []turn) {
	for _, t := range slices.Backward(turns) {
		q.stand(t.key, t.class)
		q.ready[t.class].unshift(entry{t.key, q.last})
	}
}

// addAt makes a Key ready at a later time, unless it is ready or due earlier anyway.
func (q *queue) addAt(k ipvs.Key, due time.Time, c class) {
	if p, queued := q.where[k]; queued && (p.due.IsZero() || !due.Before(p.due)) {
		return
	}
	q.last++
	q.where[k] = place{class: c, number: q.last, due: due}
	if len(q.waiting) > 2*len(q.where)+few {
		q.waiting = slices.DeleteFunc(q.waiting, func(w waitingKey) bool { return !q.good(w.entry) })
		heap.Init(&q.waiting)
	}
	heap.Push(&q.waiting, waitingKey{entry{k, q.last}, due})
}

// drop takes a Key out.
func (q *queue) drop(k ipvs.Key) {
	p, queued := q.where[k]
	if queued && p.due.IsZero() {
		q.due[healthz.FamilyOf(k.Addr)]--
	}
	delete(q.where, k)
}

// good reports whether an entry is its Key's place.
func (q *queue) good(e entry) bool { return q.where[e.key].number == e.number }

// ripen makes those ready whose time has come.
func (q *queue) ripen(now time.Time) {
	for len(q.waiting) > 0 && !q.waiting[0].due.After(now) {
		if e := heap.Pop(&q.waiting).(waitingKey).entry; q.good(e) {
			q.add(e.key, q.where[e.key].class)
		}
	}
}

// pop takes up to n Keys that are ready, the most urgent first, but for a class that has waited for long enough.
func (q *queue) pop(now time.Time, n int) (turns []turn) {
	if q.ripen(now); q.due == [2]int{} {
		return nil
	}
	for c := range classes {
		if q.passed[c] >= patience[c] && len(turns) == 0 {
			turns = q.take(turns, c, n)
		}
	}
	for c := range classes {
		// Urgent ones by themselves: filled up with others, they would wait for those as well. So do others for dear ones.
		if len(turns) == 0 || turns[0].class != classUrgent && turns[0].class != classDear && c != classDear {
			turns = q.take(turns, c, n)
		}
	}
	q.pass(turns)
	return turns
}

// pass notes whose turn it was not.
func (q *queue) pass(turns []turn) {
	for c := range q.ready {
		if q.passed[c]++; q.ready[c].len() == 0 {
			q.passed[c] = 0
		}
	}
	for _, t := range turns {
		q.passed[t.class] = 0
	}
}

// take takes Keys of a class, until there are n.
func (q *queue) take(turns []turn, c class, n int) []turn {
	for len(turns) < n {
		e, some := q.ready[c].shift()
		if !some {
			break
		}
		if !q.good(e) {
			continue
		}
		q.due[healthz.FamilyOf(e.key.Addr)]--
		delete(q.where, e.key)
		turns = append(turns, turn{e.key, c})
	}
	return turns
}

// next is when the queue wants attention: now when something is ready, zero when it is empty.
func (q *queue) next(now time.Time) time.Time {
	if q.due != [2]int{} {
		return now
	}
	if len(q.waiting) > 0 {
		return q.waiting[0].due
	}
	return time.Time{}
}

// pending reports whether a Key will have its turn anyway.
func (q *queue) pending(k ipvs.Key) bool {
	_, queued := q.where[k]
	return queued
}

// len counts the queued Keys.
func (q *queue) len() int { return len(q.where) }

// line is entries in the order of their turn. Those that have had it lie before the head.
type line struct {
	entries []entry
	head    int
}

// few is how many entries beside those that count are not worth the work of leaving them out.
const few = 64

func (l *line) len() int { return len(l.entries) - l.head }

// push puts an entry last. Where most of the line does not count any more, beside so many Keys that are queued at all,
// that is left out.
func (l *line) push(e entry, good func(entry) bool, queued int) {
	if len(l.entries) > 2*queued+few {
		rest := slices.DeleteFunc(l.entries[l.head:], func(e entry) bool { return !good(e) })
		l.entries, l.head = append([]entry(nil), rest...), 0
	}
	l.entries = append(l.entries, e)
}

// shift takes the first entry.
func (l *line) shift() (e entry, some bool) {
	if l.len() == 0 {
		return e, false
	}
	e = l.entries[l.head]
	if l.head++; l.len() == 0 {
		*l = line{}
	}
	return e, true
}

// unshift puts an entry first.
func (l *line) unshift(e entry) {
	if l.head == 0 {
		l.entries = slices.Insert(l.entries, 0, e)
		return
	}
	l.head--
	l.entries[l.head] = e
}

// sorted gives the Keys of a map in their canonical order, so that every start does the same.
func sorted[V any](m map[ipvs.Key]V) []ipvs.Key {
	return slices.SortedFunc(maps.Keys(m), ipvs.Key.Compare)
}

// waits reports whether nothing is to be done of a Key now: it is not queued, or its time has not come.
func (q *queue) waits(k ipvs.Key) bool {
	p, queued := q.where[k]
	return !queued || !p.due.IsZero()
}
