package sync

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
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
	// together is how many Keys are read at a time: fewer after a read that hung.
	together int
	// lastGrown is, of a Key whose weights are more than a slice of them, the real server that had its turn last.
	lastGrown map[ipvs.Key]netip.AddrPort
}

// Between two slices of work priorities are looked at again, so that an urgent change waits for one slice at most.
const (
	// sliceKeys is how many Keys are worked on at a time.
	sliceKeys = 64
	// sliceSteps is how many operations are. A Key that needs more has several turns: the first steps of its plan are
	// safe to stop after.
	sliceSteps = 512
	// largeSteps is how many operations a change may need that others wait for: a Service of a hundred ports with a thousand
	// endpoints each has its turns behind changes that came later.
	largeSteps = 128
	// dearSteps is how many of a Key whose source ranges change: they belong in one transaction, as far as that has room.
	dearSteps = 1024
	// hungTime is for how long reads that fail may hold up a slice. One that hangs takes longer, and is the last.
	hungTime = 250 * time.Millisecond
)

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
	// service is whose the Key is, or was.
	service cluster.ID
	// partly is what the Key has when its steps are done, where those are not all that it needs.
	partly *ipvs.Frontend
	grows  bool // the turn is for the weights of its new endpoints
	waits  bool // for what another Key of its address has to write first
}

// act brings some Keys to what is wanted of them.
func (a *act) act(ctx context.Context, turns []turn) {
	began := a.now()
	jobs := a.jobs[:0]
	for _, t := range turns {
		j := job{key: t.key, class: t.class, wish: a.want(t.key)}
		j.service = a.fare.whose(t.key, j.wish.Service)
		jobs = append(jobs, j)
	}
	a.jobs = jobs
	unread := a.observe(ctx, jobs)
	if ctx.Err() != nil {
		return
	}
	jobs = slices.DeleteFunc(jobs, func(j job) bool { return unread[j.key] })
	plan, jobs := a.plan(jobs)
	outcomes := a.writer.Do(ctx, plan)
	failed := a.learn(plan, outcomes)
	a.record(plan, jobs, outcomes)
	for _, j := range jobs {
		a.settle(j, failed[j.key])
	}
	if len(plan) > 0 {
		took := a.now().Sub(began)
		a.fare.wrote(plan, outcomes, failed, took)
		a.tell.programmed(plan, jobs, failed, took, a.queue.len())
	}
}

// record notes what was written, for whom and why, for whoever asks later.
func (a *act) record(plan ipvs.Plan, jobs []job, outcomes []ipvs.Outcome) {
	if len(plan) == 0 {
		return
	}
	whose := make(map[ipvs.Key]cluster.ID, len(jobs))
	for _, j := range jobs {
		whose[j.key] = j.service
	}
	for i, s := range plan {
		why := a.diary.causes[s.Key]
		switch is := s.Op.Effect(); {
		case is.Real.IsValid() && is.Gone && s.Key.Proto.Drains():
			why = cause{why: WhyDrained}
		case why != cause{}:
		case a.stage.announce:
			why.why = WhyStart
		}
		a.diary.wrote(a.now(), s.Op, whose[s.Key], why, outcomes[i])
	}
}

// plan takes the steps of jobs until they are a slice, and gives the jobs that it has steps of. The others go back into
// the queue, and so does later what is left of a Key that needs more steps than a slice has. What is dear in the kernel
// comes by itself, behind all others.
func (a *act) plan(jobs []job) (plan ipvs.Plan, planned []job) {
	planned = jobs[:0]
	unrecorded := sync.OnceValue(a.unrecorded)
	for i, j := range jobs {
		all, have := a.steps(j)
		ops := untilRecorded(all, unrecorded)
		j.waits = len(ops) < len(all)
		most := sliceSteps
		if dear(ops) {
			if j.class != classDear {
				a.queue.add(j.key, classDear)
				continue
			}
			most = dearSteps
		}
		if j.class == classChange && len(ops) > largeSteps {
			a.queue.add(j.key, classBulk)
			continue
		}
		if len(plan) > 0 && len(plan)+len(ops) > most {
			a.giveBack(jobs[i:])
			break
		}
		if len(ops) > most {
			ops = firstOf(ops, most)
		}
		if len(ops) < len(all) {
			j.partly = ipvs.After(have, ops)
		} else {
			ops = append(ops, a.reap(j, most-len(plan)-len(ops))...)
		}
		for _, op := range ops {
			plan = append(plan, ipvs.Step{Key: j.key, Op: op})
		}
		planned = append(planned, j)
	}
	return plan, planned
}

// giveBack puts Keys back to where they were in the queue.
func (a *act) giveBack(jobs []job) {
	turns := make([]turn, len(jobs))
	for i, j := range jobs {
		turns[i] = turn{j.key, j.class}
	}
	a.queue.back(turns)
}

// dear reports whether steps cost the kernel a copy of what all Keys have of their kind.
func dear(ops []ipvs.Op) bool {
	return slices.ContainsFunc(ops, func(op ipvs.Op) bool { return op.Effect().Set == ipvs.SetRanges })
}

// firstOf are so many of the steps of a Key. One redirection takes the place of another in one transaction.
func firstOf(ops []ipvs.Op, n int) []ipvs.Op {
	redirects := func(op ipvs.Op) bool { return op.Effect().Set == ipvs.SetRedirect }
	if redirects(ops[n-1]) && redirects(ops[n]) {
		n--
	}
	return ops[:n:n]
}

