package traffic

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// Pods of other nodes are reached through VXLAN as they are by routes: from pod, node and outside, by every kind of address,
// TCP and UDP, in both families.
func TestOverlay(t *testing.T) {
	s, proxy := takenStage(t)
	s.start()
	s.ready(proxy.svc)
	each(t, func(t *testing.T, family int) {
		for _, c := range s.clients() {
			for way, to := range s.frontends(proxy.svc, family) {
				byPod, lost := c.Spread(to, 12)
				if len(lost) > 0 || byPod["pod-b"] == 0 || byPod["pod-c"] == 0 {
					t.Errorf("%s to %s %s: %v, lost %v", c.name, way, to, byPod, lost)
				}
			}
			f, err := c.StartFlow(at(proxy.svc, family, 53), 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			lab.Eventually(t, soon, "datagrams are answered", func() error {
				if r := f.Report(); r.Answered < 3 {
					return fmt.Errorf("%s", r)
				}
				return nil
			})
			if r := f.Stop(); r.Lost > 0 {
				t.Errorf("%s: %s", c.name, r)
			}
		}
	})
}

// B54: where kube-proxy's rules stand beside the agent, a packet that they have marked and the agent masqueraded reaches a pod
// of another node through VXLAN: the mark does not go on to the packet around it, whose source they would translate, and whose
// checksum is wrong then (inet_proto_csum_replace4 of net/core/utils.c takes an open checksum for the outer packet's). The
// control is an agent that was told of another bit: nothing arrives at that pod.
func TestB54MarksOverAnOverlay(t *testing.T) {
	for _, way := range takeovers {
		if way.legacy {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			s, proxy := takenStage(t)
			proxy.pods = []*lab.Pod{s.w.Pod("pod-c")}
			s.apply(proxy.svc, proxy.pods...)
			way.put(proxy)
			for _, bit := range []int{14, 13} {
				told := fmt.Sprintf("iptables: {masqueradeBit: %d}\nnftables: {masqueradeBit: %[1]d}", bit)
				agent := s.w.StartAgent(t, proxy.n, s.cluster, slices.Concat([]string{"--config", ownFile(t, "takeover: {leftovers: Keep}", told)}, untuned)...)
				programmed(t, agent)
				each(t, func(t *testing.T, family int) {
					for _, c := range s.clients()[1:] { // a pod's own connections are neither marked nor masqueraded
						if bit == 14 || c.name == "outside" { // what is lost takes its time
							s.marked(t, proxy.svc, c, family, bit == 14)
						}
					}
				})
				if err := agent.Stop(); err != nil {
					t.Fatal(err)
				}
			}
			if left := proxy.rules() + nftList(t, proxy.n, "tables"); !strings.Contains(left, "KUBE-POSTROUTING") && !strings.Contains(left, "kube-proxy") {
				t.Errorf("kube-proxy's rules are gone:\n%s", left)
			}
		})
	}
}

// marked asks a Service by all its ways in, and wants all of it to arrive, or nothing.
func (s *stage) marked(t *testing.T, svc lab.Service, c client, family int, arrives bool) {
	t.Helper()
	flows := map[string]*lab.Flow{}
	for i, kind := range []string{"http", "", "dns"} {
		if kind == "" {
			continue
		}
		one := svc
		one.Ports = svc.Ports[i : i+1]
		for way, to := range s.frontends(one, family) {
			way = c.name + " to " + way + " " + to.String()
			if kind == "http" {
				r := c.Ask(to, lab.Timeout(map[bool]time.Duration{true: lab.Patience(lab.DefaultTimeout), false: 500 * time.Millisecond}[arrives]))
				if (r.Verdict == lab.Answered) != arrives {
					t.Errorf("%s: %s", way, r)
				}
				continue
			}
			f, err := c.StartFlow(to, 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			flows[way] = f
		}
	}
	for way, f := range flows {
		lab.Eventually(t, soon, way+" is answered, or not", func() error {
			if r := f.Report(); r.Answered+r.Lost < 3 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		if r := f.Stop(); (r.Answered > 0) != arrives || arrives && r.Lost > 0 {
			t.Errorf("%s: %s", way, r)
		}
	}
}
