package traffic

import (
	"maps"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// said reports whether an agent's log has a text.
func hasLogged(a *lab.Agent, text string) bool { return strings.Contains(a.Log(), text) }

// B70: twos chooses the better of two endpoints, and passes over one of weight 0; where the kernel lacks it (before Linux 5.13)
// the node's scheduler serves and the Service says so.
func TestB70Twos(t *testing.T) {
	s := newStage(t).start()
	svc := annotated(web(170), "scheduler", "twos")
	weights := map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 0}
	s.weigh(svc, weights)
	each(t, func(t *testing.T, family int) {
		to := at(svc, family, 80)
		answers(t, s.w.Node(1).Host, to)
		has := s.hasScheduler(t, to, "twos")
		scheduler := "twos"
		if !has {
			scheduler, s.raided = "wrr", true // the kernel refuses what it does not know
			wantSaid(t, s.agents[0], "default/web170", "lacks the scheduler twos")
		}
		s.wantScheduled(t, s.w.Node(1), to, scheduler, 0, weights)
		got, lost := s.w.Node(1).Spread(to, 60)
		t.Logf("this kernel has twos: %t; 60 requests were answered by %v", has, got)
		if len(lost) > 0 || got["pod-c"] > 0 || got["pod-a"] < 5 || got["pod-b"] < 5 {
			t.Errorf("60 requests were answered by %v, lost %v; want pod-a and pod-b", got, lost)
		}
	})
}

// B70, B71 over SCTP: associations go by the weights, with sh and mh to one endpoint, and a change of the scheduler cuts none.
func TestB70SCTP(t *testing.T) {
	s := newStage(t).start()
	s.serveSCTP(s.pods()...)
	by := everyWay[3868]
	for i, c := range []struct {
		annotations []string
		weights     map[string]int
		scheduler   string
		flags       uint32
		want        map[string]int // of six
	}{
		{nil, map[string]int{"pod-a": 1, "pod-b": 2, "pod-c": 3}, "wrr", 0, map[string]int{"pod-a": 1, "pod-b": 2, "pod-c": 3}},
		{[]string{"scheduler", "mh"}, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1}, "mh", fallback, nil},
		{[]string{"scheduler", "sh"}, map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1}, "sh", fallback, nil},
	} {
		svc := diameter(171 + i)
		svc.Annotations = annotated(svc, c.annotations...).Annotations
		s.weigh(svc, c.weights)
		each(t, func(t *testing.T, family int) {
			to := at(svc, family, 3868)
			s.wantScheduled(t, s.w.Node(1), to, c.scheduler, c.flags, c.weights)
			answersSCTP(t, s.w.Node(1).Host, to)
			asker := client{"node", s.w.Node(1).Host}
			if c.want == nil {
				pinned(t, asker, to, by)
				return
			}
			for range 5 { // the rest of a turn
				by.ask(asker.Host, to)
			}
			hitsBy(t, asker, to, by, c.want)
		})
	}
}

// B71: weights by zone, with two zones: node1 and node2 are in one, node3 in another. Each node's own weights count for it; a node
// that changes its zone has others; and the weights decide who answers.
func TestB71Zones(t *testing.T) {
	s := newStage(t, lab.Config{Nodes: 3, Pods: []lab.PodSpec{{Name: "pod-a", Node: 1}, {Name: "pod-b", Node: 2}, {Name: "pod-c", Node: 3}}})
	zones := []string{"east", "east", "west"}
	for i, zone := range zones {
		s.setZone(t, s.w.Nodes[i], zone)
	}
	s.start()
	svc := annotated(web(175), "weights", "same-node=3,same-zone=2,other=1")
	v4, v6 := s.w.SlicesFor(svc, s.pods()...)
	for i := range v4.Endpoints {
		v4.Endpoints[i].Zone, v6.Endpoints[i].Zone = zones[i], zones[i]
	}
	s.cluster.Apply(svc, v4, v6)
	want := func(zoneOf3 map[string]int) {
		t.Helper()
		each(t, func(t *testing.T, family int) {
			to := at(svc, family, 80)
			for i, weights := range []map[string]int{{"pod-a": 3, "pod-b": 2, "pod-c": 1}, {"pod-a": 2, "pod-b": 3, "pod-c": 1}, zoneOf3} {
				n := s.w.Nodes[i]
				s.wantScheduled(t, n, to, "wrr", 0, weights)
				sum := 0
				for _, w := range weights {
					sum += w
				}
				answers(t, n.Host, to)
				for range sum - 1 {
					n.Ask(to)
				}
				if got, lost := n.Spread(to, sum); len(lost) > 0 || !maps.Equal(got, weights) {
					t.Errorf("%d requests of %s were answered by %v, lost %v; want %v", sum, n.Name, got, lost, weights)
				}
			}
		})
	}
	want(map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 3})
	s.setZone(t, s.w.Node(3), "east") // its pod's endpoint still says west
	want(map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 3})
}
