package sync

import (
	"net/netip"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/mirror"
)

// View is the loop as a question sees it, see [Loop.Ask]. What it gives are copies, or values that never change: they may
// be used when the question is over.
type View struct{ loop *Loop }

// What one call gives, at most: some 1 ms of the loop's time.
const (
	// PageServices is how many Services a page has, unless they have more endpoints than PageEndpoints together.
	PageServices = 64
	// PageEndpoints is after how many endpoints a page ends. A Service with more is a page by itself: to decide it costs
	// the loop the same.
	PageEndpoints = 1000
	// PageNames is how many names, or Keys, are given at a time.
	PageNames = 2000
	// PageKeys is how many Keys are given at a time with the ports that they are for, which are looked up one by one.
	PageKeys = 250
)

// Standing is how the loop stands.
type Standing struct {
	// Node is this node's name.
	Node string
	// Now is the time of the answer, and LastWrite that of the last write; zero: there was none.
	Now, LastWrite time.Time
	// Services counts those that were decided and are ours, Frontends what they want, IPv4 and IPv6.
	Services  int
	Frontends [2]int
	// Ready counts the frontends that wait for their turn, Undecided the Services of which something is to be decided.
	Ready, Undecided int
	// Failing counts the frontends whose last try failed, Draining the real servers that drain.
	Failing, Draining int
	// Synced: the source has delivered what it has; Complete: nothing is missing of it; Started: the kernel was read, and
	// what all stands on is there.
	Synced, Complete, Started bool
	// Programmed: nothing waits and nothing fails.
	Programmed bool
	// Away says what is heard of another proxy, while nothing is written because of it; else it is empty.
	Away string
	// Writes counts those since the start of the process.
	Writes uint64
}

// Standing gives how the loop stands.
func (v *View) Standing() Standing {
	l := v.loop
	s := Standing{Node: l.desk.Site().Node.Name, Now: l.now(), Services: l.desk.Count(), Frontends: l.desk.Sizes(),
		Ready: l.queue.due[0] + l.queue.due[1], Undecided: l.dirty.len(), Failing: len(l.fare.failing), Draining: l.mirror.Draining(),
		Synced: l.stage.synced, Complete: l.stage.complete, Started: l.stage.started && l.stage.based, Writes: l.diary.total}
	if l.stage.away {
		s.Away = l.tell.away
	}
	if h := l.diary; h.kept > 0 {
		s.LastWrite = time.Unix(0, h.at(h.kept-1).at)
	}
	s.Programmed = s.Started && !l.stage.away && s.Synced && s.Ready+s.Undecided+s.Failing == 0 && !l.stage.announce
	return s
}

// Site is the node that Services are decided for. Its lists must not be changed.
func (v *View) Site() desk.Site { return v.loop.desk.Site() }

// Served is what the loop knows of one Service.
type Served struct {
	ID cluster.ID
	// Snapshot decides what it becomes; ask it when the question is over.
	Snapshot desk.Snapshot
	// Frontends are those that it claims, in the order of their Keys.
	Frontends []Frontend
}

// Frontend is a Key that somebody wants something of, and how far the loop has come with it.
type Frontend struct {
	Key ipvs.Key
	// Owner is the Service that has it; zero: nobody may have it.
	Owner cluster.ID
	Rank  desk.Rank // by which its owner claims it
	// Want is what its owner wants of it, and must not be changed; nil: nobody may have it.
	Want *ipvs.Frontend
	// Closed says why it does not serve, or not everybody; None: it serves.
	Closed desk.Code
	// Settled: the kernel holds what is wanted, as far as is known. Until then it waits, or fails.
	Settled bool
	// Err is how the last try failed, Tries how often in a row one did, 255 at most. Of many that fail only the first
	// thousand have an Err.
	Err   string
	Tries uint8
	// Grows are those whose weight grows, by address.
	Grows []desk.Growing
	// Drains are the real servers on their way out, by address.
	Drains []Draining
}

// Draining is a real server on its way out.
type Draining struct {
	Addr netip.AddrPort
	// Since is when it got weight 0, or was found with it; Until when its connections are given up at the latest.
	Since, Until time.Time
}

// Services gives a page of the Services that are ours, in their order, behind one of them; the zero ID: from the first.
// It says whether there are more.
func (v *View) Services(after cluster.ID) (page []Served, more bool) {
	ids, more := v.loop.desk.Page(after, PageServices)
	page = v.Some(ids)
	return page, more || len(page) < len(ids)
}

// Some gives Services by their names: the first of them, as many as a page has, and at least one.
func (v *View) Some(ids []cluster.ID) (page []Served) {
	endpoints := 0
	for _, id := range ids[:min(len(ids), PageServices)] {
		s := v.Service(id)
		page = append(page, s)
		if endpoints += len(s.Snapshot.Endpoints); endpoints >= PageEndpoints {
			break
		}
	}
	return page
}

// Service gives one Service. The Service of its Snapshot is nil where there is none that is ours.
func (v *View) Service(id cluster.ID) Served {
	s := Served{ID: id, Snapshot: v.loop.desk.Snapshot(id)}
	for _, k := range v.loop.desk.KeysOf(id) {
		s.Frontends = append(s.Frontends, v.Frontend(k))
	}
	return s
}

