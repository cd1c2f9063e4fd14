package desk

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/pkg/cluster"
	"github.com/ipvs-proxy/ipvs-proxy/pkg/ipvs"
)

// slowly is a desk with one Service and a clock.
type slowly struct {
	*Desk
	o   objects
	svc *cluster.Service
	now time.Time
}

func newSlowly(over time.Duration) *slowly {
	s := &slowly{o: objects{}, svc: service("web", "10.96.0.1", 80), now: time.Unix(1000, 0)}
	s.svc.Scheduling.SlowStart = over
	s.Desk = New(s.o, Options{})
	s.Move(nodeNamed("192.0.2.1"), ipvs.Local{}, nil, s.now)
	return s
}

// have decides with endpoints by their last byte, and with weights of a slice where they are given as "5*3".
func (s *slowly) have(names ...string) Decision {
	s.o[s.svc.ID] = object{svc: s.svc, eps: s.endpoints(names...)}
	is := s.Decide(s.svc.ID, s.now)
	if s.Unknown(s.svc.ID) {
		s.Resume(s.svc.ID, func(ipvs.Key) *ipvs.Frontend { return nil }, s.now)
	}
	return is
}

func (s *slowly) endpoints(names ...string) (eps []cluster.Endpoint) {
	for _, n := range names {
		var last, weight int
		ep := cluster.Endpoint{Port: 8080, Protocol: cluster.TCP, PortName: "p80", NodeName: "far", Ready: true, Serving: true}
		if given, _ := fmt.Sscanf(n, "%d*%d", &last, &weight); given == 2 {
			ep.Weight = cluster.Weight{Given: true, Is: uint16(weight)}
		}
		ep.Addr = netip.AddrFrom4([4]byte{10, 244, 0, byte(last)})
		eps = append(eps, ep)
	}
	return eps
}

func (s *slowly) key() ipvs.Key { return s.KeysOf(s.svc.ID)[0] }

// weights are those of now, in a line.
func (s *slowly) weights() string {
	var list []string
	for _, r := range s.Want(s.key(), s.now).Frontend.Server.Reals {
		list = append(list, fmt.Sprintf("%d=%d", r.Addr.Addr().As4()[3], r.Weight))
	}
	return strings.Join(list, " ")
}

// B71: what a new endpoint's weight is as time goes, and who is new.
func TestB71SlowStart(t *testing.T) {
	type step struct {
		after time.Duration
		eps   string // "": as before
		want  string
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"one more", []step{{0, "1 2", "1=10 2=10"}, {time.Hour, "1 2 3", "1=10 2=10 3=1"}, {9 * time.Second, "", "1=10 2=10 3=1"}, {time.Second, "", "1=10 2=10 3=2"},
			{79 * time.Second, "", "1=10 2=10 3=9"}, {time.Second, "", "1=10 2=10 3=10"}}},
		{"all of them new, and alike", []step{{0, "", ""}, {0, "1 2 3", "1=10 2=10 3=10"}, {50 * time.Second, "", "1=10 2=10 3=10"}}},
		{"a single one", []step{{0, "", ""}, {0, "1", "1=10"}, {0, "1 2", "1=10 2=10"}}},
		{"one after the other: shares go by how far each has come", []step{{0, "", ""}, {0, "1", "1=10"}, {50 * time.Second, "1 2", "1=10 2=1"}, {40 * time.Second, "", "1=10 2=5"}, {50 * time.Second, "", "1=10 2=10"}}},
		{"the others leave", []step{{0, "1 2", "1=10 2=10"}, {time.Hour, "1 2 3", "1=10 2=10 3=1"}, {time.Second, "3", "3=10"}, {0, "3 4", "3=10 4=9"}}},
		{"away for a moment", []step{{0, "1 2", "1=10 2=10"}, {time.Hour, "1", "1=10"}, {4 * time.Second, "1 2", "1=10 2=10"}}},
		{"away for longer", []step{{0, "1 2", "1=10 2=10"}, {time.Hour, "1", "1=10"}, {5 * time.Second, "1 2", "1=10 2=1"}}},
		{"away for a moment, on the way", []step{{0, "1", "1=10"}, {time.Hour, "1 2", "1=10 2=1"}, {28 * time.Second, "1", "1=10"}, {2 * time.Second, "1 2", "1=10 2=4"}}},
		{"weights of slices", []step{{0, "1*3 2*30", "1=30 2=300"}, {time.Hour, "1*3 2*30 3*5", "1=30 2=300 3=5"}, {10 * time.Second, "", "1=30 2=300 3=10"}, {0, "1*3 2*30 3*7", "1=30 2=300 3=14"}}},
		{"weight 0 is not there", []step{{0, "1*1 2*0", "1=10 2=0"}, {time.Hour, "1*1 2*1", "1=10 2=1"}}},
		{"all weigh nothing", []step{{0, "1*0 2*0", "1=10 2=10"}}},
		{"too large for 16 bits", []step{{0, "1*65535 2*1", "1=65535 2=1"}, {time.Hour, "1*65535 2*1 3*65535", "1=65535 2=1 3=6554"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSlowly(90 * time.Second)
			for i, step := range c.steps {
				s.now = s.now.Add(step.after)
				if step.eps != "" || i == 0 {
					s.have(strings.Fields(step.eps)...)
				}
				if got := s.weights(); got != step.want {
					t.Fatalf("step %d: %s, want %s", i, got, step.want)
				}
			}
		})
	}
}

