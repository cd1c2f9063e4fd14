package mirror

import "time"

// trash paces the removal of real servers. The kernel keeps each for at least 120 s in a list that every
// later add scans (ip_vs_trash_get_dest in ip_vs_ctl.c): 10,000 in it make an add 11 times slower. Draining
// ones can wait at weight 0, where they cost nothing.
type trash struct{ removed []time.Time }

const (
	trashTime = 130 * time.Second // the kernel's timer may be late
	trashRoom = 900
)

// take takes a place in the list for a removal that can wait; false: there is none.
func (t *trash) take(now time.Time) bool {
	if t.room(now) == 0 {
		return false
	}
	t.removed = append(t.removed, now)
	return true
}

// room counts the places in the list that are free.
func (t *trash) room(now time.Time) int {
	for len(t.removed) > 0 && now.Sub(t.removed[0]) > trashTime {
		t.removed = t.removed[1:]
	}
	return trashRoom - len(t.removed)
}

// put counts what went into the list without asking: a Service and a UDP endpoint go at once, however full it is.
func (t *trash) put(now time.Time, n int) {
	for range min(n, trashRoom) {
		t.removed = append(t.removed, now)
	}
	if extra := len(t.removed) - trashRoom; extra > 0 {
		t.removed = t.removed[extra:]
	}
}
