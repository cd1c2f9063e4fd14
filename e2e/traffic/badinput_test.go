package traffic

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// problems reads the metric of problems of a node, by reason.
func problems(n *lab.Node) (map[string]int, error) {
	p, err := get(n.Host, netip.AddrPortFrom(loopback, 10249), "/metrics")
	if err != nil || p.code != 200 {
		return nil, fmt.Errorf("metrics of %s: %d, %w", n.Name, p.code, err)
	}
	found := map[string]int{}
	for line := range strings.SplitSeq(p.body, "\n") {
		rest, of := strings.CutPrefix(line, `ipvsproxy_problems{reason="`)
		if !of {
			continue
		}
		reason, value, _ := strings.Cut(rest, `"} `)
		v, err := strconv.Atoi(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		if v != 0 {
			found[reason] = v
		}
	}
	return found, nil
}

// wantProblems waits until a node counts just these.
func wantProblems(t *testing.T, n *lab.Node, want map[string]int) {
	t.Helper()
	lab.Eventually(t, soon, "problems counted by "+n.Name, func() error {
		got, err := problems(n)
		if err == nil && !maps.Equal(got, want) {
			err = fmt.Errorf("got %v, want %v", got, want)
		}
		return err
	})
}

// badField is a Service with a value that cannot be used.
type badField struct {
	name   string
	edit   func(*lab.Service)            // of a Service with every way in
	slices func(*lab.Slice)              // of its slices
	counts map[string]int                // by reason
	said   string                        // in the log, beside the Service's name
	closed func(kind string, f int) bool // which ways are closed to a client outside
}

func spec(field string, value any) func(*lab.Service) {
	return func(svc *lab.Service) { svc.Spec[field] = value }
}

// badFields are one of each kind of field; TestBadInput of pkg/sync has every bad value.
func badFields(client *lab.Host) []badField {
	of4, of6 := client.V4.String()+"/32", client.V6.String()+"/128"
	one := func(reason string) map[string]int { return map[string]int{reason: 1} }
	hints := func(zone string) func(*lab.Slice) {
		return func(sl *lab.Slice) {
			for i := range sl.Endpoints {
				sl.Endpoints[i].Zone, sl.Endpoints[i].ForZones = "east", []string{zone}
			}
		}
	}
	port := func(name string, number int, protocol string) map[string]any {
		return map[string]any{"name": name, "port": number, "protocol": protocol, "targetPort": 8080}
	}
	return []badField{
		{name: "a range that is none", edit: spec("loadBalancerSourceRanges", []string{of4, "nonsense", " " + of6 + " "}), counts: one("InvalidCIDR"),
			said: `spec.loadBalancerSourceRanges[1]: \"nonsense\" is not a CIDR`},
		{name: "ranges of IPv4 only", edit: spec("loadBalancerSourceRanges", []string{of4}), counts: one("SourceRanges"),
			said:   "spec.loadBalancerSourceRanges: no range of IPv6 that can be used: nobody is let in at",
			closed: func(kind string, family int) bool { return kind == "LoadBalancer" && family == 6 }},
		{name: "ranges of IPv6 only", edit: spec("loadBalancerSourceRanges", []string{of6}), counts: one("SourceRanges"),
			said:   "spec.loadBalancerSourceRanges: no range of IPv4 that can be used: nobody is let in at",
			closed: func(kind string, family int) bool { return kind == "LoadBalancer" && family == 4 }},
		{name: "a negative timeout", edit: func(svc *lab.Service) {
			svc.Spec["sessionAffinity"] = "ClientIP"
			svc.Spec["sessionAffinityConfig"] = map[string]any{"clientIP": map[string]any{"timeoutSeconds": -1}}
		}, counts: one("SessionAffinity"), said: "spec.sessionAffinityConfig.clientIP.timeoutSeconds: -1 is not between 1 and 86400"},
		{name: "policies that nobody knows", edit: func(svc *lab.Service) {
			svc.Spec["internalTrafficPolicy"], svc.Spec["externalTrafficPolicy"] = "Near", "Far"
		}, counts: map[string]int{"TrafficPolicy": 2}, said: `spec.externalTrafficPolicy: \"Far\" is not a policy; taken as Cluster`},
		{name: "a mode of an address", edit: func(svc *lab.Service) {
			svc.Status["loadBalancer"].(map[string]any)["ingress"].([]map[string]any)[1]["ipMode"] = "Odd"
		}, counts: one("IPMode"), said: `status.loadBalancer.ingress[1].ipMode: \"Odd\" is not a mode`,
			closed: func(kind string, family int) bool { return kind == "LoadBalancer" && family == 6 }},
		{name: "addresses that are none", edit: spec("externalIPs", []string{"300.1.1.1", "127.0.0.1"}), counts: map[string]int{"InvalidAddress": 1, "Loopback": 1},
			said: `spec.externalIPs[0]: \"300.1.1.1\" is not an IP address`},
		{name: "ports that are none", edit: func(svc *lab.Service) {
			first := port("http", 80, "TCP")
			first["nodePort"] = svc.Ports[0].NodePort
			svc.Spec["ports"] = []any{first, port("zero", 0, "TCP"), port("huge", 65536, "TCP"), port("minus", -1, "UDP"), port("icmp", 90, "ICMP")}
		}, counts: map[string]int{"PortRange": 3, "Protocol": 1}, said: "spec.ports[2].port: 65536 is not between 1 and 65535"},
		{name: "a healthCheckNodePort that is none", edit: func(svc *lab.Service) {
			svc.Spec["externalTrafficPolicy"], svc.Spec["healthCheckNodePort"] = "Local", 70000
		}, counts: one("PortRange"), said: "spec.healthCheckNodePort: 70000 is not between 1 and 65535"},
		{name: "a distribution, and hints for a zone that nobody is in", edit: spec("trafficDistribution", "Nearest"), slices: hints("mars"),
			counts: map[string]int{"TrafficDistribution": 1, "Hints": 1}, said: `hints.forZones: \"mars\"`},
		{name: "hints for zones on a node without one", slices: hints("east"), counts: one("ZoneMissing"), said: "metadata.labels[topology.kubernetes.io/zone]"},
		{name: "an annotation that is no time", slices: func(sl *lab.Slice) {
			sl.Annotations = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": "yesterday"}
		}, counts: map[string]int{"TriggerTime": 2}, said: "metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]"},
	}
}

// B4, B13, B25: a value that cannot be used, one of each kind of field, is named with object and field, counted by
// reason, and costs itself alone: what else there is of the Service serves all three pods, by every way in, in both
// families. And once it is mended, all is.
func TestBadInput(t *testing.T) {
	s := newStage(t).start()
	bad := badFields(s.w.Client)
	services, mended := make([]lab.Service, len(bad)), make([]lab.Service, len(bad))
	counts, lines := map[string]int{}, map[string]string{}
	for i, b := range bad {
		svc, sound := balanced(web(201+i), 201+i), balanced(web(201+i), 201+i)
		svc.Spec, sound.Spec = map[string]any{}, map[string]any{}
		if b.edit != nil {
			b.edit(&svc)
		}
		v4, v6 := s.w.SlicesFor(svc, s.pods()...)
		if b.slices != nil {
			b.slices(&v4)
			b.slices(&v6)
		}
		s.cluster.Apply(svc, v4, v6)
		services[i], mended[i] = svc, sound
		lines[b.name] = b.said
		for reason, n := range b.counts {
			counts[reason] += n
		}
	}
	for _, n := range s.w.Nodes {
		wantProblems(t, n, counts)
	}
	log := s.agents[0].Log()
	for name, said := range lines {
		if !strings.Contains(log, said) {
			t.Errorf("%s: the log does not say %s", name, said)
		}
	}
	for i, b := range bad {
		t.Run(b.name, func(t *testing.T) {
			each(t, func(t *testing.T, family int) { s.servesBut(t, services[i], family, b.closed) })
		})
	}

	for i, svc := range mended {
		s.apply(svc, s.pods()...)
		if bad[i].name == "hints for zones on a node without one" {
			s.setZone(t, s.w.Node(1), "east")
			s.setZone(t, s.w.Node(2), "east")
		}
	}
	for _, n := range s.w.Nodes {
		wantProblems(t, n, map[string]int{})
	}
	for i, b := range bad {
		if b.closed != nil {
			each(t, func(t *testing.T, family int) { s.servesBut(t, mended[i], family, nil) })
		}
	}
}

// servesBut: a client outside, a pod and the node get answers by each way in that is theirs and is not closed.
func (s *stage) servesBut(t *testing.T, svc lab.Service, family int, closed func(kind string, family int) bool) {
	t.Helper()
	plain := svc
	plain.Spec = nil // its externalIPs may be none
	ways := s.frontends(plain, family)
	pods := []string{"pod-a", "pod-b", "pod-c"}
	switch {
	case svc.Spec["sessionAffinity"] == "ClientIP":
		for kind, to := range ways {
			answers(t, s.w.Client, to)
			if byPod, lost := s.w.Client.Spread(to, 4); len(lost) > 0 || len(byPod) != 1 {
				t.Errorf("%s %s: %v, lost %v: want one pod", kind, to, byPod, lost)
			}
		}
		return
	case svc.Spec["externalTrafficPolicy"] == "Local":
		pods = pods[:2]
	}
	for _, kind := range slices.Sorted(maps.Keys(ways)) {
		outside := client{"outside", s.w.Client}
		switch {
		case kind == "ClusterIP":
			becomes(t, client{"pod", s.w.Pod("pod-a").Host}, ways[kind], asks[0], family, outcome{pods: []string{"pod-a", "pod-b", "pod-c"}})
		case closed == nil || !closed(kind, family):
			becomes(t, outside, ways[kind], asks[0], family, outcome{pods: pods})
		default:
			if r := outside.Ask(ways[kind], lab.Timeout(300*time.Millisecond)); r.Verdict == lab.Answered {
				t.Errorf("%s by %s %s: %s, want no answer", outside.name, kind, ways[kind], r)
			}
		}
	}
}