// Growing gives the real servers of a Service whose weight grows, by Key.
func (v *View) Growing(id cluster.ID) map[ipvs.Key][]desk.Growing {
	all := map[ipvs.Key][]desk.Growing{}
	for _, k := range v.loop.desk.KeysOf(id) {
		if list := v.loop.desk.Growing(k, v.loop.now()); len(list) > 0 {
			all[k] = list
		}
	}
	return all
}

// Frontend gives one Key.
func (v *View) Frontend(k ipvs.Key) Frontend {
	l := v.loop
	f := Frontend{Key: k}
	if claim, held := l.desk.Held(k); held {
		f.Owner, f.Rank, f.Want = claim.Service, claim.Rank, claim.Want
		f.Settled = l.queue.waits(k) && l.mirror.Settled(k, claim.Grown)
		f.Grows = l.desk.Growing(k, l.now())
		_, f.Closed = l.desk.Closed(k)
	}
	if failure, fails := l.fare.failing[k]; fails {
		f.Err, f.Tries, f.Settled = failure.text, failure.tries, false
	}
	for _, d := range l.mirror.DrainsOf(k) {
		f.Drains = append(f.Drains, drainingOf(d, l.opt.DrainDeadline))
	}
	return f
}

func drainingOf(d mirror.Drain, patience time.Duration) Draining {
	return Draining{Addr: d.Addr, Since: d.Until.Add(-patience), Until: d.Until}
}

// Names gives the names of the Services that are ours, in their order, behind one of them, PageNames at most, and whether
// there are more.
func (v *View) Names(after cluster.ID) (ids []cluster.ID, more bool) {
	return v.loop.desk.Page(after, PageNames)
}

// Owned says whose a Key is.
type Owned struct {
	Service cluster.ID // zero: nobody's
	// Port is the name of the Service's port; "": it has none.
	Port string
	Rank desk.Rank
}

// Owners says whose Keys are, one by one. More than PageNames are not looked at.
func (v *View) Owners(keys []ipvs.Key) []Owned {
	list := make([]Owned, 0, min(len(keys), PageNames))
	for _, k := range keys[:min(len(keys), PageNames)] {
		claim, _ := v.loop.desk.Held(k)
		list = append(list, Owned{Service: claim.Service, Rank: claim.Rank, Port: v.loop.desk.PortName(k, claim)})
	}
	return list
}

// At gives the Services that have a Key of an address, sorted, PageNames at most.
func (v *View) At(a netip.Addr) []cluster.ID { return v.loop.desk.OwnersAt(a, PageNames) }

// Closed says why a new connection to a Key would not be served, and whose address it is.
func (v *View) Closed(k ipvs.Key) (cluster.ID, desk.Code) { return v.loop.desk.Closed(k) }

// Snapshot takes what decides what a Service becomes.
func (v *View) Snapshot(id cluster.ID) desk.Snapshot { return v.loop.desk.Snapshot(id) }

// Passage takes what is wanted for packets to a Key. It costs the size of the Service that has it.
func (v *View) Passage(k ipvs.Key) desk.Passage { return v.loop.desk.Passage(k, v.loop.now()) }

// Writes gives the writes that are asked for, the oldest first, as many as an answer has, and whether there are more:
// those are had by asking again, behind the last Number.
func (v *View) Writes(sel Selection) (list []Write, more bool) { return v.loop.diary.last(sel) }

// Has is what the kernel holds of a Key, as far as is known; it must not be changed. Nil: nothing.
func (v *View) Has(k ipvs.Key) *ipvs.Frontend { return v.loop.mirror.Known(k) }

// Holds reports whether the kernel holds a fact that Keys share, as far as is known.
func (v *View) Holds(f ipvs.Fact) bool { return v.loop.mirror.Holds(f) }

// Pending gives what is still to be written for some Keys, as far as is known, a slice of work at most.
func (v *View) Pending(keys ...ipvs.Key) (plan ipvs.Plan) {
	for _, k := range keys[:min(len(keys), PageNames)] {
		wish := v.loop.want(k)
		for _, op := range ipvs.Diff(k, v.loop.mirror.View(k, wish.Frontend, wish.Needs), wish.Frontend) {
			if len(plan) == sliceSteps {
				return plan
			}
			if growth(op) && v.grows(k) {
				continue
			}
			plan = append(plan, ipvs.Step{Key: k, Op: op})
		}
	}
	return plan
}

// grows reports whether all that is still to be written of a Key may be weights of new endpoints, which only wait for their time.
func (v *View) grows(k ipvs.Key) bool {
	claim, held := v.loop.desk.Held(k)
	return held && claim.SlowStart > 0 && v.loop.queue.waits(k)
}

// PendingOf gives what is still to be written for a Service, and since when something of that waits; zero: nothing does, or nobody
// knows.
func (v *View) PendingOf(id cluster.ID) (plan ipvs.Plan, since time.Time) {
	var keys []ipvs.Key
	for _, k := range v.loop.desk.KeysOf(id) {
		if claim, held := v.loop.desk.Held(k); held && claim.Service == id {
			keys = append(keys, k)
		}
	}
	plan = v.Pending(keys...)
	for _, step := range plan {
		since = sooner(since, v.heard(step.Key))
	}
	return plan, since
}

// heard is when it was heard of that a Key is to change; zero: it is not to, or nobody knows.
func (v *View) heard(k ipvs.Key) time.Time {
	l := v.loop
	if why := l.diary.causes[k]; !why.heard.IsZero() {
		return why.heard
	}
	if l.stage.announce {
		return l.stage.began
	}
	return time.Time{}
}
