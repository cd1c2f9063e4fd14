package sync

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

var (
	modelSeed      = flag.Uint64("model.seed", 1, "seed of the first sequence of TestModel and TestModelOnKernel; 0: another one each time")
	modelSequences = flag.Int("model.sequences", modelDefault, "how many sequences TestModel walks")
)

// TestModel walks random histories: changes of the cluster, tampering, failing writes and reads, crashes,
// restarts, time. After every write the node must be in a safe state (I3), nothing wanted may be taken away
// (I1), and what is foreign stays (I6). At rest the kernel holds exactly what the cluster wants, and a
// restart on it writes nothing (I5).
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) >> 10
	}
	n := *modelSequences
	if testing.Short() {
		n = min(n, 2000)
	}
	t.Logf("%d sequences from seed %d", n, seed)
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // little lives long
	var next, events, writes, failed, grow atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for failed.Load() == 0 {
				i := next.Add(1) - 1
				if i >= int64(n) {
					return
				}
				program := sequence(seed + uint64(i))
				w := walk(program, nil)
				events.Add(int64(len(program)))
				writes.Add(int64(w.writes))
				grow.Add(int64(w.grown[true]))
				if w.fault == "" {
					continue
				}
				if failed.Add(1) == 1 {
					reportSequence(t, seed+uint64(i), program, w.fault)
				}
			}
		})
	}
	wg.Wait()
	figure(t, "histories", n)
	figure(t, "events", int(events.Load()))
	figure(t, "writes", int(writes.Load()))
	figure(t, "writes of a part of a weight", int(grow.Load()))
	if grow.Load() == 0 && n >= 2000 {
		t.Error("no endpoint started slowly")
	}
}

// reportSequence prints the shortest part of a failing sequence that still fails.
func reportSequence(t *testing.T, seed uint64, program []event, fault string) {
	t.Helper()
	t.Errorf("seed %d: %s\nreplay: go test ./pkg/sync -run TestModel -model.sequences=1 -model.seed=%d", seed, fault, seed)
	program = shortest(program)
	var b strings.Builder
	for range failTries {
		b.Reset()
		w := walk(program, func(format string, args ...any) { fmt.Fprintf(&b, "  "+format+"\n", args...) })
		if w.fault != "" {
			t.Errorf("at the shortest: %s\n%s", w.fault, b.String())
			return
		}
	}
	t.Error("it does not fail every time")
}

// failTries is how often a sequence is walked that may fail: jitter and the order of maps are not in its
// seed.
const failTries = 5

func fails(program []event) bool {
	for range failTries {
		if walk(program, nil).fault != "" {
			return true
		}
	}
	return false
}

// shortest drops events as long as the sequence still fails.
func shortest(program []event) []event {
	for i := 0; i < len(program); {
		if less := slices.Delete(slices.Clone(program), i, i+1); fails(less) {
			program, i = less, 0
		} else {
			i++
		}
	}
	return program
}

// event is one thing that happens. Its details come from its own seed, so that it stays the same when the
// ones before it are dropped.
type event struct {
	kind  string
	seed  uint64
	quiet bool // the loop gets no turn before the next event
}

// eventKinds, each as often as it shall come.
var eventKinds = func() (kinds []string) {
	for kind, weight := range map[string]int{
		"service": 8, "delete service": 2, "slice": 8, "delete slice": 1, "node": 1, "addresses": 1, "connections": 2, "time": 4,
		"restart": 2, "crash": 2, "writes fail": 2, "reads fail": 1, "tamper": 4, "foreign": 1, "rest": 1,
	} {
		kinds = append(kinds, slices.Repeat([]string{kind}, weight)...)
	}
	slices.Sort(kinds)
	return kinds
}()

// sequence is the history that belongs to a seed.
func sequence(seed uint64) (program []event) {
	r := rand.New(rand.NewPCG(seed, 0))
	for range 5 + r.IntN(8) {
		program = append(program, event{kind: eventKinds[r.IntN(len(eventKinds))], seed: r.Uint64(), quiet: r.IntN(3) == 0})
	}
	if r.IntN(4) == 0 {
		program = slices.Insert(program, r.IntN(len(program)+1), event{kind: "take over", seed: r.Uint64()})
	}
	return program
}

