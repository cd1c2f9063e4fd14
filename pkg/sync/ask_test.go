package sync

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// ask puts a question to the rig's loop.
func (r *rig) ask(f func(*View)) {
	r.t.Helper()
	if err := r.loop.Ask(context.Background(), f); err != nil {
		r.t.Fatal(err)
	}
}

// What the loop knows can be asked while it works: whose a frontend is, how far it is, what drains and what fails.
func TestB73Ask(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web, thief := service("web", "10.96.0.10", 80), service("alone", "10.96.0.11", 80)
		r.set(web, slice(web, "10.244.2.10", "10.244.1.5@node1"), thief)
		r.synced()
		r.start()
		r.ask(func(v *View) {
			if s := v.Standing(); !s.Programmed || s.Services != 2 || s.Frontends != [2]int{2, 0} || s.Writes == 0 || s.LastWrite != s.Now {
				t.Errorf("standing %+v", s)
			}
			names, more := v.Names(cluster.ID{})
			if want := []cluster.ID{idOf("alone"), idOf("web")}; !slices.Equal(names, want) || more {
				t.Errorf("names %v, more %t", names, more)
			}
			page, more := v.Services(idOf("alone"))
			if len(page) != 1 || page[0].ID != idOf("web") || more {
				t.Fatalf("behind alone: %d Services, more %t", len(page), more)
			}
			f := page[0].Frontends[0]
			if f.Key != webKey || f.Owner != idOf("web") || !f.Settled || f.Closed != desk.None || len(f.Want.Server.Reals) != 2 {
				t.Errorf("frontend %+v", f)
			}
			if f := v.Service(idOf("alone")).Frontends[0]; f.Closed != desk.NoEndpoint || !f.Settled {
				t.Errorf("without endpoints: %+v", f)
			}
			if o := v.Owners([]ipvs.Key{webKey, {}}); o[0] != (Owned{Service: idOf("web"), Port: "p80"}) || o[1] != (Owned{}) {
				t.Errorf("owners %+v", o)
			}
			if at := v.At(webKey.Addr); !slices.Equal(at, []cluster.ID{idOf("web")}) {
				t.Errorf("at its address: %v", at)
			}
			if s := v.Service(idOf("none")); s.Snapshot.Service != nil || len(s.Frontends) > 0 {
				t.Errorf("no such Service: %+v", s)
			}
		})
		r.tamper(func() {
			r.kernel.Conns[webKey] = map[netip.AddrPort]ipvs.Conns{netip.MustParseAddrPort("10.244.2.10:8080"): {Active: 1}}
		})
		began := time.Now()
		r.set(slice(web, "10.244.1.5@node1"))
		synctest.Wait()
		r.ask(func(v *View) {
			want := []Draining{{netip.MustParseAddrPort("10.244.2.10:8080"), began, began.Add(15 * time.Minute)}}
			if f := v.Frontend(webKey); !slices.Equal(f.Drains, want) || !f.Settled {
				t.Errorf("drains %+v, settled %t; want %+v", f.Drains, f.Settled, want)
			}
		})
	})
}

// What is still to be written for a Service is told with the time since which the first of it waits.
func TestB73Pending(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web, other := service("web", "10.96.0.10", 80), service("other", "10.96.0.11", 80)
		r.set(web, slice(web, "10.244.2.10"), other)
		r.synced()
		r.start()
		pending := func(name string) (lines []string, since time.Time) {
			t.Helper()
			synctest.Wait()
			r.ask(func(v *View) {
				plan, began := v.PendingOf(idOf(name))
				since = began
				for _, step := range plan {
					lines = append(lines, step.Op.String())
				}
			})
			return lines, since
		}
		if lines, since := pending("web"); len(lines) > 0 || !since.IsZero() {
			t.Errorf("all is written, and there is %q since %s", lines, since)
		}
		r.kernel.Fail = func(op ipvs.Op) error {
			if _, is := op.(ipvs.AddReal); is {
				return errors.New("no room")
			}
			return nil
		}
		began := time.Now()
		r.set(slice(web, "10.244.2.10", "10.244.2.11"))
		time.Sleep(10 * time.Second)
		r.set(slice(web, "10.244.2.10", "10.244.2.11", "10.244.2.12"))
		want := []string{"ipvsadm -a -t 10.96.0.10:80 -r 10.244.2.11:8080 -m -w 1", "ipvsadm -a -t 10.96.0.10:80 -r 10.244.2.12:8080 -m -w 1"}
		if lines, since := pending("web"); !slices.Equal(lines, want) || !since.Equal(began) {
			t.Errorf("%q since %s, want %q since %s", lines, since, want, began)
		}
		if lines, _ := pending("other"); len(lines) > 0 {
			t.Errorf("for another Service: %q", lines)
		}
		r.tamper(func() { r.kernel.Fail = nil })
		time.Sleep(5 * time.Second)
		if lines, since := pending("web"); len(lines) > 0 || !since.IsZero() {
			t.Errorf("all is written again, and there is %q since %s", lines, since)
		}
	})
}

