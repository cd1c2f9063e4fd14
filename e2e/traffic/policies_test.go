package traffic

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// outcome is what becomes of a client's requests: these pods answer, or else they are dropped or refused. Where kept
// is set, the pods see the client's own address.
type outcome struct {
	pods    []string
	dropped bool
	kept    bool
}

func (o outcome) String() string {
	switch {
	case len(o.pods) > 0 && o.kept:
		return fmt.Sprintf("answered by %v, which see the client's address", o.pods)
	case len(o.pods) > 0:
		return fmt.Sprintf("answered by %v", o.pods)
	case o.dropped:
		return "dropped"
	}
	return "refused"
}

// becomes waits until a client's requests have an outcome.
func becomes(t testing.TB, c client, to netip.AddrPort, by asking, family int, want outcome) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s asks %s over %s, want %s", c.name, to, by.name, want), func() error {
		got := map[string]bool{}
		for range 3 { // there are three pods, and they have their turns
			timeout := lab.Patience(lab.DefaultTimeout)
			if want.dropped {
				timeout = 300 * time.Millisecond
			}
			r := by.ask(c.Host, to, lab.Timeout(timeout))
			switch {
			case want.dropped && errors.Is(r.Err, unix.EPERM) && by.name == "UDP":
				return nil // what becomes of the node's own datagrams
			case len(want.pods) == 0 && (r.Verdict == lab.TimedOut) == want.dropped && (r.Verdict == lab.Refused) != want.dropped:
				return nil
			case r.Verdict != lab.Answered || len(want.pods) == 0:
				return fmt.Errorf("%s", r)
			case want.kept && r.Pod != c.Name && r.Source != c.Addr(family):
				return fmt.Errorf("%s, want it to see %s", r, c.Addr(family))
			case r.Source == to.Addr() && to.Port() < 30000:
				return fmt.Errorf("%s, a virtual IP", r)
			}
			got[r.Pod] = true
		}
		if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want.pods) {
			return fmt.Errorf("answered by %v", names)
		}
		return nil
	})
}

// policies are what a Service says of its traffic.
type policies struct{ internalLocal, externalLocal bool }

func (p policies) String() string {
	word := map[bool]string{true: "Local", false: "Cluster"}
	return fmt.Sprintf("internal %s, external %s", word[p.internalLocal], word[p.externalLocal])
}

// with gives a Service policies and other fields of its spec.
func (p policies) with(svc lab.Service) lab.Service {
	svc.Spec = maps.Clone(svc.Spec)
	if svc.Spec == nil {
		svc.Spec = map[string]any{}
	}
	for field, local := range map[string]bool{"internalTrafficPolicy": p.internalLocal, "externalTrafficPolicy": p.externalLocal} {
		svc.Spec[field] = map[bool]string{true: "Local", false: "Cluster"}[local]
	}
	return svc
}

// want is what the contract says: of a client that asks through a node, in the cluster or outside, by a kind of
// frontend, of a Service with these endpoints.
func (p policies) want(n *lab.Node, inside bool, kind string, eps []*lab.Pod) (o outcome) {
	names := func(pods []*lab.Pod, here bool) (list []string) {
		for _, p := range pods {
			if !here || p.Node == n {
				list = append(list, p.Name)
			}
		}
		slices.Sort(list)
		return list
	}
	all, here := names(eps, false), names(eps, true)
	switch {
	case kind == "ClusterIP" && p.internalLocal:
		o.pods, o.dropped = here, len(here) == 0 && len(all) > 0
	case kind == "ClusterIP", !p.externalLocal, inside && !p.internalLocal:
		o.pods = all
	case inside && len(here) == 0:
		o.pods = all
	default:
		o.pods, o.dropped = here, len(here) == 0 && len(all) > 0
	}
	return o
}

// asker is a client, the node that takes its requests, and whether it counts as inside the cluster there.
type asker struct {
	client
	through *lab.Node
	inside  bool
}

// askers are all who may ask by a kind of frontend, node ports on node1.
func (s *stage) askers(kind string) []asker {
	one, two := s.w.Node(1), s.w.Node(2)
	far := two
	if kind == "NodePort" {
		far = one
	}
	return []asker{
		{client{"outside", s.w.Client}, one, false},
		{client{"pod", s.w.Pod("pod-a").Host}, one, true},
		{client{"node", one.Host}, one, true},
		{client{"pod of another node", s.w.Pod("pod-c").Host}, far, true},
		{client{"another node", two.Host}, far, kind != "NodePort"},
	}
}