// walker is a node on its way through a history.
type walker struct {
	lastNode *corev1.Node // that this process heard of
	*stepper
	*world
	say   func(string, ...any)
	fault string // the first thing that was wrong

	want     *expected   // of the world as it is; nil: to be computed
	complete bool        // the loop has been told that nothing is missing; otherwise
	known    []*expected // are what it has wanted since its start: only of that it may remove something
	hazards  map[hazard]bool
	tampered map[netip.Addr]bool
	allBad   bool // interface or table were tampered with
	moved    bool // the node has other addresses, of which the loop hears a little later: they may make an endpoint one that no host can have
	foreign  map[ipvs.Key]ipvs.Server
	right    map[ipvs.Key]bool // virtual servers that another proxy left as they are wanted, until something changes
	disowned map[ipvs.Key]bool // somebody made them, or removed the record that they are ours: they may stay for good
	writes   int
	grown    map[bool]int // writes of real servers, by whether they were to get more weight later

	trouble   bool      // writes or reads failed since the last rest
	failUntil time.Time // writes fail until then,
	failing   *rand.Rand
	failReads int  // and so many reads
	dieAfter  int  // and all after so many writes
	dying     bool // the process is about to die
}

// walk runs a history to its end and on to rest.
func walk(program []event, say func(string, ...any)) *walker {
	if say == nil {
		say = func(string, ...any) {}
	}
	w := &walker{stepper: newStepper(), world: newWorld(), say: say,
		grown: map[bool]int{}, tampered: map[netip.Addr]bool{}, foreign: map[ipvs.Key]ipvs.Server{}, disowned: map[ipvs.Key]bool{}}
	w.opt = modelOptions
	w.opt.Schedulers = w.kernel // a write that fails may look as if one were missing
	w.kernel.Stale = map[ipvs.Key]int{}
	for _, k := range []ipvs.Key{{Addr: foreignAddr, Port: 80, Proto: ipvs.TCP}, {Addr: foreignAddr, Port: 53, Proto: ipvs.UDP}} {
		w.foreign[k] = foreignServer
		w.kernel.Servers[k] = foreignServer
	}
	w.door.fault, w.door.after = w.fails, w.wrote
	w.kernel.FailRead = w.readFails
	w.hazards = map[hazard]bool{}
	w.begin(true)
	for _, e := range program {
		say("-- %s", e.kind)
		w.happen(e)
		w.want = nil
		if !w.complete {
			w.known = append(w.known, w.expected(), w.asSeen()) // it may act before it hears of the node's addresses
		}
		w.hazards = hazards(w.kernel, w.foreign)
		if !e.quiet {
			w.settle()
		}
		if w.fault != "" {
			return w
		}
	}
	say("-- rest")
	w.rest()
	if w.fault == "" && len(program) > 0 && program[0].seed%4 == 0 {
		say("-- restart")
		w.restartInPeace()
	}
	return w
}

func (w *walker) wrong(format string, args ...any) {
	if w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
		w.say("WRONG: %s", w.fault)
	}
}

var (
	foreignAddr   = netip.MustParseAddr("172.16.0.1")
	foreignServer = ipvs.Server{Scheduler: "wlc", Reals: []ipvs.Real{{Addr: netip.MustParseAddrPort("172.16.1.1:80"), Weight: 7}}}
)

// begin starts a process.
func (w *walker) begin(complete bool) {
	m := newModel(w.objects()...)
	m.SetSynced()
	w.lastNode, w.want = w.node, nil
	if complete {
		m.SetComplete()
	}
	w.complete, w.dying, w.known = complete, false, []*expected{w.expected()}
	w.start(m)
}

// errDead is the outcome of everything that a dead process tries.
var errDead = errors.New("the process is dead")

// fails decides how a write ends.
func (w *walker) fails(ipvs.Op) fault {
	if w.dying {
		if w.dieAfter == 0 {
			return fault{err: errDead, unknown: true}
		}
		w.dieAfter--
	}
	if !w.now.Before(w.failUntil) || w.failing.IntN(2) == 0 {
		return fault{}
	}
	switch errno := errnos[w.failing.IntN(len(errnos))]; w.failing.IntN(3) {
	case 0:
		return fault{err: errTimeout, unknown: true}
	case 1:
		return fault{err: errLost, unknown: true, written: true}
	default:
		return fault{err: errno}
	}
}

