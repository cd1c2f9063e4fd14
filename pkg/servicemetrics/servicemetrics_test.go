package servicemetrics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// world is a cluster and a kernel in memory.
type world struct {
	chosen []cluster.Measurable
	left   int
	stamp  uint64
	asked  int
	owned  []Owned
	kernel map[ipvs.Key]*ipvs.Counted
	err    error
}

func newWorld() *world { return &world{kernel: map[ipvs.Key]*ipvs.Counted{}} }

func (w *world) Measured(bool, int) ([]cluster.Measurable, int, uint64) {
	w.asked++
	return slices.Clone(w.chosen), w.left, w.stamp
}

func (w *world) MeasuredStamp() uint64 { return w.stamp }

func (w *world) Owned(_ context.Context, services []cluster.ID) (list []Owned, err error) {
	for _, o := range w.owned {
		if slices.Contains(services, o.Service) {
			list = append(list, o)
		}
	}
	return list, nil
}

func (w *world) Servers(_ context.Context, visit func(ipvs.Counted) error) error {
	for _, c := range w.kernel {
		if err := visit(ipvs.Counted{Key: c.Key, Counters: c.Counters}); err != nil {
			return err
		}
	}
	return w.err
}

func (w *world) Brief(_ context.Context, keys []ipvs.Key, visit func(ipvs.Counted) error) error {
	for i, k := range keys {
		if w.err != nil && i == len(keys)/2 {
			return w.err
		}
		if c := w.kernel[k]; c != nil {
			if err := visit(*c); err != nil {
				return err
			}
		}
	}
	return w.err
}

// choose has metrics kept of Services with ports; a port without a name is given by its number.
func (w *world) choose(services ...cluster.Measurable) {
	w.chosen = services
	w.stamp++
}

func service(name string, ports ...cluster.Port) cluster.Measurable {
	return cluster.Measurable{ID: cluster.ID{Namespace: "shop", Name: name}, Ports: ports}
}

var http = cluster.Port{Name: "http", Protocol: cluster.TCP, Port: 80}

func key(i int) ipvs.Key {
	return ipvs.Key{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Proto: ipvs.TCP}
}

// gives has a Service own a Key for a port.
func (w *world) gives(s cluster.Measurable, p cluster.Port, k ipvs.Key) {
	w.owned = append(w.owned, Owned{Key: k, Service: s.ID, Port: p})
}

// sends has the kernel count so many connections, and other numbers in proportion.
func (w *world) sends(k ipvs.Key, conns uint64) {
	if w.kernel[k] == nil {
		w.kernel[k] = &ipvs.Counted{Key: k}
	}
	c := &w.kernel[k].Counters
	c.Conns += conns
	for v, n := range map[*uint64]uint64{&c.In.Packets: 2, &c.In.Bytes: 3, &c.Out.Packets: 4, &c.Out.Bytes: 5} {
		*v += n * conns
	}
}

func counted(conns uint64) healthz.Counted {
	return healthz.Counted{Conns: conns, In: healthz.Volume{Packets: 2 * conns, Bytes: 3 * conns}, Out: healthz.Volume{Packets: 4 * conns, Bytes: 5 * conns}}
}

func (w *world) reader(t *testing.T) *Reader {
	t.Helper()
	r := New(w, w, w, Options{Limit: 500})
	if err := r.Prime(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t *testing.T, r *Reader) map[string]healthz.ServiceTraffic {
	t.Helper()
	all, err := r.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]healthz.ServiceTraffic{}
	last := ""
	for _, s := range all.List {
		name := s.Service + " " + s.Port
		if name <= last {
			t.Errorf("%s stands behind %s", name, last)
		}
		by[name], last = s, name
	}
	return by
}

func wantCounted(t *testing.T, what string, got healthz.ServiceTraffic, conns uint64) {
	t.Helper()
	if got.Counted != counted(conns) {
		t.Errorf("%s: %+v, want %+v", what, got.Counted, counted(conns))
	}
}

// A Service's numbers are those of all its frontends, by port; what goes takes nothing with it, and what comes again begins
// at 0 and adds (row B72).
func TestCountsByPort(t *testing.T) {
	w := newWorld()
	nameless, udp := cluster.Port{Protocol: cluster.TCP, Port: 53}, cluster.Port{Protocol: cluster.UDP, Port: 53}
	web, dns := service("web", http), service("dns", nameless, udp)
	w.choose(web, dns)
	w.gives(web, http, key(1))
	w.gives(web, http, key(2))
	w.gives(dns, nameless, key(3))
	w.gives(dns, udp, key(4))
	w.sends(key(1), 100) // before this process
	r := w.reader(t)
	w.sends(key(1), 1)
	w.sends(key(2), 10)
	w.sends(key(3), 3)
	w.sends(key(4), 4)
	w.sends(key(9), 1000) // another's
	got := read(t, r)
	if len(got) != 2 {
		t.Errorf("%d ports, want 2: %v", len(got), got)
	}
	wantCounted(t, "a virtual server of before, and one since", got["web http"], 10)
	wantCounted(t, "two ports of one number", got["dns 53"], 7)
	w.sends(key(1), 2)
	wantCounted(t, "since the last time", read(t, r)["web http"], 12)

	delete(w.kernel, key(2))
	wantCounted(t, "a frontend goes", read(t, r)["web http"], 12)
	w.sends(key(2), 5)
	wantCounted(t, "it comes back", read(t, r)["web http"], 17)
	delete(w.kernel, key(1))
	w.sends(key(1), 4)
	wantCounted(t, "made anew between two readings", read(t, r)["web http"], 21)
	delete(w.kernel, key(1))
	read(t, r)
	w.sends(key(1), 1)
	wantCounted(t, "one of before that is made anew", read(t, r)["web http"], 22)

	w.owned = slices.DeleteFunc(w.owned, func(o Owned) bool { return o.Key == key(2) })
	w.gives(dns, udp, key(2)) // with its virtual server as it is
	w.sends(key(2), 1)
	got = read(t, r)
	wantCounted(t, "a frontend handed over", got["web http"], 22)
	wantCounted(t, "a frontend taken over", got["dns 53"], 8)
}

