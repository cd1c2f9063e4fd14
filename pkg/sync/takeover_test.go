package sync

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"k8s.io/component-base/metrics"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/healthz"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/sync/desk"
)

// otherProxy is what another proxy has in the fake kernel: things that go one by one.
type otherProxy struct {
	left  []string
	apart map[string]bool
	stays []string
	trace uint64
	reads int
	// before stands before IPVS as long as this is left.
	before string
	// fail is asked before each write.
	fail func(text string) error
	// took is called after each.
	took func(text string)
}

func (o *otherProxy) Left(context.Context) (list []ipvs.Leaving, stays []string, err error) {
	o.reads++
	for _, text := range o.left {
		list = append(list, ipvs.Leaving{Text: text, Apart: o.apart[text], Take: func(context.Context) error {
			if o.fail != nil {
				if err := o.fail(text); err != nil {
					return err
				}
			}
			for i, t := range o.left {
				if t == text {
					o.left = append(o.left[:i:i], o.left[i+1:]...)
				}
			}
			o.trace++
			if o.took != nil {
				o.took(text)
			}
			return nil
		}})
	}
	return list, o.stays, nil
}

func (o *otherProxy) Before(context.Context) (lines []string, err error) {
	if o.before != "" && slices.Contains(o.left, o.before) {
		lines = []string{"nftables ip nat: PREROUTING leads to KUBE-SERVICES"}
	}
	return lines, nil
}

func (o *otherProxy) Trace(context.Context) (uint64, error) { return o.trace, nil }

// startBeside starts a loop beside what another proxy left; nil: nobody looks for that.
func (r *rig) startBeside(o Proxies) *observer.ObservedLogs {
	core, logged := observer.New(zapcore.InfoLevel)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.opt.Proxies = o
	loop := New(&locked{&r.mu, r.kernel}, r.model, zap.New(core), r.opt)
	go func() { defer close(done); _ = loop.Run(ctx) }()
	r.stop = func() { cancel(); <-done; r.stop = func() {} }
	synctest.Wait()
	return logged
}

// B54: what another proxy left goes once every Service is programmed, and not before; a process that dies after any of the
// writes leaves the rest to the next one; and it is said once.
func TestTakeOverLast(t *testing.T) {
	for point := range 5 {
		bubble(t, func(t *testing.T, r *rig) {
			web, other := service("web", "10.96.0.10", 80), service("other", "10.96.0.11", 80)
			objs := []any{web, slice(web, "10.244.2.10"), other, slice(other, "10.244.2.11")}
			o := &otherProxy{left: []string{"unlink", "tables", "chains", "sets"}}
			dead, n := false, 0
			o.fail = func(string) error {
				if dead = dead || n == point; dead {
					return errDead
				}
				n++
				return nil
			}
			o.took = func(text string) {
				if len(r.kernel.Servers) != 2 || len(r.kernel.Addrs) != 2 {
					t.Errorf("%s goes, and the kernel has:\n%s", text, dumpOf(r.kernel))
				}
			}
			refused := true
			r.kernel.Fail = func(op ipvs.Op) error {
				if refused && op.Effect().Key.Addr.String() == "10.96.0.11" {
					return errors.New("refused")
				}
				return nil
			}
			r.set(objs...)
			r.synced()
			r.startBeside(o)
			time.Sleep(time.Minute)
			if r.tamper(func() {}); o.reads > 1 || n > 0 { // it is looked at the start
				t.Fatalf("a Service is not programmed, and its rules were looked for %d times, %d are gone", o.reads, n)
			}
			r.tamper(func() { refused = false })
			time.Sleep(10 * time.Second)
			r.stop()
			if len(o.left) != 4-min(point, 4) {
				t.Fatalf("dead after %d writes, and %q is left", point, o.left)
			}
			o.fail = nil
			r.model = cluster.NewModel(cluster.Options{NodeName: thisNode})
			r.set(objs...)
			r.synced()
			logged := r.startBeside(o)
			time.Sleep(10 * time.Second)
			if r.tamper(func() {}); len(o.left) > 0 {
				t.Errorf("%q is left", o.left)
			}
			if logged.FilterMessageSnippet("another proxy is at work").Len() > 0 {
				t.Error("it took itself for another proxy")
			}
			if said := logged.FilterMessage("took out what kube-proxy left").Len(); said != min(1, 4-point) {
				t.Errorf("said %d times", said)
			}
			reads := o.reads
			time.Sleep(time.Hour)
			if r.tamper(func() {}); o.reads != reads {
				t.Errorf("looked for it %d times more", o.reads-reads)
			}
		})
	}
}