// errnos are what the kernel may answer to anything (F27).
var errnos = []syscall.Errno{syscall.EEXIST, syscall.ENOENT, syscall.ENOBUFS, syscall.EINTR, syscall.ENOMEM, syscall.EBUSY, syscall.EPERM, syscall.EIO}

func (w *walker) readFails() error {
	if w.dying && w.dieAfter == 0 {
		return errDead
	}
	if w.failReads > 0 {
		w.failReads--
		return syscall.EINTR
	}
	return nil
}

// wrote looks at the node after a write.
func (w *walker) wrote(op ipvs.Op) {
	w.writes++
	w.say("%s", op)
	for k, f := range w.foreign {
		if s, ok := w.kernel.Servers[k]; (!ok || !slices.Equal(s.Reals, f.Reals) || s.Scheduler != f.Scheduler) && !w.claimed(k) {
			w.wrong("%s: a foreign virtual server was touched", op)
		} else if !ok || !slices.Equal(s.Reals, f.Reals) || s.Scheduler != f.Scheduler {
			delete(w.foreign, k) // it was taken over
		}
	}
	if w.expected().wantsBack(op) && w.asSeen().wantsBack(op) && !w.allBad && !w.tampered[addrOf(op)] {
		w.wrong("%s: takes away what is wanted", op)
	}
	if !w.complete && op.Effect().Removes && !w.allBad && !w.moved && !w.tampered[addrOf(op)] && !w.knew(op) {
		w.wrong("%s: takes something out of service before all is known", op)
	}
	w.checkWeight(op)
	if is := op.Effect(); is.Table == ipvs.TableIPVS && w.right[is.Key] && w.asSeen() == w.expected() {
		w.wrong("%s: writes what another proxy left as it is wanted", op)
	}
	now := hazards(w.kernel, w.foreign)
	for h := range now {
		if h.what == notBound && w.trouble {
			continue // one Key of an address could not be closed, and another let the address go: unreachable anyway
		}
		redirects := w.expected().redirects[h.key].IsValid() || w.asSeen().redirects[h.key].IsValid()
		if _, element := op.(ipvs.Element); element && w.trouble && (h.what == tooFar || redirects) {
			continue // a Key's elements of one phase fail together, unlike here
		}
		if h.what == tooFar && !w.expected().sets[ipvs.SetKept][h.key] {
			continue // on its way to another policy
		}
		if h.caused(op, w.hazards) && !w.allBad && !w.tampered[h.key.Addr] {
			w.wrong("after %s: %s", op, h)
		}
	}
	w.hazards = now
}

// checkWeight: a real server that is wanted never gets more than its weight, nor less than a tenth of it.
func (w *walker) checkWeight(op ipvs.Op) {
	is := op.Effect()
	if !is.Real.IsValid() || is.Gone || !w.complete || w.expected() != w.asSeen() {
		return
	}
	byAddr := func(r ipvs.Real) bool { return r.Addr == is.Real }
	reals, wanted := w.kernel.Servers[is.Key].Reals, w.expected().servers[is.Key].Reals
	i, j := slices.IndexFunc(reals, byAddr), slices.IndexFunc(wanted, byAddr)
	if i < 0 || j < 0 {
		return
	}
	has, full := int(reals[i].Weight), int(wanted[j].Weight)
	if slow := w.expected().servers[is.Key].Scheduler != "rr"; has > full || has*10 < full || !slow && has != full {
		w.wrong("%s: weight %d of %d", op, has, full)
	}
	w.grown[has < full]++
}

// knew reports whether an operation takes away what this process has wanted since its start: a part of a
// Key, or the whole Key, with whatever an earlier process left of it.
func (w *walker) knew(op ipvs.Op) bool {
	return slices.ContainsFunc(w.known, func(e *expected) bool {
		o, ok := op.(ipvs.Element)
		whole := ok && e.sets[ipvs.SetOwned][o.Key] && !w.expected().sets[ipvs.SetOwned][o.Key]
		// What the Service itself says is known, and nobody is barred as long as something unknown serves.
		if ok && (o.Set == ipvs.SetRanges || o.Set == ipvs.SetRedirect || o.Set.Bars()) && e.sets[ipvs.SetOwned][o.Key] {
			return true
		}
		return e.wantsBack(op) || whole
	})
}

