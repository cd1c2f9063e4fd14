package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// stepper drives a loop by hand, on a fake kernel and on a clock of its own. It is the rig without
// goroutines: fast enough to walk histories by the hundred thousand.
type stepper struct {
	kernel *fake.Kernel
	door   *door
	model  *cluster.Model
	loop   *Loop
	opt    Options
	now    time.Time
	stuck  bool // the loop wanted to go on and on without time passing
}

func newStepper() *stepper {
	k := fake.New()
	return &stepper{kernel: k, door: &door{Kernel: k}, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// start starts a new process that knows nothing but a model.
func (s *stepper) start(m *cluster.Model) {
	s.model = m
	s.opt.Now = func() time.Time { return s.now }
	s.loop = New(s.door, m, zap.NewNop(), s.opt)
}

// audit is the loop's.
func (s *stepper) audit() *audit {
	for _, t := range s.loop.rounds {
		if a, is := t.(*audit); is {
			return a
		}
	}
	panic("no audit")
}

// pass lets the loop do what is due now and within some time.
func (s *stepper) pass(d time.Duration) {
	end := s.now.Add(d)
	for {
		s.settle()
		next := s.now.Add(max(s.loop.idleFor(s.now), time.Millisecond))
		if s.stuck || next.After(end) {
			s.now = end
			return
		}
		s.now = next
	}
}

// settle lets the loop do what is due now.
func (s *stepper) settle() {
	for range 1000 {
		if s.loop.turn(context.Background()) {
			return
		}
	}
	s.stuck = true
}

// door stands between a loop and the fake kernel: writes fail here in all the ways in which they can.
type door struct {
	*fake.Kernel
	// fault is asked before every write.
	fault func(ipvs.Op) fault
	// after is called after every write that took place, whatever the loop hears of it.
	after func(ipvs.Op)
}

// fault is how a write goes wrong. The zero value: it does not.
type fault struct {
	err error
	// unknown: the loop does not hear whether the write took place.
	unknown bool
	// written: it did.
	written bool
}

// The two ways in which nobody can say what happened.
var (
	errTimeout = errors.New("no answer in time")
	errLost    = errors.New("the acknowledgement was lost")
)

func (d *door) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	return ipvs.Execute(ctx, plan, func(ctx context.Context, steps []ipvs.Step) []ipvs.Outcome {
		out := make([]ipvs.Outcome, len(steps))
		for i, s := range steps {
			out[i] = d.write(ctx, s)
		}
		return out
	})
}

func (d *door) write(ctx context.Context, s ipvs.Step) ipvs.Outcome {
	var f fault
	if d.fault != nil {
		f = d.fault(s.Op)
	}
	if f.err != nil && !f.written {
		return ipvs.Outcome{Err: f.err, Unknown: f.unknown}
	}
	o := d.Kernel.Do(ctx, ipvs.Plan{s})[0]
	if o.Err == nil && d.after != nil {
		d.after(s.Op)
	}
	if o.Err == nil && f.err != nil {
		o = ipvs.Outcome{Err: f.err, Unknown: true}
	}
	return o
}

// hazard is something that must not be, after whichever write the process dies (I3).
type hazard struct {
	what string
	key  ipvs.Key
}

func (h hazard) String() string { return h.key.String() + " " + h.what }

const (
	notBound = "is open and not bound"
	tooFar   = "is for the endpoints of this node and leads to another's"
)

// The pods of this node are in these ranges in all tests.
var ownPods4, ownPods6 = netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd10:244:1::/48")

// caused reports whether a write brought a hazard about. A frontend that is opened early, because its virtual
// server serves already, may be bound a little later: the node's own packets find it either way. And it leads where the proxy before let it lead.
func (h hazard) caused(by ipvs.Op, before map[hazard]bool) bool {
	if _, unbinds := by.(ipvs.Unbind); unbinds && h.what == notBound {
		// Nobody wants the address any more (that it is not wanted is checked elsewhere), so a frontend that an
		// earlier run left on it may be closed after it: it cannot be reached then.
		return false
	}
	e, ok := by.(ipvs.Element)
	if ok && (e.Set == ipvs.SetKept && h.what == tooFar || e.Set == ipvs.SetRedirect && e.Early) {
		return false // the policy begins; or a redirection changes in the same transaction as what it is for
	}
	return !before[h] && !(ok && e.Early && (h.what == notBound || h.what == tooFar))
}

// hazards lists them, but for virtual servers that somebody else made.
func hazards(k *fake.Kernel, foreign map[ipvs.Key]ipvs.Server) map[hazard]bool {
	found := map[hazard]bool{}
	for a := range k.Addrs {
		if !k.Sets[ipvs.SetVIPs][ipvs.AddrKey(a)] {
			found[hazard{"is bound and not guarded: a listener of the node answers on it", ipvs.AddrKey(a)}] = true
		}
	}
	for key := range k.Sets[ipvs.SetOpen] {
		takes := func(r ipvs.Real) bool { return r.Weight > 0 }
		served := k.Sets[ipvs.SetRedirect][key] && k.Redirects[key] != netip.AddrPort{} // maybe to the ClusterIP, which is looked at by itself
		if !served && !slices.ContainsFunc(k.Servers[key].Reals, takes) {
			found[hazard{"is open without a real server that takes connections", key}] = true
		}
		if !k.Addrs[key.Addr] && !slices.Contains(k.Node.Addrs, key.Addr) {
			found[hazard{notBound, key}] = true
		}
	}
	for key := range k.Sets[ipvs.SetKept] {
		remote := func(r ipvs.Real) bool {
			return r.Weight > 0 && !ownPods4.Contains(r.Addr.Addr()) && !ownPods6.Contains(r.Addr.Addr())
		}
		if k.Sets[ipvs.SetOpen][key] && !k.Sets[ipvs.SetMasqueraded][key] && !k.Sets[ipvs.SetInside][key] && slices.ContainsFunc(k.Servers[key].Reals, remote) {
			found[hazard{tooFar, key}] = true
		}
	}
	for key := range k.Servers {
		if _, ok := foreign[key]; !ok && !k.Sets[ipvs.SetOwned][key] {
			found[hazard{"is not recorded as ours", key}] = true
		}
	}
	return found
}

// world is a cluster's objects.
type world struct {
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	node     *corev1.Node
}

func newWorld(objs ...any) *world {
	w := &world{services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}}
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Service:
			w.services[o.Name] = o
		case *discoveryv1.EndpointSlice:
			w.slices[o.Name] = o
		case *corev1.Node:
			w.node = o
		default:
			panic(fmt.Sprintf("no object: %T", o))
		}
	}
	return w
}

