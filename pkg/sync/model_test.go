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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	now := hazards(w.kernel, w.foreign)
	for h := range now {
		if h.what == notBound && w.trouble {
			continue // one Key of an address could not be closed, and another let the address go: unreachable anyway
		}
		if _, element := op.(ipvs.Element); element && w.trouble && (h.what == tooFar || w.expected().redirects[h.key].IsValid()) {
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

// present are the objects, and the Node object that was there last: its addresses hold (B84).
func (w *walker) present() []any {
	objs := w.objects()
	if w.node == nil && w.lastNode != nil {
		last := w.lastNode.DeepCopy()
		last.Labels = nil
		objs = append(objs, last)
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
	switch e.kind {
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
			w.model.DeleteNode(thisNode)
		} else {
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

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// The universe: small, so that things meet.
var (
	serviceNames = []string{"s0", "s1", "s2"}
	sliceNames   = []string{"e0", "e1", "e2", "e3"} // the last one is IPv6
	vips4        = []string{"10.96.0.10", "10.96.0.11"}
	vips6        = []string{"fd00:96::10", "fd00:96::11"}
	pods4        = []string{"10.244.1.5@node1", "10.244.2.10@node2", "10.244.2.11", "10.96.0.11"} // the last one is a virtual IP as well
	pods6        = []string{"fd10:244:1::5@node1", "fd10:244:2::10@node2"}
	allPorts     = []corev1.ServicePort{
		{Name: "a", Port: 80, Protocol: corev1.ProtocolTCP, NodePort: 30080}, {Name: "b", Port: 443, Protocol: corev1.ProtocolTCP},
		{Name: "c", Port: 53, Protocol: corev1.ProtocolTCP}, {Name: "d", Port: 53, Protocol: corev1.ProtocolUDP, NodePort: 30053},
	}
	// After the load balancers' the ClusterIP of another, the API server's or the node's own, a pod's, and one that slices
	// name without a node.
	external4 = []string{"203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.2", "10.96.0.11", "192.0.2.1", "10.244.2.10", "10.244.2.11"}
	// Addresses that the node may have beside its own: one may be a load balancer's as well.
	locals4 = []string{"192.0.2.1", "192.0.2.2", "203.0.113.2", "10.244.1.1"}
)

// randomService is a Service as new, or as it was and changed in one thing.
func (w *walker) randomService(r *rand.Rand) *corev1.Service {
	name := pick(r, serviceNames)
	change := []func(*corev1.Service){
		func(s *corev1.Service) {
			s.Spec.ClusterIPs = pick(r, [][]string{{pick(r, vips4)}, {pick(r, vips6)}, {pick(r, vips4), pick(r, vips6)}, {pick(r, vips6), pick(r, vips4)}})
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		},
		func(s *corev1.Service) {
			s.Spec.Ports = nil
			for _, p := range allPorts {
				if r.IntN(2) == 0 {
					s.Spec.Ports = append(s.Spec.Ports, p)
				}
			}
		},
		func(s *corev1.Service) {
			s.Spec.Type = pick(r, []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName})
		},
		func(s *corev1.Service) {
			s.Spec.SessionAffinity = pick(r, []corev1.ServiceAffinity{corev1.ServiceAffinityNone, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP})
			seconds := pick(r, []int32{60, 600})
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		},
		func(s *corev1.Service) {
			s.Labels = pick(r, []map[string]string{nil, nil, {"app": "x"}, {"service.kubernetes.io/service-proxy-name": "another"}})
		},
		func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy = pick(r, []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal})
			policy := pick(r, []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal})
			s.Spec.InternalTrafficPolicy = &policy
		},
		func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = nil
			if r.IntN(3) > 0 {
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: pick(r, external4)}}
			}
		},
		func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = pick(r, [][]string{nil, nil, {"198.51.100.0/24"}, {"192.0.0.0/8", "198.51.100.0/25"}, {"nonsense"}})
		},
		func(s *corev1.Service) {
			s.Spec.ExternalIPs = nil
			if r.IntN(3) == 0 {
				s.Spec.ExternalIPs = []string{pick(r, external4)}
			}
		},
		func(s *corev1.Service) { s.CreationTimestamp = metav1.Unix(1000+int64(r.IntN(3)), 0) },
		func(s *corev1.Service) {
			s.Annotations = randomAnnotations(r)
			maps.Copy(s.Annotations, pick(r, []map[string]string{nil, {cluster.SlowStartAnnotation: "20s"}, {cluster.SlowStartAnnotation: "20s"}, {cluster.SlowStartAnnotation: "20s"}, {cluster.SlowStartAnnotation: "1s", cluster.SchedulerAnnotation: "wlc"}}))
		},
	}
	old := w.services[name]
	if old == nil || r.IntN(4) == 0 {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		for _, f := range change {
			f(s)
		}
		if r.IntN(4) > 0 { // mostly one that is ours
			s.Labels, s.Spec.Type = nil, pick(r, []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer})
		}
		return s
	}
	s := old.DeepCopy()
	pick(r, change)(s)
	return s
}