// B54: what of another proxy's stands before IPVS is said for as long as it does, once: as warning, as Event on the Node, as
// metric and on the page; and when it is over. With leftovers kept that is when somebody has taken them out by hand.
func TestB54RulesBeforeIPVS(t *testing.T) {
	for _, keep := range []bool{false, true} {
		bubble(t, func(t *testing.T, r *rig) {
			o := &otherProxy{left: []string{"unlink", "chains"}, before: "unlink"}
			stuck := true
			o.fail = func(string) error {
				if stuck {
					return errors.New("the lock is somebody's")
				}
				return nil
			}
			events := &said{}
			health := healthz.New(healthz.Options{Registry: metrics.NewKubeRegistry()})
			r.opt.KeepLeftovers, r.opt.Events, r.opt.Health = keep, events, health
			web := service("web", "10.96.0.10", 80)
			r.set(web, slice(web, "10.244.2.10"))
			r.synced()
			logged := r.startBeside(o)
			const warning, over = "rules of kube-proxy stand before IPVS: they serve Services in its place, by endpoints that they know", "no rules of another proxy stand before IPVS any more"
			const line = "[!]before IPVS: nftables ip nat: PREROUTING leads to KUBE-SERVICES\n"
			is := func(when string, warnings, overs int, page bool) {
				t.Helper()
				r.tamper(func() {
					if got := logged.FilterMessage(warning).Len(); got != warnings {
						t.Errorf("%s, keep %t: warned %d times, want %d", when, keep, got, warnings)
					}
					if got := logged.FilterMessage(over).Len(); got != overs {
						t.Errorf("%s, keep %t: said %d times that it is over, want %d", when, keep, got, overs)
					}
				})
				if text := verbosePage(t, health); strings.Contains(text, line) != page {
					t.Errorf("%s, keep %t, on the page:\n%s", when, keep, text)
				}
			}
			time.Sleep(10 * time.Second)
			is("it stands", 1, 0, true)
			time.Sleep(time.Hour)
			is("an hour later", 1, 0, true)
			if keep {
				r.tamper(func() { o.left = []string{"chains"} }) // by hand
			} else {
				r.tamper(func() { stuck = false })
			}
			time.Sleep(2 * time.Minute)
			is("it is gone", 1, 1, false)
			do := map[bool]string{false: "taken out once all Services are programmed", true: "take them out by hand"}[keep]
			if len(*events) != 1 || !strings.HasPrefix((*events)[0], "/ | RulesBeforeIPVS | rules of kube-proxy stand before IPVS on this node") || !strings.HasSuffix((*events)[0], do) {
				t.Errorf("keep %t: Events %q", keep, *events)
			}
		})
	}
}

// verbosePage is /healthz?verbose of the port with the metrics.
func verbosePage(t *testing.T, h *healthz.Health) string {
	t.Helper()
	pages, err := h.MetricsHandler(healthz.Pages{})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	pages.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz?verbose", nil))
	return w.Body.String()
}

// B54: while rules of another proxy are there, a frontend is open as soon as its address is guarded: the node's own packets
// are not refused before they come to those rules. Afterwards it opens last, as ever.
func TestTakeOverRefusesNobody(t *testing.T) {
	for _, left := range [][]string{{"unlink"}, nil} {
		bubble(t, func(t *testing.T, r *rig) {
			o := &otherProxy{left: left}
			web, later := service("web", "10.96.0.10", 80), service("later", "10.96.0.11", 80)
			r.set(web, slice(web, "10.244.2.10"))
			r.synced()
			order := func(text []string, addr string) (open, server int) {
				open, server = -1, -1
				for i, line := range text {
					if strings.Contains(line, "@open4") || strings.Contains(line, " open") && strings.Contains(line, addr) {
						open = i
					}
					if strings.Contains(line, "ipvsadm -A") && strings.Contains(line, addr) {
						server = i
					}
				}
				return open, server
			}
			r.startBeside(o)
			time.Sleep(10 * time.Second)
			var first []string
			r.tamper(func() { first = lines(r.kernel.Log) })
			if open, server := order(first, "10.96.0.10"); open < 0 || server < 0 || open < server != (left != nil) {
				t.Errorf("left %q: opens with write %d, the server comes with %d: %q", left, open, server, first)
			}
			second := r.writes(func() { r.set(later, slice(later, "10.244.2.11")) })
			if open, server := order(second, "10.96.0.11"); open < server {
				t.Errorf("afterwards it opens with write %d, the server comes with %d: %q", open, server, second)
			}
		})
	}
}