// objects lists them in a fixed order.
func (w *world) objects() (objs []any) {
	for _, name := range slices.Sorted(maps.Keys(w.services)) {
		objs = append(objs, w.services[name])
	}
	for _, name := range slices.Sorted(maps.Keys(w.slices)) {
		objs = append(objs, w.slices[name])
	}
	if w.node != nil {
		objs = append(objs, w.node)
	}
	return objs
}

// become changes a model from this world to another.
func (w *world) become(m *cluster.Model, to *world) {
	for name, s := range w.slices {
		if to.slices[name] == nil {
			m.DeleteSlice(s.Namespace, name)
		}
	}
	for name, s := range w.services {
		if to.services[name] == nil {
			m.DeleteService(s.Namespace, name)
		}
	}
	give(m, to.objects()...)
}

// newModel is a model of some objects that is not synced.
func newModel(objs ...any) *cluster.Model {
	m := cluster.NewModel(cluster.Options{NodeName: thisNode})
	give(m, objs...)
	return m
}

func completeModel(objs ...any) *cluster.Model {
	m := newModel(objs...)
	m.SetSynced()
	m.SetComplete()
	return m
}

func give(m *cluster.Model, objs ...any) {
	for _, o := range objs {
		switch o := o.(type) {
		case *corev1.Service:
			m.SetService(o)
		case *discoveryv1.EndpointSlice:
			m.SetSlice(o)
		case *corev1.Node:
			m.SetNode(o)
		default:
			panic(fmt.Sprintf("no object: %T", o))
		}
	}
}

// expected is what a kernel should hold.
type expected struct {
	servers map[ipvs.Key]ipvs.Server
	sets    map[ipvs.Set]map[ipvs.Key]bool
	addrs   map[netip.Addr]bool
	// redirects and ranges are the rest of these sets.
	redirects map[ipvs.Key]netip.AddrPort
	ranges    map[ipvs.Key][]ipvs.Range
	// draining: real servers of weight 0 that nobody wants may still be there without connections.
	draining bool
	// atLeast: whatever else there is may stay, because parts of the cluster are not known.
	atLeast bool
}