// spared reports whether a virtual server, or an address, that no Service wants may stay.
func (w *walker) spared(k ipvs.Key) bool {
	if !k.HasServer() {
		return w.disowned[k] && !w.kernel.Sets[ipvs.SetVIPs][k]
	}
	f, ok := w.foreign[k]
	return ok && slices.Equal(f.Reals, w.kernel.Servers[k].Reals) || w.disowned[k] && !w.kernel.Sets[ipvs.SetOwned][k]
}

// claimed reports whether a Service wants a Key: a foreign server there is taken over.
func (w *walker) claimed(k ipvs.Key) bool {
	return k.Addr != foreignAddr && (w.expected().servers[k].Exists() || w.loop.mirror.Knows(k))
}

func (w *walker) expected() *expected {
	if w.want == nil {
		w.want = expect(newModel(w.present()...), w.kernel.Node, w.opt)
	}
	return w.want
}

// present are the objects, and the Node object that was there last: its addresses and its zone hold (B84).
func (w *walker) present() []any {
	objs := w.objects()
	if w.node == nil && w.lastNode != nil {
		objs = append(objs, w.lastNode)
	}
	return objs
}

// asSeen is what is expected of a loop that has not heard yet of the node's latest addresses: after a look it takes localPeriod until the next.
func (w *walker) asSeen() *expected {
	seen := w.loop.desk.Site().Local
	if reflect.DeepEqual(seen, w.kernel.Node) {
		return w.expected()
	}
	return expect(newModel(w.present()...), seen, w.opt)
}

// addrOf is the address that an operation is about.
func addrOf(op ipvs.Op) netip.Addr {
	switch o := op.(type) {
	case ipvs.Element:
		return o.Key.Addr
	case ipvs.AddServer:
		return o.Key.Addr
	case ipvs.SetServer:
		return o.Key.Addr
	case ipvs.DelServer:
		return o.Key.Addr
	case ipvs.AddReal:
		return o.Key.Addr
	case ipvs.SetReal:
		return o.Key.Addr
	case ipvs.DelReal:
		return o.Key.Addr
	case ipvs.Bind:
		return o.Addr
	case ipvs.Unbind:
		return o.Addr
	case ipvs.Forget:
		return o.Key.Addr
	}
	panic(fmt.Sprintf("no operation: %T", op))
}