// B54: with leftovers kept nothing is looked for; while parts of the cluster cannot be read nothing goes.
func TestTakeOverNot(t *testing.T) {
	for _, keep := range []bool{false, true} {
		bubble(t, func(t *testing.T, r *rig) {
			r.opt.KeepLeftovers = keep
			o := &otherProxy{left: []string{"unlink"}}
			r.set(service("web", "10.96.0.10", 80))
			r.model.SetSynced()
			if keep {
				r.model.SetComplete()
			}
			r.startBeside(o)
			time.Sleep(time.Minute)
			if r.tamper(func() {}); o.reads > 1 || len(o.left) != 1 {
				t.Errorf("keep %t: read %d times, left %q", keep, o.reads, o.left)
			}
		})
	}
}

// B54: what cannot be taken out is said once, tried again each minute, and keeps nothing from going that does not rest on it.
func TestTakeOverFails(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		o := &otherProxy{left: []string{"legacy", "sets"}, apart: map[string]bool{"legacy": true, "sets": true}, stays: []string{"a chain stays"}}
		o.fail = func(text string) error {
			if text == "legacy" {
				return errors.New("no lock; type this")
			}
			return nil
		}
		r.set(service("web", "10.96.0.10", 80))
		r.synced()
		logged := r.startBeside(o)
		time.Sleep(10 * time.Minute)
		if r.tamper(func() {}); fmt.Sprint(o.left) != "[legacy]" {
			t.Errorf("left: %q", o.left)
		}
		if n := logged.FilterMessageSnippet("cannot be taken out").Len(); n != 1 || o.reads > 20 {
			t.Errorf("said %d times, tried %d times", n, o.reads)
		}
		r.tamper(func() { o.fail = nil })
		time.Sleep(2 * time.Minute)
		if r.tamper(func() {}); len(o.left) > 0 || logged.FilterMessageSnippet("stays").Len() != 1 {
			t.Errorf("left: %q, logged %v", o.left, logged.All())
		}
	})
}

// B54: UDP clients that kube-proxy redirected to an endpoint that has left are forgotten once its rules are gone.
func TestTakeOverForgets(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		dns := service("dns", "10.96.0.10", 53)
		dns.Spec.Ports[0].Protocol = "UDP"
		o := &otherProxy{left: []string{"unlink"}}
		directed := false
		r.kernel.Fail = func(op ipvs.Op) error {
			if f, is := op.(ipvs.Forget); is && f.Directed {
				if directed = true; len(o.left) > 0 {
					t.Error("forgotten while the rules would redirect anew")
				}
			}
			return nil
		}
		r.set(dns, slice(dns, "10.244.2.10"))
		r.synced()
		r.startBeside(o)
		time.Sleep(10 * time.Second)
		if r.tamper(func() {}); !directed {
			t.Error("not forgotten")
		}
	})
}

// heardProxy is a sign of another proxy.
var heardProxy = ipvs.Tampering{Proxy: "kube-proxy wrote"}