// nobody spares no virtual server.
func nobody(ipvs.Key) bool { return false }

// siteOf is the desk.Site of a node with such objects and addresses.
func siteOf(m *cluster.Model, local ipvs.Local, opt desk.Options) desk.Site {
	_, eps := m.Get(kubernetes)
	var servers []netip.Addr
	for _, ep := range eps {
		servers = append(servers, ep.Addr)
	}
	return desk.NewSite(m.Node(), local, ipvs.SortAddrs(servers), opt)
}

// expect says in the simplest way what the kernel should hold for a cluster: every Service compiled, every
// Key to the oldest that claims it, every address to the oldest whose ClusterIP it is, everything added up.
func expect(m *cluster.Model, local ipvs.Local, opt Options) *expected {
	opt = opt.withDefaults()
	site := siteOf(m, local, opt.Desk)
	vips, elsewhere := map[netip.Addr]bool{}, map[netip.Addr][]desk.Claim{}
	for _, name := range serviceNames { // of these another proxy may serve some
		id := idOf(name)
		for addrs, created := m.Held(id); len(addrs) > 0; addrs = addrs[1:] {
			elsewhere[addrs[0]] = append(elsewhere[addrs[0]], desk.Claim{Rank: desk.RankClusterIP, Created: created, Service: id})
		}
	}
	compare := func(a, b desk.Claim) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Created, b.Created), a.Service.Compare(b.Service))
	}
	for _, id := range m.Services() {
		svc, _ := m.Get(id)
		for _, c := range desk.Compile(svc, nil, desk.NamedOf(svc, m.Named), site, opt.Desk).Claims {
			before := slices.ContainsFunc(elsewhere[c.Key.Addr], func(o desk.Claim) bool { return compare(o, c.Claim) < 0 })
			vips[c.Key.Addr] = vips[c.Key.Addr] || c.Claim.Want.Guard.VIP && !before
		}
	}
	claims := map[ipvs.Key][]desk.Claim{}
	holding := map[netip.Addr][]desk.Claim{}
	for _, id := range m.Services() {
		svc, all := m.Get(id)
		var eps []cluster.Endpoint
		for _, ep := range all {
			if !vips[ep.Addr] {
				eps = append(eps, ep)
			}
		}
		for _, c := range desk.Compile(svc, eps, desk.NamedOf(svc, m.Named), site, opt.Desk).Claims {
			claims[c.Key] = append(claims[c.Key], c.Claim)
			if c.Claim.Rank == desk.RankClusterIP {
				holding[c.Key.Addr] = append(holding[c.Key.Addr], c.Claim)
			}
		}
	}
	for a, cs := range elsewhere {
		holding[a] = append(holding[a], cs...)
	}
	e := &expected{servers: map[ipvs.Key]ipvs.Server{}, sets: map[ipvs.Set]map[ipvs.Key]bool{}, addrs: map[netip.Addr]bool{},
		redirects: map[ipvs.Key]netip.AddrPort{}, ranges: map[ipvs.Key][]ipvs.Range{}}
	for _, s := range ipvs.Sets {
		e.sets[s] = map[ipvs.Key]bool{}
	}
	e.sets[ipvs.SetOwned][ipvs.Adopted] = true
	first := func(cs []desk.Claim) desk.Claim {
		return slices.MinFunc(cs, compare)
	}
	for k, cs := range claims {
		if hs := holding[k.Addr]; len(hs) > 0 {
			holder := first(hs).Service
			if cs = slices.DeleteFunc(cs, func(c desk.Claim) bool { return c.Service != holder }); len(cs) == 0 {
				continue
			}
		}
		e.add(k, first(cs).Want)
	}
	return e
}

