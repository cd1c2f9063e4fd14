package cluster

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// B70, B71: each annotation alone, and what becomes of a value that cannot be used: it costs only itself.
func TestB70Annotations(t *testing.T) {
	udp := func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }
	sticky := func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }
	for _, c := range []struct {
		name   string
		given  map[string]string
		change func(*corev1.Service)
		want   Scheduling
		bad    []string // annotations with a Problem
	}{
		{name: "none"},
		{name: "others'", given: map[string]string{"example.com/scheduler": "x"}},
		{name: "scheduler", given: map[string]string{SchedulerAnnotation: "wlc"}, want: Scheduling{Scheduler: "wlc"}},
		{name: "the youngest scheduler", given: map[string]string{SchedulerAnnotation: "twos"}, want: Scheduling{Scheduler: "twos"}},
		{name: "kube-router's", given: map[string]string{kubeRouterScheduler: "sh", kubeRouterFlags: "sh-port,sh-fallback"}, want: Scheduling{Scheduler: "sh", Ports: true}},
		{name: "kube-router's flags by its names", given: map[string]string{kubeRouterScheduler: "mh", kubeRouterFlags: "flag-1,flag-2"}, want: Scheduling{Scheduler: "mh", Ports: true}},
		{name: "one of them", given: map[string]string{kubeRouterScheduler: "mh", kubeRouterFlags: "flag-1, flag-3"}, want: Scheduling{Scheduler: "mh"}},
		{name: "kube-router heeds them with mh only", given: map[string]string{kubeRouterScheduler: "sh", kubeRouterFlags: "flag-2"}, want: Scheduling{Scheduler: "sh"}, bad: []string{kubeRouterFlags}},
		{name: "kube-router's names are not ours", given: map[string]string{SchedulerAnnotation: "mh", SchedulerFlagsAnnotation: "flag-2"}, want: Scheduling{Scheduler: "mh"}, bad: []string{SchedulerFlagsAnnotation}},
		{name: "ours before kube-router's", given: map[string]string{SchedulerAnnotation: "mh", kubeRouterScheduler: "nonesuch"}, want: Scheduling{Scheduler: "mh"}},
		{name: "unknown scheduler, and the rest counts", given: map[string]string{SchedulerAnnotation: "wcl", DrainDeadlineAnnotation: "90s"},
			want: Scheduling{DrainDeadline: Deadline{true, 90 * time.Second}}, bad: []string{SchedulerAnnotation}},
		{name: "another scheduler's flag", given: map[string]string{SchedulerAnnotation: "sh", SchedulerFlagsAnnotation: "mh-port, sh-port"},
			want: Scheduling{Scheduler: "sh", Ports: true}, bad: []string{SchedulerFlagsAnnotation}},
		{name: "flags without a scheduler", given: map[string]string{SchedulerFlagsAnnotation: "sh-port"}, bad: []string{SchedulerFlagsAnnotation}},
		{name: "no flag", given: map[string]string{SchedulerAnnotation: "mh", SchedulerFlagsAnnotation: "mh-ports"}, want: Scheduling{Scheduler: "mh"}, bad: []string{SchedulerFlagsAnnotation}},
		{name: "weights", given: map[string]string{WeightsAnnotation: "same-node=100,same-zone=10"}, want: Scheduling{Weights: Weights{true, 100, 10, 1}}},
		{name: "weights, in any order and with blanks", given: map[string]string{WeightsAnnotation: "other=0, same-node=65535"}, want: Scheduling{Weights: Weights{true, 65535, 1, 0}}},
		{name: "weight too large", given: map[string]string{WeightsAnnotation: "other=65536"}, bad: []string{WeightsAnnotation}},
		{name: "weight twice", given: map[string]string{WeightsAnnotation: "other=1,other=2"}, bad: []string{WeightsAnnotation}},
		{name: "no weights", given: map[string]string{WeightsAnnotation: ""}, bad: []string{WeightsAnnotation}},
		{name: "drain at once", given: map[string]string{DrainDeadlineAnnotation: "0s"}, want: Scheduling{DrainDeadline: Deadline{true, 0}}},
		{name: "drain backwards", given: map[string]string{DrainDeadlineAnnotation: "-1s"}, bad: []string{DrainDeadlineAnnotation}},
		{name: "drain for days", given: map[string]string{DrainDeadlineAnnotation: "25h"}, bad: []string{DrainDeadlineAnnotation}},
		{name: "drain without a unit", given: map[string]string{DrainDeadlineAnnotation: "30"}, bad: []string{DrainDeadlineAnnotation}},
		{name: "slow start", given: map[string]string{SlowStartAnnotation: "1s"}, want: Scheduling{SlowStart: time.Second}},
		{name: "slowest start", given: map[string]string{SlowStartAnnotation: "60m"}, want: Scheduling{SlowStart: time.Hour}},
		{name: "start too fast", given: map[string]string{SlowStartAnnotation: "999ms"}, bad: []string{SlowStartAnnotation}},
		{name: "start too slow, and the rest counts", given: map[string]string{SlowStartAnnotation: "1h1s", SchedulerAnnotation: "wlc"},
			want: Scheduling{Scheduler: "wlc"}, bad: []string{SlowStartAnnotation}},
		{name: "start without a unit", given: map[string]string{SlowStartAnnotation: "30"}, bad: []string{SlowStartAnnotation}},
		{name: "connections", given: map[string]string{MaxConnectionsAnnotation: "4294967295"}, want: Scheduling{MaxConnections: 4294967295}},
		{name: "too many connections", given: map[string]string{MaxConnectionsAnnotation: "4294967296"}, bad: []string{MaxConnectionsAnnotation}},
		{name: "no connections", given: map[string]string{MaxConnectionsAnnotation: "0"}, bad: []string{MaxConnectionsAnnotation}},
		{name: "one packet", given: map[string]string{OnePacketAnnotation: "true"}, change: udp, want: Scheduling{OnePacket: true}},
		{name: "one packet of TCP", given: map[string]string{OnePacketAnnotation: "true"}, bad: []string{OnePacketAnnotation}},
		{name: "one packet with affinity", given: map[string]string{OnePacketAnnotation: "true"}, change: func(s *corev1.Service) { udp(s); sticky(s) }, bad: []string{OnePacketAnnotation}},
		{name: "one packet, maybe", given: map[string]string{OnePacketAnnotation: "maybe"}, change: udp, bad: []string{OnePacketAnnotation}},
		{name: "misspelt", given: map[string]string{"ipvs-proxy.io/shceduler": "rr"}, bad: []string{""}},
		{name: "a slice's", given: map[string]string{WeightAnnotation: "1"}, bad: []string{""}},
	} {
		svc := testService(func(s *corev1.Service) { s.Annotations = c.given })
		if c.change != nil {
			c.change(svc)
		}
		s, problems := sanitiseService(svc, Options{})
		var bad []string
		for _, p := range problems {
			name := ""
			if p.Field != "metadata.annotations" {
				name = p.Field[len("metadata.annotations[") : len(p.Field)-1]
			}
			if bad = append(bad, name); p.Reason != ReasonScheduling {
				t.Errorf("%s: reason %s", c.name, p.Reason)
			}
		}
		if s.Scheduling != c.want || !slices.Equal(bad, c.bad) {
			t.Errorf("%s: %+v, want %+v; problems %q with %v, want %q", c.name, s.Scheduling, c.want, bad, problems, c.bad)
		}
	}
}