// randomAnnotations are those of a Service that say how its connections are shared out: mostly none.
func randomAnnotations(r *rand.Rand) map[string]string {
	all := map[string]string{}
	for _, a := range []struct {
		name   string
		values []string
	}{
		{cluster.SchedulerAnnotation, []string{"wrr", "lc", "wlc", "sh", "mh", "nonsense"}},
		{cluster.SchedulerFlagsAnnotation, []string{"mh-port,sh-port"}},
		{cluster.WeightsAnnotation, []string{"same-node=100,same-zone=10,other=1", "same-node=0", "other=0", "nonsense"}},
		{cluster.DrainDeadlineAnnotation, []string{"0s", "7s"}},
		{cluster.MaxConnectionsAnnotation, []string{"5"}},
		{cluster.OnePacketAnnotation, []string{"true"}},
	} {
		if r.IntN(3) == 0 {
			all[a.name] = pick(r, a.values)
		}
	}
	return all
}

// randomSlice is an EndpointSlice of any of the Services. Slices may repeat each other.
func (w *walker) randomSlice(r *rand.Rand) *discoveryv1.EndpointSlice {
	name := pick(r, sliceNames)
	of := pick(r, serviceNames)
	if old := w.slices[name]; old != nil && r.IntN(3) > 0 {
		of = old.Labels[discoveryv1.LabelServiceName]
	}
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	pods := pods4
	if name == "e3" {
		s.AddressType, pods = discoveryv1.AddressTypeIPv6, pods6
	}
	for _, p := range allPorts {
		if target := pick(r, []int32{0, 8080, 8080, 8080, 9090}); target != 0 {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &target, Protocol: &p.Protocol})
		}
	}
	if r.IntN(5) == 0 {
		s.Annotations = map[string]string{cluster.WeightAnnotation: pick(r, []string{"0", "3", "nonsense"})}
	}
	hinted := r.IntN(4) == 0
	for _, a := range pods {
		if r.IntN(2) == 0 {
			continue
		}
		addr, node, _ := strings.Cut(a, "@")
		ep := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
		ready, serving, terminating := r.IntN(4) > 0, r.IntN(4) > 0, r.IntN(2) == 0
		ep.Conditions = discoveryv1.EndpointConditions{Ready: &ready}
		if !ready {
			ep.Conditions.Serving, ep.Conditions.Terminating = &serving, &terminating
		}
		if hinted {
			ep.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: pick(r, []string{"a", "b"})}}}
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func randomNode(r *rand.Rand) *corev1.Node {
	if r.IntN(3) == 0 {
		return nil
	}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode, Labels: map[string]string{corev1.LabelTopologyZone: pick(r, []string{"a", "b"})}}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: pick(r, []string{"192.0.2.1", "192.0.2.2"})}}
	n.Spec.PodCIDRs = []string{pick(r, []string{"10.244.1.0/24", "10.244.1.0/24", "203.0.113.2/32"})}
	return n
}

// randomLocal are addresses that the node may have.
func randomLocal(r *rand.Rand) (l ipvs.Local) {
	for _, a := range locals4 {
		if r.IntN(2) == 0 {
			l.Addrs = append(l.Addrs, netip.MustParseAddr(a))
		}
	}
	l.Addrs = ipvs.SortAddrs(l.Addrs)
	if r.IntN(3) == 0 {
		l.Own = l.Addrs
	}
	if r.IntN(3) == 0 { // of which an endpoint and a load balancer's address are no hosts
		l.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.2.8/30"), netip.MustParsePrefix("203.0.113.2/31"), netip.MustParsePrefix("203.0.113.0/30")}
	}
	l.NoIPv6 = r.IntN(4) == 0
	return l
}