// reap are the removals of a Key's real servers that have drained.
func (a *act) reap(j job, most int) []ipvs.Op {
	if j.wish.Frontend == nil || !a.stage.complete {
		return nil
	}
	return a.mirror.Reap(j.key, j.wish.Frontend, a.now(), most)
}

// steps are the operations that a Key needs now, but for what has drained, and what it has without them.
func (a *act) steps(j job) (ops []ipvs.Op, have *ipvs.Frontend) {
	k, want := j.key, j.wish.Frontend
	if k == ipvs.Adopted && !a.adoptionIsOver() {
		return nil, nil
	}
	have = a.mirror.View(k, want, j.wish.Needs)
	if want == nil && j.wish.Spared {
		return slices.DeleteFunc(ipvs.Diff(k, have, nil), func(op ipvs.Op) bool {
			return op.Effect().Set != ipvs.SetHairpin // a fact about a pod, not about a virtual server
		}), have
	}
	if !a.stage.complete {
		return a.beside(withheld(a.turned(k, have, want, ipvs.Diff(k, have, want)), func(op ipvs.Op) bool { return op.Effect().Removes && !a.mirror.Knew(k, want, op) })), have
	}
	if want == nil && have.Server.Exists() && !have.Guard.Owned {
		// Found at the first start, by its address alone. Without a record, a process that dies once the address
		// is gone would leave it for good.
		ops = append(ops, ipvs.Element{Set: ipvs.SetOwned, Key: k})
		have.Guard.Owned = true
	}
	return a.beside(a.turned(k, have, want, append(ops, ipvs.Diff(k, have, want)...))), have
}

// beside has frontends open together with their guard while rules of another proxy are there: until the virtual server
// stands, those serve. The node's own packets pass the guard before they come to rules of NAT (-150, -100).
func (a *act) beside(ops []ipvs.Op) []ipvs.Op {
	if !a.stage.replacing {
		return ops
	}
	for i, op := range ops {
		if e, is := op.(ipvs.Element); is && e.Set == ipvs.SetOpen && !e.Remove {
			e.Early = true
			ops[i] = e
		}
	}
	slices.SortStableFunc(ops, func(a, b ipvs.Op) int { return int(a.Phase()) - int(b.Phase()) })
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

// learnLacking takes from a failed write that the kernel does not have a scheduler. Whether it turns up, schedulers asks.
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
	a.tell.lacks(scheduler, scheduler == a.opt.Desk.Scheduler, err)
	a.dirty.add(again, WhyScheduler)
}

// settle brings the mirror of a Key up to date after its plan was carried out.
func (a *act) settle(j job, err error) {
	k, want := j.key, j.wish.Frontend
	if err != nil {
		if a.stage.complete {
			want = nil // whatever stands there may go, whoever wanted it
		}
		a.mirror.Failed(k, want)
		tries := a.retry(j)
		a.fare.told(k, err)
		if tries&(tries-1) == 0 { // the first time, and ever more rarely
			a.tell.log.Warn("a frontend could not be programmed, trying again", zap.Stringer("frontend", k), zap.Error(err), zap.Uint8("tries", tries))
		}
		return
	}
	if j.partly != nil {
		a.mirror.Advance(k, j.partly)
		if j.grows {
			a.growing.add(k, j.class)
		} else if j.waits {
			a.queue.addAt(k, a.now().Add(recordAgain), j.class)
		} else {
			a.queue.add(k, j.class)
		}
		return
	}
	delete(a.diary.causes, k)
	if a.fare.mended(k) {
		a.tell.log.Info("a frontend is in order again", zap.Stringer("frontend", k))
	}
	a.fare.confirmed(k)
	delete(a.fare.was, k)
	if want == nil {
		a.forget.takeGone(k)
	}
	patience := a.opt.DrainDeadline
	if j.wish.Drain.Given {
		patience = j.wish.Drain.After
	}
	drains := a.mirror.Settle(k, mirror.Settled{Want: want, Complete: a.stage.complete, Spared: j.wish.Spared, Patience: a.now().Add(patience)})
	if drains {
		a.drainLater(k)
	} else {
		a.draining.drop(k)
	}
	if k == ipvs.Adopted && !a.mirror.Adopted() {
		a.queue.addAt(k, a.now().Add(time.Second), classBulk)
	}
	if !j.wish.Until.IsZero() {
		a.queue.addAt(k, j.wish.Until, classBulk)
	}
	if !j.wish.Grows.IsZero() {
		a.growing.addAt(k, j.wish.Grows, classBulk)
	}
}

// retry puts a Key back with its own backoff, and counts the tries that failed.
func (a *act) retry(j job) (tries uint8) {
	gone := j.wish.Frontend == nil && j.key != ipvs.Adopted
	tries = a.fare.fails(j.key, j.wish.Service, gone)
	if gone && a.fare.gone > goneMost {
		a.giveUp(j)
		return tries
	}
	a.queue.addAt(j.key, a.now().Add(backoff(tries-1)), classOf(j.wish))
	return tries
}

// giveUp lets go of a Key of which nobody wants anything, as if nothing were known of it.
func (a *act) giveUp(j job) {
	a.fare.mended(j.key)
	a.fare.confirmed(j.key)
	delete(a.diary.causes, j.key)
	delete(a.fare.was, j.key)
	a.forget.giveUp(j.key)
	a.mirror.GiveUp(j.key, j.wish.Needs)
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
