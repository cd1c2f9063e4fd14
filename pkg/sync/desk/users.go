package desk

import (
	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
)

// users are the Services that use an address, and how many times each. Nearly always it is one, which takes no map.
type users struct {
	one  cluster.ID
	n    int // how many times one does; 0: nobody does
	more map[cluster.ID]int
}

// count counts a Service's uses up or down.
func (u *users) count(id cluster.ID, by int) {
	if u.n == 0 {
		u.one = id
	}
	if u.one != id {
		if u.more == nil {
			u.more = map[cluster.ID]int{}
		}
		if u.more[id] += by; u.more[id] == 0 {
			delete(u.more, id)
		}
		return
	}
	if u.n += by; u.n > 0 {
		return
	}
	for next, n := range u.more { // whichever takes the place
		u.one, u.n = next, n
		delete(u.more, next)
		return
	}
}

// ids are the Services, in no order.
func (u users) ids() (ids []cluster.ID) {
	if u.n == 0 {
		return nil
	}
	ids = append(ids, u.one)
	for id := range u.more {
		ids = append(ids, id)
	}
	return ids
}
