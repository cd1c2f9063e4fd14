package page

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/inspect"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs/fake"
	loop "github.com/ipvs-proxy/ipvs-proxy/pkg/sync"
)

// rig is the agent's own loop on a kernel in memory, with many Services, and the page over it.
type rig struct {
	model *cluster.Model
	loop  *loop.Loop
	page  http.Handler
	asked atomic.Int64 // questions to the loop that were answered
	// wrote has the real servers that the kernel got since started.
	wrote   chan write
	started atomic.Bool
}

// write is a real server that the kernel got, and how many questions had been answered by then.
type write struct {
	addr  string
	asked int64
}

// Ask counts.
func (g *rig) Ask(ctx context.Context, ask func(*loop.View)) error {
	return g.loop.Ask(ctx, func(v *loop.View) {
		g.asked.Add(1)
		ask(v)
	})
}

// Of counts nothing: what reading the kernel costs, the kernel's own tests say.
func (g *rig) Of(_ context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	for _, k := range keys {
		if err := visit(ipvs.Counted{Key: k, Server: ipvs.Server{Scheduler: "rr"}}); err != nil {
			return err
		}
	}
	return nil
}

// memory is a kernel in memory that says which real servers it gets, and is not audited: to read all of it costs a
// multiple of what the real one's does.
type memory struct {
	*fake.Kernel
	rig *rig
}

func (m *memory) Do(ctx context.Context, p ipvs.Plan) []ipvs.Outcome {
	out := m.Kernel.Do(ctx, p)
	for _, step := range p {
		if add, is := step.Op.(ipvs.AddReal); is && m.rig.started.Load() {
			m.rig.wrote <- write{add.Real.Addr.Addr().String(), m.rig.asked.Load()}
		}
	}
	return out
}

func (m *memory) Detect(context.Context, func(ipvs.Key, *ipvs.Frontend, uint32)) (bool, error) {
	return false, nil
}

func newRig(tb testing.TB, services int) *rig {
	tb.Helper()
	g := &rig{model: cluster.NewModel(cluster.Options{NodeName: "node1"}), wrote: make(chan write, 1)}
	for i := range services {
		g.model.SetService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%02d", i%40), Name: fmt.Sprintf("service-%05d", i)},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: addr(10, i), ClusterIPs: []string{addr(10, i)},
				Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}})
		g.model.SetSlice(slice(i, 2))
	}
	g.model.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}})
	g.model.SetSynced()
	g.model.SetComplete()
	g.loop = loop.New(&memory{fake.New(), g}, g.model, zap.NewNop(), loop.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.loop.Run(ctx) }()
	tb.Cleanup(func() { cancel(); <-ended })
	for done := false; !done; {
		if err := g.loop.Ask(tb.Context(), func(v *loop.View) { done = v.Standing().Programmed }); err != nil {
			tb.Fatal(err)
		}
	}
	g.page = Over(below, Options{Node: "node1", Answers: inspect.New(g, inspect.About{}), Counter: g, Log: zap.NewNop(), Health: func() Health { return Health{OK: true} }})
	return g
}

func addr(first byte, i int) string {
	return netip.AddrFrom4([4]byte{first, byte(100 + i/60000), byte(i / 240 % 250), byte(i%240 + 1)}).String()
}

// slice has so many ready endpoints.
func slice(i, endpoints int) *discoveryv1.EndpointSlice {
	name := fmt.Sprintf("service-%05d", i)
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%02d", i%40), Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080)), Protocol: new(corev1.ProtocolTCP)}}}
	for n := range endpoints {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr(byte(20+n), i)}, NodeName: new("node2"), Conditions: discoveryv1.EndpointConditions{Ready: new(true)}})
	}
	return s
}

// cpu is the processor time of this process so far.
func cpu(tb testing.TB) time.Duration {
	tb.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// costly are the pages of which the cost has a limit, at 10,000 Services.
var costly = []string{"/", "/?q=service-00770", "/?q=10.100.3.51", "/services/team-10/service-00770", "/changes"}

// A page costs less than 50 ms of a processor at 10,000 Services, the loop's part and the collector's included.
func TestB73PageCost(t *testing.T) {
	g := newRig(t, 10000)
	const rounds = 20
	for _, path := range costly {
		document(t, g.page, path) // parses the templates
		began := cpu(t)
		for range rounds {
			if w := serve(g.page, asked(http.MethodGet, path)); w.Code != 200 {
				t.Fatalf("%s: %d", path, w.Code)
			}
		}
		each := (cpu(t) - began) / rounds
		t.Logf("%s: %v of a processor", path, each)
		if limit := 50 * time.Millisecond * slower; each > limit {
			t.Errorf("%s: %v of a processor, want %v at most", path, each, limit)
		}
	}
}

// While 100 ask without a pause, what changes is written all the same, and only a few of them are answered in between: each
// of them costs the loop less than a slice of work.
func TestB73PageHundredAskers(t *testing.T) {
	g := newRig(t, 10000/slower)
	var pages atomic.Int64
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch w := serve(g.page, asked(http.MethodGet, costly[i%len(costly)])); w.Code {
				case http.StatusOK:
					pages.Add(1)
				case http.StatusServiceUnavailable: // on a machine that is busy its turn may come too late
				default:
					t.Errorf("%d", w.Code)
				}
			}
		})
	}
	var longest time.Duration
	most := int64(0)
	g.started.Store(true)
	for i := range changesAmong {
		g.model.SetSlice(slice(i, 3))
		began, answered := time.Now(), g.asked.Load()
		w := <-g.wrote
		if w.addr != addr(22, i) {
			t.Fatalf("%s was written, want %s", w.addr, addr(22, i))
		}
		longest, most = max(longest, time.Since(began)), max(most, w.asked-answered)
		for enough := pages.Load() + 20; pages.Load() < enough; {
			serve(g.page, asked(http.MethodGet, "/"))
		}
	}
	close(stop)
	all.Wait()
	t.Logf("%d pages meanwhile, each change written after %v and %d questions at most", pages.Load(), longest, most)
	if most > 50 {
		t.Errorf("%d questions were answered before a change was written, want 50 at most", most)
	}
}

func BenchmarkPage(b *testing.B) {
	g := newRig(b, 10000)
	for _, path := range costly {
		b.Run(path, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				serve(g.page, asked(http.MethodGet, path))
			}
		})
	}
}
