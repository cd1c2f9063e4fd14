package traffic

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// taken is the Service of a node that is taken over: new connections on 80, a kept one on 81, datagrams on 53.
func taken() lab.Service {
	svc := announced(web(54), "203.0.113.54", "fd20:113::54")
	svc.Type = "LoadBalancer"
	svc.Ports = []lab.Port{{Name: "http", Port: 80, TargetPort: 8080, NodePort: 30054}, {Name: "lines", Port: 81, TargetPort: 8081, NodePort: 30055},
		{Name: "dns", Protocol: "UDP", Port: 53, TargetPort: 5353, NodePort: 30056}}
	return svc
}

// traffic is what goes on through a change, from pod, node and outside, in both families.
type traffic struct {
	t     *testing.T
	names []string
	loads []*lab.Load
	kept  []*lab.Kept
	flows []*lab.Flow
	// ended: connections that began before then are not new ones any more; zero: there is no such time.
	ended time.Time
}

// goesOn starts it.
func (s *stage) goesOn(t *testing.T, svc lab.Service) *traffic {
	t.Helper()
	r := &traffic{t: t}
	for _, family := range []int{4, 6} {
		for _, c := range s.clients() {
			k, err := c.StartKept(at(svc, family, 81), 300*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			f, err := c.StartFlow(at(svc, family, 53), 500*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			r.kept, r.flows = append(r.kept, k), append(r.flows, f)
			to := []netip.AddrPort{at(svc, family, 80)}
			if c.name == "outside" {
				to = append(to, netip.AddrPortFrom(balancerAddr(svc, family), 80), netip.AddrPortFrom(s.w.Node(1).Addr(family), svc.Ports[0].NodePort))
			}
			for _, a := range to {
				r.names = append(r.names, c.name+" "+a.String())
				r.loads = append(r.loads, c.StartLoad(a, lab.LoadConfig{Rate: 2, Timeout: 20 * time.Second}))
			}
		}
	}
	r.more(2)
	return r
}

// more waits until everything has gone on for so many answers.
func (r *traffic) more(n int) {
	r.t.Helper()
	var before []int
	count := func() (all []int) {
		for _, l := range r.loads {
			all = append(all, l.Report().Sent)
		}
		for _, k := range r.kept {
			k := k.Report()
			if k.Err != nil || !r.ended.IsZero() {
				k.Answered = 1 << 30 // it says so in the end
			}
			all = append(all, k.Answered)
		}
		for _, f := range r.flows {
			all = append(all, f.Report().Sent)
		}
		return all
	}
	before = count()
	lab.Eventually(r.t, time.Minute, "traffic goes on", func() error {
		for i, now := range count() {
			if now < before[i]+n && now < 1<<29 {
				return fmt.Errorf("number %d: %d, was %d", i, now, before[i])
			}
		}
		return nil
	})
}

// loss is what was sent and lost in all.
type loss struct{ sent, lost, under, kept, broken, datagrams, missing int }

func (l loss) String() string {
	return fmt.Sprintf("%d new connections, %d lost, and %d that were under way; %d kept, %d broken; %d datagrams, %d lost",
		l.sent, l.lost, l.under, l.kept, l.broken, l.datagrams, l.missing)
}

// stop ends it and adds up.
func (r *traffic) stop() (sum loss) {
	r.t.Helper()
	for i, l := range r.loads {
		p := l.Stop()
		if sum.sent, sum.lost = sum.sent+p.Sent, sum.lost+p.Lost; p.Lost > 0 {
			r.t.Logf("%s: %s", r.names[i], p)
		}
		for _, l := range p.Losses {
			if p.Began.Add(l.At).Before(r.ended) {
				sum.lost, sum.under = sum.lost-1, sum.under+1
			}
		}
	}
	for _, k := range r.kept {
		p := k.Stop()
		if sum.kept++; p.Err != nil {
			sum.broken++
			r.t.Log(p)
		}
	}
	for _, f := range r.flows {
		p := f.Stop()
		if sum.datagrams, sum.missing = sum.datagrams+p.Sent, sum.missing+p.Lost-p.Late; p.Lost > 0 {
			r.t.Logf("%s, %d of them answered late", p, p.Late)
		}
	}
	return sum
}

// takenStage is a stage whose cluster has that Service, with two of its pods, and kube-proxy on node1, which has written nothing.
// Its nodes reach each other's pods through VXLAN, and what they send has checksums: the way that is broken most easily by
// what two proxies do with one packet.
func takenStage(t *testing.T) (*stage, *kubeProxy) {
	t.Helper()
	s := newStage(t, lab.Config{Overlay: true})
	for _, n := range s.w.Nodes {
		if err := n.ChecksumsOnTheWire(); err != nil {
			t.Fatal(err)
		}
	}
	s.serveUDP(5353, s.pods()...)
	for _, p := range s.pods() {
		if _, err := p.ServeLines(p.Name, 8081); err != nil {
			t.Fatal(err)
		}
	}
	k := &kubeProxy{t: t, s: s, n: s.w.Node(1), svc: taken(), pods: []*lab.Pod{s.w.Pod("pod-b"), s.w.Pod("pod-c")}}
	s.apply(k.svc, k.pods...)
	return s, k
}

// takeovers are the ways in which a node comes to us.
var takeovers = []struct {
	name   string
	legacy bool
	put    func(*kubeProxy)
}{
	{"iptables-nft", false, (*kubeProxy).iptables},
	{"iptables-legacy", true, (*kubeProxy).iptables},
	{"nftables", false, (*kubeProxy).nftables},
	{"ipvs", false, (*kubeProxy).ipvs},
	{"ipvs with iptables-legacy", true, (*kubeProxy).ipvs},
}

// B54: a node comes from each of kube-proxy's modes, which was stopped and has left everything. While the agent starts, takes
// over and takes out what was left, no new connection, no kept one and no datagram is lost, from pod, node and outside, in
// both families. From then on new connections and datagrams go where the cluster says, and a new port is served. The
// controls: with leftovers kept they go to an endpoint that has left, and the new port is refused after mode ipvs.
func TestB54TakeOver(t *testing.T) {
	for _, way := range takeovers {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keep %t", way.name, keep), func(t *testing.T) { takeOver(t, way.legacy, way.put, keep, strings.HasPrefix(way.name, "ipvs")) })
		}
	}
}

func takeOver(t *testing.T, legacy bool, put func(*kubeProxy), keep, ipvs bool) {
	s, proxy := takenStage(t)
	proxy.legacy = legacy
	n, svc := proxy.n, proxy.svc
	if ipvs { // virtual servers and addresses as kube-proxy's are made by an agent, whose table then goes
		first := s.w.StartAgent(t, n, s.cluster)
		programmed(t, first)
		if err := first.Stop(); err != nil {
			t.Fatal(err)
		}
		cleanup(t, n, 0, nil, "cleanup", "--keep-ipvs")
	}
	proxy.kubelet()
	put(proxy)
	each(t, func(t *testing.T, family int) {
		for _, from := range s.clients() {
			answers(t, from.Host, at(svc, family, 80))
		}
	})

	on := s.goesOn(t, svc)
	var args []string
	if keep {
		args = []string{"--config", ownFile(t, "takeover: {leftovers: Keep}")}
	}
	agent := s.w.StartAgent(t, n, s.cluster, args...)
	lab.Eventually(t, time.Minute, "the start is over", func() error {
		if !strings.Contains(agent.Log(), "all Services are programmed") {
			return fmt.Errorf("not said in the log")
		}
		return nil
	})
	if !keep {
		lab.Eventually(t, time.Minute, "what was left is taken out", func() error {
			if !strings.Contains(agent.Log(), "took out what kube-proxy left") {
				return fmt.Errorf("not said:\n%s", agent.Log())
			}
			return nil
		})
	}
	on.more(8)
	sum := on.stop()
	if t.Logf("through the change: %s", sum); sum.lost+sum.broken+sum.missing > 0 {
		t.Errorf("lost something")
	}
	lab.Figure(t, "new connections, kept connections and datagrams", sum.sent+sum.kept+sum.datagrams)
	lab.Figure(t, "lost", sum.lost+sum.broken+sum.missing)
	s.afterTakeOver(t, agent, proxy, keep, ipvs)
}

// afterTakeOver wants no trace of kube-proxy, and an endpoint that leaves to be left; of a node where leftovers are kept,
// the opposite.
func (s *stage) afterTakeOver(t *testing.T, agent *lab.Agent, proxy *kubeProxy, keep, ipvs bool) {
	t.Helper()
	n, svc, b := s.w.Node(1), proxy.svc, s.w.Pod("pod-b")
	left := proxy.rules() + nftList(t, n, "tables") + proxy.run("", "ipset", "list", "-n")
	for _, theirs := range []string{"KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-SEP-", "kube-proxy", "KUBE-CLUSTER-IP", "KUBE-6-IPVS-IPS"} {
		if strings.Contains(left, theirs) && !keep {
			t.Errorf("%s is left:\n%s", theirs, left)
		}
	}
	if !strings.Contains(left, "-A INPUT -j KUBE-FIREWALL") || !strings.Contains(left, ":KUBE-IPTABLES-HINT") {
		t.Errorf("the kubelet's are gone:\n%s", left)
	}
	svc.Ports = append(slices.Clone(svc.Ports), lab.Port{Name: "new", Port: 8000, TargetPort: 8080})
	s.apply(svc, b)
	each(t, func(t *testing.T, family int) {
		wantReals(t, n, at(svc, family, 8000), netip.AddrPortFrom(b.Addr(family), 8080).String()+" 1")
		for _, c := range s.clients() {
			byPod, lost := c.Spread(at(svc, family, 80), 6)
			stale := byPod["pod-c"] > 0 || len(lost) > 0
			if stale != (keep && !ipvs) {
				t.Errorf("%s, keep %t: %v, %v", c.name, keep, byPod, lost)
			}
		}
		r := s.w.Client.Ask(at(svc, family, 8000))
		if want := map[bool]lab.Verdict{false: lab.Answered, true: lab.Refused}[keep && ipvs]; r.Verdict != want && !(want == lab.Refused && r.Verdict == lab.TimedOut) {
			t.Errorf("a new port, keep %t: %s", keep, r)
		}
	})
	if strings.Contains(agent.Log(), "another proxy is at work") {
		t.Errorf("it took itself for another proxy:\n%s", agent.Log())
	}
}