// holds compares every client by every frontend in both families, over TCP and UDP, with what the contract says.
func (s *stage) holds(t *testing.T, svc lab.Service, p policies, eps []*lab.Pod) {
	t.Helper()
	each(t, func(t *testing.T, family int) {
		for _, w := range s.ways(svc, family) {
			for _, a := range s.askers(w.kind) {
				if !a.inside && w.kind == "ClusterIP" && a.Host != s.w.Client {
					continue
				}
				want := p.want(a.through, a.inside, w.kind, eps)
				isNode := a.Host == s.w.Node(1).Host || a.Host == s.w.Node(2).Host && a.inside
				// By a node port, a pod's requests to another node's pod are masqueraded: it may be another node's itself.
				want.kept = w.kind != "ClusterIP" && p.externalLocal && !isNode && !(w.kind == "NodePort" && a.inside)
				becomes(t, a.client, w.tcp, asks[0], family, want)
				if len(want.pods) > 0 || want.dropped { // the kernel limits the refusals of UDP
					want.kept = false // answers over UDP do not say whom they go to
					becomes(t, a.client, w.udp, asks[1], family, want)
				}
			}
		}
	})
}

// B20, B21, B15's last clause: what becomes of every kind of client by every kind of frontend for each pair of
// policies: with endpoints here and elsewhere, elsewhere only, and none. The agents run all the time, so that each
// step is a change on a live node.
func TestB20B21Policies(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	for _, p := range []policies{{externalLocal: true}, {internalLocal: true, externalLocal: true}, {internalLocal: true}, {}} {
		svc := p.with(everywhere(20))
		for _, eps := range [][]*lab.Pod{s.pods(), {s.w.Pod("pod-c")}, {}, s.pods()[:2]} {
			var names []string
			for _, e := range eps {
				names = append(names, e.Name)
			}
			t.Run(fmt.Sprintf("%s, %s", p, strings.Join(append(names, "on no other"), " ")), func(t *testing.T) {
				s.apply(svc, eps...)
				s.holds(t, svc, p, eps)
			})
			if t.Failed() {
				return
			}
		}
	}
}

// B20: without a way to tell pods from others they count as outside clients; the node itself does not.
func TestB20WithoutDetector(t *testing.T) {
	s := newStage(t)
	s.serveUDP(5353, s.pods()...)
	p := policies{externalLocal: true}
	svc := p.with(everywhere(22))
	c := s.w.Pod("pod-c")
	s.apply(svc, c)
	programmed(t, s.w.StartAgent(t, s.w.Node(1), s.cluster, allowExternalIPs, "--cluster-cidr="))
	each(t, func(t *testing.T, family int) {
		for _, w := range s.ways(svc, family)[1:] {
			for _, a := range s.askers(w.kind)[:3] {
				inside := a.Host == s.w.Node(1).Host
				becomes(t, a.client, w.tcp, asks[0], family, p.want(a.through, inside, w.kind, []*lab.Pod{c}))
			}
		}
	})
}

// terminates marks pods of slices as terminating, still serving or not.
func terminates(sl lab.Slice, serving map[string]bool) lab.Slice {
	yes, no := true, false
	sl.Endpoints = slices.Clone(sl.Endpoints)
	for i, e := range sl.Endpoints {
		if serves, ends := serving[e.Pod]; ends {
			sl.Endpoints[i].Ready, sl.Endpoints[i].Terminating = &no, &yes
			sl.Endpoints[i].Serving = &serves
		}
	}
	return sl
}

