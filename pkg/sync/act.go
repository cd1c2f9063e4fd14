package sync

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/mirror"
)

// act brings Keys to what is wanted of them.
type act struct {
	shared
	writer Writer
	reader Reader
	base   *base
	forget *forget
	jobs   []job // those under way, kept for the next
}

// sliceKeys is how many Keys are worked on at a time, about 16 KB of commands: between two slices
// priorities are looked at again, so that an urgent change waits for one slice at most.
const sliceKeys = 64

func (a *act) due(now time.Time) time.Time { return a.queue.next(now) }

// tend works on those Keys whose time has come.
func (a *act) tend(ctx context.Context) (more bool) {
	turns := a.queue.pop(a.now(), sliceKeys)
	if len(turns) > 0 {
		a.act(ctx, turns)
	}
	return len(turns) > 0
}

// job is a Key that has its turn, and what is wanted of it.
type job struct {
	key   ipvs.Key
	class class // that it had in the queue
	wish  desk.Wish
}

// act brings some Keys to what is wanted of them.
func (a *act) act(ctx context.Context, turns []turn) {
	began := a.now()
	jobs := a.jobs[:0]
	for _, t := range turns {
		jobs = append(jobs, job{t.key, t.class, a.want(t.key)})
	}
	a.jobs = jobs
	read, unread := a.observe(ctx, jobs)
	if ctx.Err() != nil {
		return
	}
	var plan ipvs.Plan
	jobs = slices.DeleteFunc(jobs, func(j job) bool { return unread[j.key] })
	for _, j := range jobs {
		for _, op := range a.steps(j, read) {
			plan = append(plan, ipvs.Step{Key: j.key, Op: op})
		}
	}
	outcomes := a.writer.Do(ctx, plan)
	failed := a.learn(plan, outcomes)
	for _, j := range jobs {
		a.settle(j, failed[j.key])
	}
	if len(plan) > 0 {
		took := a.now().Sub(began)
		a.fare.wrote(plan, outcomes, failed, took)
		a.tell.programmed(plan, len(jobs), len(failed), took, a.queue.len())
	}
}

// observe asks the kernel about those Keys of which the mirror may be wrong, and about connections of
// draining real servers. Keys that could not be read go back into the queue.
func (a *act) observe(ctx context.Context, jobs []job) (read map[ipvs.Key]ipvs.Observed, unread map[ipvs.Key]bool) {
	var doubted []job
	for _, j := range jobs {
		if a.mirror.MustRead(j.key, j.wish.Frontend) {
			doubted = append(doubted, j)
		}
	}
	if len(doubted) == 0 {
		return nil, nil
	}
	read, err := a.read(ctx, doubted)
	if err == nil {
		return read, nil
	}
	// One Key that cannot be read must not hold up the others.
	read, unread = map[ipvs.Key]ipvs.Observed{}, map[ipvs.Key]bool{}
	for i, j := range doubted {
		if ctx.Err() != nil {
			break
		}
		found, err := a.read(ctx, doubted[i:i+1])
		if err != nil {
			unread[j.key] = true
			a.retry(j)
			continue
		}
		maps.Copy(read, found)
	}
	if len(unread) > 0 && ctx.Err() == nil {
		a.tell.log.Warn("reading frontends failed, trying again", zap.Int("frontends", len(unread)), zap.Error(err))
	}
	return read, unread
}