// Services come in their order, however they came and went, page by page.
func TestPagesOfServices(t *testing.T) {
	s := newStepper()
	var objs []any
	for i := range 700 {
		svc := service(fmt.Sprintf("s%03d", 699-i), fmt.Sprintf("10.96.%d.%d", i/250, i%250+1), 80)
		objs = append(objs, svc, slice(svc, "10.244.2.10"))
	}
	s.start(completeModel(objs...))
	s.settle()
	for i := 100; i < 700; i += 2 {
		s.model.DeleteService("default", fmt.Sprintf("s%03d", i))
	}
	s.model.DeleteService("default", "s001")
	s.settle()
	give(s.model, service("s001", "10.96.200.1", 80))
	refused := service("bare", "10.96.200.2", 80)
	refused.Spec.ClusterIP, refused.Spec.ClusterIPs = "127.0.0.1", []string{"127.0.0.1"}
	give(s.model, refused)
	s.settle()
	var got []cluster.ID
	var after cluster.ID
	for more := true; more; {
		var page []Served
		page, more = s.loop.view().Services(after)
		if len(page) == 0 || len(page) > PageServices {
			t.Fatalf("a page of %d Services behind %s", len(page), after)
		}
		for _, served := range page {
			got = append(got, served.ID)
		}
		after = got[len(got)-1]
	}
	if want := s.model.Services(); !slices.Equal(got, want) || len(want) < 400 {
		t.Errorf("%d Services in pages, %d in the model", len(got), len(want))
	}
	if n := s.loop.view().Standing().Services; n != len(got) {
		t.Errorf("%d counted, %d given", n, len(got))
	}
}

// Some Services have more endpoints than a page: each is one by itself, and the next page goes on behind it.
func TestPageEndsAfterSoManyEndpoints(t *testing.T) {
	s := newStepper()
	var many []string
	for i := range PageEndpoints {
		many = append(many, fmt.Sprintf("10.244.%d.%d", 10+i/250, i%250+1))
	}
	a, b := service("a", "10.96.0.1", 80), service("b", "10.96.0.2", 80)
	s.start(completeModel(a, slice(a, many...), b, slice(b, many...)))
	s.settle()
	for after, want := range map[cluster.ID]string{{}: "a", idOf("a"): "b"} {
		page, more := s.loop.view().Services(after)
		if len(page) != 1 || page[0].ID != idOf(want) || more != (want == "a") {
			t.Errorf("behind %v: %d Services, more %t", after, len(page), more)
		}
	}
}

// Of a hundred who ask at once, each turn of a busy loop answers one: askers never hold up work. An idle one answers all.
func TestB73AskersWaitForWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStepper()
		s.start(completeModel())
		var answered atomic.Int32
		for range 100 {
			go func() { _ = s.loop.Ask(t.Context(), func(*View) { answered.Add(1) }) }()
		}
		synctest.Wait()
		for turn := range int32(100) {
			s.loop.turn(t.Context())
			synctest.Wait()
			if got := answered.Load(); got != turn+1 {
				t.Fatalf("%d questions answered in %d turns", got, turn+1)
			}
		}
	})
}

