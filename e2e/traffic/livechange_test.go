package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// portChanges are what becomes of a Service beside its port 80, which stays.
var portChanges = []struct {
	name  string
	ports []lab.Port
	gone  []asking // protocols on port 53 that are no more
}{
	{"TCP to TCP and UDP on one port", []lab.Port{{Name: "dns-tcp", Port: 53, TargetPort: 8080}, {Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 8080}}, nil},
	{"UDP alone", []lab.Port{{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 8080}}, asks[:1]},
	{"back to TCP", []lab.Port{{Name: "dns-tcp", Port: 53, TargetPort: 8080}}, asks[1:]},
	{"another number", []lab.Port{{Name: "dns-tcp", Port: 54, TargetPort: 8080}}, asks},
	{"another target", []lab.Port{{Name: "dns-tcp", Port: 54, TargetPort: 9090}}, asks},
	{"a second port", []lab.Port{{Name: "dns-tcp", Port: 54, TargetPort: 9090}, {Name: "alt", Port: 55, TargetPort: 8080}}, asks},
	{"two ports change places", []lab.Port{{Name: "dns-tcp", Port: 55, TargetPort: 9090}, {Name: "alt", Port: 54, TargetPort: 8080}}, asks},
	{"no other port", nil, asks},
}

// B5: type, port and protocol change on live Services. Each change converges without a restart, and what did
// not change is not touched: port 80 answers every request through all of it, in both families.
func TestB5LiveChanges(t *testing.T) {
	s := newStage(t).start()
	for _, p := range s.pods() {
		if _, err := p.Host.ServeHTTP(on9090(p), 9090); err != nil {
			t.Fatal(err)
		}
	}
	s.serveUDP(8080, s.pods()...)
	svc, beside := web(50), web(51)
	http := svc.Ports[0]
	svc.Ports = []lab.Port{http, {Name: "dns-tcp", Port: 53, TargetPort: 8080}}
	s.apply(svc, s.pods()...)
	s.ready(svc)
	tap := tapWrites(t, s.w.Node(1))
	var six lab.LoadReport
	four := underLoad(t, s.w.Client, at(svc, 4, 80), patient, func() {
		six = underLoad(t, s.w.Node(2).Host, at(svc, 6, 80), patient, func() {
			for i, change := range portChanges {
				t.Run(change.name, func(t *testing.T) {
					svc.Ports = append([]lab.Port{http}, change.ports...)
					s.apply(svc, s.pods()...)
					s.wantAll(t, svc)
					for _, by := range change.gone {
						s.wantNothing(t, svc, by, 53)
					}
					if i == 0 { // before anything drains, which ends some time later
						s.wroteForUDP(t, tap)
					}
				})
			}
			t.Run("type", func(t *testing.T) { s.typeChanges(t, svc, beside) })
		})
	})
	t.Logf("port 80, outside, IPv4: %s", four)
	t.Logf("port 80, node2, IPv6: %s", six)
	if four.Lost+six.Lost > 0 {
		t.Errorf("port 80, which never changed, lost requests: outside, IPv4: %s; node2, IPv6: %s", four, six)
	}
	wouldNotice(t, s.w.Client, s.w.Node(1), at(svc, 4, 80))
	wouldNotice(t, s.w.Node(2).Host, s.w.Node(2), at(svc, 6, 80))
}

// typeChanges takes a second Service through its types and addresses.
func (s *stage) typeChanges(t *testing.T, first, svc lab.Service) {
	external := svc
	external.Type, external.ClusterIPs, external.Ports = "ExternalName", nil, nil
	external.Spec = map[string]any{"externalName": "example.com"}
	moved := web(52)
	moved.Name = svc.Name
	headless := svc
	headless.ClusterIPs = []string{"None"}
	v4, v6 := s.w.SlicesFor(svc, s.pods()...)
	s.cluster.Apply(v4, v6)
	for _, step := range []lab.Service{svc, external, svc, moved, headless, svc} {
		s.cluster.Apply(step)
		want := frontends(first)
		if step.Type == "" && step.ClusterIPs[0] != "None" {
			want = append(want, frontends(step)...)
			s.wantAll(t, step)
		}
		s.wantFrontends(t, want...)
	}
	s.cluster.Delete(svc, v4, v6)
	s.wantFrontends(t, frontends(first)...)
}

