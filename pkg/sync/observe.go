package sync

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// observe asks the kernel about those Keys of which the mirror may be wrong. Keys that could not be read go back into the
// queue. Reads that hang do not add up: after one the rest is for another slice, and fewer are read together, until it is
// known which Key it is.
func (a *act) observe(ctx context.Context, jobs []job) (unread map[ipvs.Key]bool) {
	var doubted []job
	for _, j := range jobs {
		if a.mirror.MustRead(j.key, j.wish.Frontend) {
			doubted = append(doubted, j)
		}
	}
	if len(doubted) == 0 {
		return nil
	}
	began := a.now()
	done := doubted[:min(len(doubted), a.together)]
	err := a.read(ctx, done)
	if err == nil {
		a.together = min(2*a.together, sliceKeys)
	} else {
		unread, done = a.readEach(ctx, done, began, err)
	}
	if len(done) < len(doubted) && unread == nil {
		unread = map[ipvs.Key]bool{}
	}
	for _, j := range doubted[len(done):] {
		unread[j.key] = true
		a.queue.add(j.key, j.class)
	}
	return unread
}

// readEach reads one by one what could not be read together: one Key that cannot be read must not hold up the others.
// It gives those that had their turn so. Where reading them together hung, that is none of several.
func (a *act) readEach(ctx context.Context, jobs []job, began time.Time, err error) (unread map[ipvs.Key]bool, done []job) {
	unread = map[ipvs.Key]bool{}
	hung := func() bool { return a.now().Sub(began) >= hungTime }
	fail := func(j job) {
		unread[j.key] = true
		a.retry(j)
	}
	switch {
	case len(jobs) == 1 && ctx.Err() == nil:
		fail(jobs[0])
		done = jobs
	case hung():
		a.together = max(len(jobs)/2, 1)
	default:
		for len(done) < len(jobs) && ctx.Err() == nil && !hung() {
			j := jobs[len(done)]
			done = jobs[:len(done)+1]
			if a.read(ctx, done[len(done)-1:]) != nil {
				fail(j)
			}
		}
	}
	if ctx.Err() == nil {
		a.tell.log.Warn("reading frontends failed, trying again", zap.Int("frontends", len(jobs)-len(done)+len(unread)), zap.Error(err))
	}
	return unread, done
}

// read asks the kernel about Keys and has the mirror learn what it says.
func (a *act) read(ctx context.Context, jobs []job) error {
	var ask []ipvs.Key
	for _, j := range jobs {
		ask = a.mirror.Ask(ask, j.key, j.wish.Frontend)
	}
	slices.SortFunc(ask, ipvs.Key.Compare)
	ask = slices.Compact(ask)
	found, err := a.reader.Observe(ctx, ask)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		a.mirror.Count(j.key, found[j.key].Conns, a.now(), a.leftOf(j.wish))
	}
	gone := map[ipvs.Fact]bool{}
	for _, k := range ask {
		a.mirror.Learn(k, found[k].Have, func(f ipvs.Fact, there bool) {
			switch {
			case !there:
				gone[f] = true
			case !a.want(k).Needs(f.Kind):
				a.again(k) // somebody else made it: no other Key would take it away
			}
		})
	}
	if len(gone) > 0 {
		a.queueNeeding(func(f ipvs.Fact) bool { return gone[f] }) // other Keys may rely on them
	}
	return nil
}