func internalPolicy(s *corev1.Service) string {
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		return string(*p)
	}
	return ""
}

func portsOf(s *corev1.Service) (out []string) {
	for _, p := range s.Spec.Ports {
		out = append(out, fmt.Sprintf("%s=%d/%s", p.Name, p.Port, p.Protocol))
	}
	return out
}

func endpointsOf(s *discoveryv1.EndpointSlice) string {
	var out []string
	for _, p := range s.Ports {
		out = append(out, fmt.Sprintf("%s=%d", *p.Name, *p.Port))
	}
	for _, e := range s.Endpoints {
		c, hint := e.Conditions, ""
		if e.Hints != nil {
			hint = " for " + e.Hints.ForZones[0].Name
		}
		if *c.Ready {
			out = append(out, fmt.Sprintf("%s@%s%s", e.Addresses[0], *e.NodeName, hint))
		} else {
			out = append(out, fmt.Sprintf("%s@%s%s unready serving=%t terminating=%t", e.Addresses[0], *e.NodeName, hint, *c.Serving, *c.Terminating))
		}
	}
	return strings.Join(out, " ")
}

// connect makes connections come and go, and conntrack entries that will bypass a frontend once it opens.
func (w *walker) connect(r *rand.Rand) {
	for _, a := range slices.Concat(vips4, vips6) {
		if k := (ipvs.Key{Addr: netip.MustParseAddr(a), Port: 53, Proto: ipvs.UDP}); !w.kernel.Sets[ipvs.SetOpen][k] {
			w.kernel.Stale[k] = 1
		}
	}
	for _, k := range sorted(w.kernel.Servers) {
		w.kernel.Conns[k] = map[netip.AddrPort]ipvs.Conns{}
		for _, real := range w.kernel.Servers[k].Reals {
			w.kernel.Conns[k][real.Addr] = pick(r, []ipvs.Conns{{}, {}, {Active: 1}, {Inactive: 1}})
		}
	}
}

// tamper changes something behind the loop's back.
func (w *walker) tamper(r *rand.Rand) {
	k := w.kernel
	servers := slices.DeleteFunc(sorted(k.Servers), func(k ipvs.Key) bool { _, foreign := w.foreign[k]; return foreign })
	set := pick(r, ipvs.Sets)
	elements := sorted(k.Sets[set])
	addrs := slices.SortedFunc(maps.Keys(k.Addrs), netip.Addr.Compare)
	what := pick(r, []string{"link", "table", "element", "element", "extra element", "address", "address", "extra address", "server", "reals", "real", "weight", "scheduler", "extra real", "flush", "flush all"})
	w.say("%s", what)
	if r.IntN(2) == 0 { // else nobody hears of it
		defer k.Hear(ipvs.Tampering{Base: r.IntN(2) == 0, Keys: r.IntN(4) > 0})
	}
	switch what {
	case "link":
		w.allBad = true
		k.DropLink()
	case "table":
		w.allBad = true
		for _, key := range servers {
			w.disowned[key] = true
		}
		for _, a := range addrs {
			w.disowned[ipvs.AddrKey(a)] = true
		}
		k.DropTable()
	case "flush all": // what is foreign as well
		for key := range k.Servers {
			w.tampered[key.Addr] = true
		}
		clear(k.Servers)
		clear(k.Conns)
		clear(w.foreign)
	case "flush":
		for _, key := range servers {
			w.tampered[key.Addr] = true
			delete(k.Servers, key)
			delete(k.Conns, key)
		}
	case "element":
		if len(elements) > 0 {
			key := pick(r, elements)
			w.say("%s %s", set, key)
			w.tampered[key.Addr] = true
			k.Tamper(ipvs.Element{Set: set, Key: key, Remove: true})
			if set == ipvs.SetOwned || set == ipvs.SetVIPs {
				w.disowned[key] = true
			}
		}
	case "extra element":
		if set == ipvs.SetRanges && k.Table {
			w.tamperRange(r)
		} else if set != ipvs.SetOwned && k.Table { // whoever says that something is ours, hands it over
			key := ipvs.AddrKey(netip.MustParseAddr(pick(r, vips4)))
			if !set.OfAddr() {
				key.Port, key.Proto = 443, ipvs.TCP
			}
			w.say("%s %s", set, key)
			w.tampered[key.Addr] = true
			if k.Sets[set][key] && set == ipvs.SetRedirect {
				k.Tamper(ipvs.Element{Set: set, Key: key, Remove: true})
			}
			k.Tamper(ipvs.Element{Set: set, Key: key, To: netip.AddrPortFrom(foreignAddr, 80)})
		}
	case "address":
		if len(addrs) > 0 {
			a := pick(r, addrs)
			w.tampered[a] = true
			delete(k.Addrs, a)
		}
	case "extra address":
		if k.Link {
			a := netip.MustParseAddr(pick(r, vips4))
			w.tampered[a], w.disowned[ipvs.AddrKey(a)] = true, true
			k.Addrs[a] = true
		}
	default:
		if len(servers) > 0 {
			w.tamperServer(r, what, pick(r, servers))
		}
	}
}