// B71: the annotation comes, changes and goes while endpoints start.
func TestB71SlowStartLive(t *testing.T) {
	s := newSlowly(0)
	want := func(what, weights, scheduler string) {
		t.Helper()
		if got := s.weights(); got != weights || s.Want(s.key(), s.now).Frontend.Server.Scheduler != scheduler {
			t.Errorf("%s: %s by %s, want %s by %s", what, got, s.Want(s.key(), s.now).Frontend.Server.Scheduler, weights, scheduler)
		}
	}
	over := func(d time.Duration, names ...string) Decision {
		svc := *s.svc
		svc.Scheduling.SlowStart = d
		s.svc = &svc
		return s.have(names...)
	}
	over(0, "1", "2")
	want("without", "1=1 2=1", "rr")
	over(90*time.Second, "1", "2", "3")
	want("it comes with an endpoint", "1=10 2=10 3=1", "wrr")
	s.now = s.now.Add(20 * time.Second)
	want("on the way", "1=10 2=10 3=3", "wrr")
	if is := over(45*time.Second, "1", "2", "3"); len(is.Touched) != 1 {
		t.Errorf("another time: %v has to be asked for again", is.Touched)
	}
	want("in half the time", "1=10 2=10 3=5", "wrr")
	over(0, "1", "2", "3")
	want("it goes", "1=1 2=1 3=1", "rr")
	over(90*time.Second, "1", "2", "3")
	want("it is back: all of them are there", "1=10 2=10 3=10", "wrr")
	for _, scheduler := range []string{"fo", "ovf", "dh"} {
		s.svc.Scheduling.Scheduler = scheduler
		is := over(90*time.Second, "1", "2", "3", "4")
		if len(is.Problems) != 1 || is.Problems[0].Reason != cluster.ReasonScheduling {
			t.Errorf("%s: problems %v", scheduler, is.Problems)
		}
		want("without parts of a share", "1=1 2=1 3=1 4=1", scheduler)
		over(0, "1")
	}
	s.svc.Scheduling.Scheduler = ""
	s.Lack("wrr")
	if is := over(90*time.Second, "1", "2"); len(is.Problems) != 1 {
		t.Errorf("the kernel lacks wrr: problems %v", is.Problems)
	}
	want("the kernel lacks wrr", "1=10 2=1", "rr")
}

// B71: for whatever endpoints come and go, a weight is between a tenth and all of it, grows, and changes when it was said
// to and not before; somebody has all of his; and a restart goes on from the kernel's weights, with the same ones.
func TestB71SlowStartRandom(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 0))
		over := []time.Duration{time.Second, 7 * time.Second, 90 * time.Second, time.Hour}[r.IntN(4)]
		s := newSlowly(over)
		wrong := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
		}
		weights := []int{1, 1, 7, 100, 6553}
		var names []string
		for range 12 {
			names = slices.DeleteFunc(names, func(string) bool { return r.IntN(6) == 0 })
			for i := range r.IntN(3) {
				if n := fmt.Sprintf("%d*%d", 10*len(names)+i, weights[r.IntN(5)]); !slices.ContainsFunc(names, func(o string) bool { return strings.Split(o, "*")[0] == strings.Split(n, "*")[0] }) {
					names = append(names, n)
				}
			}
			s.have(names...)
			was := s.weights()
			for range r.IntN(15) {
				w := s.Want(s.key(), s.now)
				checkGrowing(wrong, s, w)
				checkResumed(wrong, s, w)
				if w.Grows.IsZero() {
					break
				}
				s.now = w.Grows.Add(-1)
				if got := s.weights(); got != was {
					wrong("%s before it was said to be, before %s", got, was)
				}
				s.now = w.Grows
				if got := s.weights(); got == was {
					wrong("%s as before, though it was said to be another", got)
				} else {
					was = got
				}
			}
			s.now = s.now.Add(time.Duration(r.Int64N(int64(over))))
		}
	}
}

// checkGrowing looks at what is wanted now.
func checkGrowing(wrong func(string, ...any), s *slowly, w Wish) {
	full, _ := s.Held(s.key())
	some := len(full.Want.Server.Reals) == 0
	for i, r := range w.Frontend.Server.Reals {
		of := full.Want.Server.Reals[i].Weight
		if r.Weight > of || int(r.Weight) < int(of)/tenths {
			wrong("weight %d of %d", r.Weight, of)
		}
		some = some || r.Weight == of
	}
	if !some {
		wrong("nobody has all of his weight: %s", s.weights())
	}
}