// F26: while another proxy writes, nothing is written, whatever changes in the cluster and of ours; it is said once, by log and
// Event. When nothing is heard of it for a while, everything is put right and what it left goes. If it is there again, it is
// left alone for longer, up to an hour; much later it is a new one.
func TestStepsBack(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		o := &otherProxy{}
		events := &eventList{}
		r.opt.Events = events
		logged := r.startBeside(o)
		time.Sleep(time.Minute)
		said := func() int { return logged.FilterMessageSnippet("another proxy is at work").Len() }

		wrote := r.writes(func() {
			r.tamper(func() { r.kernel.Hear(heardProxy) })
			for i := range 60 {
				r.set(slice(web, "10.244.2.10", fmt.Sprintf("10.244.2.%d", 20+i)))
				r.tamper(func() {
					r.kernel.DropTable()
					delete(r.kernel.Servers, webKey)
					r.kernel.Hear(ipvs.Tampering{Base: true, Keys: true, Proxy: "kube-proxy wrote more"})
				})
				time.Sleep(5 * time.Second)
			}
		})
		if len(wrote) > 0 || r.kernel.Table || said() != 1 {
			t.Errorf("beside another proxy: wrote %q, table %t, said %d times", wrote, r.kernel.Table, said())
		}
		if got := events.list; len(got) != 1 || !strings.Contains(got[0], desk.ReasonOtherProxy) || !strings.Contains(got[0], "kube-proxy wrote") {
			t.Errorf("Events: %q", got)
		}
		r.tamper(func() { o.left = []string{"unlink"} })
		time.Sleep(quietFirst + time.Second)
		r.tamper(func() {
			if s := r.kernel.Servers[webKey]; len(s.Reals) != 2 || !r.kernel.Table || len(o.left) > 0 {
				t.Errorf("after it has gone: %v, table %t, left %q", s, r.kernel.Table, o.left)
			}
		})
		for _, quiet := range []time.Duration{80 * time.Second, 160 * time.Second, 320 * time.Second, 640 * time.Second, 1280 * time.Second, 2560 * time.Second, time.Hour, time.Hour} {
			r.tamper(func() { r.kernel.Hear(heardProxy) })
			time.Sleep(quiet - time.Second)
			r.tamper(func() { delete(r.kernel.Servers, webKey) })
			time.Sleep(100 * time.Millisecond)
			r.tamper(func() {
				if r.kernel.Servers[webKey].Exists() {
					t.Errorf("back before %s were over", quiet)
				}
			})
			time.Sleep(2 * time.Second)
			r.tamper(func() {
				if !r.kernel.Servers[webKey].Exists() {
					t.Errorf("not back after %s", quiet)
				}
			})
		}
		time.Sleep(2 * time.Hour)
		r.tamper(func() { r.kernel.Hear(heardProxy) })
		time.Sleep(quietFirst - time.Second)
		before := said()
		r.tamper(func() { r.kernel.Hear(heardProxy) })
		time.Sleep(2 * time.Second)
		if r.tamper(func() {}); said() != before || logged.FilterMessageSnippet("nothing more is heard").Len() != before-1 {
			t.Errorf("a sign did not prolong it: %v", logged.All())
		}
	})
}

// F26: beside a proxy that is meant to be there, for other Services, the agent does not step back.
func TestBesideAnotherProxy(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		web := service("web", "10.96.0.10", 80)
		r.set(web, slice(web, "10.244.2.10"))
		r.synced()
		r.start()
		r.tamper(func() { r.kernel.Hear(heardProxy); delete(r.kernel.Servers, webKey) })
		time.Sleep(10 * time.Second)
		r.tamper(func() {
			if !r.kernel.Servers[webKey].Exists() {
				t.Error("it stepped back")
			}
		})
	})
}

// F26: a proxy of whose rules no notification tells is noticed by their trace, and by what it changes of ours again and again
// while its rules are back. Who only changes ours, without being a proxy, is answered as ever.
func TestStepsBackFromTheUnheard(t *testing.T) {
	for name, c := range map[string]struct {
		trace, left, away bool
	}{
		"a trace":                {trace: true, away: true},
		"a fight and leavings":   {left: true, away: true},
		"a fight, no other sign": {},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				web := service("web", "10.96.0.10", 80)
				r.set(web, slice(web, "10.244.2.10"))
				r.synced()
				o := &otherProxy{}
				logged := r.startBeside(o)
				time.Sleep(time.Minute)
				if c.left {
					r.tamper(func() { o.left = []string{"unlink"} })
				}
				for i := range 200 {
					if c.trace && i == 20 {
						r.tamper(func() { o.trace++ })
					}
					r.tamper(func() {
						if !c.trace {
							delete(r.kernel.Servers, webKey)
							r.kernel.Hear(ipvs.Tampering{Keys: true})
						}
					})
					time.Sleep(100 * time.Millisecond)
				}
				if n := logged.FilterMessageSnippet("another proxy is at work").Len(); n > 0 != c.away {
					t.Errorf("said %d times: %v", n, logged.All())
				}
			})
		})
	}
}

// eventList keeps Events.
type eventList struct{ list []string }

func (e *eventList) Warn(about cluster.ID, reason, note string) {
	e.list = append(e.list, fmt.Sprintf("%s %s %s", about, reason, note))
}
