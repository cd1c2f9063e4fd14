//go:build kubeproxy

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

// contender is a proxy as its users choose it.
type contender struct {
	name, mode string // mode: kube-proxy's; empty: the agent
	// raid is what another program does to what the proxy has written.
	raid string
}

var contenders = []contender{
	{"ipvs-proxy", "", "ipvsadm -C"},
	{"kube-proxy ipvs", "ipvs", "ipvsadm -C"},
	{"kube-proxy iptables", "iptables", "iptables-nft -t nat -F KUBE-SERVICES"},
	{"kube-proxy nftables", "nftables", "nft delete table ip kube-proxy"},
}

// README's comparison: the same cluster of a thousand Services, from the same place, for the agent and for kube-proxy in
// each of its modes: how long until all of a sample answers after the start, how long until an endpoint more answers, and
// how long until there is an answer again after another program took away what the proxy had written. The times are an
// emulated processor's: they compare, and no more.
func TestCompareWithKubeProxy(t *testing.T) {
	program := kubeProxyProgram(t)
	for _, c := range contenders {
		if c.mode != "" && !hasMode(t, c.mode) {
			continue
		}
		t.Run(c.name, func(t *testing.T) { compare(t, c, program) })
	}
}

// raidTime is how long a contender has for finding out what another program took away.
const raidTime = 5 * time.Minute

func compare(t *testing.T, c contender, program string) {
	const services = 1000
	s := newStage(t)
	n := s.w.Node(1)
	sample := s.applyMany(services, s.w.Pod("pod-b"))
	from, began := s.w.Pod("pod-a").Host, time.Now()
	if c.mode == "" {
		s.w.StartAgent(t, n, s.cluster)
	} else {
		(&kubeProxy{t: t, s: s, n: n}).start(program, c.mode)
	}
	answered := func(within time.Duration) (time.Duration, error) {
		since := time.Now()
		left := slices.Clone(sample)
		err := lab.Until(within, func() error {
			for len(left) > 0 {
				if r := from.Ask(left[0], lab.Timeout(500*time.Millisecond)); r.Verdict != lab.Answered {
					return fmt.Errorf("%s: %s", left[0], r)
				}
				left = left[1:]
			}
			return nil
		})
		return time.Since(since), err
	}
	if _, err := answered(10 * time.Minute); err != nil {
		t.Fatalf("all of the sample answers: %v", err)
	}
	t.Logf("%s: %d Services answer after %.1f s", c.name, services, time.Since(began).Seconds())
	var took []time.Duration
	for i, to := range sample[:3] {
		took = append(took, s.oneMore(to, services/len(sample)*(i+1)-1, from))
	}
	slices.Sort(took)
	t.Logf("%s: an endpoint more answers after %s (median of %d)", c.name, took[len(took)/2].Round(time.Millisecond), len(took))
	shell(t, n, c.raid)
	for _, to := range sample { // it is gone
		if r := from.Ask(to, lab.Timeout(500*time.Millisecond)); r.Verdict == lab.Answered && strings.HasPrefix(c.name, "kube-proxy") {
			t.Errorf("%s answers after %q: %s", to, c.raid, r)
			break
		}
	}
	again, err := answered(raidTime)
	switch {
	case err == nil:
		t.Logf("%s: after %q there are answers again after %.1f s", c.name, c.raid, again.Seconds())
	case c.mode == "":
		t.Errorf("%s: after %q: %v", c.name, c.raid, err)
	default: // kube-proxy has its own reasons, and no duty here
		t.Logf("%s: after %q there are no answers within %s: %v", c.name, c.raid, raidTime, err)
	}
}

// applyMany makes Services with some pods, and gives the frontends of twenty of them.
func (s *stage) applyMany(services int, pods ...*lab.Pod) (sample []netip.AddrPort) {
	s.t.Helper()
	var objects []lab.Object
	for i := range services {
		svc := numbered(i)
		v4, _ := s.w.SlicesFor(svc, pods...)
		objects = append(objects, svc, v4)
		if every := services / 20; i%every == every-1 {
			sample = append(sample, at(svc, 4, 80))
		}
	}
	if err := s.cluster.Apply(objects...); err != nil {
		s.t.Fatal(err)
	}
	return sample
}

// numbered is one of many Services.
func numbered(i int) lab.Service {
	return lab.Service{Name: fmt.Sprintf("web%d", i), ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", 100+i/250, 1+i%250)}, Ports: []lab.Port{{Name: "http", Port: 80, TargetPort: 8080}}}
}

// oneMore gives a Service of one endpoint another one, and says how long it is until that answers.
func (s *stage) oneMore(to netip.AddrPort, i int, from *lab.Host) time.Duration {
	s.t.Helper()
	v4, _ := s.w.SlicesFor(numbered(i), s.w.Pod("pod-b"), s.w.Pod("pod-c"))
	began := time.Now()
	if err := s.cluster.Apply(v4); err != nil {
		s.t.Fatal(err)
	}
	lab.Eventually(s.t, 5*time.Minute, "the endpoint answers", func() error {
		if r := from.Ask(to, lab.Timeout(500*time.Millisecond)); r.Pod != "pod-c" {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	return time.Since(began)
}