// What is true of one moment is so: connections of all frontends, endpoints once however many frontends have them.
func TestNow(t *testing.T) {
	w := newWorld()
	web := service("web", http)
	w.choose(web)
	w.left = 7
	r := w.reader(t)
	end := func(i byte, weight uint16, active, inactive uint32) ipvs.CountedReal {
		return ipvs.CountedReal{Real: ipvs.Real{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, i}), 80), Weight: weight},
			Conns: ipvs.Conns{Active: active, Inactive: inactive}}
	}
	for i, reals := range [][]ipvs.CountedReal{{end(1, 1, 1, 2), end(2, 0, 3, 4), end(4, 0, 0, 0)}, {end(1, 0, 5, 6), end(2, 0, 0, 0), end(3, 9, 0, 1), end(4, 1, 0, 0)}} {
		w.gives(web, http, key(i))
		w.sends(key(i), 1)
		w.kernel[key(i)].Reals = reals
	}
	for range 2 { // the second time is as the first
		all, err := r.Read(t.Context())
		want := healthz.ServiceTraffic{Namespace: "shop", Service: "web", Port: "http", Counted: counted(2), Active: 9, Inactive: 13, Ready: 3, Draining: 1}
		if err != nil || len(all.List) != 1 || all.List[0] != want || all.Left != 7 {
			t.Fatalf("%+v, %v; want %+v, and 7 left out", all, err, want)
		}
	}
	w.kernel = map[ipvs.Key]*ipvs.Counted{}
	if got := read(t, r)["web http"]; got.Active+got.Inactive+got.Ready+got.Draining != 0 || got.Counted != counted(2) {
		t.Errorf("without a virtual server: %+v", got)
	}
}

// A reading that fails counts nothing twice and loses nothing; without the one at the start, counting begins with the first.
func TestFailedReading(t *testing.T) {
	w := newWorld()
	web := service("web", http)
	w.choose(web)
	for i := range 4 {
		w.gives(web, http, key(i))
		w.sends(key(i), 1)
	}
	w.err = errors.New("interrupted")
	r := New(w, w, w, Options{Limit: 500})
	if err := r.Prime(t.Context()); !errors.Is(err, w.err) {
		t.Errorf("the reading at the start: %v", err)
	}
	if _, err := r.Read(t.Context()); !errors.Is(err, w.err) {
		t.Errorf("a reading: %v", err)
	}
	w.err = nil
	wantCounted(t, "the first", read(t, r)["web http"], 0)
	for i := range 4 {
		w.sends(key(i), 2)
	}
	w.err = errors.New("interrupted")
	_, _ = r.Read(t.Context())
	w.err = nil
	wantCounted(t, "after one that failed", read(t, r)["web http"], 8)
}

// Who asks no more is forgotten, and what a Reader holds is in proportion to who asks; who asks is looked at when that has
// changed.
func TestForgets(t *testing.T) {
	w := newWorld()
	var all []cluster.Measurable
	for i := range 100 {
		s := service(fmt.Sprintf("s%02d", i), http)
		all = append(all, s)
		w.gives(s, http, key(i))
		w.sends(key(i), 1)
	}
	w.choose(all...)
	r := w.reader(t)
	for range 3 {
		if got := read(t, r); len(got) != 100 || w.asked != 1 || len(r.last) != 100 || len(r.totals) != 100 {
			t.Fatalf("%d ports, asked %d times, %d and %d kept", len(got), w.asked, len(r.last), len(r.totals))
		}
	}
	w.choose(all[3])
	w.sends(key(3), 2)
	got := read(t, r)
	wantCounted(t, "the one that stays", got["s03 http"], 2)
	if len(got) != 1 || len(r.last) != 1 || len(r.totals) != 1 || w.asked != 2 {
		t.Errorf("%d ports, asked %d times, %d and %d kept; want one of each and 2", len(got), w.asked, len(r.last), len(r.totals))
	}
}

// However frontends come, go and are handed about, no number goes backwards, and each is all that was read of its frontends
// and no more.
func TestNeverBackwards(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := newWorld()
	services := []cluster.Measurable{service("a", http), service("b", http), service("c", http)}
	w.choose(services...)
	r := w.reader(t)
	truth, before := map[string]uint64{}, map[string]healthz.ServiceTraffic{}
	for range 5000 {
		k := key(rnd.IntN(12))
		at := slices.IndexFunc(w.owned, func(o Owned) bool { return o.Key == k })
		switch what := rnd.IntN(10); {
		case what == 0 && at >= 0: // all that was counted has been read
			delete(w.kernel, k)
			w.owned = slices.Delete(w.owned, at, at+1)
		case what == 1 && at >= 0:
			delete(w.kernel, k)
		case what == 2 && at >= 0:
			w.owned[at].Service = services[rnd.IntN(3)].ID
		case at < 0:
			w.gives(services[rnd.IntN(3)], http, k)
		default:
			n := uint64(rnd.IntN(50))
			w.sends(k, n)
			truth[w.owned[at].Service.Name+" http"] += n
		}
		got := read(t, r)
		for name, s := range got {
			if s.Counted.Conns < before[name].Conns || s.Counted != counted(truth[name]) {
				t.Fatalf("%s: %+v, before %+v, want %+v", name, s.Counted, before[name].Counted, counted(truth[name]))
			}
		}
		before = maps.Clone(got)
	}
}
