package traffic

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// S1, kubia: three pods behind a ClusterIP, port 80 to 8080. Who asks again and again hits all three.
func TestS1Kubia(t *testing.T) {
	s := newStage(t).start()
	kubia := web(1)
	s.apply(kubia, s.pods()...)
	s.ready(kubia)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			hits(t, c, at(kubia, family, 80), map[string]int{"pod-a": 3, "pod-b": 3, "pod-c": 3})
		}
	})
}

// S2: the same with sessionAffinity ClientIP (B23). One client always hits one pod, over TCP and UDP; deleting
// that pod moves it at once; and the affinity is switched off and on while connections live.
func TestS2Affinity(t *testing.T) {
	s := newStage(t).start()
	s.serveUDP(8080, s.pods()...)
	kubia := web(2)
	kubia.Ports = append(kubia.Ports, lab.Port{Name: "udp", Protocol: "UDP", Port: 80, TargetPort: 8080})
	kubia.Spec = map[string]any{"sessionAffinity": "ClientIP"}
	s.apply(kubia, s.pods()...)
	s.ready(kubia)
	each(t, func(t *testing.T, family int) {
		for _, ask := range asks {
			t.Run(ask.name, func(t *testing.T) { s.affinity(t, kubia, family, ask) })
		}
	})
	// Last, a pod is really deleted.
	outside, to := client{"outside", s.w.Client}, at(kubia, 4, 80)
	pod := pinned(t, outside, to, asks[0])
	s.apply(kubia, s.podsBut(pod)...)
	s.wantServing(t, to, s.podsBut(pod)...)
	if err := s.w.Pod(pod).Remove(); err != nil {
		t.Fatal(err)
	}
	if now := pinned(t, outside, to, asks[0]); now == pod {
		t.Errorf("the client hits %s, which was deleted", now)
	}
}

// affinity tells the story of one family and protocol. It begins and ends with all pods and the affinity on.
func (s *stage) affinity(t *testing.T, svc lab.Service, family int, ask asking) {
	to := at(svc, family, 80)
	s.wantPins(t, ask, to, 10800)
	before := map[string]string{}
	for _, c := range s.clients() {
		before[c.name] = pinned(t, c, to, ask)
	}

	// The pod of one client leaves: who hit it moves, the others stay.
	gone := before["outside"]
	s.apply(svc, s.podsBut(gone)...)
	s.wantServing(t, to, s.podsBut(gone)...)
	after := map[string]string{}
	for _, c := range s.clients() {
		after[c.name] = pinned(t, c, to, ask)
		if moved := after[c.name] != before[c.name]; moved != (before[c.name] == gone) {
			t.Errorf("%s hit %s and now hits %s; %s has left", c.name, before[c.name], after[c.name], gone)
		}
	}
	// It comes back: nobody moves again.
	s.apply(svc, s.pods()...)
	s.wantServing(t, to, s.pods()...)
	for _, c := range s.clients() {
		if now := pinned(t, c, to, ask); now != after[c.name] {
			t.Errorf("%s hit %s and now hits %s; %s has come back", c.name, after[c.name], now, gone)
		}
	}

	// Off and on, with a request under way.
	var live chan lab.Reply
	if ask.name == "TCP" {
		live = make(chan lab.Reply, 1)
		go func() { live <- s.w.Client.Ask(to, lab.Wait(5*time.Second), lab.Timeout(30*time.Second)) }()
	}
	off := svc
	off.Spec = nil
	s.cluster.Apply(off)
	s.wantPins(t, ask, to, 0)
	for _, c := range s.clients() {
		hitsBy(t, c, to, ask, map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 2})
	}
	on := svc
	on.Spec = map[string]any{"sessionAffinity": "ClientIP",
		"sessionAffinityConfig": map[string]any{"clientIP": map[string]any{"timeoutSeconds": 600}}}
	s.cluster.Apply(on)
	s.wantPins(t, ask, to, 600)
	for _, c := range s.clients() {
		pinned(t, c, to, ask)
	}
	if live != nil {
		if r := <-live; r.Verdict != lab.Answered {
			t.Errorf("a request that was under way when the affinity was switched: %s", r)
		}
	}
	s.cluster.Apply(svc)
	s.wantPins(t, ask, to, 10800)
}

// S3: two ports, http 80 and https 443, both to 8080.
func TestS3TwoPorts(t *testing.T) {
	s := newStage(t).start()
	kubia := web(3)
	kubia.Ports = append(kubia.Ports, lab.Port{Name: "https", Port: 443, TargetPort: 8080})
	s.apply(kubia, s.pods()...)
	s.ready(kubia)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			for _, port := range []uint16{80, 443} {
				answers(t, c.Host, at(kubia, family, port))
				hits(t, c, at(kubia, family, port), map[string]int{"pod-a": 2, "pod-b": 2, "pod-c": 2})
			}
		}
	})
}

