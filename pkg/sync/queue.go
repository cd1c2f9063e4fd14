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
	classUrgent class = iota // the API server's and DNS Services: everything else waits for them
	classChange              // something changed
	classBulk                // the rest of a start or of an audit
	classes
)

// queue holds the Keys that need work: those that are ready, by class and then in the order of their
// arrival, and those that wait for their time.
type queue struct {
	ready   [classes][]ipvs.Key
	waiting waitingHeap
	// where says how each queued Key stands; a Key is queued once.
	where map[ipvs.Key]place
	// due counts the Keys that are ready, by family.
	due [2]int
}

type place struct {
	class class
	due   time.Time // zero when ready
}

type waitingKey struct {
	key ipvs.Key
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

// add makes a Key ready now, or moves it up to a more urgent class.
func (q *queue) add(k ipvs.Key, c class) {
	p, queued := q.where[k]
	if queued && p.due.IsZero() && p.class <= c {
		return
	}
	// An entry in a lower class or in the heap stays where it is and is passed over when it comes up.
	if !queued || !p.due.IsZero() {
		q.due[healthz.FamilyOf(k.Addr)]++
	}
	q.where[k] = place{class: c}
	q.ready[c] = append(q.ready[c], k)
}

// addAt makes a Key ready at a later time, unless it is ready or due earlier anyway.
func (q *queue) addAt(k ipvs.Key, due time.Time) {
	if p, queued := q.where[k]; queued && (p.due.IsZero() || !due.Before(p.due)) {
		return
	}
	q.where[k] = place{class: classBulk, due: due}
	heap.Push(&q.waiting, waitingKey{k, due})
}

// pop takes up to n Keys that are ready, the most urgent first.
func (q *queue) pop(now time.Time, n int) (keys []ipvs.Key) {
	for len(q.waiting) > 0 && !q.waiting[0].due.After(now) {
		w := heap.Pop(&q.waiting).(waitingKey)
		if p := q.where[w.key]; p.due.Equal(w.due) && !p.due.IsZero() {
			q.due[healthz.FamilyOf(w.key.Addr)]++
			q.where[w.key] = place{class: p.class}
			q.ready[p.class] = append(q.ready[p.class], w.key)
		}
	}
	for c := range q.ready {
		for len(q.ready[c]) > 0 && len(keys) < n {
			k := q.ready[c][0]
			q.ready[c] = q.ready[c][1:]
			if p, ok := q.where[k]; ok && p.due.IsZero() && p.class == class(c) {
				q.due[healthz.FamilyOf(k.Addr)]--
				delete(q.where, k)
				keys = append(keys, k)
			}
		}
		if len(q.ready[c]) == 0 {
			q.ready[c] = nil
		}
		if class(c) == classUrgent && len(keys) > 0 {
			break // by themselves: filled up with others, they would wait for those as well
		}
	}
	return keys
}

// next is when the queue wants attention: now when something is ready, zero when it is empty.
func (q *queue) next(now time.Time) time.Time {
	for _, r := range q.ready {
		if len(r) > 0 {
			return now
		}
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

// sorted gives the Keys of a map in their canonical order, so that every start does the same.
func sorted[V any](m map[ipvs.Key]V) []ipvs.Key {
	return slices.SortedFunc(maps.Keys(m), ipvs.Key.Compare)
}