// wantAll: every port of a Service leads to its own target, in both families and from all nodes.
func (s *stage) wantAll(t *testing.T, svc lab.Service) {
	t.Helper()
	for _, p := range svc.Ports {
		by, target := asks[0], func(pod *lab.Pod) string { return pod.Name }
		if p.Protocol == "UDP" {
			by = asks[1]
		}
		if p.TargetPort == 9090 {
			target = on9090
		}
		var want []string
		for _, pod := range s.pods() {
			want = append(want, target(pod))
		}
		for _, family := range []int{4, 6} {
			to := at(svc, family, p.Port)
			s.wantTargets(t, by, to, p.TargetPort, s.pods()...)
			for _, c := range []client{{"pod", s.w.Pod("pod-a").Host}, {"node", s.w.Node(1).Host}, {"pod of node2", s.w.Pod("pod-c").Host}} {
				answersBy(t, c, to, by)
				if r := by.ask(c.Host, to); r.Verdict != lab.Answered || !slices.Contains(want, r.Pod) {
					t.Errorf("%s asks %s over %s: %s; want one of %v", c.name, to, by.name, r, want)
				}
			}
		}
	}
}

// on9090 is how a pod's second server calls itself.
func on9090(p *lab.Pod) string { return p.Name + ":9090" }

// wantNothing: a port that is no more refuses everybody.
func (s *stage) wantNothing(t *testing.T, svc lab.Service, by asking, port uint16) {
	t.Helper()
	for _, family := range []int{4, 6} {
		to := at(svc, family, port)
		for _, c := range s.clients() {
			lab.Eventually(t, soon, fmt.Sprintf("%s is refused by %s over %s", c.name, to, by.name), func() error {
				r := by.ask(c.Host, to, lab.Timeout(time.Second))
				// A process of the node itself is told when it sends: its datagram dies in the output hook.
				if r.Verdict == lab.Refused || c.name == "node" && errors.Is(r.Err, unix.EPERM) {
					return nil
				}
				return fmt.Errorf("%s", r)
			})
		}
	}
}

// wroteForUDP: a second protocol on one port costs what a frontend costs, in each family, and nothing besides.
func (s *stage) wroteForUDP(t *testing.T, p *tap) {
	t.Helper()
	var want []string
	for _, family := range []string{"4", "6"} {
		want = append(want, "NEWSETELEM owned"+family, "NEW_SERVICE", "NEW_DEST", "NEW_DEST", "NEW_DEST", "NEWSETELEM open"+family)
	}
	got := p.take(soon, len(want))
	slices.Sort(want)
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("UDP beside TCP on port 53: wrote %q, want %q", got, want)
	}
}

// answersBy waits until a client gets an answer over a protocol.
func answersBy(t testing.TB, c client, to netip.AddrPort, by asking) {
	t.Helper()
	lab.Eventually(t, soon, fmt.Sprintf("%s asks %s over %s", c.name, to, by.name), func() error {
		if r := by.ask(c.Host, to, lab.Timeout(time.Second)); r.Verdict != lab.Answered {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// wantTargets: these pods at this port, and nothing else, take new connections of one frontend.
func (s *stage) wantTargets(t testing.TB, by asking, to netip.AddrPort, port uint16, pods ...*lab.Pod) {
	t.Helper()
	var want []netip.AddrPort
	for _, p := range pods {
		want = append(want, netip.AddrPortFrom(p.Addr(familyOf(to)), port))
	}
	slices.SortFunc(want, netip.AddrPort.Compare)
	s.onEveryNode(t, fmt.Sprintf("targets of %s over %s", to, by.name), func(have map[string]frontend) error {
		if got := have[strings.ToLower(by.name)+" "+to.String()].serving(); !slices.Equal(got, want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}
