package traffic

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// warm is a Service for TCP, UDP and SCTP with a slow start.
func warm(n int, over string) lab.Service {
	svc := annotated(web(n), "slow-start", over)
	svc.Ports = append(svc.Ports, lab.Port{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 5353}, lab.Port{Name: "sctp", Protocol: "SCTP", Port: 3868, TargetPort: 9090})
	return svc
}

// everyWay are the ways to ask such a Service, with its ports.
var everyWay = map[uint16]asking{80: asks[0], 53: asks[1], 3868: {"SCTP", (*lab.Host).AskSCTP}}

// serveEveryWay has the pods answer it.
func (s *stage) serveEveryWay() {
	s.t.Helper()
	s.serveSCTP(s.pods()...)
	for _, p := range s.pods() {
		if _, err := p.ServeUDP(p.Name, 5353); err != nil {
			s.t.Fatal(err)
		}
	}
}

// shownGrowth is a backend as show and explain have it.
type shownGrowth struct {
	Address    string
	Weight     int
	FullWeight int
	GrowsUntil *time.Time
}

// growing is what show and explain say of a pod behind a Service's first frontend.
func (s *stage) growing(t testing.TB, n *lab.Node, svc lab.Service, pod *lab.Pod) (list []shownGrowth) {
	t.Helper()
	for _, command := range [][]string{{"show", "default/" + svc.Name, "-o", "json"}, {"explain", "default/" + svc.Name, "-o", "json"}} {
		out, stderr, exit := n.Command(t, 0, command...)
		var x struct {
			Frontends []struct {
				Of, Endpoints []shownGrowth
				WhyScheduler  string
			}
		}
		if err := json.Unmarshal([]byte(out), &x); err != nil || exit != 0 || len(x.Frontends) == 0 {
			t.Fatalf("%v: exit status %d, %v:\n%s%s", command, exit, err, out, stderr)
		}
		f := x.Frontends[0]
		if !strings.Contains(f.WhyScheduler, "in place of rr") {
			t.Errorf("%v: its scheduler is there because %q", command, f.WhyScheduler)
		}
		for _, b := range slices.Concat(f.Of, f.Endpoints) {
			if strings.HasPrefix(b.Address, pod.Addr(4).String()+":") {
				list = append(list, b)
			}
		}
	}
	return list
}

// shares is how many of some requests each pod answers, by every way and family.
func (s *stage) wantShares(t *testing.T, svc lab.Service, want map[string]int) {
	t.Helper()
	n := 0
	for _, times := range want {
		n += times
	}
	each(t, func(t *testing.T, family int) {
		for _, port := range slices.Sorted(maps.Keys(everyWay)) {
			by, to := everyWay[port], at(svc, family, port)
			if by.name == "SCTP" {
				answersSCTP(t, s.w.Node(1).Host, to)
			} else {
				answers := by.ask(s.w.Node(1).Host, to, lab.Timeout(patient))
				if answers.Verdict != lab.Answered {
					t.Errorf("%s: %s", by.name, answers)
				}
			}
			for range n - 1 { // a whole turn of wrr, so that it begins anew
				by.ask(s.w.Node(1).Host, to)
			}
			hitsBy(t, client{"node", s.w.Node(1).Host}, to, by, want)
		}
	})
}

// B71: of a Service with a slow start a new endpoint gets a tenth of what the others get, and more by and by, until it gets as
// much; endpoints that are all new share alike, as does one without the annotation; TCP, UDP and SCTP, IPv4 and IPv6. An
// agent that is killed in the middle writes nothing when it is back, and goes on.
func TestB71SlowStart(t *testing.T) {
	s := newStage(t).start()
	s.serveEveryWay()
	n := s.w.Node(1)
	a, b, c := s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	svc := warm(60, "1h")
	plain := warm(61, "1h")
	plain.Annotations = nil
	// They serve before there is a slow start, so they are not new.
	before := svc
	before.Annotations = nil
	s.apply(before, a, b)
	s.apply(plain, a, b)
	s.wantScheduled(t, n, at(svc, 4, 80), "rr", 0, map[string]int{"pod-a": 1, "pod-b": 1})
	s.apply(svc, a, b)
	s.wantScheduled(t, n, at(svc, 4, 80), "wrr", 0, map[string]int{"pod-a": 10, "pod-b": 10})
	s.apply(svc, a, b, c)
	s.apply(plain, a, b, c)
	tenth := map[string]int{"pod-a": 10, "pod-b": 10, "pod-c": 1}
	each(t, func(t *testing.T, family int) {
		s.wantScheduled(t, n, at(svc, family, 80), "wrr", 0, tenth)
		s.wantScheduled(t, n, at(plain, family, 80), "rr", 0, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1})
	})
	s.wantShares(t, svc, tenth)
	s.wantShares(t, plain, map[string]int{"pod-a": 4, "pod-b": 4, "pod-c": 4})
	for _, said := range s.growing(t, n, svc, c) {
		if said.Weight != 1 || said.FullWeight != 10 || said.GrowsUntil == nil || time.Until(*said.GrowsUntil) > time.Hour {
			t.Errorf("said of it: %+v", said)
		}
	}
	if out, stderr, exit := n.Command(t, 0, s.diffArgs(n)...); exit != 0 {
		t.Errorf("diff beside the agent: exit status %d\n%s%s", exit, out, stderr)
	}
	s.growsAcrossCrash(t, svc)
	if out, _, _ := n.Command(t, 0, "log", "default/"+svc.Name); strings.Contains(out, "(tampered") {
		t.Errorf("steps are told as somebody else's changes:\n%s", out)
	}
}