// S4: a named target port. The pods are replaced one by one by pods that listen on another number, and the
// clients notice nothing. The control takes one real server away at once, as a naive agent would.
func TestS4NamedPort(t *testing.T) {
	s := newStage(t).start()
	kubia := web(4)
	old, fresh := s.pods(), []*lab.Pod(nil)
	s.cluster.Apply(kubia)
	s.cluster.Apply(s.onPort(kubia, 8080, old...)...)
	s.ready(kubia)
	inside := s.addPod(lab.PodSpec{Name: "asker", Node: 2})
	var outside6 lab.LoadReport
	outside4 := underLoad(t, s.w.Client, at(kubia, 4, 80), patient, func() {
		outside6 = underLoad(t, inside.Host, at(kubia, 6, 80), patient, func() {
			for _, gone := range s.pods() {
				fresh = append(fresh, s.addPod(lab.PodSpec{Name: gone.Name + "-new", Node: gone.Node.Index}))
				s.w.ServeHTTP(t, 9090, fresh[len(fresh)-1])
				s.cluster.Apply(s.onPort(kubia, 9090, fresh...)...)
				old = old[1:]
				for _, family := range []int{4, 6} {
					s.wantServing(t, at(kubia, family, 80), slices.Concat(fresh, old, []*lab.Pod{gone})...)
				}
				s.cluster.Apply(s.onPort(kubia, 8080, old...)...)
				s.wantIdle(t, gone)
				s.leaves(t, gone)
			}
		})
	})
	for name, r := range map[string]lab.LoadReport{"outside, IPv4": outside4, "a pod, IPv6": outside6} {
		t.Logf("%s, while 8080 became 9090 pod by pod: %s", name, r)
		if r.Lost > 0 || r.ByPod["pod-a-new"] == 0 || r.ByPod["pod-b-new"] == 0 || r.ByPod["pod-c-new"] == 0 {
			t.Errorf("%s: %s; want none lost, and answers of all new pods", name, r)
		}
	}
	control := underLoad(t, s.w.Client, at(kubia, 4, 80), 5*time.Second, func() {
		for _, a := range s.agents {
			if err := a.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		deleteReal(t, s.w.Node(1), at(kubia, 4, 80), netip.AddrPortFrom(fresh[0].V4, 9090))
	})
	t.Logf("control, a real server taken away at once: %s", control)
	if control.Lost == 0 {
		t.Errorf("the control lost nothing: %s", control)
	}
}

// S6: a Service without a selector; the endpoints are written by hand and stand in the cluster.
func TestS6ByHand(t *testing.T) {
	s := newStage(t).start()
	database := web(6)
	database.Selector = map[string]string{}
	s.cluster.Apply(database)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			wantRefused(t, c, at(database, family, 80))
		}
	})
	s.cluster.Apply(byHand(database, "here", 8080, s.w.Pod("pod-b").Host, s.w.Pod("pod-c").Host)...)
	s.ready(database)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			hits(t, c, at(database, family, 80), map[string]int{"pod-b": 3, "pod-c": 3})
		}
	})
}

// S7: the same with machines outside the cluster. They know the way to the pods, whose address they see.
func TestS7OutsideTheCluster(t *testing.T) {
	s := newStage(t).start()
	legacy := web(7)
	legacy.Selector = map[string]string{}
	machines := s.outsiders(8000)
	s.cluster.Apply(legacy)
	s.cluster.Apply(byHand(legacy, "there", 8000, machines...)...)
	s.ready(legacy)
	each(t, func(t *testing.T, family int) {
		to := at(legacy, family, 80)
		for _, c := range append(s.clients(), client{"pod of another node", s.w.Pod("pod-c").Host}) {
			answers(t, c.Host, to)
			hits(t, c, to, map[string]int{"client": 3, "wire": 3})
		}
		for _, pod := range []*lab.Pod{s.w.Pod("pod-a"), s.w.Pod("pod-c")} {
			if r := pod.Ask(to); r.Source != pod.Addr(family) {
				t.Errorf("%s asks: %s; want it seen as %s", pod.Name, r, pod.Addr(family))
			}
		}
	})
}

// S8, ExternalName: nothing is programmed; switched to ClusterIP it is, and switched back it is gone.
func TestS8ExternalName(t *testing.T) {
	s := newStage(t).start()
	kubia, api := web(1), web(8)
	external := api
	external.Type, external.ClusterIPs, external.Ports = "ExternalName", nil, nil
	external.Spec = map[string]any{"externalName": "api.example.com"}
	v4, v6 := s.w.SlicesFor(api, s.w.Pod("pod-c"))
	s.cluster.Apply(external, v4, v6)
	s.apply(kubia, s.pods()...) // after it, so that it was heard of once kubia answers
	s.ready(kubia)
	for range 2 {
		s.wantFrontends(t, frontends(kubia)...)
		s.cluster.Apply(api)
		s.ready(api)
		s.wantFrontends(t, append(frontends(kubia), frontends(api)...)...)
		each(t, func(t *testing.T, family int) {
			for _, c := range s.clients() {
				hits(t, c, at(api, family, 80), map[string]int{"pod-c": 3})
			}
		})
		s.cluster.Apply(external)
		s.wantFrontends(t, frontends(kubia)...)
		each(t, func(t *testing.T, family int) { s.wantGone(t, at(api, family, 80)) })
	}
}