// Too many get an error at once, those that wait one when their time is over, and all one when the loop has ended. A
// question that fails is nobody else's trouble.
func TestAskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStepper()
		s.start(completeModel())
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, mostAsking)
		for range mostAsking {
			go func() { errs <- s.loop.Ask(ctx, func(*View) {}) }()
		}
		synctest.Wait()
		if err := s.loop.Ask(ctx, func(*View) {}); !errors.Is(err, ErrCrowded) {
			t.Errorf("one too many: %v", err)
		}
		cancel()
		for range mostAsking {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Errorf("one whose time is over: %v", err)
			}
		}
	})
	bubble(t, func(t *testing.T, r *rig) {
		r.synced()
		r.start()
		if err := r.loop.Ask(t.Context(), func(*View) { panic("a mistake") }); err == nil || !strings.Contains(err.Error(), "a mistake") {
			t.Errorf("a question that fails: %v", err)
		}
		r.ask(func(*View) {})
		r.stop()
		if err := r.loop.Ask(t.Context(), func(*View) {}); !errors.Is(err, ErrEnded) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Each write is there with its cause and its Service, the last ones first to be asked for.
func TestB73Diary(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web, other := service("web", "10.96.0.10", 80), service("other", "10.96.0.11", 80)
		r.set(web, slice(web, "10.244.2.10", "10.244.2.11"), other)
		r.synced()
		r.start()
		var last uint64
		since := func(sel Selection) (list []Write) {
			r.t.Helper()
			synctest.Wait()
			r.ask(func(v *View) { list, _ = v.Writes(sel) })
			return list
		}
		// wantOne wants one write that is new, with its cause.
		wantOne := func(what, line string, why Why, id cluster.ID) {
			t.Helper()
			list := since(Selection{Behind: last})
			if len(list) != 1 || list[0].Line != line || list[0].Why != why || list[0].Service != id || list[0].Number != last+1 {
				t.Fatalf("%s: %+v, want one: %s because of %s for %s", what, list, line, why, id)
			}
			heard := why == WhyObject || why == WhyTampered
			if w := list[0]; heard != !w.Heard.IsZero() || heard && w.At.Before(w.Heard) {
				t.Errorf("%s: heard %s, done %s", what, w.Heard, w.At)
			}
			last = list[0].Number
		}
		start := since(Selection{})
		for i, w := range start {
			if w.Why != WhyStart && w.Why != WhyForgets || w.Number != uint64(i+1) {
				t.Errorf("at the start: %+v", w)
			}
		}
		last = uint64(len(start))
		if n := len(since(Selection{Service: idOf("other")})); n == 0 || n >= len(start) {
			t.Errorf("%d of %d writes are for one of two Services", n, len(start))
		}
		pod := netip.MustParseAddrPort("10.244.2.10:8080")
		r.tamper(func() { r.kernel.Conns[webKey] = map[netip.AddrPort]ipvs.Conns{pod: {Active: 1}} })
		r.set(slice(web, "10.244.2.11"))
		wantOne("an endpoint leaves", "ipvsadm -e -t 10.96.0.10:80 -r 10.244.2.10:8080 -m -w 0", WhyObject, idOf("web"))
		r.tamper(func() { r.kernel.Conns[webKey] = nil })
		time.Sleep(6 * time.Second)
		wantOne("it has drained", "ipvsadm -d -t 10.96.0.10:80 -r 10.244.2.10:8080", WhyDrained, idOf("web"))
		r.tamper(func() { delete(r.kernel.Sets[ipvs.SetOpen], webKey) })
		time.Sleep(time.Minute)
		wantOne("another program", "nft add element inet ipvs-proxy open4 { 10.96.0.10 . tcp . 80 }", WhyTampered, idOf("web"))
		if list := since(Selection{Last: 2}); len(list) != 2 || list[1].Number != last {
			t.Errorf("the last two: %+v", list)
		}
		if list := since(Selection{Since: time.Now().Add(-2 * time.Minute)}); len(list) == 0 || list[len(list)-1].Number != last {
			t.Errorf("of two minutes: %+v", list)
		}
	})
}

// The diary has a bound, whatever is written and however it fails.
func TestDiaryIsBounded(t *testing.T) {
	long := strings.Repeat("x", 63)
	fill := func(n int, err error) *diary {
		d := newDiary()
		for i := range n {
			k := ipvs.Key{Addr: netip.AddrFrom16([16]byte{0xfd, 1, byte(i >> 16), byte(i >> 8), byte(i)}), Port: 80, Proto: ipvs.TCP}
			op := ipvs.Element{Set: ipvs.SetRanges, Key: k, From: ipvs.Range{First: k.Addr, Last: k.Addr}}
			id := cluster.ID{Namespace: strings.Clone(long), Name: strings.Clone(long)}
			d.wrote(time.Unix(int64(i+1), 0), op, id, cause{}, ipvs.Outcome{Err: err})
		}
		return d
	}
	for what, err := range map[string]error{"all succeed": nil, "all fail": errors.New(strings.Repeat("no room ", 500))} {
		t.Run(what, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			d := fill(3*diaryMost, err)
			runtime.GC()
			runtime.ReadMemStats(&after)
			took := int64(after.HeapAlloc) - int64(before.HeapAlloc)
			list, more := d.last(Selection{Last: 1})
			t.Logf("%d writes kept in %d bytes, %d by its own account", d.kept, took, d.bytes)
			if took >= 4_000_000 || d.bytes > diaryBytes {
				t.Errorf("it takes %d bytes, %d by its own account", took, d.bytes)
			}
			if err == nil && d.kept != diaryMost || d.kept < diaryMost/2 {
				t.Errorf("%d writes are kept", d.kept)
			}
			if len(list) != 1 || more || list[0].Number != 3*diaryMost {
				t.Errorf("the last one: %+v", list)
			}
			list, more = d.last(Selection{})
			if len(list) != diaryPage || !more || list[0].Number != uint64(3*diaryMost-d.kept+1) {
				t.Errorf("the first page has %d, more %t, from %d", len(list), more, list[0].Number)
			}
		})
	}
}