// read asks the kernel about Keys and has the mirror learn what it says.
func (a *act) read(ctx context.Context, jobs []job) (map[ipvs.Key]ipvs.Observed, error) {
	var ask []ipvs.Key
	for _, j := range jobs {
		ask = a.mirror.Ask(ask, j.key, j.wish.Frontend)
	}
	slices.SortFunc(ask, ipvs.Key.Compare)
	ask = slices.Compact(ask)
	found, err := a.reader.Observe(ctx, ask)
	if err != nil {
		return nil, err
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
	return found, nil
}

// steps are the operations that a Key needs now.
func (a *act) steps(j job, read map[ipvs.Key]ipvs.Observed) []ipvs.Op {
	k, want := j.key, j.wish.Frontend
	if k == ipvs.Adopted && !a.adoptionIsOver() {
		return nil
	}
	have := a.mirror.View(k, want, j.wish.Needs)
	if want == nil && j.wish.Spared {
		return slices.DeleteFunc(ipvs.Diff(k, have, nil), func(op ipvs.Op) bool {
			return op.Effect().Set != ipvs.SetHairpin // a fact about a pod, not about a virtual server
		})
	}
	if !a.stage.complete {
		return withheld(ipvs.Diff(k, have, want), func(op ipvs.Op) bool { return op.Effect().Removes && !a.mirror.Knew(k, want, op) })
	}
	var ops []ipvs.Op
	if want == nil && have.Server.Exists() && !have.Guard.Owned {
		// Found at the first start, by its address alone. Without a record, a process that dies once the address
		// is gone would leave it for good.
		ops = append(ops, ipvs.Element{Set: ipvs.SetOwned, Key: k})
		have.Guard.Owned = true
	}
	ops = append(ops, ipvs.Diff(k, have, want)...)
	if o, ok := read[k]; ok && want != nil {
		ops = append(ops, a.mirror.Reap(k, want, o.Conns, a.now(), func(r netip.AddrPort) bool { return !a.desk.Lists(j.wish.Service, r) })...)
	}
	return ops
}

// withheld leaves out what must not be done while parts of the cluster are not known. Where outside clients must not
// be barred yet, endpoints that are not for them must not come either.
func withheld(ops []ipvs.Op, not func(ipvs.Op) bool) []ipvs.Op {
	open := false
	ops = slices.DeleteFunc(ops, func(op ipvs.Op) bool {
		out := not(op)
		open = open || out && op.Effect().Set == ipvs.SetInside
		return out
	})
	return slices.DeleteFunc(ops, func(op ipvs.Op) bool { return open && op.Effect().AddsReal() })
}

// learn takes from the outcomes what the kernel now holds, and which Keys failed.
func (a *act) learn(plan ipvs.Plan, outcomes []ipvs.Outcome) map[ipvs.Key]error {
	failed := map[ipvs.Key]error{}
	for i, s := range plan {
		if err := outcomes[i].Err; err != nil {
			if failed[s.Key] == nil {
				failed[s.Key] = err
			}
			a.base.doubt()
			a.learnLacking(s.Op, err)
			if outcomes[i].Unknown { // it may have taken place, and then nobody does it again
				a.forget.learn(s)
				a.mirror.LearnLost(s.Op)
			}
			continue
		}
		a.forget.learn(s)
		a.mirror.LearnDone(s.Op, a.now())
	}
	return failed
}

// learnLacking takes from a failed write that the kernel does not have a scheduler. It is asked for it only once
// in a process: until then somebody may have loaded it.
func (a *act) learnLacking(op ipvs.Op, err error) {
	// The kernel answers ENOENT to what names a scheduler for an unknown one only: a missing virtual server is ESRCH.
	scheduler := op.Effect().Scheduler
	if !errors.Is(err, fs.ErrNotExist) {
		return
	}
	again, news := a.desk.Lack(scheduler)
	if !news {
		return
	}
	a.tell.lacks(scheduler, err)
	a.dirty.add(again)
}

// settle brings the mirror of a Key up to date after its plan was carried out.
func (a *act) settle(j job, err error) {
	k, want := j.key, j.wish.Frontend
	if err != nil {
		a.mirror.Failed(k)
		if tries := a.retry(j); tries&(tries-1) == 0 { // the first time, and ever more rarely
			a.tell.log.Warn("a frontend could not be programmed, trying again", zap.Stringer("frontend", k), zap.Error(err), zap.Uint8("tries", tries))
		}
		return
	}
	if a.fare.mended(k) {
		a.tell.log.Info("a frontend is in order again", zap.Stringer("frontend", k))
	}
	a.fare.confirmed(k)
	drains := a.mirror.Settle(k, mirror.Settled{Want: want, Complete: a.stage.complete, Spared: j.wish.Spared, Patience: a.now().Add(a.opt.DrainDeadline)})
	if drains {
		a.queue.addAt(k, a.now().Add(a.opt.DrainPoll), classBulk)
	}
	if k == ipvs.Adopted && !a.mirror.Adopted() {
		a.queue.addAt(k, a.now().Add(time.Second), classBulk)
	}
	if !j.wish.Until.IsZero() {
		a.queue.addAt(k, j.wish.Until, classBulk)
	}
}

// retry puts a Key back with its own backoff, and counts the tries that failed.
func (a *act) retry(j job) (tries uint8) {
	tries = a.fare.fails(j.key, j.wish.Service)
	a.queue.addAt(j.key, a.now().Add(backoff(tries-1)), classOf(j.wish))
	return tries
}

// backoff grows from 50 ms to 1.5 s: whatever was wrong, the node is right within 2 s of its end. Jitter
// keeps Keys that failed together from coming back together.
func backoff(tries uint8) time.Duration {
	d := min(50*time.Millisecond<<min(tries, 10), 1200*time.Millisecond)
	return d + time.Duration(rand.Int64N(int64(d)/4+1))
}

// adoptionIsOver: everything that was found at the first start is either owned or gone.
func (a *act) adoptionIsOver() bool {
	for k := range a.mirror.Unowned() {
		if wish := a.want(k); !wish.Spared || wish.Frontend != nil {
			return false
		}
	}
	return true
}