// growsAcrossCrash has the weight of pod-c grow, kills the agent in the middle, and looks at what is there when another is at
// work. It counts no time: a shorter slow start comes by the annotation.
func (s *stage) growsAcrossCrash(t *testing.T, svc lab.Service) {
	t.Helper()
	n, pods := s.w.Node(1), s.pods()
	to := at(svc, 4, 80)
	weight := func() int { return s.weightOf(t, n, svc, "pod-c") }
	seen := []int{weight()}
	follow := func(what string, until int) {
		t.Helper()
		lab.Eventually(t, 5*time.Minute, what, func() error {
			if w := weight(); w != seen[len(seen)-1] {
				seen = append(seen, w)
			}
			if is := seen[len(seen)-1]; is < until {
				return fmt.Errorf("weights so far: %v", seen)
			}
			return nil
		})
	}
	s.apply(annotated(svc, "slow-start", "3m"), pods...)
	follow("it grows", 3)
	if err := s.agents[0].Kill(); err != nil {
		t.Fatal(err)
	}
	was := weight()
	s.apply(annotated(svc, "slow-start", "1h"), pods...) // what is left takes long: a restart that does not remember shows
	s.agents[0] = s.w.StartAgent(t, n, s.cluster, s.args...)
	programmed(t, s.agents[0])
	if is := weight(); is != was {
		t.Errorf("weight %d before the agent was killed, %d when another is at work", was, is)
	}
	if out, _, _ := n.Command(t, 0, "log", "default/"+svc.Name); strings.Contains(out, "ipvsadm") {
		t.Errorf("the start wrote:\n%s", out)
	}
	if wrr := map[string]int{"pod-a": 10, "pod-b": 10, "pod-c": was}; was < 10 {
		s.wantScheduled(t, n, to, "wrr", 0, wrr)
	}
	s.apply(annotated(svc, "slow-start", "20s"), pods...)
	follow("and on, to the end", 10)
	if !slices.IsSorted(seen) || len(seen) < 3 {
		t.Errorf("its weights were %v", seen)
	}
	s.wantShares(t, svc, map[string]int{"pod-a": 4, "pod-b": 4, "pod-c": 4})
}

// weightOf is a pod's weight behind a Service's first frontend.
func (s *stage) weightOf(t testing.TB, n *lab.Node, svc lab.Service, pod string) int {
	t.Helper()
	for real, is := range destinations(t, n, at(svc, 4, 80)) {
		if real.Addr() == s.w.Pod(pod).Addr(4) {
			return is.Weight
		}
	}
	return 0
}

// B71: with a slow start that cannot be used new endpoints get their share at once, it is said, and the other annotations
// count; so with a scheduler that knows no parts of a share.
func TestB71SlowStartOf(t *testing.T) {
	s := newStage(t).start()
	n, a, b, c := s.w.Node(1), s.w.Pod("pod-a"), s.w.Pod("pod-b"), s.w.Pod("pod-c")
	for i, x := range []struct {
		annotations []string
		scheduler   string
		fresh       int // pod-c's weight, new
		others      int
		says        string
	}{
		{[]string{"slow-start", "soon"}, "rr", 1, 1, "is not a duration"},
		{[]string{"slow-start", "2h", "scheduler", "sed"}, "sed", 1, 1, "is not a duration"},
		{[]string{"slow-start", "1h", "scheduler", "fo"}, "fo", 1, 1, "cannot give an endpoint a part of its share"},
		{[]string{"slow-start", "1h", "scheduler", "lc"}, "wlc", 1, 10, ""},
		{[]string{"slow-start", "1h", "scheduler", "mh"}, "mh", 1, 10, ""},
		{[]string{"slow-start", "1h", "weights", "other=5"}, "wrr", 5, 10, ""},
	} {
		t.Run(fmt.Sprint(x.annotations), func(t *testing.T) {
			svc, flags := annotated(web(62+i), x.annotations...), uint32(0)
			if x.scheduler == "mh" {
				flags = fallback
			}
			s.apply(svc, a, b)
			to := at(svc, 4, 80)
			s.wantScheduled(t, n, to, x.scheduler, flags, map[string]int{"pod-a": x.others, "pod-b": x.others})
			s.apply(annotated(svc), a, b) // so that they are not new when it is back
			s.wantScheduled(t, n, to, "rr", 0, map[string]int{"pod-a": 1, "pod-b": 1})
			s.apply(svc, a, b)
			s.wantScheduled(t, n, to, x.scheduler, flags, map[string]int{"pod-a": x.others, "pod-b": x.others})
			s.apply(svc, a, b, c)
			s.wantScheduled(t, n, to, x.scheduler, flags, map[string]int{"pod-a": x.others, "pod-b": x.others, "pod-c": x.fresh})
			if x.says != "" {
				wantSaid(t, s.agents[0], "default/"+svc.Name, "ipvs-proxy.io/slow-start", x.says)
			}
			answers(t, n.Host, to)
		})
	}
}