// tamperRange removes one of the source ranges of a frontend, or adds one.
func (w *walker) tamperRange(r *rand.Rand) {
	extra := ipvs.Range{First: foreignAddr, Last: foreignAddr}
	keys := sorted(w.kernel.Ranges)
	if len(keys) == 0 {
		return
	}
	key := pick(r, keys)
	w.say("%s", key)
	w.tampered[key.Addr] = true
	if have := w.kernel.Ranges[key]; r.IntN(2) == 0 || slices.Contains(have, extra) {
		w.kernel.Tamper(ipvs.Element{Set: ipvs.SetRanges, Key: key, From: pick(r, have), Remove: true})
	} else {
		w.kernel.Tamper(ipvs.Element{Set: ipvs.SetRanges, Key: key, From: extra})
	}
}

func (w *walker) tamperServer(r *rand.Rand, what string, key ipvs.Key) {
	w.say("%s", key)
	w.tampered[key.Addr] = true
	k := w.kernel
	s := k.Servers[key]
	s.Reals = slices.Clone(s.Reals)
	switch what {
	case "server":
		delete(k.Servers, key)
		delete(k.Conns, key)
		return
	case "reals":
		s.Reals = nil
		delete(k.Conns, key)
	case "real":
		if len(s.Reals) > 0 {
			i := r.IntN(len(s.Reals))
			delete(k.Conns[key], s.Reals[i].Addr)
			s.Reals = slices.Delete(s.Reals, i, i+1)
		}
	case "weight":
		if len(s.Reals) > 0 {
			s.Reals[r.IntN(len(s.Reals))].Weight = uint16(r.IntN(3))
		}
	case "scheduler":
		s.Scheduler = "wlc"
		s.Flags, s.Timeout = pick(r, []ipvs.Flags{0, ipvs.Persistent}), 300
		if s.Flags == 0 {
			s.Timeout = 0
		}
	case "extra real":
		extra := ipvs.Real{Addr: netip.MustParseAddrPort("10.244.3.3:8080"), Weight: 1}
		if key.Addr.Is6() {
			extra.Addr = netip.MustParseAddrPort("[fd10:244:3::3]:8080")
		}
		s.Reals = ipvs.SortReals(append(s.Reals, extra))
	}
	k.Servers[key] = s
}

// plant lets somebody else make a virtual server where no Service has one, maybe on an address of ours. Not
// before the first start is over: it takes over all that it finds on the interface.
func (w *walker) plant(r *rand.Rand) {
	p := pick(r, allPorts)
	key := ipvs.Key{Addr: netip.MustParseAddr(pick(r, vips4)), Port: uint16(p.Port), Proto: ipvs.TCP}
	if p.Protocol == corev1.ProtocolUDP {
		key.Proto = ipvs.UDP
	}
	k := w.kernel
	if _, ok := k.Servers[key]; ok || !k.Sets[ipvs.SetOwned][ipvs.Adopted] || k.Sets[ipvs.SetOwned][key] || k.Sets[ipvs.SetOpen][key] {
		return
	}
	w.say("%s", key)
	w.foreign[key] = foreignServer
	k.Servers[key] = foreignServer
	w.tampered[key.Addr] = true
}

var _ Model = (*cluster.Model)(nil)