// S13, readiness: a pod that fails its probe leaves the Service, and comes back when it passes. Nobody notices,
// not even who is talking to it.
func TestS13Readiness(t *testing.T) {
	s := newStage(t).start()
	kubia := web(13)
	s.apply(kubia, s.pods()...)
	s.ready(kubia)
	probe := func(family int, passes bool) {
		v4, v6 := s.w.SlicesFor(kubia, s.pods()...)
		sl := map[int]lab.Slice{4: v4, 6: v6}[family]
		sl.Endpoints[0].Ready, sl.Endpoints[0].Serving = &passes, &passes
		s.cluster.Apply(sl)
	}
	each(t, func(t *testing.T, family int) {
		to := at(kubia, family, 80)
		load := underLoad(t, s.w.Client, to, patient, func() {
			talk := make(chan lab.Reply, 3) // one of three is with pod-a
			for range 3 {
				go func() { talk <- s.w.Pod("pod-c").Ask(to, lab.Wait(4*time.Second), lab.Timeout(30*time.Second)) }()
			}
			wantActive(t, s.w.Node(2), to, 3)
			probe(family, false)
			s.wantServing(t, to, s.podsBut("pod-a")...)
			for _, c := range s.clients()[:2] { // the outside client is the load
				if byPod, lost := c.Spread(to, 8); byPod["pod-a"] > 0 || len(lost) > 0 {
					t.Errorf("%s, while pod-a fails its probe: %v, lost %v", c.name, byPod, lost)
				}
			}
			answered := map[string]int{}
			for range 3 {
				answered[(<-talk).Pod]++
			}
			if want := map[string]int{"pod-a": 1, "pod-b": 1, "pod-c": 1}; !maps.Equal(answered, want) {
				t.Errorf("three requests under way when pod-a failed its probe were answered by %v, want %v", answered, want)
			}
			probe(family, true)
			s.wantServing(t, to, s.pods()...)
			wantHit(t, s.w.Pod("pod-b").Host, to, "pod-a")
		})
		t.Logf("load: %s", load)
		if load.Lost > 0 {
			t.Errorf("load through both changes: %s", load)
		}
		wouldNotice(t, s.w.Client, s.w.Node(1), to)
	})
}

// S14, headless: nothing is programmed, and who has the pods' addresses from DNS reaches them.
func TestS14Headless(t *testing.T) {
	s := newStage(t).start()
	kubia, headless := web(1), web(14)
	headless.ClusterIPs = []string{"None"}
	v4, v6 := s.w.SlicesFor(headless, s.pods()...)
	v4.Labels = map[string]string{"service.kubernetes.io/headless": ""}
	v6.Labels = v4.Labels
	s.cluster.Apply(headless, v4, v6)
	s.apply(kubia, s.pods()...)
	s.ready(kubia)
	s.wantFrontends(t, frontends(kubia)...)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients()[:2] { // nobody outside has a way to the pods
			for _, pod := range s.pods() {
				hits(t, c, netip.AddrPortFrom(pod.Addr(family), 8080), map[string]int{pod.Name: 2})
			}
		}
	})
}

// S15: the gateway Service of the notes: port 8080, internalTrafficPolicy Cluster, and in a cluster of both
// families IPv4 alone.
func TestS15Gateway(t *testing.T) {
	s := newStage(t).start()
	gateway := web(15)
	gateway.ClusterIPs = gateway.ClusterIPs[:1] // ipFamilies [IPv4] and SingleStack follow from it
	gateway.Ports = []lab.Port{{Name: "http", Port: 8080}}
	s.apply(gateway, s.w.Pod("pod-b"), s.w.Pod("pod-c")) // slices of both families, as of pods that have both
	for _, c := range append(s.clients(), client{"node2", s.w.Node(2).Host}, client{"pod of node2", s.w.Pod("pod-c").Host}) {
		answers(t, c.Host, at(gateway, 4, 8080))
		hits(t, c, at(gateway, 4, 8080), map[string]int{"pod-b": 3, "pod-c": 3})
	}
	s.wantFrontends(t, "tcp 10.96.0.15:8080")
}

// S17, even spread: of four pods under rr each gets exactly a quarter.
func TestS17EvenSpread(t *testing.T) {
	s := newStage(t).start()
	pods := append(s.pods(), s.addPod(lab.PodSpec{Name: "pod-d", Node: 2}))
	s.w.ServeHTTP(t, 8080, pods[3])
	kubia := web(17)
	s.apply(kubia, pods...)
	s.ready(kubia)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			hits(t, c, at(kubia, family, 80), map[string]int{"pod-a": 10, "pod-b": 10, "pod-c": 10, "pod-d": 10})
		}
	})
}
