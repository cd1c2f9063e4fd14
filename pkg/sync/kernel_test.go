package sync

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/kernel"
)

var realSequences = flag.Int("real.sequences", 100, "how many histories TestModelOnKernel walks")

// The first thread cannot end and would keep its namespace: the main goroutine holds on to it.
func init() { runtime.LockOSThread() }

// inNamespace takes the test into a network namespace of its own, on a kernel with IPVS.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getenv("IPVS_PROXY_LAB") == "" {
		t.Skip("needs a kernel with IPVS: make test runs this in the lab")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestModelOnKernel walks random histories on the real kernel: objects come, change and go, another program
// changes what is ours, writes fail or their acknowledgement gets lost, the process starts anew. At rest the
// kernel holds exactly what the objects ask for, and the foreign virtual server is as it was. All histories
// share one kernel, so each begins with what the last one left.
func TestModelOnKernel(t *testing.T) {
	inNamespace(t)
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	histories := uint64(*realSequences)
	if longForm() {
		histories = max(histories, 20_000)
	}
	t.Logf("%d histories from seed %d", histories, seed)
	h := newRealNode(t)
	for i := range histories {
		if h.walk(seed + i); t.Failed() {
			t.Fatalf("history %d, seed %d (its start is what the histories from seed %d left)", i, seed+i, seed)
		}
	}
	figure(t, "histories", int(histories))
	figure(t, "events", h.events)
	figure(t, "writes", h.writes)
	figure(t, "changes by another program", h.tampered)
}

// realNode is a loop on the real kernel, and the objects that it should serve.
type realNode struct {
	*walker // its world, and its random objects
	t       *testing.T
	real    *kernel.Kernel // the loop's
	other   *kernel.Kernel // another program's
	lossy   *rand.Rand     // writes fail while it is set
	model   *cluster.Model
	loop    *Loop
	now     time.Time

	events, writes, tampered int

	dies bool // the process dies after so many writes
	left int
}

func newRealNode(t *testing.T) *realNode {
	h := &realNode{walker: &walker{world: newWorld()}, t: t, now: time.Now()}
	for _, k := range []**kernel.Kernel{&h.real, &h.other} {
		opened, err := kernel.Open(context.Background(), kernel.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(opened.Close)
		*k = opened
	}
	foreign := ipvs.Key{Addr: foreignAddr, Port: 80, Proto: ipvs.TCP}
	if o := h.other.Do(context.Background(), ipvs.Plan{{Key: foreign, Op: ipvs.AddServer{Key: foreign, Scheduler: "wlc"}}}); o[0].Err != nil {
		t.Fatal(o[0].Err)
	}
	h.start()
	h.pass(0)
	if _, err := h.other.Base(context.Background()); err != nil { // finds the interface that stands by now
		t.Fatal(err)
	}
	return h
}

// start starts a process that knows the objects and nothing else.
func (h *realNode) start() { h.startWith(h.objects()...) }

func (h *realNode) startWith(objs ...any) {
	h.model = completeModel(objs...)
	opt := modelOptions
	opt.Now = func() time.Time { return h.now }
	h.loop = New(h, h.model, zap.NewNop(), opt)
}

// The loop's kernel is the real one, with writes that fail.

func (h *realNode) Base(ctx context.Context) (ipvs.BaseReport, error) { return h.real.Base(ctx) }

func (h *realNode) Observe(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]ipvs.Observed, error) {
	return h.real.Observe(ctx, keys)
}

func (h *realNode) Connections(ctx context.Context, keys []ipvs.Key) (map[ipvs.Key]map[netip.AddrPort]ipvs.Conns, error) {
	return h.real.Connections(ctx, keys)
}

func (h *realNode) Scan(ctx context.Context, f func(ipvs.Key, ipvs.Observed)) error {
	return h.real.Scan(ctx, f)
}

func (h *realNode) Detect(ctx context.Context, f func(ipvs.Key, *ipvs.Frontend, uint32)) (bool, error) {
	return h.real.Detect(ctx, f)
}