// B71: the weight of a slice is that of its endpoints, and a change of it a change of these.
func TestB71SliceWeight(t *testing.T) {
	slice := func(weight string) *discoveryv1.EndpointSlice {
		s := testSlice("web-1")
		if weight != "-" {
			s.Annotations = map[string]string{WeightAnnotation: weight}
		}
		return s
	}
	m := NewModel(Options{})
	m.SetService(testService())
	m.SetSlice(slice("-"))
	id := ID{"default", "web"}
	for _, c := range []struct {
		weight string
		want   Weight
		bad    int
		dirty  bool
	}{{"-", Weight{}, 0, false}, {"0", Weight{true, 0}, 0, true}, {"0", Weight{true, 0}, 0, false}, {"65535", Weight{true, 65535}, 0, true},
		{"65536", Weight{}, 1, true}, {"", Weight{}, 1, true}} {
		m.Take()
		m.SetSlice(slice(c.weight))
		dirty, _, _ := m.Take()
		_, eps := m.Get(id)
		if len(eps) == 0 || eps[0].Weight != c.want || len(m.Problems(id)) != c.bad || len(dirty) > 0 != c.dirty {
			t.Errorf("weight %q: %+v with problems %v, dirty %t; want %+v and %d", c.weight, eps, m.Problems(id), len(dirty) > 0, c.want, c.bad)
		}
	}
}