// checkResumed asks another desk what it makes of the weights that are wanted now.
func checkResumed(wrong func(string, ...any), s *slowly, w Wish) {
	d := New(s.o, Options{})
	d.Move(nodeNamed("192.0.2.1"), ipvs.Local{}, nil, s.now)
	d.Decide(s.svc.ID, s.now)
	d.ResumeAll(func(ipvs.Key) *ipvs.Frontend { return w.Frontend }, s.now)
	if got := d.Want(s.key(), s.now); !got.Frontend.Equal(w.Frontend) || got.Grows.IsZero() != w.Grows.IsZero() {
		wrong("after a restart %v, before %v", got.Frontend.Server.Reals, w.Frontend.Server.Reals)
	} else if !w.Grows.IsZero() && got.Grows.After(s.now.Add(s.svc.Scheduling.SlowStart)) {
		wrong("after a restart the next step takes longer than all of it")
	}
}

// B71: what a restart makes of the kernel's weights.
func TestB71SlowStartResumed(t *testing.T) {
	for _, c := range []struct {
		name   string
		kernel []int // weights of endpoints 1, 2, 3; -1: it is not there
		want   string
	}{
		{"nothing is there", nil, "1=10 2=10 3=10"},
		{"all of them have theirs", []int{10, 10, 10}, "1=10 2=10 3=10"},
		{"one is under way", []int{10, 10, 4}, "1=10 2=10 3=4"},
		{"one came while no agent ran", []int{10, 10, -1}, "1=10 2=10 3=1"},
		{"one was on its way out", []int{10, 0, 10}, "1=10 2=1 3=10"},
		{"the annotation came meanwhile", []int{1, 1, 1}, "1=10 2=10 3=10"},
		{"the annotation and an endpoint came", []int{1, 1, -1}, "1=10 2=10 3=1"},
		{"less than a tenth", []int{100, 100, 1}, "1=10 2=10 3=1"},
		{"one by hand", []int{10, 10, 5000}, "1=1 2=1 3=10"},
		{"all of them on their way out", []int{0, 0, 0}, "1=10 2=10 3=10"},
	} {
		s := newSlowly(90 * time.Second)
		var have *ipvs.Frontend
		for i, w := range c.kernel {
			if have == nil {
				have = &ipvs.Frontend{Server: ipvs.Server{Scheduler: "wrr"}}
			}
			if w >= 0 {
				have.Server.Reals = append(have.Server.Reals, ipvs.Real{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 1)}), 8080), Weight: uint16(w)})
			}
		}
		s.o[s.svc.ID] = object{svc: s.svc, eps: s.endpoints("1", "2", "3")}
		s.Decide(s.svc.ID, s.now)
		s.ResumeAll(func(ipvs.Key) *ipvs.Frontend { return have }, s.now)
		if got := s.weights(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		s.now = s.now.Add(90 * time.Second)
		if got := s.weights(); got != "1=10 2=10 3=10" {
			t.Errorf("%s: %s in the end", c.name, got)
		}
	}
}

// B71: an endpoint that is alone in one virtual server, as a policy Local leaves it, has all of its weight there while it
// grows in another. A restart goes by where it grows, in whichever order they are looked at.
func TestB71SlowStartAlone(t *testing.T) {
	end := func(i byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 0, i}), 8080) }
	server := func(weights ...int) (want []ipvs.Real, have *ipvs.Frontend) {
		have = &ipvs.Frontend{}
		for i, w := range weights {
			want = append(want, ipvs.Real{Addr: end(byte(i + 1)), Weight: tenths})
			if w >= 0 {
				have.Server.Reals = append(have.Server.Reals, ipvs.Real{Addr: end(byte(i + 1)), Weight: uint16(w)})
			}
		}
		return want, have
	}
	for _, c := range []struct {
		name string
		in   [][]int // by virtual server, the weights of endpoints 1, 2; -1: it is not there
		want int     // tenths of endpoint 1
	}{
		{"alone in one, under way in another", [][]int{{10}, {2, 10}}, 2},
		{"one was written before the other", [][]int{{4, 10}, {3, 10}}, 4},
		{"alone in one, not there in another yet", [][]int{{10}, {-1, 10}}, 10},
		{"all of it in both", [][]int{{10}, {10, 10}}, 10},
	} {
		for _, order := range [][]int{{0, 1}, {1, 0}} {
			part := map[target]int{}
			for _, i := range order {
				want, have := server(c.in[i]...)
				resume(part, ipvs.TCP, want, have)
			}
			if got := part[target{end(1), ipvs.TCP}]; got != c.want {
				t.Errorf("%s, in the order %v: %d tenths, want %d", c.name, order, got, c.want)
			}
		}
	}
}
