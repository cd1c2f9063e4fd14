package traffic

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// setZone writes a node's label topology.kubernetes.io/zone; "": none.
func (s *stage) setZone(t testing.TB, n *lab.Node, zone string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.cluster.Dir, "nodes.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	host := "    kubernetes.io/hostname: " + n.Name + "\n"
	var lines []string
	found, next := false, false // the line after its name
	for line := range strings.Lines(string(content)) {
		old := next && strings.Contains(line, "topology.kubernetes.io/zone:")
		next = line == host
		switch {
		case next:
			found = true
			lines = append(lines, line)
			if zone != "" {
				lines = append(lines, "    topology.kubernetes.io/zone: "+zone+"\n")
			}
		case !old:
			lines = append(lines, line)
		}
	}
	if !found {
		t.Fatalf("no label of %s in nodes.yaml:\n%s", n.Name, content)
	}
	s.cluster.Write("nodes.yaml", strings.Join(lines, ""))
}

// flow of requests by one way.
type stream struct {
	name string
	from *lab.Host
	to   netip.AddrPort
}

// B20, B21, I3: policies and endpoints flip while requests come in on all ways. Clients that must always be served
// lose nothing. Clients from outside reach no pod of another node while the policy is Local, and are never refused.
// The control, at the end: a virtual server that is deleted and made anew loses requests under the same load.
func TestB20FlipsUnderLoad(t *testing.T) {
	s := newStage(t).start()
	node, outside, pod := s.w.Node(1), s.w.Client, s.w.Pod("pod-b")
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	cluster, local := policies{}, policies{externalLocal: true}
	svc, both := balanced(web(26), 26), policies{internalLocal: true, externalLocal: true}.with(balanced(web(27), 27))
	apply := func(svc lab.Service, p policies, eps ...*lab.Pod) {
		t.Helper()
		svc = p.with(svc)
		s.apply(svc, eps...)
		for _, family := range []int{4, 6} {
			to := s.frontends(svc, family)["LoadBalancer"]
			for _, x := range []asker{{client{"outside", outside}, node, false}, {client{"pod", pod.Host}, node, true}} {
				becomes(t, x.client, to, asks[0], family, p.want(node, x.inside, "LoadBalancer", eps))
			}
		}
	}
	apply(svc, cluster, a, c)
	apply(both, policies{true, true}, a, c)
	lb := func(svc lab.Service, family int) netip.AddrPort { return s.frontends(svc, family)["LoadBalancer"] }
	np := func(svc lab.Service, family int) netip.AddrPort { return s.frontends(svc, family)["NodePort"] }
	served := []stream{
		{"pod, balancer, IPv4", pod.Host, lb(svc, 4)}, {"pod, balancer, IPv6", pod.Host, lb(svc, 6)},
		{"node, node port, IPv4", node.Host, np(svc, 4)}, {"node, balancer, IPv6", node.Host, lb(svc, 6)},
		{"pod, both Local, IPv4", pod.Host, lb(both, 4)}, {"node, both Local, node port, IPv6", node.Host, np(both, 6)},
	}
	const local4 = "outside, IPv4"
	strangers := []stream{{local4, outside, lb(both, 4)}, {"outside, IPv6", outside, lb(both, 6)}}
	start := func(list []stream, timeout time.Duration) (loads []*lab.Load) {
		for _, st := range list {
			loads = append(loads, st.from.StartLoad(st.to, lab.LoadConfig{Rate: 12, Timeout: timeout}))
		}
		return loads
	}
	loads, others := start(served, patient), start(strangers, 2*time.Second)
	goOn := func(l *lab.Load) {
		before := l.Report()
		lab.Eventually(t, time.Minute, "requests go on", func() error {
			if r := l.Report(); r.Sent < before.Sent+10 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	}
	for range 2 {
		apply(svc, local, a, c)
		apply(svc, local, c) // none here
		apply(both, policies{true, true}, c)
		goOn(others[0])
		apply(both, policies{true, true}, a, c)
		apply(svc, local, a, c)
		apply(svc, cluster, a, c)
		apply(svc, cluster, c)
		apply(svc, local, c)
		apply(svc, cluster, a, c)
	}
	for i, l := range loads {
		if r := l.Stop(); r.Lost > 0 || r.Answered == 0 {
			t.Errorf("%s: %s", served[i].name, r)
		} else {
			t.Logf("%s: %s", served[i].name, r)
		}
	}
	for i, l := range others {
		r := l.Stop()
		t.Logf("%s: %s", strangers[i].name, r)
		if r.ByPod["pod-c"] > 0 || r.ByPod["pod-a"] == 0 {
			t.Errorf("%s: served by %v; want the node's own pod only", strangers[i].name, r.ByPod)
		}
		for _, loss := range r.Losses {
			if loss.Reply.Verdict != lab.TimedOut {
				t.Errorf("%s: %s; want it dropped in silence", strangers[i].name, loss.Reply)
			}
		}
		if r.Lost == 0 {
			t.Errorf("%s: nothing was dropped while the node had no pod", strangers[i].name)
		}
	}
	wouldNotice(t, pod.Host, node, at(svc, 4, 80)) // to which the balancer's address is redirected
}

// falls waits until a flow is silent: several datagrams in a row have no answer. New clients meet a change before the
// kernel has forgotten those that were served.
func falls(t *testing.T, f *lab.Flow) (silent lab.FlowReport) {
	t.Helper()
	silent = f.Report()
	lab.Eventually(t, soon, "the flow falls silent", func() error {
		switch r := f.Report(); {
		case r.Answered != silent.Answered:
			silent = r
			return fmt.Errorf("%s", r)
		case r.Sent < silent.Sent+5+r.UnderWay():
			return fmt.Errorf("only %d sent since", r.Sent-silent.Sent)
		}
		return nil
	})
	return silent
}

// B20, B31: UDP clients that keep sending from one port, while the policy becomes Local and the node's pods leave and
// come back. The outside one hears from no pod of another node, and is silent while there is none here. The one inside
// goes on all the time, though it was not redirected when it began; so do those that were, to whichever pod.
func TestB20UDPFlows(t *testing.T) {
	s := newStage(t).start()
	s.serveUDP(5353, s.pods()...)
	a, c := s.w.Pod("pod-a"), s.w.Pod("pod-c")
	for _, internal := range []bool{false, true} {
		local := policies{internalLocal: internal, externalLocal: true}
		t.Run(local.String(), func(t *testing.T) {
			each(t, func(t *testing.T, family int) {
				svc := balanced(dns(28), 28)
				s.apply(svc, a, c)
				to := s.frontends(svc, family)["LoadBalancer"]
				becomes(t, client{"outside", s.w.Client}, to, asks[1], family, outcome{pods: []string{"pod-a", "pod-c"}})
				outside, pod := flow(t, s.w.Client, to), flow(t, s.w.Pod("pod-b").Host, to)
				hears := func(f *lab.Flow, who string, from ...string) {
					t.Helper()
					before := f.Report()
					lab.Eventually(t, soon, fmt.Sprintf("%s hears from %v", who, from), func() error {
						r, heard := f.Report(), 0
						for _, name := range from {
							heard += r.ByPod[name] - before.ByPod[name]
						}
						if heard < 3 {
							return fmt.Errorf("%v", r.ByPod)
						}
						return nil
					})
				}
				hears(outside, "outside", "pod-a", "pod-c")
				hears(pod, "pod", "pod-a", "pod-c")
				s.apply(local.with(svc), a, c)
				wantReals(t, s.w.Node(1), to, netip.AddrPortFrom(a.Addr(family), 5353).String()+" 1")
				hears(outside, "outside, the policy being Local,", "pod-a")
				far := outside.Report().ByPod["pod-c"]
				inside := []*lab.Flow{pod}
				for range 4 {
					f := flow(t, s.w.Pod("pod-b").Host, to)
					hears(f, "pod, redirected,", "pod-a", "pod-c")
					inside = append(inside, f)
				}
				// The pod of the other node leaves: nothing of the frontend changes but where its redirected clients are.
				s.apply(local.with(svc), a)
				for i, f := range inside {
					hears(f, fmt.Sprintf("pod, only one here being left, flow %d,", i), "pod-a")
				}
				s.apply(local.with(svc), a, c)
				wantReals(t, s.w.Node(1), to, netip.AddrPortFrom(a.Addr(family), 5353).String()+" 1")
				s.apply(local.with(svc), c)
				becomes(t, client{"another client outside", s.w.Client}, to, asks[1], family, outcome{dropped: true})
				silent := falls(t, outside)
				for i, f := range inside {
					hears(f, fmt.Sprintf("pod, none being here, flow %d,", i), "pod-c")
				}
				if r := outside.Report(); r.Answered > silent.Answered {
					t.Errorf("outside heard %d times of a node without a pod", r.Answered-silent.Answered)
				}
				s.apply(local.with(svc), a, c)
				hears(outside, "outside, one being here again,", "pod-a")
				for _, f := range inside {
					hears(f, "pod", "pod-a", "pod-c")
				}
				if r := outside.Report(); r.ByPod["pod-c"] > far+r.UnderWay() {
					t.Errorf("outside heard %d times from another node's pod under policy Local", r.ByPod["pod-c"]-far)
				}
				s.apply(svc, a, c)
				becomes(t, client{"another client outside", s.w.Client}, to, asks[1], family, outcome{pods: []string{"pod-a", "pod-c"}})
				s.apply(svc, a)
				for i, f := range append(inside, outside) {
					hears(f, fmt.Sprintf("the policy being Cluster again, flow %d,", i), "pod-a")
				}
				// Served by another node's pod, which the frontend may keep for clients inside when the policy becomes Local.
				s.apply(svc, c)
				hears(outside, "outside, the policy being Cluster,", "pod-c")
				s.apply(local.with(svc), c)
				becomes(t, client{"another client outside", s.w.Client}, to, asks[1], family, outcome{dropped: true})
				silent = falls(t, outside)
				hears(pod, "pod, none being here,", "pod-c")
				if r := outside.Report(); r.Answered > silent.Answered {
					t.Errorf("outside heard %d times of a node without a pod, served by it before", r.Answered-silent.Answered)
				}
				for _, f := range append(inside, outside) {
					f.Stop()
				}
			})
		})
	}
}