// modelOptions make the times of a history short, and with them the number of audits.
var modelOptions = Options{Desk: desk.Options{ExternalIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, BasePeriod: 25 * time.Second, DrainDeadline: 40 * time.Second}

// restTime has room for a look at the base, an audit and what drains without connections.
const restTime = 45 * time.Second

// rest ends all trouble, gives the loop time, and compares.
func (w *walker) rest() {
	w.failUntil, w.failReads = time.Time{}, 0
	if w.dying {
		w.begin(true)
	}
	if !w.complete {
		w.pass(restTime)
		atLeast := *w.expected()
		atLeast.atLeast = true
		atLeast.sets = maps.Clone(atLeast.sets)
		atLeast.sets[ipvs.SetOwned] = maps.Clone(atLeast.sets[ipvs.SetOwned])
		delete(atLeast.sets[ipvs.SetOwned], ipvs.Adopted) // not before all is known
		if diffs := atLeast.compare(w.kernel, nobody); len(diffs) > 0 {
			w.wrong("at rest while parts are missing: %s", strings.Join(diffs, "; "))
		}
	}
	w.complete = true
	w.model.SetComplete()
	w.hazards = hazards(w.kernel, w.foreign)
	w.pass(restTime)
	for range 2 { // a scheduler that seemed to be missing is asked for each BasePeriod, and then the one that heeds weights
		if len(w.loop.desk.Lacking()) > 0 {
			w.pass(modelOptions.BasePeriod + time.Second)
		}
	}

	if w.stuck {
		w.wrong("the loop does not come to rest")
	}
	if diffs := w.expected().compare(w.kernel, w.spared); len(diffs) > 0 {
		w.wrong("at rest: %s", strings.Join(diffs, "; "))
	}
	for k := range w.kernel.Stale {
		if w.expected().sets[ipvs.SetOpen][k] {
			w.wrong("at rest: conntrack entries bypass %s", k)
		}
	}
	clear(w.tampered)
	w.allBad, w.trouble, w.moved = false, false, false
}

// restartInPeace starts a new process on a node that is right.
func (w *walker) restartInPeace() {
	w.node = cmp.Or(w.node, w.lastNode) // a new process knows nothing of a Node that is gone
	told := maps.Clone(w.loop.tell.told)
	w.kernel.Log = nil
	w.begin(true)
	w.pass(2 * time.Second)
	for _, op := range w.kernel.Log {
		if _, forget := op.(ipvs.Forget); !forget {
			w.wrong("a restart on a node that is right wrote %s", op)
		}
	}
	if !maps.Equal(told, w.loop.tell.told) {
		w.wrong("problems told %v, after a restart %v", told, w.loop.tell.told)
	}
}

// happen makes an event happen.
func (w *walker) happen(e event) {
	r := rand.New(rand.NewPCG(e.seed, 1))
	clear(w.right)
	switch e.kind {
	case "take over":
		w.takeOver(r)
	case "service":
		s := w.randomService(r)
		w.services[s.Name] = s
		give(w.model, s)
		w.say("%s %s %v ports %v affinity %s balancer %v from %q external %v %s created %d", s.Name, s.Spec.Type, s.Spec.ClusterIPs, portsOf(s), s.Spec.SessionAffinity,
			s.Status.LoadBalancer.Ingress, s.Spec.LoadBalancerSourceRanges, s.Spec.ExternalIPs, string(s.Spec.ExternalTrafficPolicy)+"/"+internalPolicy(s), s.CreationTimestamp.Unix())
	case "delete service":
		name := pick(r, serviceNames)
		delete(w.services, name)
		w.model.DeleteService("default", name)
		w.say("%s", name)
	case "slice":
		s := w.randomSlice(r)
		w.slices[s.Name] = s
		give(w.model, s)
		w.say("%s of %s: %s", s.Name, s.Labels[discoveryv1.LabelServiceName], endpointsOf(s))
	case "delete slice":
		name := pick(r, sliceNames)
		delete(w.slices, name)
		w.model.DeleteSlice("default", name)
		w.say("%s", name)
	case "node":
		if w.node = randomNode(r); w.node != nil {
			w.lastNode = w.node
		}
		if w.node == nil {
			w.say("gone")
			w.model.DeleteNode(thisNode)
		} else {
			w.say("labels %v, addresses %v, pods %v", w.node.Labels, w.node.Status.Addresses, w.node.Spec.PodCIDRs)
			give(w.model, w.node)
		}
	case "addresses":
		local := randomLocal(r)
		w.say("%v", local)
		w.moved = true
		for _, a := range slices.Concat(vips6, locals4, []string{"10.244.1.5", "10.244.2.11", "fd10:244:1::5"}) {
			// The loop hears of it a little later. The last three are pods behind node ports.
			w.tampered[netip.MustParseAddr(a)] = true
		}
		w.kernel.SetNode(local)
	case "connections":
		w.connect(r)
	case "time":
		d := pick(r, []time.Duration{time.Millisecond, 60 * time.Millisecond, 300 * time.Millisecond, 2 * time.Second, 6 * time.Second, 11 * time.Second, 45 * time.Second})
		w.say("%s", d)
		w.pass(d)
	case "restart":
		w.begin(r.IntN(3) > 0)
	case "crash":
		if !w.dying {
			w.dying, w.dieAfter = true, r.IntN(8)
		}
	case "writes fail":
		w.failing, w.trouble = r, true
		w.failUntil = w.now.Add(pick(r, []time.Duration{time.Millisecond, 100 * time.Millisecond, 5 * time.Second, time.Minute}))
	case "reads fail":
		w.failReads, w.trouble = 1+r.IntN(4), true
	case "tamper":
		w.tamper(r)
	case "foreign":
		w.plant(r)
	case "rest":
		w.rest()
	}
}

var _ Model = (*cluster.Model)(nil)
