package traffic

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ipvs-proxy/ipvs-proxy/e2e/lab"
)

// B43: a scheduler whose kernel module is missing: rr serves in its place, evenly, and one line of the log says
// which module is missing and what to do.
func TestB43MissingScheduler(t *testing.T) {
	s := newStage(t)
	agent := s.w.StartAgent(t, s.w.Node(1), s.cluster, "--ipvs-scheduler=nonesuch")
	svc, later := web(43), web(44)
	s.apply(svc, s.pods()...)
	each(t, func(t *testing.T, family int) {
		answers(t, s.w.Pod("pod-a").Host, at(svc, family, 80))
		if byPod, lost := s.w.Pod("pod-a").Spread(at(svc, family, 80), 6); len(lost) > 0 || byPod["pod-a"] != 2 || byPod["pod-b"] != 2 {
			t.Errorf("6 requests: %v, lost %v; want 2 of each of three pods", byPod, lost)
		}
	})
	s.apply(later, s.pods()...)
	each(t, func(t *testing.T, family int) { answers(t, s.w.Pod("pod-a").Host, at(later, family, 80)) })
	lab.Eventually(t, soon, "the log says it", func() error {
		if n := strings.Count(agent.Log(), "modprobe ip_vs_nonesuch"); n == 0 {
			return fmt.Errorf("not a word of it")
		}
		return nil
	})
	lines := 0
	for line := range strings.Lines(agent.Log()) {
		if strings.Contains(line, "the kernel lacks a scheduler") {
			lines++
		}
	}
	if lines != 1 {
		t.Errorf("said %d times, want once:\n%s", lines, agent.Log())
	}
}

// B42: on a node with IPv6 switched off the agent serves IPv4, refuses nothing and says so once. When IPv6 is
// switched on it follows, without a restart; and when it is switched off again.
func TestB42WithoutIPv6(t *testing.T) {
	s := newStage(t)
	node, pod := s.w.Node(1), s.w.Pod("pod-a").Host
	if err := node.SwitchIPv6(false); err != nil {
		t.Fatal(err)
	}
	s.start()
	svc, plain := balanced(web(46), 46), web(47)
	s.apply(svc, s.w.Pod("pod-c"))
	s.apply(plain, s.w.Pod("pod-c"))
	serves := func(family int) {
		t.Helper()
		for kind, to := range s.frontends(svc, family) {
			for _, c := range []*lab.Host{pod, node.Host, s.w.Client} {
				answers(t, c, to)
			}
			t.Logf("IPv%d %s %s answers", family, kind, to)
		}
		answers(t, pod, at(plain, family, 80))
	}
	sixes := func() (found []string) {
		t.Helper()
		servers, err := node.VirtualServers()
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range servers {
			if v.Addr.Addr().Is6() {
				found = append(found, v.String())
			}
		}
		return found
	}
	programmed(t, s.agents[0])
	serves(4)
	if six := sixes(); len(six) > 0 {
		t.Errorf("IPv6 is off, and there are IPv6 virtual servers: %q", six)
	}
	if n := strings.Count(s.agents[0].Log(), `"switchedOff": true`); n != 1 {
		t.Errorf("said %d times that IPv6 is off, want once", n)
	}
	if err := node.SwitchIPv6(true); err != nil {
		t.Fatal(err)
	}
	serves(6)
	serves(4)
	if err := node.SwitchIPv6(false); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, soon, "no IPv6 virtual server is left", func() error {
		if six := sixes(); len(six) > 0 {
			return fmt.Errorf("%q", six)
		}
		return nil
	})
	serves(4)
}