func (h *realNode) Local(ctx context.Context) (ipvs.Local, error) { return h.real.Local(ctx) }

func (h *realNode) LocalChanged() <-chan struct{} { return h.real.LocalChanged() }

func (h *realNode) Tampered() <-chan struct{} { return h.real.Tampered() }

func (h *realNode) Tampering() ipvs.Tampering { return h.real.Tampering() }

func (h *realNode) Canary(ctx context.Context) (ipvs.Census, error) { return h.real.Canary(ctx) }

func (h *realNode) SetPods(pods []netip.Prefix) error { return h.real.SetPods(pods) }

func (h *realNode) Shield(ctx context.Context, on bool) error { return h.real.Shield(ctx, on) }

// local is what the node is by now.
func (h *realNode) local() ipvs.Local {
	l, err := h.other.Local(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return l
}

func (h *realNode) Do(ctx context.Context, plan ipvs.Plan) []ipvs.Outcome {
	h.writes += len(plan)
	if h.dies {
		return h.doAndDie(ctx, plan)
	}
	if h.lossy == nil {
		return h.real.Do(ctx, plan)
	}
	return ipvs.Execute(ctx, plan, func(ctx context.Context, steps []ipvs.Step) []ipvs.Outcome {
		out := make([]ipvs.Outcome, len(steps))
		for i, s := range steps {
			switch h.lossy.IntN(6) {
			case 0:
				out[i].Err = unix.EIO
			case 1:
				out[i] = ipvs.Outcome{Err: unix.ETIMEDOUT, Unknown: true}
			case 2: // written, and the acknowledgement is lost
				h.real.Do(ctx, ipvs.Plan{s})
				out[i] = ipvs.Outcome{Err: unix.ETIMEDOUT, Unknown: true}
			default:
				out[i] = h.real.Do(ctx, ipvs.Plan{s})[0]
			}
		}
		return out
	})
}

// pass lets the loop do what is due within some time.
func (h *realNode) pass(d time.Duration) {
	for end := h.now.Add(d); ; {
		for n := 0; !h.loop.turn(context.Background()); n++ {
			if n == 1000 {
				h.t.Fatal("the loop does not come to rest")
			}
		}
		next := h.now.Add(max(h.loop.idleFor(h.now), time.Millisecond))
		if next.After(end) {
			h.now = end
			return
		}
		h.now = next
	}
}

// walk goes through the history of a seed and compares at its end.
func (h *realNode) walk(seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	var said []string
	for range 4 + r.IntN(6) {
		h.events++
		switch kind := pick(r, []string{"service", "service", "delete service", "slice", "slice", "delete slice", "restart", "tamper", "tamper", "writes fail", "time"}); kind {
		case "service":
			s := h.randomService(r)
			h.services[s.Name] = s
			give(h.model, s)
			said = append(said, fmt.Sprint(kind, " ", s.Name, s.Spec.ClusterIPs, portsOf(s)))
		case "slice":
			s := h.randomSlice(r)
			h.slices[s.Name] = s
			give(h.model, s)
			said = append(said, fmt.Sprint(kind, " ", s.Name, " ", endpointsOf(s)))
		case "delete service":
			name := pick(r, serviceNames)
			delete(h.services, name)
			h.model.DeleteService("default", name)
			said = append(said, kind+" "+name)
		case "delete slice":
			name := pick(r, sliceNames)
			delete(h.slices, name)
			h.model.DeleteSlice("default", name)
			said = append(said, kind+" "+name)
		case "restart":
			h.start()
			said = append(said, kind)
		case "tamper":
			said = append(said, h.tamper(r))
		case "writes fail":
			h.lossy = r
			said = append(said, kind)
		case "time":
			h.pass(pick(r, []time.Duration{time.Millisecond, 300 * time.Millisecond, 11 * time.Second}))
			said = append(said, kind)
		}
		if r.IntN(3) > 0 {
			h.pass(0)
		}
	}
	h.lossy = nil
	h.pass(restTime)
	if diffs := h.differences(); len(diffs) > 0 {
		h.t.Errorf("at rest: %s\nafter:\n  %s", strings.Join(diffs, "; "), strings.Join(said, "\n  "))
	}
}

// tamper has another program change something of ours: any one thing that the kernel holds.
func (h *realNode) tamper(r *rand.Rand) string {
	var ops []ipvs.Op
	err := h.other.Scan(context.Background(), func(k ipvs.Key, o ipvs.Observed) {
		if k.Addr == foreignAddr || k == ipvs.Adopted {
			return
		}
		if o.Have.Server.Exists() {
			ops = append(ops, ipvs.DelServer{Key: k}, ipvs.SetServer{Key: k, Scheduler: "wlc"})
		}
		for _, real := range o.Have.Server.Reals {
			ops = append(ops, ipvs.DelReal{Key: k, Addr: real.Addr}, ipvs.SetReal{Key: k, Real: ipvs.Real{Addr: real.Addr, Weight: 7}})
		}
		for _, set := range ipvs.KeySets {
			if o.Have.Guard.Has(set) && set != ipvs.SetOwned { // of what is not recorded as ours nobody knows whose it is
				ops = append(ops, ipvs.Element{Set: set, Key: k, To: o.Have.Guard.Redirect, Remove: true})
			}
		}
		for _, from := range o.Have.Guard.Ranges {
			ops = append(ops, ipvs.Element{Set: ipvs.SetRanges, Key: k, From: from, Remove: true})
		}
		if o.Have.Guard.VIP {
			ops = append(ops, ipvs.Element{Set: ipvs.SetVIPs, Key: k, Remove: true})
		}
		if o.Have.Bind {
			ops = append(ops, ipvs.Unbind{Addr: k.Addr})
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if len(ops) == 0 {
		return "tamper: nothing there"
	}
	op := pick(r, ops)
	h.tampered++
	if o := h.other.Do(context.Background(), ipvs.Plan{{Op: op}}); o[0].Err != nil {
		h.t.Fatalf("tamper: %v", o[0].Err)
	}
	return "tamper: " + op.String()
}

// snapshot is what the kernel has.
func (h *realNode) snapshot() *fake.Kernel {
	h.t.Helper()
	have := fake.New()
	err := h.other.Scan(context.Background(), func(k ipvs.Key, o ipvs.Observed) {
		if o.Have.Server.Exists() {
			have.Servers[k] = o.Have.Server
		}
		for _, set := range ipvs.KeySets {
			if o.Have.Guard.Has(set) {
				have.Sets[set][k] = true
			}
		}
		for set, there := range map[ipvs.Set]bool{ipvs.SetVIPs: o.Have.Guard.VIP, ipvs.SetHairpin: len(o.Have.Guard.Hairpin) > 0} {
			if there {
				have.Sets[set][k] = true
			}
		}
		if to := o.Have.Guard.Redirect; to.IsValid() {
			have.Redirects[k] = to
		}
		if ranges := o.Have.Guard.Ranges; len(ranges) > 0 {
			have.Ranges[k] = ranges
		}
		if o.Have.Bind {
			have.Addrs[k.Addr] = true
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return have
}

// differences holds what the kernel has against what the objects ask for.
func (h *realNode) differences() []string { return h.differencesFrom(h.objects()...) }

func (h *realNode) differencesFrom(objs ...any) []string {
	have := h.snapshot()
	foreign := ipvs.Key{Addr: foreignAddr, Port: 80, Proto: ipvs.TCP}
	spared := func(k ipvs.Key) bool {
		return k == foreign && have.Servers[k].Scheduler == "wlc" || !k.HasServer() && slices.Contains([]netip.Addr{foreignAddr}, k.Addr)
	}
	if _, ok := have.Servers[foreign]; !ok {
		return []string{"the foreign virtual server is gone"}
	}
	return expect(newModel(objs...), h.local(), modelOptions).compare(have, spared)
}