func (e *expected) add(k ipvs.Key, fe *ipvs.Frontend) {
	if fe.Server.Exists() {
		e.servers[k] = fe.Server
	}
	if fe.Bind {
		e.addrs[k.Addr] = true
	}
	if fe.Guard.VIP {
		e.sets[ipvs.SetVIPs][ipvs.AddrKey(k.Addr)] = true
	}
	for _, a := range fe.Guard.Hairpin {
		e.sets[ipvs.SetHairpin][ipvs.AddrKey(a)] = true
	}
	for _, s := range ipvs.KeySets {
		if fe.Guard.Has(s) {
			e.sets[s][k] = true
		}
	}
	if fe.Guard.Redirect.IsValid() {
		e.redirects[k] = fe.Guard.Redirect
	}
	if len(fe.Guard.Ranges) > 0 {
		e.ranges[k] = fe.Guard.Ranges
	}
}

// wantsBack reports whether an operation takes away something that should be there.
func (e *expected) wantsBack(op ipvs.Op) bool {
	weighs := false // whose weight is wanted to be 0 may have that
	wanted := func(k ipvs.Key, a netip.AddrPort) bool {
		return slices.ContainsFunc(e.servers[k].Reals, func(r ipvs.Real) bool { return r.Addr == a && (r.Weight > 0 || !weighs) })
	}
	switch o := op.(type) {
	case ipvs.Element:
		switch {
		case o.Set == ipvs.SetRanges:
			return o.Remove && slices.Contains(e.ranges[o.Key], o.From)
		case o.Remove && o.Early: // another one takes its place
			return false
		}
		return o.Remove && e.sets[o.Set][o.Key]
	case ipvs.Unbind:
		return e.addrs[o.Addr]
	case ipvs.DelServer:
		return e.servers[o.Key].Exists()
	case ipvs.DelReal:
		return wanted(o.Key, o.Addr)
	case ipvs.SetReal:
		weighs = true
		return o.Real.Weight == 0 && wanted(o.Key, o.Real.Addr)
	}
	return false
}

// compare lists where the kernel differs from what it should hold. A real server that nobody wants may stay
// with weight 0 as long as it has connections that can end.
func (e *expected) compare(k *fake.Kernel, spared func(ipvs.Key) bool) (diffs []string) {
	say := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	for _, key := range sorted(e.servers) {
		want, have := e.servers[key], k.Servers[key]
		if have.Scheduler != want.Scheduler || have.Flags != want.Flags || have.Timeout != want.Timeout {
			say("%s is %q %d %d, want %q %d %d", key, have.Scheduler, have.Flags, have.Timeout, want.Scheduler, want.Flags, want.Timeout)
		}
		left := slices.Clone(want.Reals)
		for _, r := range have.Reals {
			if i := slices.Index(left, r); i >= 0 {
				left = slices.Delete(left, i, i+1)
			} else if !e.atLeast && (r.Weight != 0 || !key.Proto.Drains() || !e.draining && k.Conns[key][r.Addr] == (ipvs.Conns{})) {
				say("%s has the real server %v", key, r)
			}
		}
		for _, r := range left {
			say("%s lacks the real server %v", key, r)
		}
	}
	for _, key := range sorted(k.Servers) {
		if !e.servers[key].Exists() && !e.atLeast && !spared(key) {
			say("virtual server %s is too many", key)
		}
	}
	for _, s := range ipvs.Sets {
		for _, key := range sorted(e.sets[s]) {
			if !k.Sets[s][key] && !(e.atLeast && s.Bars()) {
				say("%s is not in the set %s", key, s)
			}
		}
		for _, key := range sorted(k.Sets[s]) {
			if !e.sets[s][key] && !e.atLeast {
				say("%s is in the set %s", key, s)
			}
		}
	}
	for key, to := range e.redirects {
		if k.Redirects[key] != to {
			say("%s is redirected to %s, want %s", key, k.Redirects[key], to)
		}
	}
	for key, rs := range e.ranges {
		if !slices.Equal(k.Ranges[key], rs) {
			say("%s is limited to %s, want %s", key, k.Ranges[key], rs)
		}
	}
	for key, rs := range k.Ranges {
		if e.ranges[key] == nil && !e.atLeast {
			say("%s is limited to %s, want no limit", key, rs)
		}
	}
	for a := range e.addrs {
		if !k.Addrs[a] {
			say("%s is not bound", a)
		}
	}
	for a := range k.Addrs {
		if !e.addrs[a] && !e.atLeast && !spared(ipvs.AddrKey(a)) {
			say("%s is bound", a)
		}
	}
	return diffs
}