// B24: endpoints that terminate and still serve are used where no ready one is in scope, and only there; the
// cluster's scope and the node's decide by themselves.
func TestB24Terminating(t *testing.T) {
	s := newStage(t).start(allowExternalIPs)
	s.serveUDP(5353, s.pods()...)
	for _, p := range []policies{{externalLocal: true}, {internalLocal: true, externalLocal: true}} {
		svc := p.with(everywhere(24))
		for _, c := range []struct {
			name           string
			serving        map[string]bool // those that terminate
			cluster, local []string        // on node1
		}{
			{"one of two here", map[string]bool{"pod-a": true}, []string{"pod-b", "pod-c"}, []string{"pod-b"}},
			{"all here", map[string]bool{"pod-a": true, "pod-b": true}, []string{"pod-c"}, []string{"pod-a", "pod-b"}},
			{"all here, one serves", map[string]bool{"pod-a": false, "pod-b": true}, []string{"pod-c"}, []string{"pod-b"}},
			{"all", map[string]bool{"pod-a": true, "pod-b": true, "pod-c": true}, []string{"pod-a", "pod-b", "pod-c"}, []string{"pod-a", "pod-b"}},
			{"all here serve no more", map[string]bool{"pod-a": false, "pod-b": false}, []string{"pod-c"}, nil},
			{"none serves", map[string]bool{"pod-a": false, "pod-b": false, "pod-c": false}, nil, nil},
			{"nobody", nil, []string{"pod-a", "pod-b", "pod-c"}, []string{"pod-a", "pod-b"}},
		} {
			t.Run(p.String()+": "+c.name, func(t *testing.T) {
				v4, v6 := s.w.SlicesFor(svc, s.pods()...)
				s.cluster.Apply(svc, terminates(v4, c.serving), terminates(v6, c.serving))
				bars := len(c.local) == 0 && len(c.cluster) > 0
				outside, pod := client{"outside", s.w.Client}, client{"pod", s.w.Pod("pod-a").Host}
				each(t, func(t *testing.T, family int) {
					for _, w := range s.ways(svc, family) {
						seen := w.kind != "ClusterIP"
						local := outcome{pods: c.local, dropped: bars, kept: seen}
						all := outcome{pods: c.cluster, kept: seen && w.kind != "NodePort"}
						if w.kind != "ClusterIP" {
							becomes(t, outside, w.tcp, asks[0], family, local)
						}
						switch {
						case !p.internalLocal:
							becomes(t, pod, w.tcp, asks[0], family, all)
						case w.kind == "ClusterIP" || len(c.local) > 0:
							becomes(t, pod, w.tcp, asks[0], family, local)
						default:
							becomes(t, pod, w.tcp, asks[0], family, all)
						}
					}
				})
			})
			if t.Failed() {
				return
			}
		}
	}
}

// B25: zone hints and node hints by packets, with the node's zone changing on a live node. Which hints count when is
// TestScopes' affair.
func TestB25Topology(t *testing.T) {
	s := newStage(t).start()
	svc := balanced(web(25), 25)
	hinted := func(sl lab.Slice, zones, nodes map[string]string) lab.Slice {
		sl.Endpoints = slices.Clone(sl.Endpoints)
		for i, e := range sl.Endpoints {
			if z := zones[e.Pod]; z != "" {
				sl.Endpoints[i].ForZones = []string{z}
			}
			if n := nodes[e.Pod]; n != "" {
				sl.Endpoints[i].ForNodes = []string{n}
			}
		}
		return sl
	}
	zones := map[string]string{"pod-a": "east", "pod-b": "west", "pod-c": "east"}
	nodes := map[string]string{"pod-a": "node1", "pod-b": "node2", "pod-c": "node2"}
	all := []string{"pod-a", "pod-b", "pod-c"}
	for _, c := range []struct {
		name         string
		zone         string // of node1
		zones, nodes map[string]string
		want         []string
	}{
		// Each differs from the one before, so that an agent that has heard nothing yet does not pass.
		{"zone east", "east", zones, nil, []string{"pod-a", "pod-c"}},
		{"a hint is missing", "east", map[string]string{"pod-a": "east", "pod-b": "west"}, nil, all},
		{"the node moves west", "west", zones, nil, []string{"pod-b"}},
		{"to where no hint is for", "north", zones, nil, all},
		{"node hints go before zones", "west", zones, nodes, []string{"pod-a"}},
		{"a node hint is missing", "west", zones, map[string]string{"pod-a": "node1"}, []string{"pod-b"}},
		{"out of every zone", "", zones, nil, all},
		{"back to the east", "east", zones, nil, []string{"pod-a", "pod-c"}},
		{"no hints", "east", nil, nil, all},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.setZone(t, s.w.Node(1), c.zone)
			v4, v6 := s.w.SlicesFor(svc, s.pods()...)
			s.cluster.Apply(svc, hinted(v4, c.zones, c.nodes), hinted(v6, c.zones, c.nodes))
			each(t, func(t *testing.T, family int) {
				for _, kind := range []string{"ClusterIP", "NodePort", "LoadBalancer"} {
					for _, from := range s.clients() {
						becomes(t, from, s.frontends(svc, family)[kind], asks[0], family, outcome{pods: c.want})
					}
				}
			})
		})
		if t.Failed() {
			return
		}
	}
}
